//! Restores that are killed in the middle, and finished by a delta restore.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use blockferry_tests::volume::{BlockKind, Layout, LoopDevice, LoopOptions, Volume};
use blockferry_tests::wait::wait_for;

use crate::bad_input::support::{MIB, World, assert_same};

/// Far more than any step here takes, on any machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A restore running in the background; killed when dropped.
struct Running(Child);

impl Running {
    /// Slow enough that there is a middle: three seconds for 96 MiB.
    fn start(world: &World, target: &Path, args: &[&str]) -> Self {
        let target = target.display().to_string();
        let base = ["restore", "latest", &target, "--limit", "32MiB"];
        let mut command = world.ferry.command(base.iter().chain(args));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Kills it once `file` holds some of the bytes of `want`, and not all.
    fn kill_in_the_middle(mut self, file: &Path, want: &[u8]) {
        let child = &mut self.0;
        wait_for("a part of the volume", DEADLINE, || {
            assert!(
                child.try_wait().unwrap().is_none(),
                "the restore ended before it could be killed"
            );
            let have = fs::read(file).unwrap_or_default();
            let equal = have
                .chunks(1 << 20)
                .zip(want.chunks(1 << 20))
                .filter(|(a, b)| a == b)
                .count();
            equal >= 8
        })
        .unwrap();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        assert_ne!(fs::read(file).unwrap(), want, "it was killed too late to tell");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended, unless the test failed
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_restore_is_finished_by_delta() {
    let world = World::new();
    let layout = Layout::uniform(89, 96 * MIB, BlockKind::Random);
    let volume = Volume::create(&layout).unwrap();
    world.ferry.backup(volume.path(), &["--compression", "none"]).unwrap();
    let want = layout.bytes();
    for mode in [&[][..], &["--mode", "delta"]] {
        // A file that the restore makes, and a device that holds something else.
        let file = world.path(&format!("file-{}", mode.len()));
        Running::start(&world, &file, mode).kill_in_the_middle(&file, &want);
        let report = world
            .ferry
            .restore("latest", &file, &["--mode", "delta", "--verify"])
            .unwrap();
        assert_same(&fs::read(&file).unwrap(), &want);
        assert_eq!(report["verified"], true);
        assert!(report["bytesSkipped"].as_u64().unwrap() >= 8 * MIB, "{report}");
        assert!(report["bytesFetched"].as_u64().unwrap() < 90 * MIB, "{report}");

        let backing = world.path(&format!("backing-{}", mode.len()));
        fs::write(&backing, vec![0x66; want.len()]).unwrap();
        let device = LoopDevice::attach(&backing, LoopOptions::default()).unwrap();
        Running::start(&world, device.path(), mode).kill_in_the_middle(&backing, &want);
        let report = world
            .ferry
            .restore("latest", device.path(), &["--mode", "delta", "--verify"])
            .unwrap();
        drop(device);
        assert_same(&fs::read(&backing).unwrap(), &want);
        assert!(report["bytesSkipped"].as_u64().unwrap() >= 8 * MIB, "{report}");
    }
}
