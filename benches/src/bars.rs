//! What the product has to reach: each bar with what was measured beside it, from pairs of the same round.

use crate::measure::Measured;
use crate::rounds::Row;
use crate::{MIB, device, requests};

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

/// Ours with its repository in a directory, where [`OURS`] has it in a bucket.
pub const DIRECTORY: &str = "directory";
/// A plain client that puts the same objects.
pub const RAW_PUT: &str = "raw-put";
/// A plain client that gets all objects.
pub const RAW_GET: &str = "raw-get";
/// Backup over the slow line, and without it.
pub const UPLOAD: &str = "backup";
/// See [`UPLOAD`].
pub const UPLOAD_DIRECT: &str = "backup-direct";
/// Restore over the slow line, and without it.
pub const DOWNLOAD: &str = "restore";
/// See [`DOWNLOAD`].
pub const DOWNLOAD_DIRECT: &str = "restore-direct";
/// Ours with a filled local cache, where [`OURS`] has an empty one.
pub const OURS_CACHED: &str = "blockferry-cached";
/// Our look at whether all contents of an image are alive.
pub const OURS_LIVENESS: &str = "blockferry-liveness";

/// Opening the repository and nothing else.
pub const OPEN: &str = "open";
/// The changed bytes as a volume of their own.
pub const ALONE: &str = "alone";

/// Seconds of the data path of a run of ours: opening the repository is not in it.
fn data_path_s(run: &Measured) -> f64 {
    said(run, &["durationMs"]) / 1000.0
}

/// The bars of an increment.
pub fn increment(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let ours = find(OURS);
    let open_cpu = find(OPEN).and_then(|row| row.median(Measured::cpu_s));
    let own_cpu = || Some(ours?.median(Measured::cpu_s)? - open_cpu?);
    // What was read beyond what is new and what was audited.
    let beyond =
        |run: &Measured| said(run, &["bytesRead"]) - said(run, &["bytesNew"]) - said(run, &["auditedBlocks"]) * MIB;
    vec![
        Bar::new("data path: wall s", 0.35, ours.and_then(|row| row.median(data_path_s))),
        Bar::new("CPU s beyond opening", 0.2, own_cpu()),
        Bar::new(
            "whole command: wall s",
            1.0,
            ours.and_then(|row| row.median(|run| run.wall_s)),
        ),
        Bar::new(
            "MiB read beyond changes and audit",
            0.0,
            ours.and_then(|row| row.median(|run| beyond(run) / MIB)),
        ),
    ]
}

/// The bars of an increment in which nothing changed.
pub fn unchanged(rows: &[Row]) -> Vec<Bar> {
    let ours = rows.iter().find(|row| row.name == OURS);
    let median = |figure: fn(&Measured) -> f64| ours.and_then(|row| row.median(figure));
    vec![
        Bar::new("data path: wall s", 1.0, median(data_path_s)),
        Bar::new("whole command: wall s", 3.0, median(|run| run.wall_s)),
        Bar::new("peak RSS MiB", 200.0, median(|run| run.rss_bytes as f64 / MIB)),
        Bar::new("stored KiB", 64.0, median(|run| said(run, &["bytesStored"]) / 1024.0)),
    ]
}

/// The bars of an increment of a very large volume.
pub fn large(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let alone = || find(ALONE)?.median(|run| run.wall_s);
    let beyond = || Some(find(OURS)?.median(|run| run.wall_s)? - 1.3 * alone()?);
    let rss = find(OURS).and_then(|row| row.median(|run| run.rss_bytes as f64 / MIB));
    vec![
        Bar::new("wall s beyond 1.3 x that of the changed bytes alone", 4.0, beyond()),
        Bar::new("peak RSS MiB", 512.0, rss),
    ]
}

/// The bars of a backup of `size` unchanged bytes without a list.
pub fn hash_compare(rows: &[Row], size: u64) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let time = || Some(find(OURS)?.median(data_path_s)? / find(device::READ)?.median(|run| run.wall_s)?);
    let cpu = find(OURS).and_then(|row| row.median(|run| run.cpu_s() * 1000.0 / (size as f64 / MIB)));
    vec![
        Bar::new("data path: time by dd direct read", 1.0 / 0.95, time()),
        Bar::new("CPU ms per MiB, opening included", 0.45, cpu),
    ]
}

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

