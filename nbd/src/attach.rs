//! Volumes as block devices of this host: whatever the kernel offers for that, behind one [`AttachedDevice`].
//!
//! | kind | needs | when its server dies |
//! |---|---|---|
//! | [`Kind::Ublk`] | Linux 6.5, module `ublk_drv` | waits for a server that adopts it, and goes on at once |
//! | [`Kind::Nbd`] | module `nbd` | waits for a server that adopts it, and goes on within 25 s |
//! | [`Kind::FuseLoop`] | FUSE and loop devices | fails, and vanishes when nobody uses it |
//!
//! All need CAP_SYS_ADMIN. [`probe`] tells what a host has, [`attach`] takes the first that it has. [`adopt`] serves a device
//! again whose server died, [`devices`] lists them, and [`reclaim`] takes one away that nobody serves.
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

mod apart;
mod device;
mod devices;
mod error;
mod fuse_loop;
mod holders;
mod kernel;
mod kind;
mod loop_device;
mod nbd_device;
mod netlink;
mod padded;
mod partitions;
mod registry;
mod sys;
mod ublk;
mod volume_file;

pub use apart::apart;
pub use device::{AttachedDevice, Refused};
pub use devices::{Found, InUse, devices, forget_vanished, leaked, reclaim};
pub use error::AttachError;
pub use holders::Holder;
pub use kind::{Availability, Kind, Missing, probe};
pub use partitions::PartitionTable;

use crate::export::Export;
use device::{Back, Parts};
use fuse_loop::FuseLoop;
use nbd_device::NbdDevice;
use padded::Padded;
use registry::{Claim, Record, Seen};
use std::path::PathBuf;
use std::sync::Arc;
use ublk::UblkDevice;

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
    /// Folder for what lives as long as a device: who serves it. Must not outlive a boot of the host, and be the same for all that
    /// attach, adopt and reclaim.
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
/// a device of this identifier is there already ([`adopt`] or [`reclaim`] it), or the kernel refuses.
pub fn attach(export: &Arc<Export>, options: &Options) -> Result<AttachedDevice, AttachError> {
    check_identifier(&options.identifier)?;
    let (export, block) = in_blocks(export)?;
    let kind = kind::choose(options.kind, &probe())?;
    let read_only = export.flags().read_only;
    if !read_only && !kind.survives() && !options.accept_fragile {
        return Err(AttachError::Fragile(kind));
    }
    let identifier = &options.identifier;
    let claim = Claim::take(&options.runtime, identifier)?;
    if let Some(left) = left_behind(&claim)? {
        return Err(AttachError::Left {
            identifier: identifier.clone(),
            device: left.path,
        });
    }
    let mut record = Record::new(kind);
    // Before there is a device, so that whatever happens in between, it is known to be ours.
    claim.write(&record)?;
    let made = match kind {
        Kind::FuseLoop => FuseLoop::attach(&fuse_loop::Request {
            export: &export,
            block,
            identifier,
            runtime: &options.runtime,
        })
        .map(Back::FuseLoop),
        Kind::Nbd => NbdDevice::attach(&nbd_device::Request {
            export: &export,
            block,
            identifier,
        })
        .map(Back::Nbd),
        Kind::Ublk => UblkDevice::attach(&ublk::Request {
            export: &export,
            block,
            token: record.token,
        })
        .map(Back::Ublk),
    };
    let back = match made {
        Ok(back) => back,
        Err(error) => {
            // What could not be taken away again is found by its record.
            if left_behind(&claim)?.is_none() {
                claim.remove()?;
            }
            return Err(error);
        }
    };
    record.path = back.path();
    claim.write(&record)?;
    AttachedDevice::new(Parts {
        back,
        export,
        block,
        claim,
    })
}

/// The device that a server of this identifier left when it died, with its record or without.
fn left_behind(claim: &Claim) -> Result<Option<Found>, AttachError> {
    let recorded = devices::locate(&Seen {
        identifier: claim.identifier().to_owned(),
        record: claim.record()?,
        served: false,
    })?;
    let bears = |device: &Found| device.identifier == claim.identifier();
    Ok(recorded.or_else(|| nbd_device::connected().find(bears)))
}

/// Serves the device of `options.identifier` again whose server has died: the one that [`attach`] made for the same volume, of
/// the kind `options.kind` where that says one. `None` when there is none, or it is of a kind that does not survive.
///
/// # Errors
/// [`AttachError::Served`] when its server lives; when the volume has another size than the device, or the kernel refuses.
pub fn adopt(export: &Arc<Export>, options: &Options) -> Result<Option<AttachedDevice>, AttachError> {
    check_identifier(&options.identifier)?;
    let (export, block) = in_blocks(export)?;
    let identifier = &options.identifier;
    let claim = Claim::take(&options.runtime, identifier)?;
    let recorded = claim.record()?;
    // The kernel's NBD client keeps the identifier itself, so that its devices are found without a record.
    let kind = recorded.as_ref().map_or(Kind::Nbd, |record| record.kind);
    let adopted = match kind {
        _ if options.kind.is_some_and(|wanted| wanted != kind) => None,
        Kind::FuseLoop => None,
        Kind::Nbd => NbdDevice::adopt(&nbd_device::Request {
            export: &export,
            block,
            identifier,
        })?
        .map(Back::Nbd),
        Kind::Ublk => UblkDevice::adopt(&ublk::Request {
            export: &export,
            block,
            token: recorded.as_ref().map_or(0, |record| record.token),
        })?
        .map(Back::Ublk),
    };
    let Some(back) = adopted else {
        if left_behind(&claim)?.is_none() {
            claim.remove()?;
        }
        return Ok(None);
    };
    claim.write(&Record {
        path: back.path(),
        token: recorded.map_or(1, |record| record.token),
        ..Record::new(kind)
    })?;
    AttachedDevice::new(Parts {
        back,
        export,
        block,
        claim,
    })
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemSource;
    use blockio::{BlockError, BlockSource, Extent, ExtentKind, Geometry};

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
