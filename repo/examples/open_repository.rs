//! Opens a repository in a directory and lists its snapshots, with a cache or without: prints seconds, peak memory, time of a
//! look-up, and what the cache did. Of use on what `wide_repository` makes.
//!
//! `cargo run --release --example open_repository -- FOLDER PASSWORD [CACHE]`

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use repo::Repository;
use repo::blob::FsStore;
use repo::cache::{Cache, CacheOptions, LIMIT_DEFAULT};

/// Look-ups timed.
const LOOKUPS: usize = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, password, cache @ ..] = args.as_slice() else {
        return Err("FOLDER PASSWORD [CACHE]".into());
    };
    let cache = cache.first().map(|folder| CacheOptions {
        folder: folder.into(),
        limit: LIMIT_DEFAULT,
        metadata: false,
        data: false,
    });
    let started = Instant::now();
    let repository = Repository::open_cached(Arc::new(FsStore::open(folder)?), password, cache.as_ref())?;
    let opened = started.elapsed();
    let snapshots = repository.snapshots()?.len();
    let listed = started.elapsed();
    // Of the kernel: the most that was ever resident.
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or("?");
    println!(
        "open {:.2} s, with {snapshots} snapshots listed {:.2} s, {} rows, peak {}",
        opened.as_secs_f64(),
        listed.as_secs_f64(),
        repository.content_count(),
        peak.trim()
    );
    let mut ids = Vec::new();
    let mut row = 0;
    repository.each_content(0, &mut |entry| {
        row += 1;
        if row % 40 == 0 && ids.len() < LOOKUPS {
            ids.push(entry.content);
        }
        Ok(())
    })?;
    // In another order than they lie.
    let order = |at: usize| (at * 7919) % ids.len();
    let started = Instant::now();
    let found = (0..ids.len())
        .filter(|at| repository.deleted_at(&ids[order(*at)]).is_some())
        .count();
    println!(
        "{found} of {} found, {:.2} us each",
        ids.len(),
        started.elapsed().as_secs_f64() * 1e6 / ids.len().max(1) as f64
    );
    if let Some(stats) = repository.cache().map(Cache::stats) {
        println!("{stats:?}");
    }
    Ok(())
}
