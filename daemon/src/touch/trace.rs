//! The order of first touches as a file.
//!
//! ```text
//! file = magic "BFTOUCH1" | chunks of the volume u64 | count u32 | crc u32 | count * chunk u32
//! ```
//!
//! Little-endian; the crc is the CRC-32 of everything else. A file is replaced whole. Nothing depends on it: one that is damaged, of
//! another version or of a volume of another size is as good as none.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockio::ChunkIndex;
use repo::ObjectId;
use tracing::warn;

use super::{TOUCHES_MAX, Watch};
use crate::lazy::LazySource;

const MAGIC: [u8; 8] = *b"BFTOUCH1";
const HEAD: usize = 24;

/// Between two times that the touches of a mount are written: what a crash may cost of them.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// Bytes that a mount sends for at its start at most: a fourth of what its memory holds, so that what readers want meanwhile does not
/// drive it out.
const PREFETCH_BYTES: u64 = 64 << 20;

/// Chunks in the order in which readers wanted them first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    chunks: Vec<u32>,
}

impl Trace {
    /// What `watch` was told.
    pub fn of(watch: &Watch) -> Self {
        Self {
            chunks: watch.order().clone(),
        }
    }

    /// The trace of a mount of `image`, a volume of `chunks` chunks, in `folder`. `None` when there is none that can be used, which is
    /// told when it is more than that nobody wrote one.
    pub fn load(folder: &Path, image: &ObjectId, chunks: u64) -> Option<Self> {
        let path = path(folder, image);
        let read = File::open(&path).and_then(|file| {
            let mut bytes = Vec::new();
            // One byte more than it may have.
            file.take((HEAD + 4 * TOUCHES_MAX + 1) as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let parsed = match read {
            Ok(bytes) => Self::parse(&bytes, chunks),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        parsed
            .map_err(|why| warn!(file = %path.display(), why, "the first touches of an earlier mount are not used"))
            .ok()
    }

    /// Writes it into `folder`, which is made if missing; durable when this returns.
    ///
    /// # Errors
    /// When that cannot be done; the file that was there stays.
    pub fn save(&self, folder: &Path, image: &ObjectId, chunks: u64) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let path = path(folder, image);
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&self.encode(chunks))?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(folder)?.sync_all()
    }

    /// The chunks, in order, each once.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        self.chunks.iter().map(|chunk| ChunkIndex::new((*chunk).into()))
    }

    /// Sends for what is read first, 64 MiB at most.
    pub fn prefetch(&self, source: &LazySource) {
        let count = usize::try_from(PREFETCH_BYTES / blockio::CHUNK_SIZE).expect("64");
        source.prefetch_chunks(self.chunks().take(count));
    }

    /// This one, and behind it what only `earlier` has. A mount of a moment does not undo what a long one found out.
    #[must_use]
    pub fn followed_by(mut self, earlier: &Self) -> Self {
        let known: std::collections::HashSet<u32> = self.chunks.iter().copied().collect();
        let rest = earlier.chunks.iter().filter(|chunk| !known.contains(chunk));
        let room = TOUCHES_MAX.saturating_sub(self.chunks.len());
        self.chunks.extend(rest.take(room));
        self
    }

    fn encode(&self, chunks: u64) -> Vec<u8> {
        let count = u32::try_from(self.chunks.len()).expect("65,536 at most");
        let mut bytes = Vec::with_capacity(HEAD + 4 * self.chunks.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&chunks.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.to_le_bytes());
        }
        let crc = crc(&bytes);
        bytes[HEAD - 4..HEAD].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8], chunks: u64) -> Result<Self, String> {
        let Some((head, body)) = bytes.split_at_checked(HEAD) else {
            return Err("it is too short".to_owned());
        };
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let size = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        if head[..8] != MAGIC || size != chunks {
            return Err("it is not a list of touches of this volume".to_owned());
        }
        let count = word(16) as usize;
        if count > TOUCHES_MAX || body.len() != 4 * count || word(20) != crc(bytes) {
            return Err("it is damaged".to_owned());
        }
        let (words, _) = body.as_chunks::<4>();
        let list: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let mut seen = std::collections::HashSet::new();
        match list
            .iter()
            .all(|chunk| u64::from(*chunk) < chunks && seen.insert(*chunk))
        {
            true => Ok(Self { chunks: list }),
            false => Err("it names a chunk twice, or one behind the end".to_owned()),
        }
    }
}

