//! Backup and restore over a line of 50 ms and limited bandwidth, against what the line itself takes.

use std::time::Duration;

use blockferry_benches::bars;
use blockferry_benches::cloud::{self, Cloud};
use blockferry_benches::measure::{Measured, make_cold};
use blockferry_benches::report::Report;
use blockferry_benches::requests;
use blockferry_benches::rounds::{self, Contender};
use blockferry_benches::site::{Options, Site};
use blockferry_benches::tool::{Kind, Tool, installed};
use blockferry_benches::{MIB, Result};
use blockferry_tests::proxy::{Proxy, Record, Weather};
use serde_json::{Value, json};

use crate::report;
use crate::store_restore::compared;

/// What a round trip takes longer.
const LATENCY: Duration = Duration::from_millis(50);

/// How much faster than the line a run without it has to be. At less, server and program are part of what is measured.
const HEADROOM_MIN: f64 = 1.25;

pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut site = Site::mixed(&options.dir, options.size)?;
    let (mut tools, left_out) = installed(options);
    tools.retain(|tool| tool.kind == Kind::Blockferry);
    let ready = match tools.first() {
        None => None,
        Some(tool) => {
            eprintln!("backing up for the restore");
            let cloud = Cloud::start(&site)?;
            cloud.create(tool, &site)?;
            cloud.measure(&mut cloud.backup(tool, &site, None), &site, None)?;
            Some((tool, cloud))
        }
    };
    let mut contenders = Vec::new();
    if let Some((tool, cloud)) = &ready {
        for (name, line) in [(bars::UPLOAD, Some(options.line)), (bars::UPLOAD_DIRECT, None)] {
            contenders.push(upload(&site, tool, name, line));
        }
        for (name, line) in [(bars::DOWNLOAD, Some(options.line)), (bars::DOWNLOAD_DIRECT, None)] {
            contenders.push(download(&site, tool, cloud, name, line));
        }
    }
    contenders.retain(|contender| {
        let blockferry = options.only.iter().any(|only| only == bars::OURS);
        blockferry || options.wants(&contender.name)
    });
    let rows = rounds::run(contenders, options.runs);
    site.vacant(Kind::Blockferry.name())?;
    let about = format!(
        "Backup and restore of a {} MiB image ({} MiB not zero) to and from Garage over a line with {} ms a round trip and {} MiB/s \
         each way for all connections together, and without that line. Median of {}. The rate counts what is not zero.",
        site.size >> 20,
        site.data_bytes >> 20,
        LATENCY.as_millis(),
        options.line >> 20,
        options.runs
    );
    site.size = site.data_bytes;
    let mut report = report("latency", about, &site, &tools, rows, left_out);
    report.add_versions(cloud::versions());
    report.bars = bars::latency(&report.rows);
    report.flaws = bars::latency_flaws(&report.rows, HEADROOM_MIN);
    report.details = format!("{}\n{}", lines(&report.rows), requests::table(&report.rows));
    Ok(report)
}

fn upload<'a>(site: &'a Site, tool: &'a Tool, name: &str, line: Option<u64>) -> Contender<'a> {
    let run = move || {
        let cloud = Cloud::start(site)?;
        cloud.create(tool, site)?;
        make_cold(&site.image)?;
        let line = line.map(|bandwidth| Line::start(&cloud, bandwidth)).transpose()?;
        let endpoint = line.as_ref().map(|line| line.proxy.endpoint());
        let mut backup = cloud.backup(tool, site, endpoint.as_deref());
        let mut measured = cloud.measure(&mut backup, site, None)?;
        if let Some(line) = line {
            line.tell(&mut measured, |record| record.sent);
        }
        Ok(measured)
    };
    contender(name, "backup", line, Box::new(run))
}

fn download<'a>(site: &'a Site, tool: &'a Tool, cloud: &'a Cloud, name: &str, line: Option<u64>) -> Contender<'a> {
    let run = move || {
        let target = site.vacant("restored")?;
        cloud.make_cold()?;
        let line = line.map(|bandwidth| Line::start(cloud, bandwidth)).transpose()?;
        let endpoint = line.as_ref().map(|line| line.proxy.endpoint());
        let mut restore = cloud.restore(tool, site, endpoint.as_deref(), &target);
        let mut measured = cloud.measure(&mut restore, site, Some(&target))?;
        if let Some(line) = line {
            line.tell(&mut measured, |record| record.received);
        }
        compared(site).map(|()| measured)
    };
    contender(name, "restore", line, Box::new(run))
}

fn contender<'a>(
    name: &str,
    job: &str,
    line: Option<u64>,
    run: Box<dyn FnMut() -> Result<Measured> + 'a>,
) -> Contender<'a> {
    let way = if line.is_some() {
        "over the line"
    } else {
        "without the line"
    };
    Contender {
        name: name.to_owned(),
        note: format!("{job} {way}"),
        run,
    }
}

/// The slow line.
struct Line {
    proxy: Proxy,
    bandwidth: u64,
}

impl Line {
    fn start(cloud: &Cloud, bandwidth: u64) -> Result<Self> {
        let weather = Weather {
            latency: LATENCY,
            bandwidth: Some(bandwidth),
            ..Weather::default()
        };
        let proxy = Proxy::start(&cloud.address(), 1, weather).map_err(|failure| failure.to_string())?;
        Ok(Self { proxy, bandwidth })
    }

    /// Adds what the line saw to what the program printed: bytes of bodies in the direction that counts, and the shortest time in
    /// which the line moves them, one round trip and the bytes at full bandwidth.
    fn tell(&self, measured: &mut Measured, bytes: fn(&Record) -> u64) {
        let records = self.proxy.records();
        let bytes: u64 = records.iter().map(bytes).sum();
        let least_s = bytes as f64 / self.bandwidth as f64 + LATENCY.as_secs_f64();
        if let Some(Value::Object(output)) = &mut measured.output {
            let line = json!({
                "requests": records.len(), "bytes": bytes, "leastSeconds": least_s,
                "inFlightMax": self.proxy.in_flight_max(),
            });
            output.insert("line".to_owned(), line);
        }
    }
}

/// What the line saw in the last run of each row.
fn lines(rows: &[rounds::Row]) -> String {
    let mut text = "| over the line | requests | MiB | most in flight | least s | took s | of the limit |\n\
                    |---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        let Some(run) = row.runs.last() else { continue };
        let line = run.output.as_ref().map_or(&Value::Null, |output| &output["line"]);
        if let (Some(bytes), Some(least_s)) = (line["bytes"].as_u64(), line["leastSeconds"].as_f64()) {
            text.push_str(&format!(
                "| {} | {} | {:.1} | {} | {least_s:.2} | {:.2} | {:.0} % |\n",
                row.name,
                line["requests"],
                bytes as f64 / MIB,
                line["inFlightMax"],
                run.wall_s - run.durable_s,
                100.0 * least_s / (run.wall_s - run.durable_s)
            ));
        }
    }
    text
}
