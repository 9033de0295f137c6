//! Commands to the driver as a whole, each with a bound on how long it is waited for.

use super::abi::{self, DeviceInfo, Params, command};
use crate::attach::error::AttachError;
use crate::attach::sys::ublk::{Control, control};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io;
use std::time::Duration;
use zerocopy::{FromZeros, IntoBytes};

/// Where commands go.
pub(in crate::attach) const DEVICE: &str = "/dev/ublk-control";

/// The driver answers within milliseconds, and makes or takes away a device within a second, also under emulation.
pub(super) const WAIT: Duration = Duration::from_secs(10);

fn give(command: u32, device: u32, inline: u64, wait: Duration, data: &mut [u8]) -> io::Result<()> {
    let opened = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let request = Control {
        command,
        device,
        inline,
        wait,
    };
    control(&File::from(opened), request, data)
}

/// A command about one device that is told nothing and tells nothing.
fn tell(doing: &str, command: u32, device: u32, inline: u64, wait: Duration) -> Result<(), AttachError> {
    give(command, device, inline, wait, &mut []).map_err(AttachError::system(format!("{doing} /dev/ublkb{device}")))
}

/// What the driver can do. Since Linux 6.5.
pub(in crate::attach) fn features() -> io::Result<u64> {
    let mut features = [0; 8];
    give(command::GET_FEATURES, u32::MAX, 0, WAIT, &mut features)?;
    Ok(u64::from_ne_bytes(features))
}

/// Makes a device that is not there for anybody yet; the result has what the driver made of our wishes.
pub(super) fn add(wanted: &DeviceInfo) -> Result<DeviceInfo, AttachError> {
    let mut info = *wanted;
    let added = give(command::ADD_DEV, u32::MAX, 0, WAIT, info.as_mut_bytes());
    added.map_err(AttachError::system("make a ublk device"))?;
    Ok(info)
}

/// `None` when there is no such device.
pub(super) fn info(device: u32) -> Result<Option<DeviceInfo>, AttachError> {
    let mut info = DeviceInfo::new_zeroed();
    match give(command::GET_DEV_INFO, device, 0, WAIT, info.as_mut_bytes()) {
        Ok(()) => Ok(Some(info)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(AttachError::system(format!("ask for /dev/ublkb{device}"))(error)),
    }
}

pub(super) fn set_params(device: u32, params: &Params) -> Result<(), AttachError> {
    let mut params = *params;
    let set = give(command::SET_PARAMS, device, 0, WAIT, params.as_mut_bytes());
    set.map_err(AttachError::system(format!("describe /dev/ublkb{device}")))
}

pub(super) fn params(device: u32) -> Result<Params, AttachError> {
    let mut params = Params {
        len: u32::try_from(size_of::<Params>()).unwrap_or(0),
        ..Params::default()
    };
    let got = give(command::GET_PARAMS, device, 0, WAIT, params.as_mut_bytes());
    got.map_err(AttachError::system(format!("ask what /dev/ublkb{device} is")))?;
    Ok(params)
}

/// The device is there for all from now on. Its threads must be ready: the kernel looks for partitions.
pub(super) fn start(device: u32, wait: Duration) -> Result<(), AttachError> {
    tell("start", command::START_DEV, device, std::process::id().into(), wait)
}

/// The device is there for nobody any more. Waits for requests under way.
pub(super) fn stop(device: u32, wait: Duration) -> Result<(), AttachError> {
    tell("stop", command::STOP_DEV, device, 0, wait)
}

/// Takes away a device that is stopped. Waits for all who have its files open.
pub(super) fn delete(device: u32, wait: Duration) -> Result<(), AttachError> {
    tell("take away", command::DEL_DEV, device, 0, wait)
}

/// The device is ready for another server. EBUSY while the last one has not quite ended.
pub(super) fn begin_recovery(device: u32) -> Result<(), AttachError> {
    tell("take over", command::START_USER_RECOVERY, device, 0, WAIT)
}

/// This process is its server, and gets all requests that wait.
pub(super) fn end_recovery(device: u32) -> Result<(), AttachError> {
    tell(
        "take over",
        command::END_USER_RECOVERY,
        device,
        std::process::id().into(),
        WAIT,
    )
}

/// The device has this size from now on. Since Linux 6.16.
pub(super) fn resize(device: u32, size: u64) -> Result<(), AttachError> {
    tell("resize", command::UPDATE_SIZE, device, size / 512, WAIT)
}

/// Numbers of the devices that there are, whoever made them.
pub(super) fn numbers() -> Vec<u32> {
    let entries = fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("ublkc")?.parse().ok())
        .collect()
}

/// The driver can do what is asked.
pub(in crate::attach) fn has(features: u64, wanted: u64) -> bool {
    features & wanted == wanted
}

/// What we need of a driver.
pub(in crate::attach) const NEEDED: u64 = abi::feature::NEEDED;
