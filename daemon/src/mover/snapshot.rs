//! The snapshot of an image: its list, its folder, its tags, in the shape of Velero's block uploader.

use std::collections::BTreeMap;

use blockio::Device;
use repo::directory::{Directory, DirectoryEntry, EntryKind, Mode, Summary};
use repo::object::BlockAddressTable;
use repo::session::{WriteSession, WriteTotals};
use repo::snapshot::{DESCRIPTION, PIN, Snapshot, Stats, tag};
use repo::time::Time;
use repo::{ManifestId, ObjectId};

use super::backup::BackupOptions;
use crate::error::{JobError, Result};

/// Publishes the snapshot whose chunks are `table`.
pub(super) fn publish(
    session: WriteSession<'_>,
    device: &Device,
    options: &BackupOptions,
    table: &BlockAddressTable,
    start: Time,
) -> Result<(ManifestId, ObjectId, WriteTotals, Time)> {
    let prepared = device
        .check_not_shrunk()
        .map_err(JobError::from)
        .and_then(|()| Ok(store_image(&session, device, options, table, start)?));
    let (object, snapshot) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            session.abandon();
            return Err(e);
        }
    };
    let end = snapshot.end;
    let (id, totals) = session.commit(&snapshot)?;
    Ok((id, object, totals, end))
}

/// Stores list and folder of the image whose chunks are `table`, and describes its snapshot.
pub(super) fn store_image(
    session: &WriteSession<'_>,
    device: &Device,
    options: &BackupOptions,
    table: &BlockAddressTable,
    start: Time,
) -> repo::Result<(ObjectId, Snapshot)> {
    let object = session.put_image_list(table)?;
    let file = DirectoryEntry {
        name: options.source.path.replace('/', "-"),
        kind: EntryKind::File,
        mode: Mode(0o777),
        size: table.len(),
        modified: Time::go_unset(),
        uid: 0,
        gid: 0,
        object,
        summary: None,
    };
    let folder = session.put_metadata('k', &Directory::new(vec![file]).to_bytes(), true)?;
    let snapshot = Snapshot {
        id: None,
        source: options.source.clone(),
        description: DESCRIPTION.into(),
        start,
        end: Time::now(),
        stats: Stats {
            total_size: table.len(),
            ..Stats::default()
        },
        incomplete: String::new(),
        root: Some(DirectoryEntry {
            name: String::new(),
            kind: EntryKind::Directory,
            mode: Mode(0o777),
            size: 0,
            modified: Time::go_unset(),
            uid: 0,
            gid: 0,
            object: ObjectId::direct(folder),
            summary: Some(Summary::of_image(table.len())),
        }),
        tags: tags(device, options),
        pins: vec![PIN.into()],
    };
    Ok((object, snapshot))
}

fn tags(device: &Device, options: &BackupOptions) -> BTreeMap<String, String> {
    let geometry = device.geometry();
    let mut tags = options.tags.clone();
    tags.insert(tag::SOURCE_SIZE.into(), geometry.size.to_string());
    tags.insert(tag::LOGICAL_BLOCK.into(), geometry.logical_block.to_string());
    tags.insert(tag::UPLOADER.into(), tag::UPLOADER_BLOCK.into());
    tags.insert(tag::VERSION.into(), env!("CARGO_PKG_VERSION").into());
    tags.insert(tag::RUNG.into(), "full".into());
    let ids = [
        (tag::CHANGE_ID, &options.change_id),
        (tag::VOLUME_ID, &options.volume_id),
    ];
    tags.extend(
        ids.into_iter()
            .filter_map(|(key, id)| Some((key.to_string(), id.clone()?))),
    );
    tags
}
