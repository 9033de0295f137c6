//! What an increment does with lists: load the parent's, look whether its contents are alive, write the child's, compare.
//!
//! `cargo run --release -p blockferry-repo --example list_rates -- CHUNKS DISTINCT`: a volume of CHUNKS chunks of 1 MiB of
//! which DISTINCT have contents of their own (in an index of as many, whose packs do not exist) and the others are zero.
//! The repository is a folder in TMPDIR. Figures are wall time of one run each, and CPU time of all threads in steps of the
//! scheduler's clock (10 ms). Void when: not `--release`; for wall time, other work on the cores.

use std::sync::Arc;
use std::time::Instant;

use repo::blob::{BlobStore, FsStore};
use repo::compress::CompressionPolicy;
use repo::epoch::IndexWriter;
use repo::format::CreateOptions;
use repo::index::{IndexEntry, build_shards};
use repo::manifest::Changes;
use repo::object::{BlockAddressTable, StoredList, parse_list};
use repo::session::{WriteOptions, WriteSession};
use repo::{BlobId, ContentId, ObjectId, Repository, SessionId};

const CHUNK: u32 = 1 << 20;
const SEALED: u32 = CHUNK + 28;
const CHUNKS_PER_PACK: u64 = 20;
const PASSWORD: &str = "password";

/// Entries of one index blob.
const ENTRIES_PER_BLOB: u64 = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|n| n.parse()).collect::<Result<_, _>>()?;
    let [chunks, distinct] = numbers[..] else {
        return Err("CHUNKS DISTINCT are two numbers".into());
    };
    let chunks = usize::try_from(chunks)?;
    let folder = tempfile::tempdir()?;
    let store: Arc<dyn BlobStore> = Arc::new(FsStore::create(folder.path())?);
    Repository::create(&*store, PASSWORD, &CreateOptions::default())?;
    let object = make(&store, chunks, distinct)?;

    let repository = timed("open, with the derivation of keys", || {
        Repository::open(store.clone(), PASSWORD)
    })?;
    let loaded = timed("load the list", || repository.load_list(&object))?;
    let parent = loaded.list.expect("a list as we write it");
    let again = repository.load_list(&object)?.table;
    let text = repository.read_object(&object.list().expect("a list"))?;
    timed("  its text by the parser of any list", || {
        let mut count = 0;
        parse_list(&object, &text[..], &mut |_| {
            count += 1;
            Ok(())
        })?;
        assert_eq!(count, chunks);
        Ok(())
    })?;
    drop(text);
    let dead = timed("look whether its contents are alive", || {
        Ok(repository.dead_pieces(parent.table()))
    })?;
    println!("{:<44} {:>9}", "  of them dead", dead.len());
    timed("  one by one", || {
        let table = parent.table();
        let alive = (0..chunks).filter(|at| repository.deleted_at(&table.content(*at)) == Some(None));
        assert_eq!(alive.count(), chunks - dead.len());
        Ok(())
    })?;

    let child = parent.table().child(CHUNK.into(), chunks, &repository.zero_content())?;
    put(&repository, "write the list, unchanged", &child, Some(&parent))?;
    let mut clusters = child.clone();
    for at in (0..100).flat_map(|n| n * (chunks / 100)..n * (chunks / 100) + 10.min(chunks / 100)) {
        clusters.set_content(at, &content(u64::MAX - at as u64)?);
    }
    put(
        &repository,
        "write the list, 100 clusters changed",
        &clusters,
        Some(&parent),
    )?;
    let mut spread = child.clone();
    for at in (0..chunks).step_by(100) {
        spread.set_content(at, &content(u64::MAX - at as u64)?);
    }
    put(&repository, "write the list, 1 % changed", &spread, Some(&parent))?;
    put(&repository, "write the list without its parent", &spread, None)?;

    for (name, table) in [("child", &spread), ("equal one loaded apart", &again)] {
        timed(&format!("compare with the {name}"), || {
            let runs = parent.table().differing_pieces(table).expect("on one grid");
            println!("{:<44} {:>9}", "  runs that differ", runs.count());
            Ok(())
        })?;
    }
    println!("{:<44} {:>9} MiB", "most memory used", most_memory()? >> 10);
    Ok(())
}

