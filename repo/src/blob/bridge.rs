//! The one crossing between the threads of movers and the asynchronous world of network stores.
//!
//! All network stores share one runtime. A caller's thread drives its own request: it may lend buffers to it, and the
//! copying and hashing of a request's bytes is spread over as many cores as there are callers. The runtime's own threads
//! serve sockets and timers.

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Kind, RepoError, Result};

/// Threads that serve sockets. What they do is copying to and from the kernel, encrypting and decrypting TLS: 1 to 2 GB/s a
/// thread, so two serve a link of 10 Gbit/s.
const WORKERS: usize = 2;

/// Threads for look-ups of host names, which block. Few names are ever asked; they come and go.
const LOOKUPS_MAX: usize = 8;

/// The runtime, from its first use to the end of the process.
static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(LOOKUPS_MAX)
        .thread_name("network")
        .enable_all()
        .build()
});

/// A way into the runtime. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bridge(Handle);

impl Bridge {
    /// Starts the runtime when no store did so before.
    pub(crate) fn open() -> Result<Self> {
        match &*RUNTIME {
            Ok(runtime) => Ok(Self(runtime.handle().clone())),
            Err(e) => {
                let cause = io::Error::new(e.kind(), e.to_string());
                Err(RepoError::new(Kind::Storage, "start threads for the network").because(cause))
            }
        }
    }

    /// Drives `future` on this thread until it is done. Any number of threads may wait at once.
    ///
    /// # Panics
    ///
    /// On a thread of the runtime itself, which must never wait: a store's call from inside another store's future.
    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(future)
    }

    /// [`wait`](Self::wait), but for no longer than `limit`; `None` when that has passed and `future` was given up.
    pub(crate) fn wait_at_most<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        self.0
            .block_on(async { tokio::time::timeout(limit, future).await.ok() })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn many_threads_wait_at_once_for_each_other() {
        let bridge = Bridge::open().unwrap();
        let barrier = tokio::sync::Barrier::new(16);
        thread::scope(|scope| {
            for _ in 0..16 {
                let (bridge, barrier) = (bridge.clone(), &barrier);
                scope.spawn(move || bridge.wait(barrier.wait()));
            }
        });
    }

    #[test]
    fn a_future_may_borrow_the_callers_buffer() {
        let mut buf = [0; 4];
        Bridge::open().unwrap().wait(async { buf.fill(7) });
        assert_eq!(buf, [7; 4]);
    }

    #[test]
    fn waiting_ends_at_the_limit() {
        let bridge = Bridge::open().unwrap();
        let limit = Duration::from_millis(10);
        assert_eq!(bridge.wait_at_most(limit, std::future::pending::<()>()), None);
        assert_eq!(bridge.wait_at_most(Duration::from_secs(60), async { 1 }), Some(1));
    }
}