/// Of everything but the place of the crc itself.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..HEAD - 4]);
    hasher.update(&bytes[HEAD..]);
    hasher.finalize()
}

fn path(folder: &Path, image: &ObjectId) -> PathBuf {
    folder.join(format!("{image}.touch"))
}

/// Writes the touches of a mount to a file while it lasts, every minute when there are new ones, and at its end.
#[derive(Debug)]
pub struct TraceKeeper {
    end: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl TraceKeeper {
    /// Keeps what `watch` is told in the file of `image`, a volume of `chunks` chunks, in `folder`; behind it what `earlier` says.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        watch: Arc<Watch>,
        folder: &Path,
        image: ObjectId,
        chunks: u64,
        earlier: Option<Trace>,
    ) -> io::Result<Self> {
        let end = Arc::new((Mutex::new(false), Condvar::new()));
        let (folder, shared) = (folder.to_owned(), end.clone());
        let keep = move || {
            let (mut saved, mut told) = (0, false);
            let earlier = earlier.unwrap_or_default();
            let mut is_over = false;
            while !is_over {
                let flag = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = shared.1.wait_timeout_while(flag, SAVE_INTERVAL, |is_over| !*is_over);
                is_over = *waited.unwrap_or_else(PoisonError::into_inner).0;
                let trace = Trace::of(&watch);
                let count = trace.chunks.len();
                if count == saved {
                    continue;
                }
                match trace.followed_by(&earlier).save(&folder, &image, chunks) {
                    Ok(()) => saved = count,
                    Err(error) if !told => {
                        told = true;
                        warn!(folder = %folder.display(), %error, "first touches cannot be kept for the next mount");
                    }
                    Err(_) => {}
                }
            }
        };
        let thread = thread::Builder::new().name("touches".to_owned()).spawn(keep)?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }

    /// Writes them a last time.
    pub fn stop(self) {}
}

impl Drop for TraceKeeper {
    fn drop(&mut self) {
        *self.end.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it costs a file that nothing depends on
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> ObjectId {
        "Ix00112233445566778899aabbccddeeff".parse().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_saved_is_loaded_and_any_damage_is_none(
            chunks in prop::collection::hash_set(0u32..5000, 0..50), at in any::<prop::sample::Index>(), bit in 0..8u32, cut in any::<prop::sample::Index>(),
        ) {
            let trace = Trace { chunks: chunks.into_iter().collect() };
            let bytes = trace.encode(5000);
            prop_assert_eq!(Trace::parse(&bytes, 5000), Ok(trace));
            prop_assert!(Trace::parse(&bytes, 5001).is_err());
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= 1 << bit;
            prop_assert!(Trace::parse(&damaged, 5000).is_err());
            prop_assert!(Trace::parse(&bytes[..cut.index(bytes.len())], 5000).is_err());
        }
    }

    #[test]
    fn a_file_that_is_wrong_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let trace = Trace { chunks: vec![7, 3, 9] };
        assert_eq!(Trace::load(dir.path(), &image(), 10), None);
        trace.save(&dir.path().join("a/b"), &image(), 10).unwrap();
        assert_eq!(Trace::load(&dir.path().join("a/b"), &image(), 10), Some(trace.clone()));
        trace.save(dir.path(), &image(), 10).unwrap();
        fs::write(path(dir.path(), &image()), "nonsense").unwrap();
        assert_eq!(Trace::load(dir.path(), &image(), 10), None);
        fs::remove_file(path(dir.path(), &image())).unwrap();
        fs::create_dir(path(dir.path(), &image())).unwrap();
        assert_eq!(Trace::load(dir.path(), &image(), 10), None);
    }

    #[test]
    fn what_an_earlier_mount_found_out_stays_behind_what_this_one_did() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Arc::new(Watch::new(10 << 20));
        let earlier = Trace { chunks: vec![2, 1, 0] };
        let keeper = TraceKeeper::start(watch.clone(), dir.path(), image(), 10, Some(earlier)).unwrap();
        watch.touch(blockio::Extent {
            offset: 5 << 20,
            len: 2 << 20,
        });
        watch.touch(blockio::Extent {
            offset: 1 << 20,
            len: 512,
        });
        keeper.stop();
        let found = Trace::load(dir.path(), &image(), 10).unwrap();
        assert_eq!(found.chunks, [5, 6, 1, 2, 0]);
    }
}
