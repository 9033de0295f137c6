//! Volumes as block devices of this host: whatever the kernel offers for that, behind one [`AttachedDevice`].
//!
//! | kind | needs | when its server dies |
//! |---|---|---|
//! | [`Kind::Ublk`] | Linux 6.0, module `ublk_drv` | recovers at once |
//! | [`Kind::Nbd`] | module `nbd` | waits for a server that adopts it |
//! | [`Kind::FuseLoop`] | FUSE and loop devices | fails, and vanishes when nobody uses it |
//!
//! All need CAP_SYS_ADMIN. [`probe`] tells what a host has, [`attach`] takes the first that it has.
//!
//! ```no_run
//! use nbd::attach::{Options, attach};
//! use nbd::{Export, MemSource};
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! let volume = Arc::new(Export::read_only(Arc::new(MemSource::new(64 << 20))));
//! let device = attach(&volume, &Options::named("example"))?;
//! println!("{} has {} bytes", device.path().display(), device.size());
//! device.detach(Duration::from_secs(30)).map_err(|refused| refused.error)?;
//! # Ok::<(), nbd::attach::AttachError>(())
//! ```

mod error;
mod fuse_loop;
mod holders;
mod kernel;
mod loop_device;
mod nbd_device;
mod netlink;
mod padded;
mod sys;
mod volume_file;

pub use error::AttachError;
pub use holders::Holder;

use crate::export::{Export, ExportStats};
use fuse_loop::FuseLoop;
use nbd_device::NbdDevice;
use padded::Padded;
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How the kernel reaches a volume, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The user-space block driver of Linux 6.0 and later.
    Ublk,
    /// The kernel's own NBD client.
    Nbd,
    /// A file of a FUSE file system behind a loop device.
    FuseLoop,
}

impl Kind {
    /// All kinds, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Ublk, Self::Nbd, Self::FuseLoop];

    /// The device survives the death of its server, with all that was written to it.
    pub const fn survives(self) -> bool {
        matches!(self, Self::Ublk | Self::Nbd)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ublk => "ublk",
            Kind::Nbd => "nbd",
            Kind::FuseLoop => "fuse-loop",
        })
    }
}

/// What a kind needs and does not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The right to make devices.
    Privilege,
    /// `/dev/fuse`.
    Fuse,
    /// `/dev/loop-control`.
    Loop,
    /// The kernel's NBD client.
    NbdModule,
    /// This program cannot do it.
    NotBuilt,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Privilege => "CAP_SYS_ADMIN is needed (run as root)",
            Missing::Fuse => "/dev/fuse cannot be opened (modprobe fuse)",
            Missing::Loop => "/dev/loop-control cannot be opened (modprobe loop)",
            Missing::NbdModule => "the kernel's NBD client does not answer (modprobe nbd)",
            Missing::NotBuilt => "this version cannot make it",
        })
    }
}

/// Whether a kind can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// As far as can be seen without making a device.
    Usable,
    /// All that is missing.
    Missing(Vec<Missing>),
}

/// What this host has, best kind first. Makes no device and loads no module.
pub fn probe() -> Vec<(Kind, Availability)> {
    let privileged = has_admin(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    let openable = |path| rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).is_ok();
    let of = |kind| {
        let facts: &[(bool, Missing)] = match kind {
            Kind::Ublk => &[(false, Missing::NotBuilt)],
            Kind::Nbd => &[(kernel::Client::open().is_ok(), Missing::NbdModule)],
            Kind::FuseLoop => &[
                (openable(fuse_loop::FUSE_DEVICE), Missing::Fuse),
                (openable(loop_device::CONTROL), Missing::Loop),
            ],
        };
        let all = std::iter::once((privileged, Missing::Privilege)).chain(facts.iter().copied());
        let missing: Vec<_> = all.filter(|(there, _)| !there).map(|(_, missing)| missing).collect();
        let availability = if missing.is_empty() {
            Availability::Usable
        } else {
            Availability::Missing(missing)
        };
        (kind, availability)
    };
    Kind::ALL.map(of).into()
}

/// Whether `CapEff` in /proc/self/status has bit 21, CAP_SYS_ADMIN (include/uapi/linux/capability.h). Root in a container may
/// lack it.
fn has_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & 1 << 21 != 0)
}

/// The kind to use: the wanted one, else the best.
fn choose(wanted: Option<Kind>, probed: &[(Kind, Availability)]) -> Result<Kind, AttachError> {
    let usable: Vec<Kind> = probed
        .iter()
        .filter(|(_, availability)| *availability == Availability::Usable)
        .map(|(kind, _)| *kind)
        .collect();
    let missing = |availability: &Availability| match availability {
        Availability::Usable => Vec::new(),
        Availability::Missing(missing) => missing.clone(),
    };
    match wanted {
        None => usable
            .first()
            .copied()
            .ok_or_else(|| AttachError::NoKind(probed.iter().map(|(kind, found)| (*kind, missing(found))).collect())),
        Some(kind) if usable.contains(&kind) => Ok(kind),
        Some(kind) => Err(AttachError::Unavailable {
            kind,
            missing: probed
                .iter()
                .find(|(other, _)| *other == kind)
                .map(|(_, found)| missing(found))
                .unwrap_or_default(),
            usable,
        }),
    }
}

