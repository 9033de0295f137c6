//! What the user-space block driver and its servers say to each other: numbers and layouts, no calls.
//!
//! Source: include/uapi/linux/ublk_cmd.h of Linux; what is said of versions is from its history. Numbers are in the byte order of
//! the machine.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Commands to `/dev/ublk-control`, as `_IOC(direction, 'u', number, 32)`.
pub(in crate::attach) mod command {
    pub(in crate::attach) const GET_DEV_INFO: u32 = super::ioctl(super::READ, 0x02, 32);
    pub(in crate::attach) const ADD_DEV: u32 = super::ioctl(super::READ | super::WRITE, 0x04, 32);
    pub(in crate::attach) const DEL_DEV: u32 = super::ioctl(super::READ | super::WRITE, 0x05, 32);
    pub(in crate::attach) const START_DEV: u32 = super::ioctl(super::READ | super::WRITE, 0x06, 32);
    pub(in crate::attach) const STOP_DEV: u32 = super::ioctl(super::READ | super::WRITE, 0x07, 32);
    pub(in crate::attach) const SET_PARAMS: u32 = super::ioctl(super::READ | super::WRITE, 0x08, 32);
    pub(in crate::attach) const GET_PARAMS: u32 = super::ioctl(super::READ, 0x09, 32);
    pub(in crate::attach) const START_USER_RECOVERY: u32 = super::ioctl(super::READ | super::WRITE, 0x10, 32);
    pub(in crate::attach) const END_USER_RECOVERY: u32 = super::ioctl(super::READ | super::WRITE, 0x11, 32);
    /// Since Linux 6.5.
    pub(in crate::attach) const GET_FEATURES: u32 = super::ioctl(super::READ, 0x13, 32);
    /// Since Linux 6.16.
    pub(in crate::attach) const UPDATE_SIZE: u32 = super::ioctl(super::READ | super::WRITE, 0x15, 32);
}

/// Commands to `/dev/ublkcN`, as `_IOWR('u', number, struct ublksrv_io_cmd)`.
pub(in crate::attach) mod io_command {
    pub(in crate::attach) const FETCH_REQ: u32 = super::ioctl(super::READ | super::WRITE, 0x20, 16);
    pub(in crate::attach) const COMMIT_AND_FETCH_REQ: u32 = super::ioctl(super::READ | super::WRITE, 0x21, 16);
}

