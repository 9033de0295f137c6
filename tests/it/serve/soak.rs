//! Days of a server in minutes: everything that clients do, at once and again, while its memory stays what it was.

use std::fs;
use std::time::{Duration, Instant};

use blockferry_tests::rounds;
use blockferry_tests::volume::Layout;

use super::{MIB, Serving, world};

/// Seconds in CI, and of a soak.
const SECONDS: (u64, u64) = (12, 600);

/// Resident memory may be this much above what it was after the first quarter: buffers of a few more requests at once.
const SLACK: u64 = 24 << 20;

/// Bytes resident in a process.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn rounds_of_everything_at_once_take_no_more_memory() {
    let (world, _volume) = world(&Layout::mixed(71, 96 * MIB));
    let state = world.text("state");
    // Less than the volume, so that contents come and go.
    let args = ["latest", "--writable", "--state", &state, "--memory", "32MiB"];
    let serving = Serving::start(&world.ferry, &args);
    let begun = Instant::now();
    let time = Duration::from_secs(rounds(SECONDS.0, SECONDS.1));
    let mut seen = Vec::new();
    let mut round = 0u64;
    while begun.elapsed() < time || seen.len() < 4 {
        // A part of its own for the verifier, whatever else is written.
        let verify = format!(
            "fio --name=v --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --offset=64M --size=32M --io_size=4M --randseed={round} \
             --verify=crc32c --verify_fatal=1 --verify_state_save=0 --uri={{uri}} --output={{dir}}/fio"
        );
        std::thread::scope(|scope| {
            scope.spawn(|| serving.client(&verify));
            scope.spawn(|| serving.client("nbdcopy --connections=4 {uri} null:"));
            scope.spawn(|| serving.client("nbdinfo --map --totals {uri}"));
            scope.spawn(|| {
                serving.script(&format!(
                    "for n in range(40):\n\
                     \x20   at = (n * 7 + {round}) % 60\n\
                     \x20   h.zero(M // 2, at * M)\n\
                     \x20   h.trim(M // 4, at * M + M // 2)\n\
                     \x20   h.pwrite(b'x' * 700, at * M + 100)\n\
                     \x20   h.cache(M, at * M)\n\
                     \x20   assert h.pread(700, at * M + 100) == b'x' * 700\n\
                     \x20   if n % 10 == 0: h.flush()"
                ));
            });
        });
        seen.push(resident(serving.child.id()));
        round += 1;
    }
    let settled = *seen[..seen.len().div_ceil(4)].iter().max().unwrap();
    let last = *seen[seen.len() * 3 / 4..].iter().min().unwrap();
    eprintln!(
        "{round} rounds in {:?}: {} MiB, then {} MiB resident",
        begun.elapsed(),
        settled >> 20,
        last >> 20
    );
    assert!(last <= settled + SLACK, "memory grows: {seen:?}");
    assert_eq!(serving.stop("-TERM").code, Some(0));
}