/// How a volume is attached.
#[derive(Clone, Debug)]
pub struct Options {
    /// This kind or none; the best one when absent.
    pub kind: Option<Kind>,
    /// What the volume is, for whoever looks at the device, and for adoption: a device is only ever given another server of the
    /// same identifier. 1 to 60 letters, digits, dots, dashes and underscores.
    pub identifier: String,
    /// A writable device may be of a kind that dies with its server.
    pub accept_fragile: bool,
    /// Folder for what only lives for a moment.
    pub runtime: PathBuf,
}

impl Options {
    /// Any kind, nothing fragile, `/run/blockferry`.
    pub fn named(identifier: &str) -> Self {
        Self {
            kind: None,
            identifier: identifier.to_owned(),
            accept_fragile: false,
            runtime: PathBuf::from("/run/blockferry"),
        }
    }
}

/// Bytes of an identifier. A loop device shows 63 bytes of a name.
const IDENTIFIER_MAX: usize = 60;

fn check_identifier(identifier: &str) -> Result<(), AttachError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let good = (1..=IDENTIFIER_MAX).contains(&identifier.len())
        && identifier.bytes().all(plain)
        && !matches!(identifier, "." | "..");
    if good {
        Ok(())
    } else {
        Err(AttachError::Identifier(identifier.to_owned()))
    }
}

/// The volume in whole blocks, and the bytes of a block: those of the volume's source, so that file systems and partition
/// tables made there are read here.
fn in_blocks(export: &Arc<Export>) -> Result<(Arc<Export>, u32), AttachError> {
    let geometry = export.source.geometry();
    let (size, block) = (geometry.size, geometry.logical_block);
    if !matches!(block, 512 | 1024 | 2048 | 4096) {
        return Err(AttachError::Block(block));
    }
    if size == 0 {
        return Err(AttachError::Empty);
    }
    if size.is_multiple_of(block.into()) {
        return Ok((export.clone(), block));
    }
    if !export.flags().read_only {
        return Err(AttachError::OddSize { size, block });
    }
    let padded = Padded::new(export.source.clone(), block);
    Ok((Arc::new(Export::read_only(Arc::new(padded))), block))
}

/// Makes `export` a block device.
///
/// # Errors
/// When the host lacks what the kind needs (says what, and what works instead), the volume has a shape that devices do not have,
/// or the kernel refuses.
pub fn attach(export: &Arc<Export>, options: &Options) -> Result<AttachedDevice, AttachError> {
    check_identifier(&options.identifier)?;
    let (export, block) = in_blocks(export)?;
    let kind = choose(options.kind, &probe())?;
    let read_only = export.flags().read_only;
    if !read_only && !kind.survives() && !options.accept_fragile {
        return Err(AttachError::Fragile(kind));
    }
    let back = match kind {
        Kind::FuseLoop => Back::FuseLoop(FuseLoop::attach(&fuse_loop::Request {
            export: &export,
            block,
            identifier: &options.identifier,
            runtime: &options.runtime,
        })?),
        Kind::Nbd => Back::Nbd(NbdDevice::attach(&nbd_device::Request {
            export: &export,
            block,
            identifier: &options.identifier,
        })?),
        Kind::Ublk => {
            return Err(AttachError::Unavailable {
                kind,
                missing: vec![Missing::NotBuilt],
                usable: Vec::new(),
            });
        }
    };
    AttachedDevice::new(back, export, block, &options.identifier)
}

/// Serves the device of this identifier again whose server has died: the one that [`attach`] made for the same volume. `None` when
/// there is none. That nobody serves it any more is for the caller to know; a device that is being served stays with its server.
///
/// # Errors
/// When the volume has another size than the device, or the kernel refuses.
pub fn adopt(export: &Arc<Export>, identifier: &str) -> Result<Option<AttachedDevice>, AttachError> {
    check_identifier(identifier)?;
    let (export, block) = in_blocks(export)?;
    let adopted = NbdDevice::adopt(&nbd_device::Request {
        export: &export,
        block,
        identifier,
    })?;
    adopted
        .map(|device| AttachedDevice::new(Back::Nbd(device), export, block, identifier))
        .transpose()
}

/// What is behind a device.
#[derive(Debug)]
enum Back {
    FuseLoop(FuseLoop),
    Nbd(NbdDevice),
}

impl Back {
    fn kind(&self) -> Kind {
        match self {
            Back::FuseLoop(_) => Kind::FuseLoop,
            Back::Nbd(_) => Kind::Nbd,
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Back::FuseLoop(back) => back.device().map(|device| device.path().to_owned()).unwrap_or_default(),
            Back::Nbd(back) => back.path().to_owned(),
        }
    }

    fn own(&self) -> Vec<RawFd> {
        match self {
            Back::FuseLoop(back) => back.device().map(|device| device.own().to_vec()).unwrap_or_default(),
            Back::Nbd(back) => back.own(),
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Back::FuseLoop(back) => back.device().map(|device| device.file().as_fd()),
            Back::Nbd(back) => back.file().map(AsFd::as_fd),
        }
    }

