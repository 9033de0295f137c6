//! `blockferry unmount`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use tracing::warn;

use super::mount::State;
use super::mounts::stopped;
use super::output::Output;
use super::signals;
use crate::error::{JobError, Result};
use crate::mount::control::{self, Answer, Ask};
use crate::mount::folder::Claim;
use crate::mount::record::identifier_prefix;
use crate::mount::survey::{Found, Health};
use crate::mount::{Mode, Root, Survey, server};

#[derive(Args)]
#[command(after_help = "\
What was written is made durable first. A device that somebody uses stays, and its users are named. What was written over a
snapshot is kept for the next mount of it, or for `blockferry commit`; --discard gives it up. A volume that is hydrated is whole
and can be used without us; one that is not yet keeps its state, and goes on with the next mount.

Examples:
  blockferry unmount /dev/nbd0
  blockferry unmount try --discard")]
pub(crate) struct Arguments {
    /// Name of the mount, unique beginning of it, its device, or the folder of its file system
    mount: String,
    /// Give up what was written
    #[arg(long)]
    discard: bool,
    /// Take the device from those who use it; what they did not flush is lost
    #[arg(long)]
    force: bool,
    /// Seconds that the volume may take to make everything durable
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    grace: u64,
    #[command(flatten)]
    state: State,
}

/// The document of `unmount --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    id: String,
    /// What was written is still there, or there is more to hydrate.
    kept: bool,
    /// The volume that was hydrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<PathBuf>,
}

/// Beyond what the volume may take: for the server to answer, and to end.
const SLACK: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<ExitCode> {
    let root = arguments.state.root()?;
    let survey = Survey::of(&root)?;
    let found = survey.find(&arguments.mount)?;
    let id = found.record.id.clone();
    match &found.health {
        Health::Serving(_) => detach(arguments, found)?,
        Health::Hanging(why) => {
            return Err(JobError::Usage(format!(
                "mount {id}: {why}; its log is {}",
                found.folder.log().display()
            )));
        }
        Health::Dead(attached) if attached.attach.survives() && attached.is_of_this_boot() && !arguments.force => {
            return Err(JobError::Usage(format!(
                "the server of mount {id} died, and what {} holds unwritten can only be saved by another one: run `blockferry mounts --adopt`, or give it up with --force",
                attached.device.display()
            )));
        }
        Health::Dead(_) => {
            let claim = claim(found)?;
            reclaim(&root, found)?;
            server::forget_vanished(&root);
            found.folder.remove_attached(&claim)?;
            if found.record.wish.mode == Mode::ReadOnly {
                found.folder.remove(claim)?;
            }
        }
        Health::Stopped if !arguments.discard => return Err(stopped(found)),
        Health::Stopped => {}
    }
    if arguments.discard && found.folder.record()?.is_some() {
        let claim = claim(found)?;
        found.folder.remove(claim)?;
    }
    let document = Document {
        kept: found.folder.record()?.is_some(),
        target: match &found.record.wish.mode {
            Mode::Into { target } => Some(target.clone()),
            _ => None,
        },
        id,
    };
    output.print(&document, |d| match (d.kept, &d.target) {
        (true, None) => format!(
            "{} unmounted; what was written is kept in {}\n",
            d.id,
            found.folder.written().display()
        ),
        (true, Some(target)) => format!(
            "{} unmounted; {} is not whole yet: mount it into that again to go on\n",
            d.id,
            target.display()
        ),
        (false, Some(target)) if !arguments.discard => {
            format!("{} unmounted; {} is the whole volume\n", d.id, target.display())
        }
        (false, _) => format!("{} unmounted\n", d.id),
    });
    Ok(ExitCode::SUCCESS)
}

fn detach(arguments: &Arguments, found: &Found) -> Result<()> {
    let server = found.attached().and_then(|attached| process(attached.pid));
    let grace = Duration::from_secs(arguments.grace);
    let ask = Ask::Detach {
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        force: arguments.force,
    };
    match control::ask(&found.folder, &ask, grace + SLACK)? {
        Some(Answer::Detached) => {}
        Some(Answer::Refused { error, exit_code }) => return Err(JobError::Told { error, exit_code }),
        Some(other) => return Err(JobError::Panic(format!("the server answered {other:?}"))),
        None => {
            return Err(JobError::Usage(format!(
                "the server of mount {} has just died; try again",
                found.record.id
            )));
        }
    }
    // It lets go of the folder, and of the volume that it hydrated, when it ends, which is now.
    if let Some(server) = server
        && !has_ended(&server)
    {
        warn!(
            pid = found.attached().map(|attached| attached.pid),
            "the server takes long to end; it holds what it had until then"
        );
    }
    if found.folder.record()?.is_some() {
        drop(claim(found)?);
    }
    Ok(())
}

/// Holds on to the process `id`; none where it has ended, or the kernel has no such thing (before Linux 5.3).
fn process(id: u32) -> Option<OwnedFd> {
    let id = Pid::from_raw(i32::try_from(id).ok()?)?;
    pidfd_open(id, PidfdFlags::empty()).ok()
}

/// Waits for the end of a process, [`SLACK`] at most.
fn has_ended(process: &OwnedFd) -> bool {
    let slack = Timespec {
        tv_sec: SLACK.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&slack)).is_ok_and(|ended| ended > 0)
}

/// Takes away what a server that died left of its device.
fn reclaim(root: &Root, found: &Found) -> Result<()> {
    let identifier = identifier_prefix(root.path()) + &found.record.id;
    match server::left_behind(&identifier)? {
        Some(left) => server::reclaim(&left, found.record.file_system.as_deref()),
        None => Ok(()),
    }
}

/// The right to the folder, once the server that had it has ended.
fn claim(found: &Found) -> Result<Claim> {
    let deadline = Instant::now() + SLACK;
    loop {
        if let Some(claim) = found.folder.try_lock()? {
            return Ok(claim);
        }
        if Instant::now() > deadline {
            return Err(JobError::Usage(format!(
                "mount {} is still held by a process {} s after it said goodbye",
                found.record.id,
                SLACK.as_secs()
            )));
        }
        signals::token()
            .wait(Duration::from_millis(20))
            .map_err(|_| JobError::Cancelled)?;
    }
}
