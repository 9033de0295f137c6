//! The server of one mount: from a wish to a device, and to its end.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use nbd::attach::{self, AttachError, AttachedDevice};
use nbd::{Export, Overlay};
use repo::{Image, Repository};
use serde_json::Value;
use tracing::{debug, info, warn};

use super::control::{self, Answer, Ask, Commit, STATUS_TIMEOUT, Status};
use super::file_system;
use super::folder::{Claim, Folder, Root};
use super::record::{Attached, Mode, Record, Wish, boot_id, id_of, identifier_prefix};
use super::volume::{Places, Volume};
use crate::error::{JobError, Result};

/// A device that is taken away because its server is told to end may take so long to flush.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// The answer to the last question is written within this, or nobody reads it.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Folder for what only lives for a moment.
const RUNTIME: &str = "/run/blockferry";

/// Stores what was written over an image as a snapshot, and tells of it.
pub type Committer = Box<dyn Fn(&Image, &Overlay, &Commit) -> Result<Value> + Send>;

/// What a server begins with.
pub struct Start<'a> {
    /// Where the mounts of this host are.
    pub root: &'a Root,
    /// What was asked for.
    pub wish: &'a Wish,
    /// The repository of the snapshot.
    pub repository: Arc<Repository>,
    /// The snapshot's image.
    pub image: Image,
    /// Names the image's object and its repository.
    pub identity: &'a str,
    /// Folder to mount its file system at.
    pub file_system: Option<&'a Path>,
    /// For commits.
    pub committer: Committer,
    /// Is told the file that what is logged belongs into, as soon as there is one.
    pub log: &'a dyn Fn(&Path) -> Result<()>,
    /// When the process began.
    pub began: Instant,
}

/// What became of a start.
pub enum Started {
    /// There is a device.
    Serving(Box<Server>),
    /// Another process serves the same, and it takes no writes.
    Already(Box<Status>),
}

enum Event {
    /// A question that changes something, where its answer goes, and word that it was written.
    Ask(Ask, Sender<Answer>, Receiver<()>),
    Stop,
}

/// Tells a server to end, as SIGTERM does.
#[derive(Clone)]
pub struct Stopper(Sender<Event>);

impl Stopper {
    /// The device is taken away if nobody uses it; otherwise the server goes on. The second time the server ends all the same, and
    /// leaves the device to the one that adopts it.
    pub fn stop(&self) {
        let _ = self.0.send(Event::Stop); // a server that has ended needs no telling
    }
}

/// What questions need, on whatever thread they come in.
struct Shared {
    record: Record,
    attached: Attached,
    volume: Volume,
    /// None while it is being taken away.
    device: Mutex<Option<AttachedDevice>>,
}

/// A mount that is served.
pub struct Server {
    folder: Folder,
    claim: Claim,
    image: Image,
    shared: Arc<Shared>,
    committer: Committer,
    events: Receiver<Event>,
    stopper: Stopper,
}

impl Server {
    /// Makes a device of what `start` says, or takes the one over that a server of the same left when it died.
    ///
    /// # Errors
    /// `Usage` when the name is taken by another mount, or somebody serves it and it takes writes; besides what opening, attaching and
    /// writing to the folder may fail with. Then nothing is left of a mount that was not there before.
    pub fn start(start: Start<'_>) -> Result<Started> {
        let snapshot_id = start.image.snapshot.id.map(|id| id.to_string());
        let snapshot_id = snapshot_id.ok_or_else(|| JobError::Damage("a snapshot without an id".into()))?;
        let id = id_of(start.wish, &snapshot_id)?;
        start.root.make()?;
        let folder = start.root.folder(&id);
        let Some(claim) = folder.claim()? else {
            return served_already(&folder, &start);
        };
        let known = folder.record()?;
        if let Some(known) = &known {
            known.check_same(start.identity, start.wish)?;
        }
        let is_new = known.is_none();
        let record = Record {
            version: Record::VERSION,
            id,
            snapshot_id: snapshot_id.clone(),
            identity: start.identity.to_owned(),
            size: start.image.size,
            source: start.image.snapshot.source.to_string(),
            wish: Wish {
                snapshot: snapshot_id,
                ..start.wish.clone()
            },
            file_system: start.file_system.map(Path::to_owned),
        };
        folder.put_record(&claim, &record)?;
        (start.log)(&folder.log())?;
        info!(
            mount = record.id,
            snapshot = record.snapshot_id,
            pid = std::process::id(),
            "starting"
        );
        let identifier = identifier_prefix(start.root.path()) + &record.id;
        match Self::serve(start, &folder, &claim, record, &identifier) {
            Ok((image, shared, committer)) => {
                let (sender, events) = unbounded();
                let stopper = Stopper(sender);
                let server = Self {
                    folder,
                    claim,
                    image,
                    shared,
                    committer,
                    events,
                    stopper,
                };
                server.listen()?;
                Ok(Started::Serving(Box::new(server)))
            }
            Err(error) => {
                if is_new && let Err(left) = folder.remove(claim) {
                    warn!(
                        error = crate::error::chain(&left),
                        "the folder of a mount that failed is left"
                    );
                }
                Err(error)
            }
        }
    }

