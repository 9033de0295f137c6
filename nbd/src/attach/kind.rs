//! How the kernel reaches a volume, and what of that a host has.

use super::error::AttachError;
use super::ublk::control;
use super::{fuse_loop, kernel, loop_device};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::fs;

/// How the kernel reaches a volume, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The user-space block driver of Linux 6.5 and later.
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
    /// A kernel that has the user-space block driver with what we need.
    UblkKernel,
    /// The user-space block driver.
    UblkModule,
    /// io_uring, by which the user-space block driver is spoken to.
    IoUring,
    /// Features of the user-space block driver; these bits of them.
    UblkFeatures(u64),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::UblkFeatures(bits) => {
                return write!(f, "the ublk driver lacks features {bits:#x} (another kernel)");
            }
            Missing::Privilege => "CAP_SYS_ADMIN is needed (run as root)",
            Missing::Fuse => "/dev/fuse cannot be opened (modprobe fuse)",
            Missing::Loop => "/dev/loop-control cannot be opened (modprobe loop)",
            Missing::NbdModule => "the kernel's NBD client does not answer (modprobe nbd)",
            Missing::UblkKernel => "Linux 6.5 or later is needed for ublk",
            Missing::UblkModule => "/dev/ublk-control cannot be opened (modprobe ublk_drv)",
            Missing::IoUring => "io_uring is not allowed (sysctl kernel.io_uring_disabled, seccomp)",
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
        let facts = match kind {
            Kind::Ublk => vec![probe_ublk(openable(control::DEVICE))],
            Kind::Nbd => vec![kernel::Client::open().err().map(|_| Missing::NbdModule)],
            Kind::FuseLoop => vec![
                (!openable(fuse_loop::FUSE_DEVICE)).then_some(Missing::Fuse),
                (!openable(loop_device::CONTROL)).then_some(Missing::Loop),
            ],
        };
        let privilege = (!privileged).then_some(Missing::Privilege);
        let missing: Vec<_> = std::iter::once(privilege).chain(facts).flatten().collect();
        let availability = if missing.is_empty() {
            Availability::Usable
        } else {
            Availability::Missing(missing)
        };
        (kind, availability)
    };
    Kind::ALL.map(of).into()
}

/// What is missing for ublk, when its control device can be opened or not.
fn probe_ublk(openable: bool) -> Option<Missing> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_some_and(|version| version < UBLK_SINCE) {
        return Some(Missing::UblkKernel);
    }
    if !openable {
        return Some(Missing::UblkModule);
    }
    match control::features() {
        Ok(features) if control::has(features, control::NEEDED) => None,
        Ok(features) => Some(Missing::UblkFeatures(control::NEEDED & !features)),
        // A driver that does not know the question: vendors put old ones into newer kernels.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Some(Missing::UblkKernel)
        }
        Err(_) => Some(Missing::IoUring),
    }
}

/// The driver is in Linux 6.0; recovery with all requests, commands in the numbers that are not called old, and the question for
/// features came by 6.5.
const UBLK_SINCE: (u32, u32) = (6, 5);

/// Of a release such as `6.12.117+deb12-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
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
pub(super) fn choose(wanted: Option<Kind>, probed: &[(Kind, Availability)]) -> Result<Kind, AttachError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_kind_is_taken_unless_another_is_wanted() {
        let probed = [
            (Kind::Ublk, Availability::Missing(vec![Missing::UblkModule])),
            (Kind::Nbd, Availability::Usable),
            (Kind::FuseLoop, Availability::Usable),
        ];
        assert_eq!(choose(None, &probed).unwrap(), Kind::Nbd);
        assert_eq!(choose(Some(Kind::FuseLoop), &probed).unwrap(), Kind::FuseLoop);
        assert_eq!(
            choose(Some(Kind::Ublk), &probed).unwrap_err().to_string(),
            "no ublk device here: /dev/ublk-control cannot be opened (modprobe ublk_drv); nbd, fuse-loop can be had, and serving to NBD clients over a socket"
        );
    }

    #[test]
    fn a_host_with_nothing_is_told_all_that_is_missing() {
        let nothing = [
            (Kind::Ublk, Availability::Missing(vec![Missing::UblkModule])),
            (
                Kind::FuseLoop,
                Availability::Missing(vec![Missing::Privilege, Missing::Fuse]),
            ),
        ];
        let text = choose(None, &nothing).unwrap_err().to_string();
        assert_eq!(
            text,
            "no block device can be made here: ublk: /dev/ublk-control cannot be opened (modprobe ublk_drv); fuse-loop: CAP_SYS_ADMIN is needed (run as \
             root), /dev/fuse cannot be opened (modprobe fuse); serving to NBD clients over a socket needs none of these"
        );
    }

    #[test]
    fn a_kernel_is_as_old_as_it_says() {
        assert_eq!(version("6.12.117+deb12-cloud-amd64\n"), Some((6, 12)));
        assert_eq!(version("6.1-rc3"), Some((6, 1)));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn root_without_the_capability_is_not_enough() {
        assert!(has_admin("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_admin("CapEff:\t00000000a80425fb\n") && !has_admin("") && !has_admin("CapEff:\tx\n"));
    }
}