/// The bars of a delta restore. Opening the repository, which is the same for every command, is left out of its time.
pub fn delta_restore(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let ours = find(OURS);
    let wall = || -> Option<f64> {
        let reads = find(device::READ)?.median(|run| run.wall_s)?;
        Some(ours?.median(|run| said(run, &["durationMs"]) / 1000.0)? / reads)
    };
    let moved = |run: &Measured| said(run, &["bytesWritten"]) + said(run, &["bytesZeroed"]);
    vec![
        Bar::new("wall of the restore by dd direct read of the target", 1.15, wall()),
        Bar::new(
            "bytes fetched by bytes that differ",
            1.1,
            ours.and_then(|row| row.median(|run| said(run, &["bytesFetched"]) / moved(run))),
        ),
    ]
}

/// The bars of reading a restored volume of `size` bytes back: the time of `dd` by ours is at least 0.95.
pub fn verify(rows: &[Row], size: u64) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let time = || -> Option<f64> {
        let reads = find(device::READ)?.median(|run| run.wall_s)?;
        let proofs = find(OURS)?.median(|run| match said(run, &["proof", "bytes"]) {
            bytes if bytes == size as f64 => said(run, &["proof", "durationMs"]) / 1000.0,
            _ => f64::NAN,
        })?;
        Some(proofs / reads)
    };
    vec![Bar::new("time of the comparison by dd direct read", 1.0 / 0.95, time())]
}

/// A number of the document a run printed; none that meets a bar when it is not there.
fn said(run: &Measured, path: &[&str]) -> f64 {
    let start = run.output.as_ref();
    let value = path.iter().fold(start, |value, name| value?.get(*name));
    value.and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN)
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

/// Rows of the suite `lazy`: a restore from a directory.
pub const LAZY_RESTORE: &str = "directory-restore";
/// See [`LAZY_RESTORE`]: the same bytes served, front to back.
pub const LAZY_SERVE: &str = "directory-sequential";
/// See [`LAZY_RESTORE`]: here and there.
pub const LAZY_RANDOM: &str = "directory-random";
/// See [`LAZY_RESTORE`]: a restore from a bucket over a slow line.
pub const LAZY_LINE_RESTORE: &str = "line-restore";
/// See [`LAZY_RESTORE`]: the same bytes served over the slow line, front to back.
pub const LAZY_LINE_SERVE: &str = "line-sequential";
/// See [`LAZY_RESTORE`]: what the cache holds of the volume, in one file, by `dd`.
pub const LAZY_CACHE_FILE: &str = "cache-file";
/// See [`LAZY_RESTORE`]: the same served out of the cache.
pub const LAZY_CACHE_SERVE: &str = "cache-sequential";

/// The bars of a snapshot that is served from its repository. Rates count the bytes that the volume has; those of the cache file its own.
pub fn lazy(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let ratio = |name: &str, base: &str| find(name)?.ratio(find(base)?, |run| run.wall_s);
    vec![
        Bar::new(
            "cold directory, sequential: time by restore",
            1.25,
            ratio(LAZY_SERVE, LAZY_RESTORE),
        ),
        Bar::new(
            "cold bucket + 20 ms, sequential: time by restore",
            1.25,
            ratio(LAZY_LINE_SERVE, LAZY_LINE_RESTORE),
        ),
        Bar::new(
            "warm disk cache, sequential: time by dd of a file of it",
            1.0 / 0.9,
            ratio(LAZY_CACHE_SERVE, LAZY_CACHE_FILE),
        ),
    ]
}

/// Rows of the suite `mount`: the key of the password alone.
pub const KEY: &str = "key";
/// See [`KEY`]: a mount of 1 TiB.
pub const MOUNT_CACHED: &str = "mount-cached";
/// See [`KEY`]: without a cache.
pub const MOUNT_UNCACHED: &str = "mount-uncached";
/// See [`KEY`]: the first mount of a file system.
pub const MOUNT_EXT4: &str = "mount-ext4";
/// See [`KEY`]: what hydration is compared with.
pub const RESTORE: &str = "restore";
/// See [`KEY`]: hydration without readers.
pub const HYDRATE: &str = "hydrate";
/// See [`KEY`]: hydration with readers.
pub const HYDRATE_READ: &str = "hydrate-read";
/// See [`KEY`]: readers without hydration.
pub const READ_ALONE: &str = "read-alone";