    fn serve(
        start: Start<'_>,
        folder: &Folder,
        claim: &Claim,
        record: Record,
        identifier: &str,
    ) -> Result<(Image, Arc<Shared>, Committer)> {
        let places = Places {
            written: &folder.written(),
            touches: &start.root.touches(),
        };
        let (volume, export) = Volume::open(start.repository, &start.image, &record, &places)?;
        let options = attach::Options {
            kind: start.wish.attach,
            accept_fragile: start.wish.accept_fragile,
            runtime: RUNTIME.into(),
            ..attach::Options::named(identifier)
        };
        let (device, is_new) = adopt_or_attach(&Arc::new(export), &options, record.file_system.as_deref())?;
        // From here on the device goes away when it is dropped.
        let attached = Attached {
            pid: std::process::id(),
            boot: boot_id(),
            device: device.path().to_owned(),
            attach: device.kind(),
            logical_block: device.logical_block(),
            attach_ms: u64::try_from(start.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        folder.put_attached(claim, &attached)?;
        if let Some(at) = record.file_system.as_deref().filter(|_| is_new)
            && let Err(error) = file_system::mount(device.path(), at, device.is_read_only())
        {
            folder.remove_attached(claim)?;
            return Err(error);
        }
        let shared = Arc::new(Shared {
            record,
            attached,
            volume,
            device: Mutex::new(Some(device)),
        });
        Ok((start.image, shared, start.committer))
    }

    /// Begins to answer questions.
    fn listen(&self) -> Result<()> {
        let (shared, events) = (self.shared.clone(), self.stopper.0.clone());
        let answer = move |ask: Ask, say: &dyn Fn(&Answer)| match ask {
            Ask::Status => say(&Answer::Status(Box::new(shared.status()))),
            ask => {
                let (to, answer) = bounded(1);
                let (written, is_written) = bounded(1);
                if events.send(Event::Ask(ask, to, is_written)).is_ok()
                    && let Ok(answer) = answer.recv()
                {
                    say(&answer);
                }
                let _ = written.send(()); // for whom it matters: the last one
            }
        };
        control::listen(&self.folder, Arc::new(answer))
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// For one who hears of signals.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves until the device is taken away.
    ///
    /// # Errors
    /// When what was written could not be made durable at the end.
    pub fn run(self) -> Result<()> {
        let mut told = false;
        loop {
            match self.events.recv().expect("this server has a sender") {
                Event::Stop if told => return self.leave(),
                Event::Stop => {
                    told = true;
                    match self.detach(STOP_GRACE, false) {
                        Ok(()) => return self.clear(),
                        Err(error) => {
                            let error = crate::error::chain(&error);
                            warn!(
                                error,
                                "told to stop, and goes on: the device would be taken from under its users"
                            );
                        }
                    }
                }
                Event::Ask(Ask::Detach { grace_ms, force }, answer, written) => {
                    let grace = Duration::from_millis(grace_ms);
                    // The folder is as it stays before anybody is told.
                    let done = self.detach(grace, force);
                    if let Err(error) = done {
                        let _ = answer.send(Answer::refused(&error));
                        continue;
                    }
                    let cleared = self.clear();
                    let _ = answer.send(cleared.as_ref().map_or_else(Answer::refused, |()| Answer::Detached));
                    let _ = written.recv_timeout(LAST_WORD);
                    return cleared;
                }
                Event::Ask(Ask::Commit(commit), answer, _) => {
                    let answered = match self.commit(&commit) {
                        Ok(document) => Answer::Committed { document },
                        Err(error) => Answer::refused(&error),
                    };
                    let _ = answer.send(answered);
                }
                Event::Ask(Ask::Status, answer, _) => {
                    let _ = answer.send(Answer::Status(Box::new(self.status())));
                }
            }
        }
    }

    /// Takes the device away, all that was written durable before.
    fn detach(&self, grace: Duration, force: bool) -> Result<()> {
        if let Some(folder) = &self.shared.record.file_system {
            match force {
                true => file_system::give_up(folder),
                false => file_system::unmount(folder)?,
            }
        }
        let mut held = self.shared.device();
        let device = held
            .take()
            .ok_or_else(|| JobError::Usage("the device is gone already".into()))?;
        match device.detach(grace) {
            Ok(()) => {}
            Err(refused) if force => {
                warn!(
                    error = crate::error::chain(&refused.error),
                    "the device is taken away all the same"
                );
                refused.device.abort()?;
            }
            Err(refused) => {
                let attach::Refused { error, device } = *refused;
                *held = Some(device);
                return Err(error.into());
            }
        }
        drop(held);
        self.shared.volume.close()
    }

    /// Leaves the folder as the next one is to find it: nothing where nothing was written, else what was.
    fn clear(self) -> Result<()> {
        self.folder.remove_attached(&self.claim)?;
        let is_kept = self.shared.volume.is_kept();
        info!(mount = self.shared.record.id, is_kept, "unmounted");
        match is_kept {
            true => Ok(()),
            false => self.folder.remove(self.claim),
        }
    }

    /// Ends with the device where it is.
    fn leave(self) -> Result<()> {
        warn!("told to stop again: the device stays behind, for `blockferry mounts --adopt`");
        self.shared.volume.close()?;
        std::process::exit(0); // past the drop of the device, which would wait for its users
    }

    fn commit(&self, commit: &Commit) -> Result<Value> {
        self.shared.record.check_commit()?;
        let overlay = self.shared.volume.overlay();
        let overlay = overlay.ok_or_else(|| JobError::Panic("a writable mount without an overlay".into()))?;
        let held = self.shared.device();
        let device = held
            .as_ref()
            .ok_or_else(|| JobError::Usage("the device is gone already".into()))?;
        let holders = device.holders();
        if !holders.is_empty() {
            let device = device.path().to_owned();
            return Err(AttachError::Busy { device, holders }.into());
        }
        // Nobody mounts it from here on; and what was written through the device's cache arrives.
        let failed = |source| JobError::File {
            what: format!("hold {} against mounts", device.path().display()),
            source,
        };
        let hold = File::options()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(device.path());
        let hold = hold.map_err(failed)?;
        hold.sync_all().map_err(failed)?;
        (self.committer)(&self.image, overlay, commit)
    }
}

impl Shared {
    fn device(&self) -> MutexGuard<'_, Option<AttachedDevice>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> Status {
        let written = self.volume.written_bytes();
        // Without waiting for one who takes the device away.
        let device = self.device.try_lock().ok();
        let stats = device
            .as_ref()
            .and_then(|device| device.as_ref())
            .map(AttachedDevice::stats);
        Status {
            record: self.record.clone(),
            attached: self.attached.clone(),
            written_bytes: written.min(self.record.size),
            hydration: self.volume.hydration(),
            requests: stats.map_or(0, |stats| stats.requests),
            failures: stats.map_or(0, |stats| stats.failures),
            bytes_read: stats.map_or(0, |stats| stats.bytes_read),
            fetched_bytes: self.volume.fetched_bytes(),
        }
    }
}

/// Somebody holds the mount.
fn served_already(folder: &Folder, start: &Start<'_>) -> Result<Started> {
    let id = folder.id();
    match control::ask(folder, &Ask::Status, STATUS_TIMEOUT)? {
        Some(Answer::Status(status)) => {
            status.record.check_same(start.identity, start.wish)?;
            match status.record.wish.mode {
                Mode::ReadOnly => Ok(Started::Already(status)),
                _ => Err(JobError::Usage(format!(
                    "mount {id} is served by process {} as {}; what is written over a snapshot has one mount, --name makes another one",
                    status.attached.pid,
                    status.attached.device.display()
                ))),
            }
        }
        _ => Err(JobError::Usage(format!(
            "mount {id} is being made or taken away by another process; try again"
        ))),
    }
}

/// The device that a server left when it died, else a new one; and whether it is a new one.
fn adopt_or_attach(
    export: &Arc<Export>,
    options: &attach::Options,
    file_system: Option<&Path>,
) -> Result<(AttachedDevice, bool)> {
    if let Some(left) = left_behind(&options.identifier)? {
        // Whatever kind is wanted now, it is this device that is in use.
        let any = attach::Options {
            kind: None,
            ..options.clone()
        };
        if let Some(device) = attach::adopt(export, &any)? {
            info!(device = %device.path().display(), "adopted");
            return Ok((device, false));
        }
        warn!(device = %left.path.display(), kind = %left.kind, "this device went with its server; there is a new one now");
        reclaim(&left, file_system)?;
    }
    Ok((attach::attach(export, options)?, true))
}

/// The device of `identifier`, which nobody serves.
pub fn left_behind(identifier: &str) -> Result<Option<attach::Found>> {
    let found = attach::devices(Path::new(RUNTIME), identifier)?;
    Ok(found.into_iter().find(|device| device.identifier == identifier))
}

/// Takes a device away that nobody serves, from those who use it too. Its file system goes out of sight.
pub fn reclaim(device: &attach::Found, file_system: Option<&Path>) -> Result<()> {
    if let Some(folder) = file_system {
        file_system::give_up(folder);
    }
    Ok(attach::reclaim(device, Path::new(RUNTIME), attach::InUse::Fail)?)
}

/// Takes the devices away that mounts of `root` left which are no more, and that nobody uses. Returns them.
pub fn reclaim_leaked(root: &Root) -> Result<Vec<attach::Found>> {
    let prefix = identifier_prefix(root.path());
    let mut reclaimed = Vec::new();
    for device in attach::leaked(Path::new(RUNTIME), &prefix)? {
        let folder = root.folder(&device.identifier[prefix.len()..]);
        if folder.record()?.is_none() {
            attach::reclaim(&device, Path::new(RUNTIME), attach::InUse::Keep)?;
            reclaimed.push(device);
        }
    }
    Ok(reclaimed)
}

/// Forgets the devices of mounts of `root` that went with their servers: until the end of the boot nobody else would.
pub fn forget_vanished(root: &Root) {
    match attach::forget_vanished(Path::new(RUNTIME), &identifier_prefix(root.path())) {
        Ok(forgotten) => forgotten.iter().for_each(|identifier| debug!(identifier, "forgotten")),
        // They do no harm, and who may not list devices has made none.
        Err(error) => debug!(
            error = crate::error::chain(&error),
            "records of devices that are gone stay"
        ),
    }
}

/// Makes this process fit to serve a device that takes writes: memory that the kernel cleans by writing to that device must not be
/// waited for here (prctl PR_SET_IO_FLUSHER), and nothing of this process may have to be read back from swap to go on.
///
/// Called before there are other threads, which take over what the kernel knows of the one that starts them. Returns what could
/// not be had: the process serves without it, with more to fear from a host that is short of memory.
pub fn harden() -> Vec<String> {
    let mut missing = Vec::new();
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        missing.push(format!(
            "not marked as a process that memory is cleaned through ({error}): CAP_SYS_RESOURCE is needed"
        ));
    }
    use rustix::mm::MlockAllFlags;
    // ONFAULT: what is never touched, such as most of a thread's stack, takes no memory.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        missing.push(format!(
            "memory is not locked ({error}): CAP_IPC_LOCK or a higher RLIMIT_MEMLOCK is needed"
        ));
    }
    missing
}
