use proptest::collection::vec;
use proptest::prelude::*;

use super::postamble::Postamble;
use super::*;
use crate::content::ContentFormat;
use crate::crypto::{CipherAlgorithm, HashAlgorithm, OVERHEAD};
use crate::error;
use crate::format::tests::{Golden, MASTER_KEY, SECRET, known_format};
use crate::index::{IndexEntry, Table};

const NAME: &str = "p0123456789abcdef0123456789abcdef-s0011223344556677144";
const SIZE: u32 = 20 << 20;

fn format() -> ContentFormat {
    ContentFormat::new(&known_format()).expect("valid")
}

fn begin(capacity: usize) -> PackBuilder<Box<[u8]>> {
    PackBuilder::new(vec![0xee; capacity].into(), BlobId::known(NAME), SIZE, 3).expect("room")
}

/// Seals `data` into the pack.
fn add(pack: &mut PackBuilder<Box<[u8]>>, format: &ContentFormat, data: &[u8]) -> error::Result<ContentId> {
    let id = format.content_id(None, data);
    let len = u32::try_from(data.len()).expect("short");
    pack.append(id, len, 0, 1_767_225_600, data.len() + OVERHEAD, |out| {
        format.seal_into(&id, data, out)
    })?;
    Ok(id)
}

fn deletion(n: usize) -> IndexEntry {
    IndexEntry {
        content: format!("{n:032x}").parse().expect("valid"),
        pack: BlobId::known(format!("p{n:032x}-s0011223344556677144")),
        offset: (1 << 30) - 1,
        packed_len: 100,
        original_len: 72,
        time: 1_767_225_601,
        deleted: true,
        format_version: 3,
        compression: 0,
    }
}

#[test]
fn a_pack_of_chunks_has_the_layout_kopia_gives_it() {
    let format = format();
    let mut pack = begin(buffer_capacity(SIZE));
    let mut added = Vec::new();
    while !pack.is_full() {
        let chunk = vec![u8::try_from(added.len()).expect("few"); 1 << 20];
        assert!(pack.fits(chunk.len() + OVERHEAD));
        added.push((add(&mut pack, &format, &chunk).expect("fits"), chunk));
    }
    assert_eq!((added.len(), pack.fill()), (20, 20_972_112));
    let done = pack.finish(&format).expect("finishes");

    let local = LocalIndex::find(done.len as u64, &done.buf[done.len - 8192..done.len]).expect("found in the tail");
    assert_eq!(local.range().start, 20_975_616);
    assert_eq!(done.id.as_str(), NAME);
    assert_ne!(done.buf[..32], [0xee; 32], "a random preamble");
    assert!(
        done.buf[20_972_112..20_975_616].iter().any(|b| *b != 0xee),
        "random padding"
    );
    assert!(
        done.buf[done.len..].iter().all(|b| *b == 0xee),
        "nothing is written past the end"
    );

    let mut recovered = recover(&format, &done.id, &done.buf[..done.len]).expect("recovers");
    recovered.sort_by_key(|e| e.offset);
    assert_eq!(recovered, done.entries);
    for (at, (entry, (id, chunk))) in recovered.iter().zip(&added).enumerate() {
        assert_eq!(
            (entry.content, entry.offset as usize),
            (*id, 32 + at * ((1 << 20) + 28))
        );
        let sealed = &done.buf[entry.offset as usize..(entry.offset + entry.packed_len) as usize];
        assert_eq!(format.unseal(entry, sealed).expect("opens"), *chunk);
    }
}

#[test]
fn buffers_are_whole_huge_pages() {
    assert_eq!(buffer_capacity(SIZE), 22 << 20);
    assert_eq!(buffer_capacity(10 << 20), 12 << 20);
    assert_eq!(buffer_capacity(120 << 20), 122 << 20);
}

#[test]
fn padding_begins_a_page_of_its_own_when_there_is_nothing_to_fill() {
    for (len, index_at) in [
        (4096 - 32 - 28 - 1, 4096),
        (4096 - 32 - 28, 8192),
        (4096 - 32 - 28 + 1, 8192),
    ] {
        let format = format();
        let mut pack = begin(64 << 10);
        add(&mut pack, &format, &vec![1; len]).expect("fits");
        let done = pack.finish(&format).expect("finishes");
        let local = LocalIndex::find(done.len as u64, &done.buf[..done.len]).expect("found");
        assert_eq!(local.range().start, index_at);
    }
}

