//! How the kernel reaches a volume, and what of that a host has.

use super::error::AttachError;
use super::{fuse_loop, kernel, loop_device};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::fs;

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
}
