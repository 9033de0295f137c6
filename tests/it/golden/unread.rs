//! Contents that no version of ours can read. Kopia stopped writing them long ago, so the one here is made for the test.

use blockferry_tests::volume::{BlockKind, Layout};
use repo::blob::BlobStore;
use repo::compress::Codec;
use repo::content::ContentFormat;
use repo::epoch::IndexWriter;
use repo::index::build_shards;
use repo::pack::{Kind, PackBuilder, buffer_capacity};
use repo::time::Time;
use repo::{ContentId, Repository, SessionId};

use crate::bad_input::support::{MIB, World, assert_words, back_up, backup_options, empty, open};

/// Puts a later entry for `content` into the index, with the same bytes behind the header of `codec`.
fn recompress(repository: &Repository, content: &ContentId, codec: Codec) {
    let format = repository.contents();
    let plain = repository.read_content(content).unwrap();
    let payload = [&codec.id().get().to_be_bytes()[..], &plain[..1000]].concat();
    let session = SessionId::new([7; 8], Time::now().unix());
    let pack = Kind::Data.pack_id([7; 16], &session);
    let limit = repository.format().max_pack_size;
    let buffer = vec![0; buffer_capacity(limit)];
    let mut builder = PackBuilder::new(buffer, pack, limit, format.format_version()).unwrap();
    let sealed_len = ContentFormat::sealed_len(payload.len());
    let plain_len = u32::try_from(plain.len()).unwrap();
    let seal = |out: &mut [u8]| format.seal_into(content, &payload, out);
    let later = Time::now().unix() + 10;
    builder
        .append(*content, plain_len, codec.id().get(), later, sealed_len, seal)
        .unwrap();
    let pack = builder.finish(format).unwrap();
    repository.store().put(&pack.id, &pack.buf[..pack.len]).unwrap();
    let writer = IndexWriter {
        store: &**repository.store(),
        contents: format,
        parameters: &repository.format().epoch,
        session: &session,
    };
    writer.write(&build_shards(pack.entries).unwrap(), None).unwrap();
}

#[test]
fn contents_this_version_cannot_read_are_not_called_damaged() {
    let store = empty();
    let repository = open(store.clone());
    let world = World::with(&*store);
    let volume = world.path("volume.img");
    Layout::uniform(5, MIB, BlockKind::Records)
        .write(&volume, blockferry_tests::volume::Zeros::Written)
        .unwrap();
    back_up(&repository, &volume, &backup_options()).unwrap();
    let snapshot = repository.snapshots().unwrap().remove(0);
    let image = repository.image(&snapshot).unwrap();
    recompress(&repository, &image.table.content(0), Codec::by_name("lz4").unwrap());

    let world = World::with(&*store as &dyn BlobStore);
    for command in [
        vec!["verify", "--percent", "100"],
        vec!["restore", "latest", &world.text("restored")],
    ] {
        let ended = world.ferry.ended(&command).unwrap();
        assert_eq!(ended.code, Some(1), "4 would mean damage: {ended:?}");
        assert_words(&ended.stderr, &["lz4 (0x1400)", "v0.22.3"]);
    }
}