#[test]
fn every_algorithm_recovers() {
    for hash in HashAlgorithm::ALL {
        for cipher in CipherAlgorithm::ALL {
            let format = ContentFormat::with_keys(hash, cipher, SECRET, MASTER_KEY, 3).expect("valid");
            let mut pack = begin(64 << 10);
            add(&mut pack, &format, b"some data").expect("fits");
            let done = pack.finish(&format).expect("finishes");
            assert_eq!(
                recover(&format, &done.id, &done.buf[..done.len]).expect("recovers"),
                done.entries
            );
        }
    }
}

#[test]
fn a_full_buffer_refuses_and_still_finishes() {
    let format = format();
    // Smallest contents: here the local index is larger than the data.
    let mut pack = begin(1 << 20);
    let mut count = 0_u32;
    while pack.fits(OVERHEAD + 4) {
        add(&mut pack, &format, &count.to_be_bytes()).expect("fits");
        count += 1;
    }
    assert!(count > 10_000, "{count}");
    assert!(!pack.is_full());
    let fill = pack.fill();
    let id = format.content_id(None, b"more");
    let refused = pack.append(id, 4, 0, 1, OVERHEAD + 4, |_| {
        panic!("nothing is sealed that does not fit")
    });
    assert_eq!(refused.expect_err("full").kind(), error::Kind::InvalidInput);
    assert_eq!(pack.fill(), fill);
    let done = pack.finish(&format).expect("finishes");
    assert_eq!(done.entries.len(), count as usize);
    assert!(
        done.buf.len() - done.len < 1 << 18,
        "most of the buffer is used: {} bytes",
        done.len
    );
    assert_eq!(
        recover(&format, &done.id, &done.buf[..done.len])
            .expect("recovers")
            .len(),
        count as usize
    );
}

#[test]
fn deletions_count_against_the_room_of_the_local_index() {
    let format = format();
    let mut pack = begin(256 << 10);
    add(&mut pack, &format, b"some data").expect("fits");
    let mut count = 0;
    while pack.fits_deletion(&deletion(count)) {
        pack.delete(deletion(count)).expect("fits");
        count += 1;
    }
    assert!(count > 1000, "{count}");
    assert_eq!(
        pack.delete(deletion(count)).expect_err("full").kind(),
        error::Kind::InvalidInput
    );
    let done = pack.finish(&format).expect("finishes");
    let recovered = recover(&format, &done.id, &done.buf[..done.len]).expect("recovers");
    assert_eq!(recovered.iter().filter(|e| e.deleted).count(), count);
}

#[test]
fn only_deletions_make_entries_and_no_pack() {
    let mut pack = begin(64 << 10);
    pack.delete(deletion(1)).expect("fits");
    let live = IndexEntry {
        deleted: false,
        ..deletion(2)
    };
    assert!(pack.delete(live).is_err());
    let done = pack.finish(&format()).expect("finishes");
    assert_eq!((done.len, done.entries), (0, vec![deletion(1)]));
}

#[test]
fn a_content_beyond_the_format_or_the_buffer_is_refused() {
    let mut pack = begin(64 << 10);
    let id = format().content_id(None, b"");
    assert!(!pack.fits(64 << 10) && !pack.fits(1 << 28) && !pack.fits(usize::MAX / 2));
    assert!(pack.append(id, 1 << 28, 0x1101, 1, 100, |_| ()).is_err());
    assert!(pack.append(id, (1 << 28) - 1, 0x1101, 1, 100, |_| ()).is_ok());
    assert!(PackBuilder::new(vec![0; 4096].into_boxed_slice(), BlobId::known(NAME), SIZE, 3).is_err());
}

#[test]
fn damage_anywhere_in_the_local_index_or_after_it_is_found() {
    let format = format();
    let mut pack = begin(64 << 10);
    add(&mut pack, &format, b"some data").expect("fits");
    let done = pack.finish(&format).expect("finishes");
    let blob = &done.buf[..done.len];
    let local = LocalIndex::find(done.len as u64, blob).expect("found");
    for at in usize::try_from(local.range().start).expect("small")..blob.len() {
        let mut damaged = blob.to_vec();
        damaged[at] ^= 4;
        assert!(recover(&format, &done.id, &damaged).is_err(), "byte {at}");
    }
    for len in 0..blob.len() {
        assert!(recover(&format, &done.id, &blob[..len]).is_err(), "{len} bytes");
    }
    let tail = &blob[blob.len() - 60..];
    assert_eq!(LocalIndex::find(done.len as u64, tail).expect("found"), local);
    assert!(
        LocalIndex::find(local.range().end, tail).is_err(),
        "the postamble comes after the index"
    );
}

