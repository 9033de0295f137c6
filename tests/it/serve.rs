//! `blockferry serve`: snapshots as block devices, judged by other people's clients.

mod cached;
mod clients;
mod commit;
mod faults;
mod kinds;
mod refusals;
mod secure;
mod soak;
mod writable;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::process::run;
use blockferry_tests::volume::{Layout, Volume};
use blockferry_tests::wait::wait_for;
use serde_json::Value;

use crate::bad_input::support::World;

const MIB: u64 = 1 << 20;

/// Nothing in these tests takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A server in the background. Killed when dropped, if it was not stopped.
struct Serving {
    child: Child,
    /// What it printed when it was ready.
    document: Value,
    dir: tempfile::TempDir,
}

/// How a server ended.
struct Left {
    code: Option<i32>,
    log: String,
}

impl Serving {
    /// `blockferry serve` on a Unix socket with more `args`.
    #[track_caller]
    fn start(ferry: &Blockferry, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s").display().to_string();
        let args = args.iter().copied().chain(["--socket", &socket]);
        Self::spawn(ferry.command(["serve"].into_iter().chain(args)), dir)
    }

    #[track_caller]
    fn spawn(mut command: Command, dir: tempfile::TempDir) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut child = command
            .args(["--json", "-v"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut text = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // A document of several lines ends with a bracket of its own.
        while !text.ends_with("\n}\n") {
            if lines.read_line(&mut text).unwrap() == 0 {
                let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
                panic!("it did not begin to serve: {text}{log}");
            }
        }
        let document = serde_json::from_str(&text).unwrap();
        Self { child, document, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Address of an export.
    fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    /// Runs a client whose arguments are given in one string, in which `{uri}` and `{dir}` stand for the address of the export
    /// `latest` and a folder of this server.
    #[track_caller]
    fn client(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        for word in words {
            let word = word.replace("{uri}", &self.uri("latest"));
            command.arg(word.replace("{dir}", &self.dir.path().display().to_string()));
        }
        run(&mut command).unwrap()
    }

    /// Runs a script of libnbd in which `h` is connected to `latest`, `M` is 1 MiB, and `fails(offset, len)` asserts an input/output error.
    #[track_caller]
    fn script(&self, script: &str) {
        let text = format!(
            "import nbd, errno\n\
             M = 1 << 20\n\
             h = nbd.NBD()\n\
             h.add_meta_context('base:allocation')\n\
             h.connect_uri('{}')\n\
             def fails(offset, len):\n\
             \x20   try:\n\
             \x20       h.pread(len, offset)\n\
             \x20   except nbd.Error as error:\n\
             \x20       assert error.errnum == errno.EIO, error\n\
             \x20   else:\n\
             \x20       raise AssertionError((offset, len, 'went well'))\n\
             {script}\nh.shutdown()\n",
            self.uri("latest")
        );
        let mut python = Command::new("/usr/bin/python3");
        blockferry_tests::process::run_with_input(python.arg("-"), text.as_bytes()).unwrap();
    }

    /// All bytes of the export `latest`.
    #[track_caller]
    fn bytes(&self) -> Vec<u8> {
        self.client("nbdcopy --connections=4 {uri} {dir}/all");
        std::fs::read(self.dir.path().join("all")).unwrap()
    }

    /// What it has logged.
    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Ends it by a signal and waits.
    fn stop(mut self, signal: &str) -> Left {
        run(Command::new("kill").args([signal, &self.child.id().to_string()])).unwrap();
        let mut status = None;
        wait_for("the server to end", DEADLINE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .unwrap();
        Left {
            code: status.unwrap().code(),
            log: self.log(),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A repository with one snapshot of such a volume.
fn world(layout: &Layout) -> (World, Volume) {
    let world = World::new();
    let volume = Volume::create(layout).unwrap();
    world.ferry.backup(volume.path(), &[]).unwrap();
    (world, volume)
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}
