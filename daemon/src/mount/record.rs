//! What is known of a mount, in the files of its folder.

use std::path::{Path, PathBuf};

use nbd::attach::Kind;
use repo::{Image, Repository};
use serde::{Deserialize, Serialize};

use crate::error::{JobError, Result};

/// What a mount does with writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum Mode {
    /// Refuses them.
    ReadOnly,
    /// Keeps them in the folder of the mount.
    Writable,
    /// Puts them where they belong in the end, as all the rest of the volume.
    Into {
        /// The final volume.
        target: PathBuf,
    },
}

impl Mode {
    /// In one word, which ends the names of mounts that were given none.
    pub fn word(&self) -> &'static str {
        match self {
            Mode::ReadOnly => "ro",
            Mode::Writable => "rw",
            Mode::Into { .. } => "into",
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    /// The snapshot, as it was called.
    pub snapshot: String,
    /// What becomes of writes.
    #[serde(flatten)]
    pub mode: Mode,
    /// This kind of device or none; the best one when absent.
    #[serde(default, with = "kind", skip_serializing_if = "Option::is_none")]
    pub attach: Option<Kind>,
    /// What the mount is called; made from the snapshot when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Bytes of opened contents in memory at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// A writable device may be of a kind that dies with its server.
    #[serde(default)]
    pub accept_fragile: bool,
    /// Where the password is found again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Arguments that lead to the repository, for the next server.
    pub arguments: Vec<String>,
}

/// What a mount is. Durable from before its volume is opened until after that is closed for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`Record::VERSION`].
    pub version: u32,
    /// What it is called; the name of its folder.
    pub id: String,
    /// The snapshot.
    pub snapshot_id: String,
    /// The object of the repository that its bytes are in.
    pub identity: String,
    /// Bytes of the volume.
    pub size: u64,
    /// Whose volume it shows, for people.
    pub source: String,
    /// What was asked for.
    pub wish: Wish,
    /// Folder where its file system was mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<PathBuf>,
}

impl Record {
    /// Version of the files of a mount.
    pub const VERSION: u32 = 1;

    /// Whether `wish`, for the object called `identity`, is for this mount.
    ///
    /// # Errors
    /// `Usage` when it is for another one of the same name.
    pub fn check_same(&self, identity: &str, wish: &Wish) -> Result<()> {
        let (id, known) = (&self.id, &self.wish.mode);
        if self.identity != identity {
            return Err(JobError::Usage(format!(
                "mount {id} is of snapshot {}, another one; unmount it or give another --name",
                self.snapshot_id
            )));
        }
        match *known == wish.mode {
            true => Ok(()),
            false => Err(JobError::Usage(format!(
                "mount {id} is {}, not {}; unmount it or give another --name",
                describe(known),
                describe(&wish.mode)
            ))),
        }
    }

    /// Whether what was written is a set of changes over the snapshot.
    ///
    /// # Errors
    /// `Usage` when nothing can be written, or it goes to where it stays.
    pub fn check_commit(&self) -> Result<()> {
        let id = &self.id;
        match &self.wish.mode {
            Mode::Writable => Ok(()),
            Mode::ReadOnly => Err(JobError::Usage(format!(
                "mount {id} is read-only: there is nothing to commit"
            ))),
            Mode::Into { target } => Err(JobError::Usage(format!(
                "mount {id} has no changes of its own: what is written goes to {}, of which `blockferry backup` makes a snapshot",
                target.display()
            ))),
        }
    }
}

fn describe(mode: &Mode) -> String {
    match mode {
        Mode::ReadOnly => "read-only".into(),
        Mode::Writable => "writable".into(),
        Mode::Into { target } => format!("into {}", target.display()),
    }
}

/// What the server of a mount made of it. There from when the device is, until it is taken away by a server that lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// The server.
    pub pid: u32,
    /// The run of the system; no device outlives it.
    pub boot: String,
    /// The device, such as `/dev/nbd0`.
    pub device: PathBuf,
    /// How the kernel reaches the volume.
    #[serde(with = "kind_word")]
    pub attach: Kind,
    /// Bytes of a logical block.
    pub logical_block: u32,
    /// From the start of the server to the device, in milliseconds.
    pub attach_ms: u64,
}

