//! A snapshot served from its repository as it is read: from a directory, from a bucket over a slow line, out of the cache on the disk;
//! against restores of the same, and a plain read of the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::cloud::{self, Cloud};
use blockferry_benches::measure::{Input, Measured, files_below, make_cold, measure};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_tests::process::run as run_program;
use blockferry_tests::proxy::{Proxy, Weather};
use blockferry_tests::volume::{Layout, Zeros};

use crate::report;
use crate::serve::{Server, fio};

/// Bytes of the volume at most: all of it fits into the cache on the disk.
const IMAGE_MAX: u64 = 2 << 30;

/// Seed of the image: that of the suite `mount`, which has the same.
const SEED: u64 = 44;

/// What a round trip of the line takes longer.
const LATENCY: Duration = Duration::from_millis(20);

/// Room of the cache: twice the volume.
const CACHE: &str = "4GiB";

const SEQUENTIAL: &str = "--rw=read --bs=1M --iodepth=16";
const RANDOM: &str = "--rw=randread --bs=4k --iodepth=16";
/// Bytes read at random: a tenth of the chunks, or more, are fetched for them.
const RANDOM_BYTES: &str = "16M";

/// A row: name, how, and one run of it.
type Job = (&'static str, &'static str, fn(&Bench<'_>) -> Result<Measured>);

struct Bench<'a> {
    site: &'a Site,
    tool: &'a Tool,
    cloud: &'a Cloud,
    line: &'a Proxy,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let (mut tools, left_out) = installed(options);
    tools.retain(|tool| tool.kind == Kind::Blockferry);
    let tool = tools.first().ok_or("blockferry is not built")?;
    let size = options.size.min(IMAGE_MAX);
    let site = Site::prepare(&options.dir, "hydrated", &Layout::mixed(SEED, size), Zeros::Written)?;
    site.vacant("warm-cache")?; // of another repository, where a runner was killed
    tool.create_repository(&site)?;
    let failed = |failure: blockferry_tests::Failure| failure.to_string();
    run_program(&mut tool.backup(&site)).map_err(failed)?;
    let cloud = Cloud::start(&site)?;
    cloud.create(tool, &site)?;
    run_program(&mut cloud.backup(tool, &site, None)).map_err(failed)?;
    let weather = Weather {
        latency: LATENCY,
        ..Weather::default()
    };
    let line = Proxy::start(&cloud.address(), 1, weather).map_err(failed)?;
    let bench = Bench {
        site: &site,
        tool,
        cloud: &cloud,
        line: &line,
    };
    let all: [Job; 7] = [
        (
            bars::LAZY_RESTORE,
            "blockferry restore, from a directory to a file",
            |bench| bench.directory_restore(),
        ),
        (
            bars::LAZY_SERVE,
            "blockferry serve of the same; fio 1 MiB, QD16",
            |bench| bench.directory(SEQUENTIAL, None),
        ),
        (bars::LAZY_RANDOM, "the same; fio 4 KiB at random, QD16", |bench| {
            bench.directory(RANDOM, Some(RANDOM_BYTES))
        }),
        (
            bars::LAZY_LINE_RESTORE,
            "blockferry restore over the line to a file",
            |bench| bench.line_restore(),
        ),
        (
            bars::LAZY_LINE_SERVE,
            "blockferry serve over the line, no cache",
            |bench| bench.line_serve(),
        ),
        (
            bars::LAZY_CACHE_FILE,
            "dd iflag=direct bs=1M of what the cache holds, in one file",
            |bench| bench.cache_file(),
        ),
        (
            bars::LAZY_CACHE_SERVE,
            "blockferry serve with all of it in the cache",
            |bench| bench.cache_serve(),
        ),
    ];
    let contenders = all
        .into_iter()
        .filter(|(name, _, _)| options.wants(name))
        .map(|(name, note, run)| {
            let bench = &bench;
            Contender {
                name: name.to_owned(),
                note: note.to_owned(),
                run: Box::new(move || run(bench)),
            }
        });
    let rows = rounds::run(contenders.collect(), options.runs);
    for name in ["restored", "blockferry", "cache-file", "warm-cache"] {
        site.vacant(name)?;
    }
    let about = format!(
        "A {} MiB image ({} MiB not zero) read front to back by fio over NBD from `blockferry serve`, whose repository is in a directory, \
         or in Garage on this machine behind a line with {} ms a round trip. The repository is cold. Time of rows that serve is that of \
         the job in fio, CPU and memory are fio's; that of a restore is all of it, with the key. Median of {}.",
        size >> 20,
        site.data_bytes >> 20,
        LATENCY.as_millis(),
        options.runs
    );
    let mut report = report("lazy", about, &site, &tools, rows, left_out);
    report.add_versions(cloud::versions());
    report.bars = bars::lazy(&report.rows);
    Ok(report)
}

impl Bench<'_> {
    fn directory_restore(&self) -> Result<Measured> {
        let target = self.site.vacant("restored")?;
        fs::create_dir(&target).map_err(|error| format!("create {}: {error}", target.display()))?;
        let mut restore = self.tool.restore(self.site, &target)?;
        make_cold(&self.tool.repository(self.site))?;
        measure(&mut restore, Input::Nothing, &self.site.dir, None)
    }

    fn directory(&self, flags: &str, bytes: Option<&str>) -> Result<Measured> {
        make_cold(&self.tool.repository(self.site))?;
        let mut serve = self.tool.command(self.site);
        serve.arg("serve").arg("--repo").arg(self.tool.repository(self.site));
        serve.arg("--password-file").arg(&self.site.password_file);
        self.serve(serve, flags, bytes)
    }

    fn line_restore(&self) -> Result<Measured> {
        let target = self.site.vacant("restored")?;
        self.cloud.make_cold()?;
        let mut restore = self
            .cloud
            .restore(self.tool, self.site, Some(&self.line.endpoint()), &target);
        self.cloud.measure(restore.arg("--no-cache"), self.site, Some(&target))
    }

    fn line_serve(&self) -> Result<Measured> {
        self.cloud.make_cold()?;
        let endpoint = self.line.endpoint();
        let serve = self
            .cloud
            .blockferry(self.tool, self.site, Some(&endpoint), &["serve", "--no-cache"]);
        self.serve(serve, SEQUENTIAL, None)
    }

    /// The folder of the cache, with all of the volume in it.
    fn cache(&self) -> Result<PathBuf> {
        let folder = self.site.dir.join("warm-cache");
        if !folder.exists() {
            self.serve(self.cached(), SEQUENTIAL, None)?;
        }
        Ok(folder)
    }

    fn cached(&self) -> Command {
        let mut serve = self
            .cloud
            .blockferry(self.tool, self.site, None, &["serve", "--cache-limit", CACHE]);
        serve.arg("--cache-dir").arg(self.site.dir.join("warm-cache"));
        serve
    }

    fn cache_file(&self) -> Result<Measured> {
        let file = self.site.vacant("cache-file")?;
        let mut cat = Command::new("sh");
        cat.args(["-ec", "out=$1; shift; cat \"$@\" >$out", "sh"]).arg(&file);
        let failed = |failure: blockferry_tests::Failure| failure.to_string();
        run_program(cat.args(files_below(&self.cache()?)?)).map_err(failed)?;
        make_cold(&file)?;
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", file.display()));
        dd.args(["of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
        measure(&mut dd, Input::Nothing, &self.site.dir, None)
    }

    fn cache_serve(&self) -> Result<Measured> {
        make_cold(&self.cache()?)?;
        self.serve(self.cached(), SEQUENTIAL, None)
    }

    /// Asks a fresh server, started by `command`.
    fn serve(&self, mut command: Command, flags: &str, bytes: Option<&str>) -> Result<Measured> {
        let socket = self.site.dir.join("lazy.sock");
        command.arg("disk=latest").arg("--socket").arg(&socket);
        command.args(["--progress", "none"]);
        let server = Server::start(&mut command, socket)?;
        let whole = self.site.size.to_string();
        let behind_s = || self.cloud.cpu_s();
        fio(self.site, &server, flags, bytes.unwrap_or(&whole), &behind_s)
    }
}