/// The bars of mounts.
pub fn mount(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let key = find(KEY).and_then(|row| row.median(|run| run.wall_s));
    let beyond = |name: &str| Some(find(name)?.median(|run| run.wall_s)? - key?);
    let fetched = |run: &Measured| said(run, &["mount", "fetchedBytes"]) / MIB;
    let p99 = |run: &Measured| said(run, &["p99Nanoseconds"]);
    // Memory beyond the 256 MiB that the cache of a server is allowed.
    let rss = |name: &str| find(name)?.median(|run| run.rss_bytes as f64 / MIB - 256.0);
    vec![
        Bar::new("1 TiB, index cached: s beyond the key", 0.3, beyond(MOUNT_CACHED)),
        Bar::new("1 TiB, no cache: s beyond the key", 1.0, beyond(MOUNT_UNCACHED)),
        Bar::new("first mount of ext4: s beyond the key", 2.0, beyond(MOUNT_EXT4)),
        Bar::new(
            "first mount of ext4: MiB fetched",
            64.0,
            find(MOUNT_EXT4).and_then(|row| row.median(fetched)),
        ),
        Bar::new(
            "hydration while it is read: time by restore",
            1.0 / 0.7,
            (|| find(HYDRATE_READ)?.ratio(find(RESTORE)?, |run| run.wall_s))(),
        ),
        Bar::new(
            "p99 of readers: with hydration by without",
            3.0,
            (|| find(HYDRATE_READ)?.ratio(find(READ_ALONE)?, p99))(),
        ),
        // One that has read as much as it may keep, and more.
        Bar::new("server: RSS MiB beyond its memory", 128.0, rss(READ_ALONE)),
    ]
}

/// The bars of a changed block listing.
pub fn cbt(rows: &[Row]) -> Vec<Bar> {
    let ours = rows.iter().find(|row| row.name == OURS);
    let median = |figure: fn(&Measured) -> f64| ours.and_then(|row| row.median(figure));
    vec![
        Bar::new("wall s", 60.0, median(|run| run.wall_s)),
        Bar::new("peak RSS MiB", 100.0, median(|run| run.rss_bytes as f64 / MIB)),
    ]
}

/// The bars of a backup into a bucket.
pub fn store(rows: &[Row]) -> Vec<Bar> {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let cpu = || find(OURS)?.ratio(find(DIRECTORY)?, Measured::cpu_s);
    vec![Bar::new("CPU by the same into a directory", 1.35, cpu())]
}

/// The bars of a restore from a bucket in which `packs` packs hold the `needed_bytes` of the snapshot.
pub fn store_restore(rows: &[Row], packs: u64, needed_bytes: u64) -> Vec<Bar> {
    let ours = rows.iter().find(|row| row.name == OURS);
    let median = |figure: &dyn Fn(&Measured) -> f64| ours.and_then(|row| row.median(figure));
    let by_packs = |run: &Measured| requests::total(run) / packs as f64;
    let by_needed = |run: &Measured| requests::bytes(run, "range") / needed_bytes as f64;
    vec![
        Bar::new("requests in all by packs with needed contents", 1.1, median(&by_packs)),
        Bar::new("bytes fetched from packs by bytes needed", 1.05, median(&by_needed)),
    ]
}

/// The bars over the slow line: 80 % of its rate is 1.25 of its time.
pub fn latency(rows: &[Row]) -> Vec<Bar> {
    let by_line = |name: &str| {
        let row = rows.iter().find(|row| row.name == name)?;
        row.median(|run| ran_s(run) / line_s(run))
    };
    [UPLOAD, DOWNLOAD]
        .map(|job| Bar::new(&format!("{job}: time by the least the line takes"), 1.25, by_line(job)))
        .into()
}

/// Why figures of the suite `latency` say nothing: the line was not what limited the rate, since the same without it was not
/// `headroom` times as fast as the line can be.
pub fn latency_flaws(rows: &[Row], headroom: f64) -> Vec<String> {
    let flaw = |(line, direct): (&str, &str)| {
        let find = |name: &str| rows.iter().find(|row| row.name == name);
        let least_s = find(line)?.median(line_s)?;
        let direct_s = find(direct)?.median(ran_s)?;
        (least_s < headroom * direct_s).then(|| {
            format!(
                "{line}: the line takes {least_s:.2} s at least, and without it {direct_s:.2} s passed; server and programs were the limit"
            )
        })
    };
    let pairs = [(UPLOAD, UPLOAD_DIRECT), (DOWNLOAD, DOWNLOAD_DIRECT)];
    pairs.into_iter().filter_map(flaw).collect()
}

/// Until the program ended. When the server has its files on stable storage is its own matter.
fn ran_s(run: &Measured) -> f64 {
    run.wall_s - run.durable_s
}