#[test]
fn equal_packs_have_different_local_indexes() {
    // The key of a local index follows from its plaintext alone: what was sealed under it must not repeat.
    let format = format();
    let local = [(); 2].map(|()| {
        let mut pack = begin(64 << 10);
        add(&mut pack, &format, b"some data").expect("fits");
        let done = pack.finish(&format).expect("finishes");
        LocalIndex::find(done.len as u64, &done.buf[..done.len]).expect("found")
    });
    assert_eq!(local[0].range(), local[1].range());
    assert_ne!(local[0], local[1]);
}

#[test]
fn a_local_index_that_points_behind_the_contents_is_refused() {
    let format = format();
    let id = BlobId::known(NAME);
    let pack = |entry: IndexEntry| {
        let index = crate::index::build_v2(vec![entry]).expect("valid");
        let digest = format.hasher().hash(&index);
        let mut blob = vec![0; 4096];
        blob.extend(format.cipher().seal(digest.as_slice(), &index));
        let postamble = Postamble {
            iv: digest.as_slice().to_vec(),
            index_offset: 4096,
            index_len: blob.len() as u64 - 4096,
        };
        blob.extend(postamble.to_bytes());
        blob
    };
    let inside = IndexEntry {
        pack: id.clone(),
        offset: 3996,
        ..deletion(1)
    };
    assert_eq!(
        recover(&format, &id, &pack(inside.clone())).expect("ends where the index begins"),
        std::slice::from_ref(&inside)
    );
    let outside = IndexEntry { offset: 3997, ..inside };
    assert_eq!(
        recover(&format, &id, &pack(outside)).expect_err("one byte more").kind(),
        error::Kind::Corrupt
    );
    assert!(
        recover(&format, &id, &pack(deletion(1))).is_ok(),
        "deletions point into other packs"
    );
}

#[test]
fn packs_of_kopia_recover() {
    for repository in Golden::load().repositories {
        let format = ContentFormat::new(&repository.format()).expect("valid");
        let tables = repository
            .blobs("xn")
            .into_iter()
            .map(|(id, blob)| format.open_blob(&id, &blob).and_then(Table::parse).expect("an index"));
        let indexed: Vec<IndexEntry> = tables.flat_map(|table| table.iter().collect::<Vec<_>>()).collect();
        for (id, blob) in repository.blobs("q") {
            let entries = recover(&format, &id, &blob).expect("recovers");
            assert!(!entries.is_empty());
            assert!(entries.iter().all(|e| indexed.contains(e)));
            assert_eq!(
                LocalIndex::find(blob.len() as u64, &blob).expect("found").range().start % 4096,
                0
            );
        }
    }
}

#[test]
fn kinds_follow_the_prefix_and_name_the_session() {
    let session = SessionId::new([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77], 1_787_270_400);
    let kind = |id: &str| Kind::of(&id.parse().expect("valid"));
    assert_eq!((kind("00ff"), kind("x00ff")), (Kind::Data, Kind::Metadata));
    let random = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]
        .repeat(2)
        .try_into()
        .expect("16 bytes");
    assert_eq!(Kind::Data.pack_id(random, &session).as_str(), NAME);
    assert!(
        Kind::Metadata
            .pack_id(random, &session)
            .as_str()
            .starts_with("q01234567")
    );
}

proptest! {
    #[test]
    fn whatever_fits_comes_back(lens in vec(0..5000_usize, 1..60), capacity in 8192..200_000_usize) {
        let format = format();
        let mut pack = begin(capacity);
        let mut plaintexts = Vec::new();
        for (at, len) in lens.iter().enumerate() {
            let mut data = vec![7; *len];
            data.extend(at.to_be_bytes());
            if pack.fits(data.len() + OVERHEAD) {
                add(&mut pack, &format, &data).expect("fits");
                plaintexts.push(data);
            }
        }
        let done = pack.finish(&format).expect("finishes");
        if !plaintexts.is_empty() {
            prop_assert_eq!(recover(&format, &done.id, &done.buf[..done.len]).expect("recovers").len(), plaintexts.len());
        }
        for (entry, plaintext) in done.entries.iter().zip(&plaintexts) {
            let sealed = &done.buf[entry.offset as usize..(entry.offset + entry.packed_len) as usize];
            prop_assert_eq!(&format.unseal(entry, sealed).expect("opens"), plaintext);
        }
    }

    #[test]
    fn random_tails_never_panic(tail in vec(any::<u8>(), 0..100), pack_len in any::<u64>()) {
        let _ = LocalIndex::find(pack_len, &tail);
    }
}
