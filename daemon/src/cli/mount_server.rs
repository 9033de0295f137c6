//! `blockferry mount-server`: the process behind a mount. Started by `blockferry mount` and `blockferry mounts --adopt`.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{debug, warn};

use super::mount::{Order, Report, State};
use super::{Global, commit, image};
use crate::error::{JobError, Result, chain};
use crate::mount::server::{Start, Started, harden};
use crate::mount::{Mode, Server, identity};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    state: State,
}

/// Longest order: a password, a few paths.
const ORDER_LEN_MAX: u64 = 1 << 20;

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<ExitCode> {
    let began = Instant::now();
    // Not with the terminal of the one who mounts: what happens to that is nothing to this process.
    let _ = rustix::process::setsid();
    let is_bounded = blockio::heap::bound();
    debug!(is_bounded, "heap of a server");
    let server = match start(arguments, global, began) {
        Ok(Started::Serving(server)) => server,
        Ok(Started::Already(status)) => {
            report(&Report::Already(status)).map_err(silent)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            let failed = Report::Failed {
                error: chain(&error),
                exit_code: error.exit_code(),
            };
            report(&failed).map_err(silent)?;
            return Ok(ExitCode::from(error.exit_code()));
        }
    };
    let stopper = server.stopper();
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|source| failed("install signal handlers", source))?;
    let spawned = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            stopper.stop();
        }
    });
    spawned.map_err(|source| failed("start a thread for signals", source))?;
    if let Err(gone) = report(&Report::Serving(Box::new(server.status()))) {
        // Nobody will ever know of this device: it was asked for by one who has given up.
        warn!(error = %gone, "nobody waits for this mount any more");
        server.stopper().stop();
    }
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

fn failed(what: &str, source: io::Error) -> JobError {
    JobError::File {
        what: what.to_owned(),
        source,
    }
}

fn silent(source: io::Error) -> JobError {
    failed("report to the one who mounts", source)
}

/// Says how it went, and lets go of the one who waits.
fn report(report: &Report) -> io::Result<()> {
    let line = serde_json::to_string(report).expect("plain data becomes JSON") + "\n";
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}

fn start(arguments: &Arguments, global: &Global, began: Instant) -> Result<Started> {
    let Order {
        password,
        wish,
        file_system,
    } = order()?;
    let root = arguments.state.root()?;
    let missing = match wish.mode {
        Mode::ReadOnly => Vec::new(),
        _ => harden(),
    };
    let repository = Arc::new(image::open_with(global, &password)?);
    let snapshot = image::snapshot(&repository, &wish.snapshot)?;
    image::require_complete(&snapshot)?;
    let image = repository.image(&snapshot)?;
    let identity = identity(&repository, &image);
    let log = move |path: &Path| {
        log_to(path)?;
        missing.iter().for_each(|missing| warn!("{missing}"));
        Ok(())
    };
    Server::start(Start {
        root: &root,
        wish: &wish,
        file_system: file_system.as_deref(),
        committer: commit::committer(&repository),
        repository,
        image,
        identity: &identity,
        log: &log,
        began,
    })
}

fn order() -> Result<Order> {
    let mut line = String::new();
    let read = io::stdin().lock().take(ORDER_LEN_MAX).read_line(&mut line);
    read.map_err(|source| failed("read what to mount from standard input", source))?;
    serde_json::from_str(&line).map_err(|error| {
        JobError::Usage(format!(
            "mount-server is started by `blockferry mount` and told on standard input what to do: {error}"
        ))
    })
}

/// What is logged from here on goes to the end of the file `path`.
fn log_to(path: &Path) -> Result<()> {
    let open = || -> io::Result<()> {
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        Ok(rustix::stdio::dup2_stderr(&file)?)
    };
    open().map_err(|source| failed(&format!("write the log {}", path.display()), source))
}
