//! A virtual machine with a kernel that has what the host's kernel lacks: Debian's cloud kernel in QEMU, a first file system with
//! busybox and programs of ours, a script, and the console as the result.
//!
//! QEMU emulates the processor in software, so that this works on every machine; what takes time in it says nothing of speed.
//! `cargo xtask test` gets QEMU and the kernel. A machine starts in 6 to 8 seconds, so one script holds a group of cases.

mod archive;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Result, process};
use archive::Archive;

/// Seconds a machine may run when nothing else is said. Its work takes half a minute on an idle machine.
const RUN_S: u64 = 400;

/// MiB of memory. The first file system and all volumes of the tests are in it.
const MEMORY_MIB: u32 = 1536;

/// What the script of every machine begins with. A case that fails ends its machine.
const PRELUDE: &str = r#"
case_is() { NAME="$1"; echo "CASE $1"; }
die() { echo "FAILED $NAME: $*"; dmesg | tail -n 30; poweroff -f; }
must() { "$@" || die "$*"; }
must_not() { if "$@"; then die "succeeded: $*"; fi; }
await() { n=0; while ! eval "$1"; do n=$((n+1)); [ $n -lt 600 ] || die "waited for $1"; sleep 0.1; done; }
"#;

/// How the first process of a machine gets to the script.
const INIT: &str = r#"#!/bin/sh
echo "THE MACHINE IS UP"
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mkdir -p /mnt /run
. /script
echo "ALL CASES PASSED"
poweroff -f
"#;

/// Times that a machine is started whose kernel panics before [`INIT`]: with several threads QEMU 7.2 now and then runs into code that
/// the kernel is just patching (`Oops: int3` in the second second). No case has begun then.
const STARTS: u32 = 3;

/// Whether machines can be started, or may be left out because `cargo xtask test` could not get what they need and this is
/// not CI. Says so when it leaves them out.
pub fn is_wanted() -> bool {
    let ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    let skip = !ci && env::var_os("BLOCKFERRY_NO_VM").is_some();
    if skip {
        eprintln!("skipped: no virtual machine (BLOCKFERRY_NO_VM is set)");
    }
    !skip
}

/// What a machine has and does.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Modules of the kernel, loaded in this order before the script: names with parameters.
    pub modules: &'a [&'a str],
    /// Programs of the host, with the libraries they need, found by name in the machine.
    pub programs: &'a [PathBuf],
    /// Shell commands. `case_is`, `must`, `must_not`, `await` and `die` tell what is tested and what is wrong.
    pub script: &'a str,
    /// Seconds that it may run.
    pub seconds: u64,
    /// Files that are its disks `/dev/vda`, `/dev/vdb`, …, whose module is `virtio_blk`. What it has written is in the file when it
    /// is killed; of an image called `*.qcow2` it is not: new parts of it are entered into its tables with a flush.
    pub disks: &'a [&'a Path],
}

impl Default for Machine<'_> {
    fn default() -> Self {
        Self {
            modules: &[],
            programs: &[],
            script: "",
            seconds: RUN_S,
            disks: &[],
        }
    }
}

impl Machine<'_> {
    /// Starts it, waits for its end, and returns what it printed.
    ///
    /// # Errors
    /// When a case failed, with the console; when QEMU or the kernel is missing, with how to get it.
    pub fn run(&self) -> Result<String> {
        started(|| self.run_once())
    }

    fn run_once(&self) -> Result<String> {
        let folder = tempfile::tempdir().map_err(Failure::at("create folder for a machine"))?;
        let output = process::output(&mut self.command(folder.path())?, &[])?;
        let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        if console.contains("ALL CASES PASSED") {
            return Ok(console);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(format!(
            "the machine did not come to its end ({}):\n{console}\n{said}",
            output.status
        )))
    }

    /// Starts it, reads what it prints line by line until `is_enough` says so, and cuts its power. Returns all that was printed.
    ///
    /// # Errors
    /// When it ends by itself before, with the console; and as [`Machine::run`].
    pub fn run_until(&self, mut is_enough: impl FnMut(&str) -> bool) -> Result<String> {
        started(|| self.run_until_once(&mut is_enough))
    }

    fn run_until_once(&self, is_enough: &mut impl FnMut(&str) -> bool) -> Result<String> {
        let folder = tempfile::tempdir().map_err(Failure::at("create folder for a machine"))?;
        let mut qemu = self.command(folder.path())?;
        qemu.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut running = qemu.spawn().map_err(Failure::at("start QEMU"))?;
        let mut console = String::new();
        let mut lines = BufReader::new(running.stdout.take().expect("piped above"));
        let cut = loop {
            let before = console.len();
            let read = lines.read_line(&mut console).map_err(Failure::at("read the console"))?;
            if read == 0 {
                break false;
            }
            if is_enough(console[before..].trim_end()) {
                break true;
            }
        };
        if cut {
            // QEMU is the child of a `timeout`.
            let process = fs::read_to_string(folder.path().join("pid")).map_err(Failure::at("find QEMU"))?;
            process::run(Command::new("kill").args(["-KILL", process.trim()]))?;
        }
        // What was on its way.
        let _ = lines.read_to_string(&mut console);
        running.wait().map_err(Failure::at("wait for QEMU"))?;
        let console = console.replace('\r', "");
        match cut {
            true => Ok(console),
            false => Err(Failure::new(format!(
                "the machine ended before its power was cut:\n{console}"
            ))),
        }
    }

    /// QEMU, with its first file system in `folder`.
    fn command(&self, folder: &Path) -> Result<Command> {
        let kernel = Kernel::find()?;
        let initrd = folder.join("initrd");
        fs::write(&initrd, self.first_file_system(&kernel)?).map_err(Failure::at("write the first file system"))?;
        let mut qemu = Command::new("timeout");
        qemu.args([&self.seconds.to_string(), "qemu-system-x86_64", "-pidfile"])
            .arg(folder.join("pid"))
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                &MEMORY_MIB.to_string(),
            ])
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=ttyS0 quiet panic=-1 loglevel=4 mitigations=off"]);
        for disk in self.disks {
            let format = match disk.extension() {
                Some(extension) if extension == "qcow2" => "qcow2",
                _ => "raw",
            };
            qemu.arg("-drive")
                .arg(format!("file={},format={format},if=virtio", disk.display()));
        }
        Ok(qemu)
    }

    fn first_file_system(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in ["/proc", "/sys", "/dev", "/tmp", "/mnt", "/run"] {
            archive.folder(folder);
        }
        let busybox = program("busybox", "busybox-static")?;
        archive.file("/bin/busybox", 0o755, &read(&busybox)?);
        let applets = process::run(Command::new(&busybox).arg("--list"))?;
        for program in self.programs {
            add_program(&mut archive, program)?;
        }
        let mut load = String::new();
        for module in self.modules {
            let (name, parameters) = module.split_once(' ').unwrap_or((module, ""));
            for (file, bytes) in kernel.module(name)? {
                archive.file(&format!("/modules/{file}"), 0o644, &bytes);
                load.push_str(&format!("insmod /modules/{file} {parameters} 2>/dev/null\n"));
            }
        }
        // Programs of the host come before those of busybox.
        for applet in applets.lines() {
            let beside = ["bin", "sbin"].map(|folder| format!("/{folder}/{applet}"));
            if !beside.iter().any(|path| archive.has(path)) {
                archive.link(&format!("/bin/{applet}"), "busybox");
            }
        }
        archive.file("/script", 0o644, format!("{load}{PRELUDE}{}", self.script).as_bytes());
        archive.file("/init", 0o755, INIT.as_bytes());
        Ok(archive.finish())
    }
}

