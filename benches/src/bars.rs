//! What the product has to reach: each bar with what was measured beside it, from pairs of the same round.

use crate::measure::Measured;
use crate::rounds::Row;
use crate::{MIB, device};

/// One bar: the measured figure may not exceed `limit`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What is measured.
    pub what: String,
    /// The most it may be.
    pub limit: f64,
    /// What it is; none when a row it needs did not run.
    pub measured: Option<f64>,
}

impl Bar {
    fn new(what: &str, limit: f64, measured: Option<f64>) -> Self {
        Self {
            what: what.to_owned(),
            limit,
            measured,
        }
    }

    /// A line of a Markdown table.
    pub fn line(&self) -> String {
        let (measured, verdict) = match self.measured {
            None => ("-".to_owned(), "not measured"),
            Some(value) if value <= self.limit => (format!("{value:.2}"), "holds"),
            Some(value) => (format!("{value:.2}"), "MISSED"),
        };
        format!("| {} | {:.2} | {measured} | {verdict} |", self.what, self.limit)
    }
}

/// Our row, and the one that hashes on the kernel of CPUs without AVX-512.
pub const OURS: &str = "blockferry";
/// See [`OURS`].
pub const OURS_AVX2: &str = "blockferry-avx2";

/// The bars of a full backup.
pub fn backup(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let ratio = |name: &str, figure: fn(&Measured) -> f64| find(OURS)?.ratio(find(name)?, figure);
    let cpu_per_mib = |name: &str| find(name)?.median(|run| run.cpu_s() * 1000.0 / (new_bytes(run) / MIB));
    let rss = find(OURS).and_then(|row| row.median(|run| run.rss_bytes as f64 / MIB));
    vec![
        Bar::new("wall by dd direct copy", 0.85, ratio(device::COPY, |run| run.wall_s)),
        Bar::new("CPU ms per new MiB, best kernel", 0.60, cpu_per_mib(OURS)),
        Bar::new("CPU ms per new MiB, AVX2 kernel", 0.95, cpu_per_mib(OURS_AVX2)),
        Bar::new("peak RSS MiB", 200.0, rss),
        Bar::new("wall by kopia", 1.0 / 3.0, ratio("kopia", |run| run.wall_s)),
        Bar::new("CPU by kopia", 0.25, ratio("kopia", Measured::cpu_s)),
    ]
}

/// The bars of a restore.
pub fn restore(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let ratio = |name: &str| find(OURS)?.ratio(find(name)?, |run| run.wall_s);
    let mut bars = vec![
        Bar::new(
            "wall by dd direct write of the non-zero bytes, from memory",
            1.1,
            ratio(device::WRITE),
        ),
        Bar::new("wall by dd direct copy of the image", 1.1, ratio(device::COPY)),
    ];
    bars.extend(["kopia", "restic", "borg"].map(|peer| Bar::new(&format!("wall by {peer}"), 1.0, ratio(peer))));
    bars
}

/// The bars of opening a repository with a million contents.
pub fn open(rows: &[Row]) -> Vec<Bar> {
    let ours = rows.iter().find(|row| row.name == OURS);
    let median = |figure: fn(&Measured) -> f64| ours.and_then(|row| row.median(figure));
    vec![
        Bar::new("wall s, key derivation included", 1.0, median(|run| run.wall_s)),
        Bar::new("peak RSS MiB", 120.0, median(|run| run.rss_bytes as f64 / MIB)),
    ]
}

/// The bars of a sparse TiB.
pub fn sparse(rows: &[Row]) -> Vec<Bar> {
    let ours = rows.iter().find(|row| row.name == OURS);
    let rss = ours.and_then(|row| row.median(|run| run.rss_bytes as f64 / MIB));
    vec![Bar::new("peak RSS MiB", 300.0, rss)]
}

/// The bars of serving: 1.2 times as fast as nbdkit, by each of the two ways in which it can have the bytes; alone in flight, no
/// slower. `jobs` are the names of the jobs, the last one being that.
pub fn serve(rows: &[Row], jobs: &[&str]) -> Vec<Bar> {
    let find = |job: &str, name: &str| rows.iter().find(|row| row.name == format!("{job}, {name}"));
    let mut bars = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        let limit = if number + 1 == jobs.len() { 1.0 } else { 1.0 / 1.2 };
        for peer in ["nbdkit-file", "nbdkit-memory"] {
            let ratio = || find(job, OURS)?.ratio(find(job, peer)?, |run| run.wall_s);
            bars.push(Bar::new(&format!("{job}, time by {peer}"), limit, ratio()));
        }
    }
    bars
}

/// What the program itself says it stored; not a number without that, so that no bar is met by an absence.
fn new_bytes(run: &Measured) -> f64 {
    let said = run.output.as_ref().and_then(|output| output["bytesNew"].as_u64());
    said.map_or(f64::NAN, |bytes| bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_whether_it_holds() {
        assert_eq!(Bar::new("x", 1.0, Some(0.5)).line(), "| x | 1.00 | 0.50 | holds |");
        assert_eq!(Bar::new("x", 1.0, Some(1.5)).line(), "| x | 1.00 | 1.50 | MISSED |");
        assert_eq!(Bar::new("x", 1.0, Some(f64::NAN)).line(), "| x | 1.00 | NaN | MISSED |");
        assert_eq!(Bar::new("x", 1.0, None).line(), "| x | 1.00 | - | not measured |");
        assert!(backup(&[]).iter().all(|bar| bar.measured.is_none()));
    }
}
