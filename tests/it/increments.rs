//! Increments: chains judged by kopia, lists that lie, backups that are interrupted, and the rungs of the ladder.

mod chain;
mod contract;
mod journal;
mod ladder;
mod lies;
mod orphan;
mod ranges;
mod resume;
mod velero;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use blockferry_tests::process;
use blockferry_tests::wait::wait_for;

/// Starts `command`, sends it `signal` once `is_time`, and waits for its end, which must not have come before. Returns its exit code,
/// if it had one.
#[track_caller]
fn interrupt(mut command: Command, signal: &str, mut is_time: impl FnMut() -> bool) -> Option<i32> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the moment to interrupt", Duration::from_secs(120), || {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the backup ended before it was interrupted"
        );
        is_time()
    })
    .unwrap();
    process::run(Command::new("kill").args(["-s", signal, &child.id().to_string()])).unwrap();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(!status.success(), "{stderr}");
    status.code()
}
