//! The snapshot of an image: its list, its folder, its tags, in the shape of Velero's block uploader.

use std::collections::BTreeMap;

use blockio::{Device, Geometry};
use repo::directory::{Directory, DirectoryEntry, EntryKind, Mode, Summary};
use repo::object::{BlockAddressTable, StoredList};
use repo::session::{WriteSession, WriteTotals};
use repo::snapshot::{DESCRIPTION, PIN, Snapshot, Stats, tag};
use repo::time::Time;
use repo::{ManifestId, ObjectId};

use super::audit::Walk;
use super::backup::BackupOptions;
use super::ladder::Rung;
use crate::error::{JobError, Result};

/// What a snapshot says of its making.
#[derive(Clone)]
pub(super) struct About<'a> {
    pub(super) options: &'a BackupOptions,
    /// What it rests on.
    pub(super) rung: Rung,
    /// Why not on more: words of the form `rung:reason`.
    pub(super) codes: String,
    /// The snapshot it continues.
    pub(super) parent: Option<ManifestId>,
    /// The list of that one: what is equal is not built and stored again.
    pub(super) parent_list: Option<StoredList>,
    /// Where the audit goes on.
    pub(super) walk: Walk,
    /// When an audit of the source failed.
    pub(super) doubt: Option<String>,
    /// When reading began.
    pub(super) start: Time,
}

/// Publishes the snapshot whose chunks are `table`.
pub(super) fn publish(
    session: WriteSession<'_>,
    device: &Device,
    about: &About<'_>,
    table: &BlockAddressTable,
) -> Result<(ManifestId, ObjectId, WriteTotals, Time)> {
    let prepared = device
        .check_not_shrunk()
        .map_err(JobError::from)
        .and_then(|()| Ok(store_image(&session, device.geometry(), about, table)?));
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
    geometry: Geometry,
    about: &About<'_>,
    table: &BlockAddressTable,
) -> repo::Result<(ObjectId, Snapshot)> {
    let object = session.put_image_list_from(table, about.parent_list.as_ref())?.object;
    let options = about.options;
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
        start: about.start,
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
        tags: tags(geometry, about),
        pins: vec![PIN.into()],
    };
    Ok((object, snapshot))
}

fn tags(geometry: Geometry, about: &About<'_>) -> BTreeMap<String, String> {
    let options = about.options;
    let always = [
        (tag::SOURCE_SIZE, geometry.size.to_string()),
        (tag::LOGICAL_BLOCK, geometry.logical_block.to_string()),
        (tag::UPLOADER, tag::UPLOADER_BLOCK.into()),
        (tag::VERSION, env!("CARGO_PKG_VERSION").into()),
        (tag::RUNG, about.rung.to_string()),
        (tag::AUDIT_WALK, about.walk.to_tag()),
    ];
    let known = [
        (
            tag::RUNG_REASON,
            Some(about.codes.clone()).filter(|codes| !codes.is_empty()),
        ),
        (tag::PARENT, about.parent.map(|id| id.to_string())),
        (tag::UNTRUSTED, about.doubt.clone()),
        (tag::CHANGE_ID, options.change_id.clone()),
        (tag::VOLUME_ID, options.volume_id.clone()),
    ];
    let known = known.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let ours = always
        .into_iter()
        .chain(known)
        .map(|(key, value)| (key.to_string(), value));
    options.tags.clone().into_iter().chain(ours).collect()
}
