//! Makes a repository of many snapshots of large volumes whose lists and index are real and whose data packs do not exist:
//! what opening and maintenance cost can be measured on it without terabytes of data.
//!
//! `cargo run --example wide_repository -- FOLDER PASSWORD OWNER SNAPSHOTS CHUNKS PERCENT CONTENTS [BLOBS]`: each snapshot has
//! CHUNKS chunks of 1 MiB, PERCENT of which differ from the one before; the index is filled up to CONTENTS contents with
//! some that no snapshot uses, and lies in BLOBS blobs, or as many as backups of such a size would have stored.

use std::sync::Arc;

use repo::blob::{BlobStore, FsStore};
use repo::compress::CompressionPolicy;
use repo::epoch::IndexWriter;
use repo::format::CreateOptions;
use repo::index::{IndexEntry, build_shards};
use repo::maintenance::set_owner;
use repo::object::BlockAddressTable;
use repo::session::{WriteOptions, WriteSession};
use repo::snapshot::Snapshot;
use repo::time::Time;
use repo::{BlobId, ContentId, Repository, SessionId};

const CHUNK: u32 = 1 << 20;
const SEALED: u32 = CHUNK + 28;
const CHUNKS_PER_PACK: u64 = 20;
const HASH_LEN: usize = 16;

/// Entries of one index blob: what a backup of 1 TiB stores in ten minutes.
const ENTRIES_PER_BLOB: u64 = 200_000;

/// Numbers that look random and are the same each time (splitmix64).
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(n: u64) -> [u8; HASH_LEN] {
    let mut hash = [0; HASH_LEN];
    hash[..8].copy_from_slice(&mix(n).to_be_bytes());
    hash[8..].copy_from_slice(&mix(!n).to_be_bytes());
    hash
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, password, owner, numbers @ ..] = args.as_slice() else {
        return Err("FOLDER PASSWORD OWNER SNAPSHOTS CHUNKS PERCENT CONTENTS [BLOBS]".into());
    };
    let numbers: Vec<u64> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let [snapshots, chunks, percent, contents, ref blobs @ ..] = numbers[..] else {
        return Err("SNAPSHOTS CHUNKS PERCENT CONTENTS are four numbers".into());
    };
    let store: Arc<dyn BlobStore> = Arc::new(FsStore::create(folder)?);
    Repository::create(&*store, password, &CreateOptions::default())?;
    let repository = Repository::open(store.clone(), password)?;
    set_owner(&repository, owner)?;

    let mut used = chunks;
    let mut volume: Vec<u64> = (0..chunks).collect();
    for number in 0..snapshots {
        if number > 0 {
            for change in 0..chunks * percent / 100 {
                let at = usize::try_from(mix(number << 32 | change) % chunks)?;
                volume[at] = used;
                used += 1;
            }
        }
        back_up(&repository, &volume, number)?;
        eprintln!("snapshot {} of {snapshots}", number + 1);
    }
    let contents = contents.max(used);
    let entries = match blobs.first() {
        Some(blobs) => contents.div_ceil((*blobs).max(1)).max(1),
        None => ENTRIES_PER_BLOB,
    };
    for first in (0..contents).step_by(usize::try_from(entries)?) {
        index(&repository, first..(first + entries).min(contents))?;
    }
    repository.store().sync()?;
    eprintln!("{used} contents in use, {contents} in the index");
    Ok(())
}

fn back_up(repository: &Repository, volume: &[u64], number: u64) -> repo::Result<()> {
    let options = WriteOptions {
        sealers: 1,
        uploads: 1,
        compression: CompressionPolicy::None,
        user: "wide".into(),
        host: "example".into(),
        ..WriteOptions::default()
    };
    let session = WriteSession::begin(repository, &options)?;
    let hashes = volume.iter().flat_map(|n| hash(*n)).collect();
    let table = BlockAddressTable::uniform(CHUNK.into(), HASH_LEN, hashes);
    let object = session.put_image_list(&table)?;
    let size = table.len();
    let now = Time::now();
    let text = format!(
        r#"{{"id":"","source":{{"host":"example","userName":"wide","path":"/volumes/{number}"}},"startTime":"{now}","endTime":"{now}","rootEntry":{{"name":"volume","type":"f","size":{size},"obj":"{object}"}}}}"#
    );
    let snapshot: Snapshot = serde_json::from_str(&text).expect("a snapshot");
    session.commit(&snapshot)?;
    Ok(())
}

/// Stores an index blob about chunks that are in no pack; the caller syncs.
fn index(repository: &Repository, numbers: std::ops::Range<u64>) -> repo::Result<()> {
    let now = Time::now().unix();
    let session = SessionId::new(mix(numbers.start).to_be_bytes(), now);
    let entry = |n: u64| {
        let pack = n / CHUNKS_PER_PACK;
        let place = u32::try_from(n % CHUNKS_PER_PACK).expect("below the chunks of a pack");
        Ok(IndexEntry {
            content: ContentId::new(None, &hash(n))?,
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
    Ok(())
}
