//! SIGINT and SIGTERM: the first asks for a clean stop, the second ends the process.

use std::sync::LazyLock;

use blockio::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{JobError, Result};

/// Exit code after the second signal, as a shell reports a program that SIGINT ended.
const KILLED: i32 = 130;

/// The token of this process. Storage is opened with it before, or without, a job that is told of signals.
static TOKEN: LazyLock<Cancel> = LazyLock::new(Cancel::new);

/// The token that [`cancel_on_signal`] connects with signals.
pub(crate) fn token() -> Cancel {
    TOKEN.clone()
}

/// A token that the first SIGINT or SIGTERM cancels.
pub(crate) fn cancel_on_signal() -> Result<Cancel> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM]).map_err(|e| JobError::Usage(format!("install signal handlers: {e}")))?;
    let token = token();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if token.is_cancelled() {
                std::process::exit(KILLED);
            }
            eprintln!("blockferry: stopping; once more to stop at once");
            token.cancel();
        }
    });
    Ok(self::token())
}
