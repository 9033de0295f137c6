//! What the server of a mount is asked over its socket: one line of JSON there, one back, and the connection is over.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use blockio::Cancel;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::folder::Folder;
use super::record::{Attached, Record};
use crate::error::{JobError, Result};

/// Bytes of a line at most: an answer is a page or two.
const LINE_LEN_MAX: u64 = 64 << 10;

/// Who connects asks at once.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that does not tell how it is for so long hangs: it looks at some counters for that.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub enum Ask {
    /// How it is.
    Status,
    /// Make all that was written durable, take the device away, and end.
    #[serde(rename_all = "camelCase")]
    Detach {
        /// Waits so long for the volume at most, in milliseconds.
        grace_ms: u64,
        /// Take it away from those who use it, without what was not flushed.
        force: bool,
    },
    /// Hold the device against mounts, and store what was written as a snapshot.
    Commit(Commit),
}

/// How a mount is to be committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// Whose volume the new snapshot is: USER@HOST:PATH.
    pub source: String,
    /// Compression of new chunks, as `backup --compression` takes it.
    pub compression: String,
    /// Threads.
    pub workers: usize,
}

/// How a mount is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// What it is.
    pub record: Record,
    /// Its device.
    pub attached: Attached,
    /// Bytes of chunks that were written to.
    pub written_bytes: u64,
    /// How far the final volume holds all of it; none where there is no such volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hydration: Option<Hydration>,
    /// Requests of the kernel so far.
    pub requests: u64,
    /// Of these, failed.
    pub failures: u64,
    /// Bytes asked for by reads.
    pub bytes_read: u64,
    /// Bytes of contents fetched from the repository, or from the cache of this host.
    pub fetched_bytes: u64,
}

/// How far a volume is hydrated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hydration {
    /// Bytes that are on the target.
    pub present_bytes: u64,
    /// Chunks that cannot be had.
    pub damaged_chunks: u64,
    /// Bytes that come to be present a second, of late.
    pub bytes_per_second: u64,
    /// One word: running, waiting, complete, stopped, failed.
    pub state: String,
    /// Why it is not running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    /// How it is.
    Status(Box<Status>),
    /// The device is gone, the server ends.
    Detached,
    /// The document of `blockferry commit`.
    Committed {
        /// As it is printed.
        document: serde_json::Value,
    },
    /// It is as it was.
    #[serde(rename_all = "camelCase")]
    Refused {
        /// Why.
        error: String,
        /// Exit code of a command that has to tell.
        exit_code: u8,
    },
}

impl Answer {
    /// A refusal for `error`.
    pub fn refused(error: &JobError) -> Self {
        Self::Refused {
            error: crate::error::chain(error),
            exit_code: error.exit_code(),
        }
    }
}

/// A path of any length as one that fits into an address of a socket (108 bytes), by way of the open folder.
fn short(folder: &File, path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

/// Is given a question, and what takes the answer to it and writes it.
pub type Respond = dyn Fn(Ask, &dyn Fn(&Answer)) + Send + Sync;

/// Answers what the server of `folder` is asked, until this process ends. Nobody but the owner of the folder gets to its socket.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(folder: &Folder, answer: Arc<Respond>) -> Result<()> {
    let path = folder.control();
    let failed = |source| JobError::File {
        what: format!("listen on {}", path.display()),
        source,
    };
    let open = File::open(folder.path()).map_err(failed)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {} // of a server that died: this one holds the lock
    }
    let listener = UnixListener::bind(short(&open, &path)).map_err(failed)?;
    let serve = move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => {
                    let answer = answer.clone();
                    let spawned = thread::Builder::new()
                        .name("control".to_owned())
                        .spawn(move || serve_one(&stream, &*answer));
                    if let Err(error) = spawned {
                        warn!(%error, "a question is not answered: no thread");
                    }
                }
                Err(error) => {
                    // Out of descriptors, most likely: those who ask come again.
                    warn!(%error, "a question is not answered");
                    Cancel::new().wait(Duration::from_millis(100)).ok();
                }
            }
        }
    };
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(serve)
        .map(drop)
        .map_err(failed)
}

fn serve_one(stream: &UnixStream, respond: &Respond) {
    let say = |answer: &Answer| {
        if let Err(error) = write_line(stream, answer) {
            warn!(%error, "an answer was not written");
        }
    };
    let read = || -> io::Result<String> {
        stream.set_read_timeout(Some(ASK_TIMEOUT))?;
        stream.set_write_timeout(Some(ASK_TIMEOUT))?;
        read_line(stream)
    };
    match read().map(|line| serde_json::from_str(&line)) {
        Ok(Ok(ask)) => respond(ask, &say),
        Ok(Err(error)) => say(&Answer::Refused {
            error: format!("not a question that this version knows: {error}"),
            exit_code: 2,
        }),
        Err(error) => warn!(%error, "a question was not read"),
    }
}