/// `_IOC_WRITE` and `_IOC_READ` (include/uapi/asm-generic/ioctl.h).
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC(direction, 'u', number, size)`.
const fn ioctl(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}
const _: () = assert!(command::ADD_DEV == 0xC020_7504 && io_command::FETCH_REQ == 0xC010_7520);

/// Features of the driver, and of a device.
pub(in crate::attach) mod feature {
    /// The device outlives its server.
    pub(in crate::attach) const USER_RECOVERY: u64 = 1 << 3;
    /// Requests that the dead server had are given to the next one.
    pub(in crate::attach) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands are numbered as those of ioctl.
    pub(in crate::attach) const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// The size can change while the device is there.
    pub(in crate::attach) const UPDATE_SIZE: u64 = 1 << 10;
    /// What we do not do without.
    pub(in crate::attach) const NEEDED: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | CMD_IOCTL_ENCODE;
}

/// States of a device.
pub(in crate::attach) mod state {
    /// Not started, or stopped.
    pub(in crate::attach) const DEAD: u16 = 0;
}

/// Operations of requests.
pub(in crate::attach) mod operation {
    pub(in crate::attach) const READ: u8 = 0;
    pub(in crate::attach) const WRITE: u8 = 1;
    pub(in crate::attach) const FLUSH: u8 = 2;
    pub(in crate::attach) const DISCARD: u8 = 3;
    pub(in crate::attach) const WRITE_ZEROES: u8 = 5;
    /// Flag of a request: durable before it is answered.
    pub(in crate::attach) const FUA: u32 = 1 << 13;
    /// Flag of zeroes: the space stays.
    pub(in crate::attach) const NOUNMAP: u32 = 1 << 15;
}

/// Attributes of a device.
pub(in crate::attach) mod attribute {
    pub(in crate::attach) const READ_ONLY: u32 = 1 << 0;
    /// What is written is durable after a flush and not before.
    pub(in crate::attach) const VOLATILE_CACHE: u32 = 1 << 2;
    /// Single writes can be made durable.
    pub(in crate::attach) const FUA: u32 = 1 << 3;
}

/// Parts of [`Params`] that count.
pub(in crate::attach) mod param {
    pub(in crate::attach) const BASIC: u32 = 1 << 0;
    pub(in crate::attach) const DISCARD: u32 = 1 << 1;
}

/// Result of a fetch: the device is stopped, or has lost its server.
pub(in crate::attach) const ABORTED: i32 = -libc::ENODEV;

/// Descriptors of each queue begin at its number times this in `/dev/ublkcN`: `UBLK_MAX_QUEUE_DEPTH` (4096) of them, in whole
/// pages.
pub(in crate::attach) const DESCRIPTORS: usize = 4096 * size_of::<Descriptor>();
const _: () = assert!(DESCRIPTORS.is_multiple_of(4096));

/// `struct ublksrv_ctrl_cmd`: a control command, in the entry itself.
///
/// | offset | bytes | field    | meaning                                  |
/// |--------|-------|----------|------------------------------------------|
/// | 0      | 4     | device   | its number; all ones lets the driver choose |
/// | 4      | 2     | queue    | all ones where none is meant             |
/// | 6      | 2     | len      | bytes at `address`                       |
/// | 8      | 8     | address  | of what is asked or told                 |
/// | 16     | 8     | inline   | a number that belongs to the command     |
/// | 24     | 8     | reserved |                                          |
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::attach) struct ControlCommand {
    pub(in crate::attach) device: u32,
    pub(in crate::attach) queue: u16,
    pub(in crate::attach) len: u16,
    pub(in crate::attach) address: u64,
    pub(in crate::attach) inline: u64,
    pub(in crate::attach) reserved: u64,
}
const _: () = assert!(size_of::<ControlCommand>() == 32);

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::attach) struct DeviceInfo {
    pub(in crate::attach) queues: u16,
    pub(in crate::attach) depth: u16,
    /// Of [`state`].
    pub(in crate::attach) state: u16,
    pub(in crate::attach) pad: u16,
    /// Longest request, in bytes.
    pub(in crate::attach) io_bytes_max: u32,
    pub(in crate::attach) device: u32,
    pub(in crate::attach) server_process: i32,
    pub(in crate::attach) pad_after_process: u32,
    /// Of [`feature`].
    pub(in crate::attach) flags: u64,
    /// The driver keeps it and makes nothing of it: our token.
    pub(in crate::attach) server_flags: u64,
    pub(in crate::attach) owner_user: u32,
    pub(in crate::attach) owner_group: u32,
    pub(in crate::attach) reserved: [u64; 2],
}
const _: () = assert!(size_of::<DeviceInfo>() == 64);

/// `struct ublk_params` as far as we use it, and 4 bytes of what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::attach) struct Params {
    /// Bytes of this.
    pub(in crate::attach) len: u32,
    /// Of [`param`].
    pub(in crate::attach) types: u32,
    /// Of [`attribute`].
    pub(in crate::attach) attributes: u32,
    pub(in crate::attach) logical_shift: u8,
    pub(in crate::attach) physical_shift: u8,
    pub(in crate::attach) io_best_shift: u8,
    pub(in crate::attach) io_min_shift: u8,
    /// 512 bytes each, as all sectors here.
    pub(in crate::attach) io_sectors_max: u32,
    pub(in crate::attach) boundary_sectors: u32,
    pub(in crate::attach) sectors: u64,
    pub(in crate::attach) virtual_boundary: u64,
    pub(in crate::attach) discard_alignment: u32,
    pub(in crate::attach) discard_granularity: u32,
    pub(in crate::attach) discard_sectors_max: u32,
    pub(in crate::attach) zeroes_sectors_max: u32,
    pub(in crate::attach) discard_segments_max: u16,
    pub(in crate::attach) reserved: u16,
    pub(in crate::attach) after: u32,
}
const _: () = assert!(size_of::<Params>() == 64);

/// `struct ublksrv_io_desc`: a request, in memory that the driver shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(in crate::attach) struct Descriptor {
    /// Operation in the low 8 bits, flags above.
    pub(in crate::attach) operation_flags: u32,
    pub(in crate::attach) sectors: u32,
    pub(in crate::attach) start_sector: u64,
    /// What we said the buffer is. Not used: we know.
    pub(in crate::attach) address: u64,
}
const _: () = assert!(size_of::<Descriptor>() == 24);

/// `struct ublksrv_io_cmd`: fetch a request, or give the result of the last one and fetch the next.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::attach) struct IoCommand {
    pub(in crate::attach) queue: u16,
    pub(in crate::attach) tag: u16,
    /// Bytes, or an error of the system below 0.
    pub(in crate::attach) result: i32,
    /// Of the buffer for the next request.
    pub(in crate::attach) address: u64,
}
const _: () = assert!(size_of::<IoCommand>() == 16);