    fn detach(&mut self, grace: Duration) -> Result<(), AttachError> {
        match self {
            Back::FuseLoop(back) => back.detach(grace),
            Back::Nbd(back) => back.detach(grace),
        }
    }

    fn abort(&mut self) -> Result<(), AttachError> {
        match self {
            Back::FuseLoop(back) => back.abort(),
            Back::Nbd(back) => back.abort(),
        }
    }
}

/// A block device that shows a volume, served by threads of this process. Detached on drop, where nobody uses it.
pub struct AttachedDevice {
    path: PathBuf,
    kind: Kind,
    size: u64,
    block: u32,
    identifier: String,
    export: Arc<Export>,
    back: Back,
    detached: bool,
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
    fn new(back: Back, export: Arc<Export>, block: u32, identifier: &str) -> Result<Self, AttachError> {
        let device = Self {
            path: back.path(),
            kind: back.kind(),
            block,
            identifier: identifier.to_owned(),
            size: export.source.geometry().size,
            export,
            back,
            detached: false,
        };
        device.settle()?;
        info!(
            device = %device.path.display(), kind = %device.kind, identifier, size = device.size,
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
        self.size
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
        if size != self.size {
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
        self.detached = true;
        info!(device = %self.path.display(), identifier = self.identifier, "detached");
        Ok(())
    }

    /// Fails every request under way and to come, also of those who use the device, and takes it away. Writes that were not
    /// flushed are lost.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn abort(mut self) -> Result<(), AttachError> {
        self.detached = true;
        warn!(device = %self.path.display(), identifier = self.identifier, "given up: what was not flushed is lost");
        self.back.abort()
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
        if self.detached {
            return;
        }
        if let Err(error) = self.detach_now(DROP_GRACE) {
            warn!(device = %self.path.display(), %error, "a device stays, served until this process ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemSource;
    use blockio::{BlockError, BlockSource, Extent, ExtentKind, Geometry};

    #[test]
    fn the_best_kind_is_taken_unless_another_is_wanted() {
        let probed = [
            (Kind::Ublk, Availability::Missing(vec![Missing::NotBuilt])),
            (Kind::Nbd, Availability::Usable),
            (Kind::FuseLoop, Availability::Usable),
        ];
        assert_eq!(choose(None, &probed).unwrap(), Kind::Nbd);
        assert_eq!(choose(Some(Kind::FuseLoop), &probed).unwrap(), Kind::FuseLoop);
        assert_eq!(
            choose(Some(Kind::Ublk), &probed).unwrap_err().to_string(),
            "no ublk device here: this version cannot make it; nbd, fuse-loop can be had, and serving to NBD clients over a socket"
        );
    }

    #[test]
    fn a_host_with_nothing_is_told_all_that_is_missing() {
        let nothing = [
            (Kind::Ublk, Availability::Missing(vec![Missing::NotBuilt])),
            (
                Kind::FuseLoop,
                Availability::Missing(vec![Missing::Privilege, Missing::Fuse]),
            ),
        ];
        let text = choose(None, &nothing).unwrap_err().to_string();
        assert_eq!(
            text,
            "no block device can be made here: ublk: this version cannot make it; fuse-loop: CAP_SYS_ADMIN is needed (run as \
             root), /dev/fuse cannot be opened (modprobe fuse); serving to NBD clients over a socket needs none of these"
        );
    }

    #[test]
    fn root_without_the_capability_is_not_enough() {
        assert!(has_admin("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_admin("CapEff:\t00000000a80425fb\n") && !has_admin("") && !has_admin("CapEff:\tx\n"));
    }

    #[test]
    fn identifiers_are_names_of_files() {
        for good in ["a", "k1f0-0.overlay_2", &"x".repeat(60)] {
            check_identifier(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\0", &"x".repeat(61)] {
            assert!(
                matches!(check_identifier(bad), Err(AttachError::Identifier(_))),
                "{bad:?}"
            );
        }
    }

    /// A volume with blocks of any size.
    struct Blocks(u64, u32);

    impl BlockSource for Blocks {
        fn geometry(&self) -> Geometry {
            Geometry {
                logical_block: self.1,
                ..Geometry::of_bytes(self.0)
            }
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), BlockError> {
            Ok(())
        }

        fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
            out.push((range, ExtentKind::Data));
            Ok(())
        }
    }

    #[test]
    fn a_device_has_whole_blocks_of_the_sources_size() {
        let of = |size, block| in_blocks(&Arc::new(Export::read_only(Arc::new(Blocks(size, block)))));
        let (export, block) = of(5000, 4096).unwrap();
        assert_eq!((export.source.geometry().size, block), (8192, 4096));
        assert!(matches!(of(4096, 520), Err(AttachError::Block(520))));
        assert!(matches!(of(0, 512), Err(AttachError::Empty)));
        let odd = Arc::new(Export::writable(Arc::new(MemSource::new(1000))));
        assert!(matches!(
            in_blocks(&odd),
            Err(AttachError::OddSize { size: 1000, block: 512 })
        ));
    }
}
