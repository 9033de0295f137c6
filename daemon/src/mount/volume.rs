//! The volume of a mount: where its bytes come from, and where what is written goes.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockio::{BlockSink as _, CHUNK_SIZE};
use nbd::{Export, Overlay};
use repo::{Image, Repository};

use super::control::Hydration;
use super::record::{Mode, Record};
use crate::error::{JobError, Result};
use crate::hydrate::{HydrateOptions, HydrateState, Hydrator};
use crate::lazy::{FetchOptions, Fetcher, LazySource};
use crate::touch::{Trace, TraceKeeper, Watch, Watched};

/// What is behind the device of a mount.
pub(super) struct Volume {
    fetcher: Arc<Fetcher>,
    overlay: Option<Arc<Overlay>>,
    hydrator: Option<Mutex<Hydrator>>,
    /// None after the end.
    keeper: Mutex<Option<TraceKeeper>>,
}

/// Where a mount keeps things.
pub(super) struct Places<'a> {
    /// What was written over the snapshot, or which parts of the target count.
    pub(super) written: &'a Path,
    /// What readers of images touched first.
    pub(super) touches: &'a Path,
}

impl Volume {
    /// The volume of `record`, whose bytes are those of `image` but for what was written, and itself as it is to be exported.
    pub(super) fn open(
        repository: Arc<Repository>,
        image: &Image,
        record: &Record,
        places: &Places<'_>,
    ) -> Result<(Self, Export)> {
        let options = FetchOptions {
            memory: record.wish.memory.unwrap_or(FetchOptions::DEFAULT.memory),
            ..FetchOptions::DEFAULT
        };
        let fetcher = Arc::new(Fetcher::start(repository, &options)?);
        let source = Arc::new(LazySource::new(fetcher.clone(), image.clone())?);
        let overlay = match &record.wish.mode {
            Mode::ReadOnly => None,
            Mode::Writable => Some(Overlay::open(places.written, source.clone(), &record.identity)?),
            Mode::Into { target } => {
                let overlay = Overlay::open_in_place(places.written, target, source.clone(), &record.identity);
                Some(overlay?)
            }
        };
        let overlay = overlay.map(Arc::new);
        let chunks = image.size.div_ceil(CHUNK_SIZE);
        let earlier = Trace::load(places.touches, &image.object, chunks);
        let watch = Arc::new(Watch::new(image.size));
        let hydrator = match (&record.wish.mode, &overlay) {
            (Mode::Into { .. }, Some(overlay)) => {
                let options = HydrateOptions {
                    watch: Some(watch.clone()),
                    ..HydrateOptions::DEFAULT
                };
                let hydrator = Hydrator::start(overlay.clone(), source.clone(), earlier.clone(), options)?;
                Some(Mutex::new(hydrator))
            }
            _ => {
                if let Some(earlier) = &earlier {
                    earlier.prefetch(&source);
                }
                None
            }
        };
        let export = match &overlay {
            None => Export::read_only(Arc::new(Watched::new(source, watch.clone()))),
            Some(overlay) => Export::writable(Arc::new(Watched::new(overlay.clone(), watch.clone()))),
        };
        let keeper = TraceKeeper::start(watch, places.touches, image.object, chunks, earlier);
        let volume = Self {
            fetcher,
            overlay,
            hydrator,
            keeper: Mutex::new(Some(keeper.map_err(|source| JobError::File {
                what: "start a thread that keeps first touches".to_owned(),
                source,
            })?)),
        };
        Ok((volume, export))
    }

    /// What was written, where it is beside the repository and stays there.
    pub(super) fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_deref().filter(|_| self.hydrator.is_none())
    }

    /// Makes durable what was written.
    pub(super) fn flush(&self) -> Result<()> {
        match &self.overlay {
            Some(overlay) => Ok(overlay.flush()?),
            None => Ok(()),
        }
    }

    /// Ends what goes on in the background, and makes everything durable.
    pub(super) fn close(&self) -> Result<()> {
        drop(self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(mut hydrator) = self.hydrator() {
            hydrator.stop();
        }
        self.flush()
    }

    /// There is something that the next mount has to find: what was written, or a target that is not whole.
    pub(super) fn is_kept(&self) -> bool {
        match (&self.overlay, &self.hydrator) {
            (Some(overlay), Some(_)) => !overlay.is_complete(),
            (Some(overlay), None) => overlay.changed().count() > 0,
            (None, _) => false,
        }
    }

    /// Bytes of chunks that were written to; those written since this server began, where there is a target.
    pub(super) fn written_bytes(&self) -> u64 {
        match (&self.overlay, &self.hydrator) {
            (Some(overlay), Some(_)) => overlay.written_bytes(),
            (Some(overlay), None) => overlay.changed().count() * CHUNK_SIZE,
            (None, _) => 0,
        }
    }

    /// Bytes of contents that were fetched and opened so far.
    pub(super) fn fetched_bytes(&self) -> u64 {
        self.fetcher.fetched_bytes()
    }

    /// How far the target is the volume.
    pub(super) fn hydration(&self) -> Option<Hydration> {
        let status = self.hydrator()?.status();
        let (state, reason) = match status.state {
            HydrateState::Running => ("running", None),
            HydrateState::WaitingForRepository { why } => ("waiting", Some(why)),
            HydrateState::Complete => ("complete", None),
            HydrateState::Stopped => ("stopped", None),
            HydrateState::Failed { why } => ("failed", Some(why)),
        };
        Some(Hydration {
            present_bytes: status.present_bytes,
            damaged_chunks: status.damaged_chunks,
            bytes_per_second: status.bytes_per_second,
            state: state.to_owned(),
            reason,
        })
    }

    fn hydrator(&self) -> Option<MutexGuard<'_, Hydrator>> {
        let hydrator = self.hydrator.as_ref()?;
        Some(hydrator.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