/// Stores the zero content, an index of the others, and the list of the volume.
fn make(store: &Arc<dyn BlobStore>, chunks: usize, distinct: u64) -> Result<ObjectId, Box<dyn std::error::Error>> {
    let repository = Repository::open(store.clone(), PASSWORD)?;
    let zero = repository.zero_content();
    let session = WriteSession::begin(&repository, &options())?;
    let mut sealer = session.sealer();
    sealer.store(zero, &vec![0; CHUNK as usize])?;
    sealer.finish()?;
    session.commit_changes(&Changes::default())?;
    for first in (0..distinct).step_by(usize::try_from(ENTRIES_PER_BLOB)?) {
        index(&repository, first..distinct.min(first + ENTRIES_PER_BLOB))?;
    }
    let mut table = BlockAddressTable::filled(CHUNK.into(), chunks, &zero);
    let step = chunks as u64 / distinct.max(1);
    for n in 0..distinct {
        table.set_content(usize::try_from(n * step)?, &content(n)?);
    }
    Ok(put(&repository, "write the list of the first backup", &table, None)?)
}

/// Stores the list of `table` in a session of its own and says what that took.
fn put(
    repository: &Repository,
    name: &str,
    table: &BlockAddressTable,
    parent: Option<&StoredList>,
) -> repo::Result<ObjectId> {
    let session = WriteSession::begin(repository, &options())?;
    let put = timed(name, || session.put_image_list_from(table, parent))?;
    let totals = session.commit_changes(&Changes::default())?;
    println!(
        "{:<44} {:>9} of {}, {} KiB stored",
        "  slices made",
        put.built,
        put.built + put.reused,
        totals.stored_bytes >> 10
    );
    Ok(put.object)
}

fn options() -> WriteOptions {
    WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "list".into(),
        host: "example".into(),
        ..WriteOptions::default()
    }
}

fn timed<T>(name: &str, run: impl FnOnce() -> repo::Result<T>) -> repo::Result<T> {
    let (start, cpu) = (Instant::now(), cpu_ms());
    let result = run();
    let wall = start.elapsed().as_secs_f64() * 1e3;
    println!("{name:<44} {wall:>9.1} ms {:>6} ms CPU", cpu_ms() - cpu);
    result
}

/// CPU time of all threads in milliseconds: fields 14 and 15 of the file in hundredths of a second (proc_pid_stat(5)).
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    ticks.sum::<u64>() * 10
}

/// The most memory this process has used, in KiB.
fn most_memory() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmHWM in /proc/self/status")?.parse()?)
}

/// Numbers that look random and are the same each time (splitmix64).
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn content(n: u64) -> repo::Result<ContentId> {
    let hash = [mix(n).to_be_bytes(), mix(!n).to_be_bytes()].concat();
    ContentId::new(None, &hash)
}

/// Stores an index blob about chunks that are in no pack.
fn index(repository: &Repository, numbers: std::ops::Range<u64>) -> repo::Result<()> {
    let now = repo::time::Time::now().unix();
    let session = SessionId::new(mix(numbers.start).to_be_bytes(), now);
    let entry = |n: u64| {
        let pack = n / CHUNKS_PER_PACK;
        let place = u32::try_from(n % CHUNKS_PER_PACK).expect("below the chunks of a pack");
        Ok(IndexEntry {
            content: content(n)?,
            pack: BlobId::new(format!("p{:016x}{:016x}-{session}", mix(pack), mix(!pack)))?,
            offset: 32 + place * SEALED,
            packed_len: SEALED,
            original_len: CHUNK,
            time: now,
            deleted: false,
            format_version: repository.contents().format_version(),
            compression: 0,
        })
    };
    let entries = numbers.map(entry).collect::<repo::Result<Vec<_>>>()?;
    let writer = IndexWriter {
        store: &**repository.store(),
        contents: repository.contents(),
        parameters: &repository.format().epoch,
        session: &session,
    };
    writer.write(&build_shards(entries)?, None)?;
    repository.store().sync()
}