/// The shortest time in which the line moves what a run moved.
fn line_s(run: &Measured) -> f64 {
    let told = run
        .output
        .as_ref()
        .and_then(|output| output["line"]["leastSeconds"].as_f64());
    told.unwrap_or(f64::NAN)
}

/// The bars of opening a repository with ten million contents in a thousand index blobs.
pub fn wide(rows: &[Row]) -> Vec<Bar> {
    let median = |name: &str, figure: fn(&Measured) -> f64| {
        let row = rows.iter().find(|row| row.name == name)?;
        row.median(figure)
    };
    vec![
        Bar::new("first open: wall s", 5.0, median(OURS, |run| run.wall_s)),
        Bar::new(
            "first open: peak RSS MiB",
            450.0,
            median(OURS, |run| run.rss_bytes as f64 / MIB),
        ),
        Bar::new("second open: wall s", 1.0, median(OURS_CACHED, |run| run.wall_s)),
    ]
}

/// The bars of a dry run of full maintenance.
pub fn maintenance(rows: &[Row]) -> Vec<Bar> {
    let ours = rows.iter().find(|row| row.name == OURS);
    let rss = ours.and_then(|row| row.median(|run| run.rss_bytes as f64 / MIB));
    vec![Bar::new("peak RSS MiB", 512.0, rss)]
}

/// What the program itself says it stored; not a number without that, so that no bar is met by an absence.
fn new_bytes(run: &Measured) -> f64 {
    let said = run.output.as_ref().and_then(|output| output["bytesNew"].as_u64());
    said.map_or(f64::NAN, |bytes| bytes as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bar_says_whether_it_holds() {
        assert_eq!(Bar::new("x", 1.0, Some(0.5)).line(), "| x | 1.00 | 0.50 | holds |");
        assert_eq!(Bar::new("x", 1.0, Some(1.5)).line(), "| x | 1.00 | 1.50 | MISSED |");
        assert_eq!(Bar::new("x", 1.0, Some(f64::NAN)).line(), "| x | 1.00 | NaN | MISSED |");
        assert_eq!(Bar::new("x", 1.0, None).line(), "| x | 1.00 | - | not measured |");
        let nothing = [
            backup(&[]),
            store(&[]),
            store_restore(&[], 1, 1),
            latency(&[]),
            wide(&[]),
        ];
        assert!(nothing.iter().flatten().all(|bar| bar.measured.is_none()));
    }

    fn row(name: &str, wall_s: f64, output: serde_json::Value) -> Row {
        let run = Measured {
            wall_s,
            durable_s: 1.0,
            user_s: 1.0,
            sys_s: 0.0,
            rss_bytes: 0,
            servers_s: 0.0,
            others_cores: 0.0,
            stored_bytes: None,
            output: Some(output),
        };
        Row {
            name: name.to_owned(),
            note: String::new(),
            runs: vec![run],
            failure: None,
        }
    }

    #[test]
    fn a_restore_is_judged_by_packs_and_bytes() {
        let told = |count, bytes| {
            let range = json!({ "bytes": bytes });
            row(
                OURS,
                1.0,
                json!({"storage": {"requests": count, "operations": {"range": range}}}),
            )
        };
        let judged = |count, bytes| {
            let bars = store_restore(&[told(count, bytes)], 10, 1000);
            bars.iter().map(|bar| bar.measured).collect::<Vec<_>>()
        };
        assert_eq!(judged(11, 1050), [Some(1.1), Some(1.05)]);
        // One that tells nothing meets nothing.
        let silent = store_restore(&[row(OURS, 1.0, json!({}))], 10, 1000);
        assert!(silent.iter().all(|bar| bar.line().contains("MISSED")));
    }

    #[test]
    fn a_line_that_was_not_the_limit_is_told() {
        let line = json!({"line": {"leastSeconds": 8.0}});
        let rows = |direct_s| [row(UPLOAD, 11.0, line.clone()), row(UPLOAD_DIRECT, direct_s, json!({}))];
        assert_eq!(latency(&rows(5.0))[0].measured, Some(1.25));
        assert_eq!(latency_flaws(&rows(5.0), 1.25), Vec::<String>::new());
        let flaws = latency_flaws(&rows(8.0), 1.25);
        assert!(
            flaws.len() == 1 && flaws[0].starts_with("backup: the line takes 8.00 s"),
            "{flaws:?}"
        );
    }
}
