//! Mounting: how soon there is a device, what a first mount of a file system fetches, how fast a volume is hydrated while it is read, and
//! what the server takes. By FUSE and a loop device, which every host has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::measure::{Input, Measured, measure, measure_beside};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::process::{cpu_s, run as run_program};
use blockferry_tests::volume::{Layout, Zeros};
use serde_json::{Value, json};

use crate::report;

/// Volumes: 1 TiB with a GiB of data, as in the suite `sparse`; 100 GiB with a file system; one that is hydrated.
const SPARSE: (u64, usize) = (1 << 40, 1024);
/// See [`SPARSE`].
const EXT4: u64 = 100 << 30;
/// See [`SPARSE`].
const HYDRATED_MAX: u64 = 2 << 30;
/// Seed of what is hydrated.
const SEED: u64 = 44;

/// How what readers wait is measured beside hydration, and without it: 5 s are as long as the smaller runs of hydration take.
const FIO: &str =
    "--name=r --ioengine=io_uring --direct=1 --rw=randread --bs=4k --iodepth=4 --time_based --runtime=5 --readonly";

/// A row: name, how, and one run of it.
type Job = (&'static str, &'static str, fn(&Bench<'_>, &Path) -> Result<Measured>);

/// What all of them need.
struct Bench<'a> {
    site: &'a Site,
    tool: &'a Tool,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let (tools, left_out) = installed(options);
    let tool = tools
        .iter()
        .find(|tool| tool.kind == Kind::Blockferry)
        .ok_or("blockferry is not built")?;
    let sparse = Site::sparse(&options.dir, SPARSE.0, SPARSE.1)?;
    let size = options.size.min(HYDRATED_MAX);
    let mixed = Site::prepare(&options.dir, "hydrated", &Layout::mixed(SEED, size), Zeros::Written)?;
    let ext4 = file_system(&sparse)?;
    let bench = Bench { site: &sparse, tool };
    tool.create_repository(&sparse)?;
    for (name, image) in [("sparse", &sparse.image), ("ext4", &ext4), ("mixed", &mixed.image)] {
        let site = Site {
            image: image.clone(),
            ..sparse.clone()
        };
        let mut backup = tool.backup(&site);
        backup.args(["--as", &source(name)]);
        run_program(&mut backup).map_err(|failure| failure.to_string())?;
    }
    let empty = bench.empty_repository()?;
    let all: [Job; 8] = [
        (
            bars::KEY,
            "blockferry snapshots of an empty repository: key derivation",
            |bench, empty| bench.snapshots(empty),
        ),
        (
            bars::MOUNT_CACHED,
            "mount of 1 TiB and one direct read at each end, index cached",
            |bench, _| bench.mount("sparse", &[]),
        ),
        (bars::MOUNT_UNCACHED, "the same with --no-cache", |bench, _| {
            bench.mount("sparse", &["--no-cache"])
        }),
        (bars::MOUNT_EXT4, "mount --fs of 100 GiB of ext4, ls", |bench, _| {
            bench.first_mount()
        }),
        (
            bars::RESTORE,
            "blockferry restore of what is hydrated, to a file of the same bytes",
            |bench, _| bench.restore(),
        ),
        (
            bars::HYDRATE,
            "mount --into a file, until it is complete",
            |bench, _| bench.hydrate(false),
        ),
        (bars::HYDRATE_READ, "the same while fio reads", |bench, _| {
            bench.hydrate(true)
        }),
        (bars::READ_ALONE, "fio on a mount that is not hydrated", |bench, _| {
            bench.read_alone()
        }),
    ];
    let contenders = all
        .into_iter()
        .filter(|(name, _, _)| options.wants(name))
        .map(|(name, note, run)| {
            let (bench, empty) = (&bench, &empty);
            Contender {
                name: name.to_owned(),
                note: note.to_owned(),
                run: Box::new(move || run(bench, empty)),
            }
        });
    let rows = rounds::run(contenders.collect(), options.runs);
    bench.tidy()?;
    let about = format!(
        "Mounts by FUSE and a loop device from a repository in a directory: a sparse volume of 1 TiB with {} MiB of data, 100 GiB of \
         ext4, and {} MiB that are hydrated into a file while fio reads 4 KiB at random, QD4 ({FIO}). Memory is that of the server. \
         Median of {}.",
        SPARSE.1,
        size >> 20,
        options.runs
    );
    let mut report = report("mount", about, &sparse, &tools, rows, left_out);
    report.bars = bars::mount(&report.rows);
    Ok(report)
}

/// An ext4 of 100 GiB with some files on it.
fn file_system(site: &Site) -> Result<PathBuf> {
    let image = site.dir.join("ext4.raw");
    if !image.is_file() {
        let failed = |failure: blockferry_tests::Failure| failure.to_string();
        let tree = site.vacant("tree")?;
        fs::create_dir(&tree).map_err(|error| format!("make a folder: {error}"))?;
        for number in 0..500 {
            let bytes = Layout::mixed(number, 64 << 10).bytes();
            fs::write(tree.join(number.to_string()), bytes).map_err(|error| format!("write a file: {error}"))?;
        }
        let partial = site.vacant("partial.raw")?;
        run_program(Command::new("truncate").args(["-s", &EXT4.to_string()]).arg(&partial)).map_err(failed)?;
        run_program(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-d"])
                .arg(&tree)
                .arg(&partial),
        )
        .map_err(failed)?;
        fs::rename(&partial, &image).map_err(|error| format!("rename the image: {error}"))?;
        site.vacant("tree")?;
    }
    Ok(image)
}

impl Bench<'_> {
    fn text(&self, name: &str) -> String {
        self.site.dir.join(name).display().to_string()
    }

    /// A shell that has `ferry` for the program with its repository and state.
    fn shell(&self, script: &str) -> Command {
        let ferry = self.tool.command(self.site);
        let mut shell = Command::new("sh");
        shell.args([
            "-ec",
            &format!("ferry() {{ {:?} \"$@\"; }}\n{script}", ferry.get_program()),
        ]);
        let set = ferry.get_envs().filter_map(|(name, value)| Some((name, value?)));
        shell.envs(set);
        shell
            .env("BLOCKFERRY_REPO", self.tool.repository(self.site))
            .env("BLOCKFERRY_PASSWORD", blockferry_benches::site::PASSWORD)
            .env("BLOCKFERRY_STATE", self.site.dir.join("state"));
        shell
    }

    fn say(&self, script: &str) -> Result<String> {
        run_program(&mut self.shell(script)).map_err(|failure| failure.to_string())
    }

    /// Runs `script`, which leaves the mount `b`; adds what its server took and tells, and takes it away.
    fn with_server(&self, script: &str) -> Result<Measured> {
        let measured = measure_beside(
            &mut self.shell(script),
            Input::Nothing,
            &self.site.dir,
            None,
            &servers_s,
        );
        let told = self.say("ferry mounts --json; ferry unmount b --discard --force >/dev/null");
        let mut measured = measured?;
        let document: Value = serde_json::from_str(&told?).map_err(|error| format!("what mounts said: {error}"))?;
        let row = &document["mounts"][0];
        let pid = row["pid"].as_u64().ok_or("no server")?;
        measured.output = Some(json!({"mount": row, "pid": pid, "said": measured.output}));
        Ok(measured)
    }

    /// Peak memory of the server, which has to live for that.
    const PEAK: &'static str =
        "grep VmHWM /proc/$(ferry mounts --json | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p')/status >PEAK\n";

    fn measured(&self, script: &str) -> Result<Measured> {
        let peak = self.text("peak");
        let mut measured = self.with_server(&(script.to_owned() + &Self::PEAK.replace("PEAK", &peak)))?;
        let text = fs::read_to_string(&peak).map_err(|error| format!("read {peak}: {error}"))?;
        let kib = text.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
        measured.rss_bytes = kib.ok_or("no peak memory")? * 1024;
        Ok(measured)
    }

    fn empty_repository(&self) -> Result<PathBuf> {
        let empty = self.site.vacant("empty")?;
        self.say(&format!("ferry repo create {empty:?} >/dev/null"))?;
        Ok(empty)
    }

    fn snapshots(&self, repository: &Path) -> Result<Measured> {
        let script = format!("ferry snapshots --repo {repository:?} --no-cache >/dev/null");
        measure(&mut self.shell(&script), Input::Nothing, &self.site.dir, None)
    }

    /// Until the device gives bytes.
    fn mount(&self, name: &str, flags: &[&str]) -> Result<Measured> {
        let script = format!(
            "d=$(ferry mount {} --name b --attach fuse {})\n\
             dd if=$d of=/dev/null bs=4k count=1 iflag=direct status=none\n\
             dd if=$d of=/dev/null bs=4k count=1 iflag=direct status=none skip=$(($(blockdev --getsize64 $d) / 4096 - 1))\n",
            latest(name),
            flags.join(" ")
        );
        self.measured(&script)
    }

    fn first_mount(&self) -> Result<Measured> {
        let folder = self.site.dir.join("fs");
        fs::create_dir_all(&folder).map_err(|error| format!("make a folder: {error}"))?;
        self.say(&format!("rm -rf {}", self.text("state/touches")))?; // what an earlier mount touched first
        let script = format!(
            "ferry mount {} --name b --attach fuse --fs {folder:?} >/dev/null\nls {folder:?} >/dev/null\n",
            latest("ext4")
        );
        self.measured(&script)
    }

    fn target(&self) -> Result<String> {
        let target = self.site.vacant("target")?;
        let size = format!("truncate -s {} {target:?}", self.site_of_mixed());
        self.say(&size)?;
        Ok(target.display().to_string())
    }

    fn site_of_mixed(&self) -> u64 {
        let images = fs::read_dir(&self.site.dir).into_iter().flatten().flatten();
        let image = images.filter(|entry| entry.file_name().to_string_lossy().starts_with("hydrated-"));
        image
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .max()
            .unwrap_or(0)
    }

    fn restore(&self) -> Result<Measured> {
        let target = self.target()?;
        let script = format!("ferry restore {} {target} --force >/dev/null", latest("mixed"));
        measure(&mut self.shell(&script), Input::Nothing, &self.site.dir, None)
    }

    fn hydrate(&self, is_read: bool) -> Result<Measured> {
        let target = self.target()?;
        self.say(&format!("rm -rf {}", self.text("state/touches")))?;
        let fio = self.text("fio.json");
        let reads = match is_read {
            true => format!("fio {FIO} --filename=$d --output-format=json --output={fio} & reader=$!\n"),
            false => "reader=\n".to_owned(),
        };
        // Time is that until it is complete, which the script tells: the reader may take longer.
        let script = format!(
            "begun=$(date +%s%N)\n\
             d=$(ferry mount {} --name b --attach fuse --accept-fragile --into {target})\n{reads}\
             until ferry mounts --json | grep -q '\"state\": \"complete\"'; do sleep 0.02; done\n\
             echo $(($(date +%s%N) - begun)) >{}\n\
             [ -z \"$reader\" ] || wait $reader\n",
            latest("mixed"),
            self.text("took")
        );
        let mut measured = self.measured(&script)?;
        let took = fs::read_to_string(self.text("took")).map_err(|error| format!("read the time: {error}"))?;
        measured.wall_s = took
            .trim()
            .parse::<f64>()
            .map_err(|error| format!("the time: {error}"))?
            / 1e9;
        if is_read {
            measured.output = Some(p99(&fio)?);
        }
        Ok(measured)
    }

    fn read_alone(&self) -> Result<Measured> {
        let fio = self.text("fio.json");
        let script = format!(
            "d=$(ferry mount {} --name b --attach fuse --accept-fragile --writable)\n\
             fio {FIO} --filename=$d --output-format=json --output={fio}\n",
            latest("mixed")
        );
        let mut measured = self.measured(&script)?;
        measured.output = Some(p99(&fio)?);
        Ok(measured)
    }

    fn tidy(&self) -> Result<()> {
        for name in ["state", "empty", "target", "fs", "blockferry"] {
            self.site.vacant(name)?;
        }
        Ok(())
    }
}

/// What fio says of the time that reads took.
fn p99(path: &str) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))?;
    let report: Value = serde_json::from_str(&text).map_err(|error| format!("what fio said: {error}"))?;
    let read = &report["jobs"][0]["read"];
    Ok(json!({
        "p99Nanoseconds": read["clat_ns"]["percentile"]["99.000000"], "meanNanoseconds": read["clat_ns"]["mean"], "iops": read["iops"],
    }))
}

/// What the volume `name` is backed up as.
fn source(name: &str) -> String {
    format!("bench@bench:/{name}")
}

/// The newest snapshot of the volume `name`.
fn latest(name: &str) -> String {
    format!("latest:{}", source(name))
}

/// Processor seconds of all servers of mounts.
fn servers_s() -> f64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_server = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"mount-server")
    };
    let ids = processes
        .filter(is_server)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.map(cpu_s).sum()
}