/// Asks the server of `folder`, and waits `timeout` for its answer. `None` when nobody listens there.
///
/// # Errors
/// `Usage` or `File` when the server does not answer, or as no server does.
pub fn ask(folder: &Folder, ask: &Ask, timeout: Duration) -> Result<Option<Answer>> {
    let path = folder.control();
    let failed = |source: io::Error| JobError::File {
        what: match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!(
                    "the server of mount {} did not answer for {} s",
                    folder.id(),
                    timeout.as_secs()
                )
            }
            _ => format!("ask the server of mount {}", folder.id()),
        },
        source,
    };
    let open = match File::open(folder.path()) {
        Ok(open) => open,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let stream = match UnixStream::connect(short(&open, &path)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    stream.set_write_timeout(Some(ASK_TIMEOUT)).map_err(failed)?;
    write_line(&stream, ask).map_err(failed)?;
    let line = read_line(&stream).map_err(failed)?;
    let answer = serde_json::from_str(&line);
    answer.map(Some).map_err(|error| {
        failed(io::Error::other(format!(
            "it answered what this version does not know: {error}"
        )))
    })
}

fn read_line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream).take(LINE_LEN_MAX).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn write_line<T: Serialize>(mut stream: &UnixStream, document: &T) -> io::Result<()> {
    let line = serde_json::to_string(document).expect("plain data becomes JSON") + "\n";
    stream.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::folder::Root;
    use super::super::record::Mode;
    use super::super::record::tests::record;
    use super::*;

    fn status() -> Status {
        Status {
            record: record(Mode::ReadOnly),
            attached: Attached {
                pid: 7,
                boot: "b".into(),
                device: "/dev/nbd0".into(),
                attach: nbd::attach::Kind::Nbd,
                logical_block: 512,
                attach_ms: 20,
            },
            written_bytes: 0,
            hydration: Some(Hydration {
                present_bytes: 5,
                damaged_chunks: 0,
                bytes_per_second: 1,
                state: "waiting".into(),
                reason: Some("no route".into()),
            }),
            requests: 1,
            failures: 0,
            bytes_read: 4096,
            fetched_bytes: 1 << 20,
        }
    }

    #[test]
    fn a_question_has_its_answer_however_long_the_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::in_state(&dir.path().join("x".repeat(200))).unwrap();
        let folder = root.folder("a");
        assert!(ask(&folder, &Ask::Status, STATUS_TIMEOUT).unwrap().is_none());
        let _claim = folder.claim().unwrap().unwrap();
        assert!(ask(&folder, &Ask::Status, STATUS_TIMEOUT).unwrap().is_none());
        let answer = |ask: Ask, say: &dyn Fn(&Answer)| {
            say(&match ask {
                Ask::Status => Answer::Status(Box::new(status())),
                Ask::Detach { grace_ms, force } => Answer::Refused {
                    error: format!("{grace_ms} {force}"),
                    exit_code: 1,
                },
                Ask::Commit(_) => Answer::Detached,
            });
        };
        // A server that died leaves its socket behind.
        drop(UnixListener::bind(short(&File::open(folder.path()).unwrap(), &folder.control())).unwrap());
        assert!(ask(&folder, &Ask::Status, STATUS_TIMEOUT).unwrap().is_none());
        listen(&folder, Arc::new(answer)).unwrap();
        assert_eq!(
            ask(&folder, &Ask::Status, STATUS_TIMEOUT).unwrap(),
            Some(Answer::Status(Box::new(status())))
        );
        let detach = Ask::Detach {
            grace_ms: 5,
            force: true,
        };
        assert_eq!(
            ask(&folder, &detach, STATUS_TIMEOUT).unwrap(),
            Some(Answer::Refused {
                error: "5 true".into(),
                exit_code: 1
            })
        );
    }

    #[test]
    fn what_is_no_question_is_refused_and_the_server_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Root::in_state(dir.path()).unwrap().folder("a");
        let _claim = folder.claim().unwrap().unwrap();
        listen(&folder, Arc::new(|_, say: &dyn Fn(&Answer)| say(&Answer::Detached))).unwrap();
        for bad in [&b"\n"[..], b"{}\n", b"\xff\xfe\n", &[b'x'; 70_000]] {
            let mut stream = UnixStream::connect(folder.control()).unwrap();
            let _ = stream.write_all(bad);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text); // an answer or the end
            assert!(text.is_empty() || text.contains("refused"), "{text}");
        }
        let answer = ask(&folder, &Ask::Status, STATUS_TIMEOUT).unwrap();
        assert_eq!(answer, Some(Answer::Detached));
    }
}