impl Attached {
    /// The device may still be there: the system has not been started since.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot == boot_id()
    }
}

/// Names this run of the system.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The name of a mount of snapshot `snapshot_id`, 12 of whose digits tell it from any other that a host ever sees.
pub fn id_of(wish: &Wish, snapshot_id: &str) -> Result<String> {
    let Some(name) = &wish.name else {
        let start = &snapshot_id[..snapshot_id.len().min(12)];
        return Ok(format!("{start}-{}", wish.mode.word()));
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let good = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.');
    match good {
        true => Ok(name.clone()),
        false => Err(JobError::Usage(format!(
            "{name:?} is no name of a mount: 1 to {NAME_MAX} letters, digits, dots, dashes and underscores are one, not beginning with a dot"
        ))),
    }
}

/// Bytes of a name: what identifiers of devices have room for.
pub const NAME_MAX: usize = 40;

/// All mounts of one root begin with this in the kernel; those of others do not.
pub fn identifier_prefix(root: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    format!("bf-{:08x}-", crc32fast::hash(root.as_os_str().as_bytes()))
}

/// What the bytes of a mount or an overlay are: this object of this repository, wherever that is.
pub fn identity(repository: &Repository, image: &Image) -> String {
    format!("{}/{}", hex::encode(&repository.format().unique_id), image.object)
}

fn parse_kind<E: serde::de::Error>(word: &str) -> Result<Kind, E> {
    let found = Kind::ALL.into_iter().find(|kind| kind.to_string() == word);
    found.ok_or_else(|| E::custom(format!("no kind of device is called {word:?}")))
}

mod kind_word {
    use super::{Kind, parse_kind};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(kind)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        parse_kind(&String::deserialize(deserializer)?)
    }
}

mod kind {
    use super::{Kind, parse_kind};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(kind: &Option<Kind>, serializer: S) -> Result<S::Ok, S::Error> {
        kind.map(|kind| kind.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Kind>, D::Error> {
        let word = Option::<String>::deserialize(deserializer)?;
        word.map(|word| parse_kind(&word)).transpose()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wish(mode: Mode) -> Wish {
        Wish {
            snapshot: "latest".into(),
            mode,
            attach: Some(Kind::FuseLoop),
            name: None,
            memory: Some(1 << 20),
            accept_fragile: true,
            password_file: Some("/etc/pw".into()),
            arguments: vec!["--repo".into(), "/r".into()],
        }
    }

    pub(crate) fn record(mode: Mode) -> Record {
        Record {
            version: Record::VERSION,
            id: "aa-ro".into(),
            snapshot_id: "aa112233445566778899aabbccddeeff".into(),
            identity: "repository/object".into(),
            size: 1 << 30,
            source: "u@h:/p".into(),
            wish: wish(mode),
            file_system: None,
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        for mode in [
            Mode::ReadOnly,
            Mode::Writable,
            Mode::Into {
                target: "/dev/vdb".into(),
            },
        ] {
            let record = record(mode);
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
        }
    }

    #[test]
    fn a_name_is_the_snapshots_or_the_given_one() {
        let of = |name: Option<&str>| {
            let name = name.map(str::to_owned);
            id_of(
                &Wish {
                    name,
                    ..wish(Mode::Writable)
                },
                "aa112233445566778899aabbccddeeff",
            )
        };
        assert_eq!(of(None).unwrap(), "aa1122334455-rw");
        assert_eq!(of(Some("db_1.a")).unwrap(), "db_1.a");
        for bad in ["", ".hidden", "a/b", "a b", &"x".repeat(41)] {
            assert!(matches!(of(Some(bad)), Err(JobError::Usage(_))), "{bad:?}");
        }
    }

    #[test]
    fn another_mount_of_the_same_name_is_refused() {
        let record = record(Mode::Writable);
        record.check_same("repository/object", &wish(Mode::Writable)).unwrap();
        let other = record
            .check_same("repository/other", &wish(Mode::Writable))
            .unwrap_err();
        assert!(other.to_string().contains("another one"), "{other}");
        let mode = record
            .check_same("repository/object", &wish(Mode::ReadOnly))
            .unwrap_err();
        assert_eq!(
            mode.to_string(),
            "mount aa-ro is writable, not read-only; unmount it or give another --name"
        );
    }
}