/// What `run` gives, from a machine whose kernel came up.
fn started(mut run: impl FnMut() -> Result<String>) -> Result<String> {
    for _ in 1..STARTS {
        match run().map_err(|failure| failure.to_string()) {
            Err(told) if told.contains("Kernel panic") && !told.contains("THE MACHINE IS UP") => {
                eprintln!("a kernel did not come up, and is started again: {told}");
            }
            ended => return ended.map_err(Failure::new),
        }
    }
    run()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Failure::at(format!("read {}", path.display())))
}

fn program(name: &str, package: &str) -> Result<PathBuf> {
    process::find(name, &["/usr/sbin".into(), "/sbin".into()]).ok_or_else(|| {
        Failure::new(format!(
            "no {name} here: `cargo xtask test` installs it, or apt-get install {package}"
        ))
    })
}

/// A program below /sbin, and its libraries where it looks for them.
fn add_program(archive: &mut Archive, program: &Path) -> Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    archive.file(&format!("/sbin/{name}"), 0o755, &read(program)?);
    // One that is linked statically makes ldd fail, and needs nothing.
    let listed = process::run(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        archive.file(library, 0o755, &read(Path::new(library))?);
    }
    Ok(())
}

/// Debian's cloud kernel, unpacked below the cache folder of our tools.
#[derive(Debug)]
struct Kernel {
    image: PathBuf,
    /// `lib/modules/VERSION`.
    modules: PathBuf,
}

impl Kernel {
    fn find() -> Result<Self> {
        let missing = || {
            Failure::new("no kernel for virtual machines: `cargo xtask test` unpacks it below ~/.cache/blockferry/vm")
        };
        let home = env::var_os("HOME").map(PathBuf::from).ok_or_else(missing)?;
        let root = home.join(".cache/blockferry/vm/kernel");
        let only = |folder: &Path, prefix: &str| {
            let entries = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            let mut found = entries.filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            });
            found.next()
        };
        Ok(Self {
            image: only(&root.join("boot"), "vmlinuz-").ok_or_else(missing)?,
            modules: only(&root.join("lib/modules"), "").ok_or_else(missing)?,
        })
    }

    /// A module and before it those that it needs: names of files, and their bytes.
    fn module(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let list = read(&self.modules.join("modules.dep"))?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let is_named = |path: &str| {
            let file = path.rsplit('/').next().unwrap_or(path);
            file.split('.')
                .next()
                .is_some_and(|stem| stem.replace('-', "_") == name.replace('-', "_"))
        };
        let line = list
            .lines()
            .find(|line| line.split(':').next().is_some_and(is_named))
            .ok_or_else(|| Failure::new(format!("the kernel has no module {name}")))?;
        let (own, needs) = line.split_once(':').unwrap_or((line, ""));
        // The list has what is needed last in front.
        let files = needs.split_whitespace().rev().chain([own]);
        files
            .map(|file| {
                let path = self.modules.join(file);
                let mut xz = Command::new(program("xz", "xz-utils")?);
                let unpacked = process::output(xz.arg("-dc").arg(&path), &[])?;
                if !unpacked.status.success() {
                    return Err(Failure::new(format!("xz cannot unpack {}", path.display())));
                }
                let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".xz");
                Ok((name.to_owned(), unpacked.stdout))
            })
            .collect()
    }
}
