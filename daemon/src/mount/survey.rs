//! What all mounts of this host are at.

use std::path::Path;

use super::control::{self, Answer, Ask, STATUS_TIMEOUT, Status};
use super::folder::{Folder, Root};
use super::record::{Attached, Record};
use crate::error::{JobError, Result, chain};

/// How a mount is.
#[derive(Debug)]
pub enum Health {
    /// Its server answers.
    Serving(Box<Status>),
    /// A server holds it and does not answer.
    Hanging(String),
    /// Its server died. The device waits for another one, or is gone, by its kind.
    Dead(Attached),
    /// There is no device; what was written is kept.
    Stopped,
}

impl Health {
    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            Health::Serving(_) => "serving",
            Health::Hanging(_) => "hanging",
            Health::Dead(_) => "dead",
            Health::Stopped => "stopped",
        }
    }
}

/// One mount.
#[derive(Debug)]
pub struct Found {
    /// Where it is kept.
    pub folder: Folder,
    /// What it is.
    pub record: Record,
    /// How it is.
    pub health: Health,
}

impl Found {
    /// Its device, as far as is known.
    pub fn attached(&self) -> Option<&Attached> {
        match &self.health {
            Health::Serving(status) => Some(&status.attached),
            Health::Dead(attached) => Some(attached),
            Health::Hanging(_) | Health::Stopped => None,
        }
    }
}

/// All mounts of a root.
#[derive(Debug)]
pub struct Survey {
    /// By name.
    pub mounts: Vec<Found>,
    /// Folders that nothing can be said of, and why.
    pub unreadable: Vec<(Folder, String)>,
}

impl Survey {
    /// Looks at all mounts of `root`, and changes nothing.
    ///
    /// # Errors
    /// When the folder of all mounts cannot be read.
    pub fn of(root: &Root) -> Result<Self> {
        let mut survey = Self {
            mounts: Vec::new(),
            unreadable: Vec::new(),
        };
        for folder in root.folders()? {
            match look(&folder) {
                Ok(Some(found)) => survey.mounts.push(found),
                Ok(None) => {} // removed meanwhile
                Err(error) => survey.unreadable.push((folder, chain(&error))),
            }
        }
        Ok(survey)
    }

    /// The mount called `name`: its id, a unique beginning of that, its device, or the folder of its file system.
    ///
    /// # Errors
    /// `Usage` when there is none, or are several.
    pub fn find(&self, name: &str) -> Result<&Found> {
        let full = std::path::absolute(name).unwrap_or_else(|_| name.into());
        let by_path = |found: &&Found| {
            let device = found.attached().is_some_and(|attached| attached.device == full);
            device || found.record.file_system.as_deref() == Some(Path::new(&full))
        };
        let exact = |found: &&Found| found.record.id == name || by_path(found);
        if let Some(found) = self.mounts.iter().find(exact) {
            return Ok(found);
        }
        let begin = |found: &&Found| !name.is_empty() && found.record.id.starts_with(name);
        let candidates: Vec<&Found> = self.mounts.iter().filter(begin).collect();
        match candidates[..] {
            [only] => Ok(only),
            [] => Err(JobError::Usage(match self.unreadable.first() {
                None => format!("no mount {name:?}; `blockferry mounts` lists them"),
                Some((folder, why)) => format!(
                    "no mount {name:?}, and {} cannot be read: {why}",
                    folder.path().display()
                ),
            })),
            _ => Err(JobError::Usage(format!(
                "{} mounts begin with {name:?}; give more of the name",
                candidates.len()
            ))),
        }
    }
}

/// How the mount in `folder` is; `None` when there is none any more.
fn look(folder: &Folder) -> Result<Option<Found>> {
    let Some(record) = folder.record()? else {
        return Ok(None);
    };
    let found = |health| {
        Some(Found {
            folder: folder.clone(),
            record: record.clone(),
            health,
        })
    };
    match control::ask(folder, &Ask::Status, STATUS_TIMEOUT) {
        Ok(Some(Answer::Status(status))) => {
            return Ok(Some(Found {
                folder: folder.clone(),
                record: status.record.clone(),
                health: Health::Serving(status),
            }));
        }
        Ok(Some(answer)) => return Ok(found(Health::Hanging(format!("it answered {answer:?}")))),
        Err(error) => return Ok(found(Health::Hanging(chain(&error)))),
        Ok(None) => {}
    }
    // Nobody listens. One who holds the lock is about to, or about to end.
    match folder.try_lock() {
        Ok(Some(_claim)) => Ok(found(folder.attached()?.map_or(Health::Stopped, Health::Dead))),
        Ok(None) => Ok(found(Health::Hanging("its server is starting or ending".into()))),
        Err(_) if !folder.path().exists() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::record::{Mode, boot_id};
    use super::*;

    fn put(root: &Root, id: &str, device: Option<&str>) {
        let folder = root.folder(id);
        let claim = folder.claim().unwrap().unwrap();
        let record = Record {
            id: id.into(),
            ..record(Mode::Writable)
        };
        folder.put_record(&claim, &record).unwrap();
        if let Some(device) = device {
            let attached = Attached {
                pid: 1,
                boot: boot_id(),
                device: device.into(),
                attach: nbd::attach::Kind::Nbd,
                logical_block: 512,
                attach_ms: 1,
            };
            folder.put_attached(&claim, &attached).unwrap();
        }
    }

    #[test]
    fn mounts_are_found_by_name_beginning_and_device() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::in_state(dir.path()).unwrap();
        put(&root, "aa-rw", Some("/dev/nbd0"));
        put(&root, "ab-rw", None);
        put(&root, "b", None);
        std::fs::create_dir_all(root.path().join("empty")).unwrap();
        std::fs::create_dir_all(root.path().join("bad")).unwrap();
        std::fs::write(root.path().join("bad/record"), "x").unwrap();
        let survey = Survey::of(&root).unwrap();
        assert_eq!((survey.mounts.len(), survey.unreadable.len()), (3, 1));
        let id = |name: &str| survey.find(name).map(|found| found.record.id.clone());
        assert_eq!(id("aa-rw").unwrap(), "aa-rw");
        assert_eq!(id("ab").unwrap(), "ab-rw");
        assert_eq!(id("/dev/nbd0").unwrap(), "aa-rw");
        assert_eq!(survey.find("aa").unwrap().health.word(), "dead");
        assert_eq!(survey.find("b").unwrap().health.word(), "stopped");
        for none in ["", "a", "x", "/dev/nbd1"] {
            assert!(matches!(id(none), Err(JobError::Usage(_))), "{none:?}");
        }
    }
}
