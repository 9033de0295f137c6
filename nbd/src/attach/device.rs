//! A volume that is attached.

use super::error::AttachError;
use super::fuse_loop::FuseLoop;
use super::holders::{self, Holder};
use super::kind::Kind;
use super::nbd_device::NbdDevice;
use super::registry::Claim;
use super::ublk::UblkDevice;
use super::{devices, sys};
use crate::export::{Export, ExportStats};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tracing::{info, warn};

/// What is behind a device.
#[derive(Debug)]
pub(super) enum Back {
    FuseLoop(FuseLoop),
    Nbd(NbdDevice),
    Ublk(UblkDevice),
}

impl Back {
    fn kind(&self) -> Kind {
        match self {
            Back::FuseLoop(_) => Kind::FuseLoop,
            Back::Nbd(_) => Kind::Nbd,
            Back::Ublk(_) => Kind::Ublk,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        match self {
            Back::FuseLoop(back) => back.device().map(|device| device.path().to_owned()).unwrap_or_default(),
            Back::Nbd(back) => back.path().to_owned(),
            Back::Ublk(back) => back.path().to_owned(),
        }
    }

    fn own(&self) -> Vec<RawFd> {
        match self {
            Back::FuseLoop(back) => back.device().map(|device| device.own().to_vec()).unwrap_or_default(),
            Back::Nbd(back) => back.own(),
            Back::Ublk(_) => Vec::new(),
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Back::FuseLoop(back) => back.device().map(|device| device.file().as_fd()),
            Back::Nbd(back) => back.file().map(AsFd::as_fd),
            Back::Ublk(_) => None,
        }
    }

    fn detach(&mut self, grace: Duration) -> Result<(), AttachError> {
        match self {
            Back::FuseLoop(back) => back.detach(grace),
            Back::Nbd(back) => back.detach(grace),
            Back::Ublk(back) => back.detach(grace),
        }
    }

    /// The device has this size from now on.
    fn resize(&self, size: u64) -> Result<(), AttachError> {
        match self {
            Back::FuseLoop(back) => back.resize(),
            Back::Nbd(back) => back.resize(size),
            Back::Ublk(back) => back.resize(size),
        }
    }

    fn abort(&mut self) -> Result<(), AttachError> {
        match self {
            Back::FuseLoop(back) => back.abort(),
            Back::Nbd(back) => back.abort(),
            Back::Ublk(back) => back.abort(),
        }
    }
}

/// A block device that shows a volume, served by threads of this process. Detached on drop, where nobody uses it.
pub struct AttachedDevice {
    path: PathBuf,
    kind: Kind,
    size: AtomicU64,
    block: u32,
    identifier: String,
    export: Arc<Export>,
    back: Back,
    /// None once detached.
    claim: Option<Claim>,
}

/// What an attached device is made of.
pub(super) struct Parts {
    pub(super) back: Back,
    /// The volume, in whole blocks.
    pub(super) export: Arc<Export>,
    /// Bytes of a logical block.
    pub(super) block: u32,
    pub(super) claim: Claim,
}

/// A device that was not detached, and why.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: AttachError,
    /// Works as before.
    pub device: AttachedDevice,
}

/// How long a device that is dropped may take to flush.
const DROP_GRACE: Duration = Duration::from_secs(5);

impl AttachedDevice {
    pub(super) fn new(parts: Parts) -> Result<Self, AttachError> {
        let Parts {
            back,
            export,
            block,
            claim,
        } = parts;
        let device = Self {
            path: back.path(),
            kind: back.kind(),
            block,
            identifier: claim.identifier().to_owned(),
            size: AtomicU64::new(export.size()),
            export,
            back,
            claim: Some(claim),
        };
        device.settle()?;
        info!(
            device = %device.path.display(), kind = %device.kind, identifier = device.identifier, size = device.size(),
            read_only = device.is_read_only(), "attached"
        );
        Ok(device)
    }

