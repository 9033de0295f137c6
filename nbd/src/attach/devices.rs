//! Which devices there are, and taking away those that nobody serves.

use super::error::AttachError;
use super::holders;
use super::kind::Kind;
use super::registry::{self, Claim, Record, Seen};
use super::{loop_device, nbd_device, ublk};
use std::fs;
use std::path::{Path, PathBuf};
use tracing::info;

/// A device of an identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the kernel reaches its volume.
    pub kind: Kind,
    /// The device, such as `/dev/ublkb0`.
    pub path: PathBuf,
    /// What it was attached as.
    pub identifier: String,
    /// Bytes of it.
    pub size: u64,
    /// A process that lives serves it.
    pub served: bool,
    /// That process, or the last one, as it saw its own number.
    pub process: Option<u32>,
}

/// What a reclaim does with a device that somebody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// It stays, and the error says by whom.
    Keep,
    /// Their requests fail. What they wrote and did not flush is lost.
    Fail,
}

/// Devices with identifiers that begin with `prefix`, whoever serves them, in the order of identifiers. `runtime` is the folder
/// that they were attached with; of others only those of the kernel's NBD client show, which bear their identifier themselves.
///
/// # Errors
/// When the folder cannot be read, or the kernel does not answer.
pub fn devices(runtime: &Path, prefix: &str) -> Result<Vec<Found>, AttachError> {
    let mut found = Vec::new();
    for seen in registry::list(runtime, prefix)? {
        found.extend(locate(&seen)?);
    }
    let without_record: Vec<Found> = nbd_device::connected()
        .filter(|device| device.identifier.starts_with(prefix))
        .filter(|device| !found.iter().any(|known: &Found| known.identifier == device.identifier))
        .collect();
    found.extend(without_record);
    found.sort_unstable_by(|a, b| (&a.identifier, &a.path).cmp(&(&b.identifier, &b.path)));
    Ok(found)
}

/// Those of [`devices`] that nobody serves: requests to them wait for a server, or fail.
///
/// # Errors
/// As [`devices`].
pub fn leaked(runtime: &Path, prefix: &str) -> Result<Vec<Found>, AttachError> {
    Ok(devices(runtime, prefix)?
        .into_iter()
        .filter(|device| !device.served)
        .collect())
}

/// Takes a device away that nobody serves. `device` is one of [`leaked`]; it is looked at again before anything is done.
///
/// # Errors
/// [`AttachError::Served`] when it has a server meanwhile; [`AttachError::Busy`] when it is in use and `in_use` says to keep it
/// then; [`AttachError::Foreign`] when there is another device in its place; and when the kernel refuses.
pub fn reclaim(device: &Found, runtime: &Path, in_use: InUse) -> Result<(), AttachError> {
    let claim = Claim::take(runtime, &device.identifier)?;
    let recorded = claim.record()?;
    let there = match &recorded {
        Some(record) => locate(&Seen {
            identifier: device.identifier.clone(),
            record: Some(record.clone()),
            served: false,
        })?,
        None => nbd_device::connected().find(|there| there.identifier == device.identifier),
    };
    let Some(there) = there else {
        // Gone by itself; its record goes as well.
        return claim.remove();
    };
    if there.served {
        // The file that was made to ask must not look like a record.
        claim.remove()?;
        return Err(AttachError::Served {
            identifier: there.identifier,
            process: there.process,
        });
    }
    if there.path != device.path || there.kind != device.kind {
        return Err(AttachError::Foreign {
            device: device.path.clone(),
            expected: device.identifier.clone(),
            found: format!("nothing of ours; {} is at {}", there.identifier, there.path.display()),
        });
    }
    let holders = holders::find(&there.path, &[]);
    if in_use == InUse::Keep && !holders.is_empty() {
        return Err(AttachError::Busy {
            device: there.path,
            holders,
        });
    }
    match there.kind {
        Kind::Nbd => nbd_device::take_away(&there.path, &there.identifier, !holders.is_empty())?,
        Kind::Ublk => ublk::take_away(recorded.as_ref().map_or(0, |record| record.token))?,
        Kind::FuseLoop => loop_device::unbind(&there.path)?,
    }
    info!(device = %there.path.display(), identifier = there.identifier, "a device without a server is taken away");
    claim.remove()
}

/// Removes the records of identifiers that begin with `prefix` whose devices went with their servers. Returns the identifiers.
///
/// # Errors
/// As [`devices`]; and when a record cannot be removed.
pub fn forget_vanished(runtime: &Path, prefix: &str) -> Result<Vec<String>, AttachError> {
    let mut forgotten = Vec::new();
    for seen in registry::list(runtime, prefix)? {
        if seen.served || locate(&seen)?.is_some() {
            continue;
        }
        let claim = match Claim::take(runtime, &seen.identifier) {
            // Somebody is about to make it, or serves it meanwhile.
            Err(AttachError::Served { .. }) => continue,
            taken => taken?,
        };
        // Looked at again, now that nobody else makes one.
        if super::left_behind(&claim)?.is_none() {
            claim.remove()?;
            forgotten.push(seen.identifier);
        }
    }
    Ok(forgotten)
}

/// The device of a record, when it is there.
pub(super) fn locate(seen: &Seen) -> Result<Option<Found>, AttachError> {
    let Some(record) = &seen.record else { return Ok(None) };
    let found = |path: PathBuf| Found {
        kind: record.kind,
        size: bytes(&path).unwrap_or(0),
        path,
        identifier: seen.identifier.clone(),
        served: seen.served,
        process: Some(record.process),
    };
    Ok(match record.kind {
        Kind::Nbd => nbd_device::connected()
            .find(|device| device.identifier == seen.identifier)
            .map(|device| found(device.path)),
        Kind::Ublk => ublk::find(record.token)?.map(found),
        Kind::FuseLoop => is_bound(record, &seen.identifier).then(|| found(record.path.clone())),
    })
}

/// A loop device is the one of the record as long as it has a file of the name that we gave to ours, and not another one since.
fn is_bound(record: &Record, identifier: &str) -> bool {
    let Some(name) = record.path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let bound = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
    bound.is_ok_and(|file| loop_device::is_ours(file.trim_end(), identifier))
}

/// Bytes of a block device. The kernel counts 512 of them at a time, whatever its blocks.
pub(super) fn bytes(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let text = fs::read_to_string(format!("/sys/block/{name}/size")).ok()?;
    text.trim().parse::<u64>().ok()?.checked_mul(512)
}
