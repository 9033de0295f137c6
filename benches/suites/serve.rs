//! Serving an image that is in memory over a Unix socket, against nbdkit with the same bytes, asked by fio.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blockferry_benches::Result;
use blockferry_benches::bars;
use blockferry_benches::example;
use blockferry_benches::measure::{Input, Measured, measure_beside};
use blockferry_benches::report::Report;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_tests::process::{cpu_s, find, run as run_program};
use blockferry_tests::volume::Layout;
use blockferry_tests::wait::wait_for;
use serde_json::Value;

use crate::report;

/// Bytes of the image at most: it lies in memory three times, in two servers and in the page cache.
const IMAGE_MAX: u64 = 1 << 30;

/// Seed of the image.
const SEED: u64 = 43;

/// A server that loads its image may take as long.
const START: Duration = Duration::from_secs(60);

/// What fio is asked to do: name, flags, bytes read.
const JOBS: [(&str, &str, &str); 3] = [
    ("1 MiB sequential QD16", "--rw=read --bs=1M --iodepth=16", "8G"),
    ("4 KiB random QD64", "--rw=randread --bs=4k --iodepth=64", "1G"),
    ("4 KiB random QD1", "--rw=randread --bs=4k --iodepth=1", "200M"),
];

/// Servers: name, and the command with IMAGE and SOCKET in it.
const SERVERS: [(&str, &str); 4] = [
    (bars::OURS, "serve memory IMAGE SOCKET"),
    ("blockferry-file", "serve file IMAGE SOCKET"),
    ("nbdkit-memory", "nbdkit -f -U SOCKET -e disk memory SIZE"),
    ("nbdkit-file", "nbdkit -f -r -U SOCKET -e disk file IMAGE"),
];

/// A server at work, whose export is called `disk`; killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts `command` and waits until there is `socket`.
    pub(crate) fn start(command: &mut Command, socket: PathBuf) -> Result<Self> {
        // Left behind by a runner that was killed.
        let _ = fs::remove_file(&socket);
        let line = blockferry_tests::process::describe(command);
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("start {line}: {error}"))?;
        let server = Self { child, socket };
        wait_for("the socket", START, || server.socket.exists()).map_err(|failure| format!("{line}: {failure}"))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds nothing that has to be kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let size = options.size.min(IMAGE_MAX);
    let layout = Layout::mixed(SEED, size);
    let site = Site::prepare(
        &options.dir,
        "served",
        &layout,
        blockferry_tests::volume::Zeros::Written,
    )?;
    let mut left_out = Vec::new();
    let mut servers = Vec::new();
    for (name, line) in SERVERS.iter().filter(|(name, _)| options.wants(name)) {
        match start(&site, name, line) {
            Ok(server) => servers.push((*name, *line, server)),
            Err(failure) => left_out.push(format!("{name}: {failure}")),
        }
    }
    let mut rows = Vec::new();
    for job in JOBS {
        let site = &site;
        let contenders = servers.iter().map(|(name, line, server)| Contender {
            name: format!("{}, {name}", job.0),
            note: (*line).to_owned(),
            run: Box::new(move || fio(site, server, job.1, job.2, &|| 0.0)),
        });
        rows.extend(rounds::run(contenders.collect(), options.runs));
    }
    let about = format!(
        "fio's nbd engine reads a {} MiB image that its server has in memory, over a Unix socket. Time is that of the job in fio, \
         CPU and memory are fio's; the servers run side by side and one is asked at a time. Median of {}.",
        size >> 20,
        options.runs
    );
    let mut report = report("serve", about, &site, &[], rows, left_out);
    for program in ["nbdkit", "fio"] {
        let version = blockferry_benches::host::first_line(Command::new(program).arg("--version"));
        report.versions[program] = version.into();
    }
    report.bars = bars::serve(&report.rows, &JOBS.map(|job| job.0));
    Ok(report)
}

fn start(site: &Site, name: &str, line: &str) -> Result<Server> {
    let socket = site.dir.join(format!("{name}.sock"));
    let mut words = line.split_whitespace().map(|word| match word {
        "IMAGE" => site.image.clone(),
        "SOCKET" => socket.clone(),
        "SIZE" => site.size.to_string().into(),
        word => PathBuf::from(word),
    });
    let program = words.next().unwrap_or_default();
    let program = if program == Path::new("serve") {
        example::program("serve")?
    } else {
        find(&program.display().to_string(), &[]).ok_or("not installed")?
    };
    let server = Server::start(Command::new(program).args(words), socket.clone())?;
    if line.contains("SIZE") {
        let mut copy = Command::new("nbdcopy");
        copy.arg(&site.image).arg(uri(&server.socket));
        run_program(&mut copy).map_err(|failure| failure.to_string())?;
    }
    Ok(server)
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///disk?socket={}", socket.display())
}

/// Asks `server` to do the job `flags` until so many bytes were read. Time is that of the job in fio; `behind_s` tells the processor
/// seconds of the servers that this one asks.
pub(crate) fn fio(
    site: &Site,
    server: &Server,
    flags: &str,
    bytes: &str,
    behind_s: &dyn Fn() -> f64,
) -> Result<Measured> {
    let output = site.dir.join("fio.json");
    let mut fio = Command::new("fio");
    fio.args([
        "--name=serve",
        "--ioengine=nbd",
        "--output-format=json",
        "--randrepeat=1",
        "--norandommap",
    ]);
    fio.arg(format!("--uri={}", uri(&server.socket)));
    fio.arg(format!("--size={}", site.size))
        .arg(format!("--io_size={bytes}"));
    fio.args(flags.split_whitespace()).arg("--output").arg(&output);
    let served_s = cpu_s(server.child.id());
    // Servers are no other programs: they are what is measured.
    let servers_s = || cpu_s(server.child.id()) + behind_s();
    let mut measured = measure_beside(&mut fio, Input::Nothing, &site.dir, None, &servers_s)?;
    let served_s = cpu_s(server.child.id()) - served_s;
    let failed = |error: &dyn std::fmt::Display| format!("read {}: {error}", output.display());
    let text = fs::read_to_string(&output).map_err(|error| failed(&error))?;
    let report: Value = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    let read = &report["jobs"][0]["read"];
    measured.wall_s = read["runtime"].as_f64().ok_or_else(|| failed(&"no runtime"))? / 1000.0;
    measured.durable_s = 0.0;
    measured.output = Some(serde_json::json!({
        "serverCpuSeconds": served_s, "iops": read["iops"], "bytesPerSecond": read["bw_bytes"], "latencyNanosecondsMean": read["lat_ns"]["mean"],
    }));
    Ok(measured)
}
