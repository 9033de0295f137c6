//! `blockferry mount`: a server of its own for a snapshot, started and waited for.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::{Args, ValueEnum};
use nbd::attach::Kind;
use serde::{Deserialize, Serialize};

use super::output::Output;
use super::size::parse_size;
use super::{Global, image};
use crate::error::{JobError, Result};
use crate::mount::control::Status;
use crate::mount::{Mode, Root, Wish, server};

#[derive(Args)]
#[command(after_help = "\
Prints the device, which is there at once, whatever the size of the snapshot: what is read is fetched, and what cannot be read is
an input/output error for exactly those bytes. A process in the background serves it until `blockferry unmount`.

With --writable the device takes writes. They are kept when it is unmounted, and are there again when it is mounted again;
`blockferry commit` makes a snapshot of them.

A volume with a table of partitions has them beside its device, as DEVICEp1 and so on: `lsblk DEVICE` lists them.

Kinds of devices, best first: ublk and nbd outlive their server (see `blockferry mounts --adopt`), fuse does not, so that what is
writable wants --accept-fragile there. `blockferry node-check` tells what this host has.

Examples:
  blockferry mount latest --repo /backups/r1 --password-file pw
  blockferry mount latest --fs /mnt/old --repo /backups/r1 --password-file pw
  blockferry mount 4f2a --writable --name try --repo /backups/r1 --password-file pw
  blockferry unmount try")]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// Take writes, and keep them on this host
    #[arg(long, conflicts_with = "into")]
    writable: bool,
    /// Make DEVICE the volume while it is in use: what is written goes there, the rest is copied there in the background
    #[arg(long, value_name = "DEVICE")]
    into: Option<PathBuf>,
    /// Kind of device
    #[arg(long, value_enum, default_value_t = Attach::Auto, value_name = "KIND")]
    attach: Attach,
    /// Folder to mount the file system at that is on the device
    #[arg(long, value_name = "DIR")]
    fs: Option<PathBuf>,
    /// What the mount is called [default: 12 digits of the snapshot's id and ro, rw or into]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    state: State,
    /// Bytes of opened contents in memory at most [default: 256MiB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Take writes on a device that does not outlive its server
    #[arg(long)]
    accept_fragile: bool,
}

/// Where mounts are kept.
#[derive(Args, Clone, Debug)]
pub(crate) struct State {
    /// Folder of what this host remembers [default: $BLOCKFERRY_STATE, /var/lib/blockferry for root]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl State {
    /// What `--state` says, if anything.
    pub(crate) fn of(state: Option<PathBuf>) -> Self {
        Self { state }
    }

    /// The folder of all mounts.
    pub(crate) fn root(&self) -> Result<Root> {
        let no_place = || JobError::Usage("no place for mounts; give --state or set HOME".into());
        let folder = self.state.clone().or_else(image::state_folder);
        Root::in_state(&folder.ok_or_else(no_place)?)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attach {
    Auto,
    Ublk,
    Nbd,
    Fuse,
}

/// What a server is told on its standard input, in one line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Order {
    pub(super) password: String,
    pub(super) wish: Wish,
    /// Folder for its file system.
    pub(super) file_system: Option<PathBuf>,
}

/// What it says on its standard output, in one line, once.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "report")]
pub(super) enum Report {
    Serving(Box<Status>),
    Already(Box<Status>),
    #[serde(rename_all = "camelCase")]
    Failed {
        error: String,
        exit_code: u8,
    },
}

/// The document of `mount --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    id: String,
    device: PathBuf,
    attach: String,
    size: u64,
    logical_block: u32,
    /// From the start of the server until the device was there.
    attach_ms: u64,
    snapshot_id: String,
    source: String,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_system: Option<PathBuf>,
    pid: u32,
    /// It was mounted before.
    already_mounted: bool,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let mode = match &arguments.into {
        Some(target) => Mode::Into {
            target: std::path::absolute(target).unwrap_or_else(|_| target.clone()),
        },
        None if arguments.writable => Mode::Writable,
        None => Mode::ReadOnly,
    };
    let file_system = match &arguments.fs {
        None => None,
        Some(folder) => Some(fs::canonicalize(folder).map_err(|source| JobError::File {
            what: format!("find the folder {} to mount at", folder.display()),
            source,
        })?),
    };
    let wish = Wish {
        snapshot: arguments.snapshot.clone(),
        mode,
        attach: match arguments.attach {
            Attach::Auto => None,
            Attach::Ublk => Some(Kind::Ublk),
            Attach::Nbd => Some(Kind::Nbd),
            Attach::Fuse => Some(Kind::FuseLoop),
        },
        name: arguments.name.clone(),
        memory: arguments.memory,
        accept_fragile: arguments.accept_fragile,
        password_file: password_file(global),
        arguments: global.arguments()?,
    };
    let order = Order {
        password: image::password(global, false)?,
        wish,
        file_system,
    };
    let (status, already_mounted) = start(&arguments.state.root()?, &order)?;
    let document = Document {
        mode: status.record.wish.mode.word(),
        id: status.record.id,
        device: status.attached.device,
        attach: status.attached.attach.to_string(),
        size: status.record.size,
        logical_block: status.attached.logical_block,
        attach_ms: status.attached.attach_ms,
        snapshot_id: status.record.snapshot_id,
        source: status.record.source,
        file_system: status.record.file_system,
        pid: status.attached.pid,
        already_mounted,
    };
    output.print(&document, |d| format!("{}\n", d.device.display()));
    Ok(ExitCode::SUCCESS)
}

/// Where the password is found again when the server has to be started again.
fn password_file(global: &Global) -> Option<PathBuf> {
    let file = global.password_file.as_ref()?;
    std::path::absolute(file).ok()
}

/// Starts a server and waits for its device; `true` when another server had made it before.
pub(super) fn start(root: &Root, order: &Order) -> Result<(Status, bool)> {
    let failed = |what: &str| {
        let what = format!("{what} the server of the mount");
        move |source| JobError::File { what, source }
    };
    let program = std::env::current_exe().map_err(failed("find the program of"))?;
    let state = root.path().parent().unwrap_or(Path::new("/"));
    server::forget_vanished(root);
    let mut child = Command::new(program)
        .args(&order.wish.arguments)
        .arg("mount-server")
        .arg("--state")
        .arg(state)
        .current_dir("/") // what it is started in can be unmounted
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed("start"))?;
    let line = serde_json::to_string(order).expect("plain data becomes JSON") + "\n";
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(line.as_bytes()).map_err(failed("tell"))?;
    }
    let mut report = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout.take(1 << 20))
        .read_line(&mut report)
        .map_err(failed("hear of"))?;
    match serde_json::from_str(&report) {
        Ok(Report::Serving(status)) => Ok((*status, false)),
        Ok(Report::Already(status)) => Ok((*status, true)),
        Ok(Report::Failed { error, exit_code }) => Err(JobError::Told { error, exit_code }),
        Err(_) => {
            let ended = child.wait().map_err(failed("wait for"))?;
            Err(JobError::Panic(format!(
                "the server of the mount ended without a word ({ended})"
            )))
        }
    }
}