    /// The device, such as `/dev/loop3`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the kernel reaches the volume.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of the device: those of the volume, rounded up to whole blocks.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Takes up a volume that has grown: the device gets its new size at once, also in use. Returns the bytes that it has.
    ///
    /// # Errors
    /// When the volume has shrunk or does not end on a block, and when the kernel cannot do it for this kind; the device is then
    /// as it was.
    pub fn grow(&self) -> Result<u64, AttachError> {
        let (old, new) = (self.size(), self.export.source.geometry().size);
        if new == old {
            return Ok(old);
        }
        if new < old {
            return Err(AttachError::Shrunk { old, new });
        }
        if !new.is_multiple_of(self.block.into()) {
            return Err(AttachError::OddSize {
                size: new,
                block: self.block,
            });
        }
        // Requests behind the old end come as soon as the kernel knows the new one.
        self.export.grow_to(new);
        self.back.resize(new)?;
        let got = devices::bytes(&self.path).unwrap_or(0);
        if got != new {
            return Err(AttachError::Message("the device has another size than it was given"));
        }
        self.size.store(new, Ordering::Release);
        info!(device = %self.path.display(), identifier = self.identifier, old, new, "grown");
        Ok(new)
    }

    /// Bytes of a logical block.
    pub fn logical_block(&self) -> u32 {
        self.block
    }

    /// What it was attached as.
    pub fn identifier(&self) -> &str {
        &self.identifier
    }

    /// The device takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.export.flags().read_only
    }

    /// What was asked of the volume through this device.
    pub fn stats(&self) -> ExportStats {
        self.export.stats()
    }

    /// Who uses it, as far as can be seen; nobody when empty.
    pub fn holders(&self) -> Vec<Holder> {
        holders::find(&self.path, &self.back.own())
    }

    /// The device is what was asked for, whatever the kernel made of our wishes.
    fn settle(&self) -> Result<(), AttachError> {
        let Some(file) = self.back.file() else { return Ok(()) };
        let failed = |what: &str| AttachError::system(format!("{what} {}", self.path.display()));
        let size = sys::size(file).map_err(failed("ask the size of"))?;
        if size != self.size() {
            return Err(AttachError::Message("the device has another size than its volume"));
        }
        if self.is_read_only() && !sys::is_read_only(file).map_err(failed("ask"))? {
            sys::set_read_only(file).map_err(failed("mark as read-only"))?;
        }
        Ok(())
    }

    /// Makes durable what was written, and takes the device away. Waits `grace` at most for the volume.
    ///
    /// # Errors
    /// Hands the device back, as it was, when somebody uses it (and says who), when the flush fails, or when the volume does not
    /// answer; then [`AttachedDevice::abort`] gives up what was not flushed.
    pub fn detach(mut self, grace: Duration) -> Result<(), Box<Refused>> {
        match self.detach_now(grace) {
            Ok(()) => Ok(()),
            Err(error) => Err(Box::new(Refused { error, device: self })),
        }
    }

    fn detach_now(&mut self, grace: Duration) -> Result<(), AttachError> {
        let holders = self.holders();
        if !holders.is_empty() {
            return Err(AttachError::Busy {
                device: self.path.clone(),
                holders,
            });
        }
        self.back.detach(grace)?;
        info!(device = %self.path.display(), identifier = self.identifier, "detached");
        self.forget()
    }

    /// There is no such device any more.
    fn forget(&mut self) -> Result<(), AttachError> {
        self.claim.take().map_or(Ok(()), Claim::remove)
    }

    /// Fails every request under way and to come, also of those who use the device, and takes it away. Writes that were not
    /// flushed are lost.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn abort(mut self) -> Result<(), AttachError> {
        warn!(device = %self.path.display(), identifier = self.identifier, "given up: what was not flushed is lost");
        let aborted = self.back.abort();
        let forgotten = if aborted.is_ok() { self.forget() } else { Ok(()) };
        // What the kernel did not take away is not ours any more, and its record stays for a reclaim.
        self.claim = None;
        aborted.and(forgotten)
    }
}

impl fmt::Debug for AttachedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "AttachedDevice({}, {}, {})",
            self.path.display(),
            self.kind,
            self.identifier
        )
    }
}

impl Drop for AttachedDevice {
    fn drop(&mut self) {
        if self.claim.is_none() {
            return;
        }
        if let Err(error) = self.detach_now(DROP_GRACE) {
            warn!(device = %self.path.display(), %error, "a device stays");
            // An NBD device waits for another server from now on; others are served until this process ends.
            if self.kind != Kind::Nbd {
                std::mem::forget(self.claim.take());
            }
        }
    }
}
