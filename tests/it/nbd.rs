//! The NBD server, judged by other people's clients and by clients that mean harm.

mod clients;
mod handshake;
mod hostile;
mod overlay;
mod python;
mod raw;
mod secure;
mod sources;
mod transmission;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockio::{BlockSink, BlockSource};
use nbd::{Export, Exports, Limits, MemSource, Server, UnixListen};
use raw::{Client, Raw};

const MIB: u64 = 1 << 20;

/// Nothing in these tests takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A server on a Unix socket in a folder of its own.
struct Served {
    exports: Arc<Exports>,
    /// `disk`, when it was made with the server.
    export: Option<Arc<Export>>,
    server: Option<Server>,
    dir: tempfile::TempDir,
}

impl Served {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = Arc::new(Exports::new());
        let mut server = Server::new(exports.clone(), limits);
        server.listen_unix(&UnixListen::at(dir.path().join("s"))).unwrap();
        Self {
            exports,
            export: None,
            server: Some(server),
            dir,
        }
    }

    /// With one export, `disk`.
    fn limited(limits: Limits, export: Export) -> Self {
        let mut served = Self::new(limits);
        let export = Arc::new(export);
        served.exports.insert("disk", export.clone()).unwrap();
        served.export = Some(export);
        served
    }

    fn with(export: Export) -> Self {
        Self::limited(Limits::default(), export)
    }

    /// Requests that were accepted.
    fn accepted(&self) -> u64 {
        self.export.as_ref().map_or(0, |export| export.stats().requests)
    }

    fn read_only<S: BlockSource + 'static>(source: S) -> Self {
        Self::with(Export::read_only(Arc::new(source)))
    }

    fn writable<V: BlockSource + BlockSink + 'static>(volume: V) -> Self {
        Self::with(Export::writable(Arc::new(volume)))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Address of export `disk`.
    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.socket())
    }

    /// A client in transmission on `disk`, with structured replies and block status.
    fn client(&self) -> Client {
        self.raw().structured().status().go("disk")
    }

    /// The server serves a client as if nothing had happened.
    #[track_caller]
    fn is_well(&self) {
        let mut client = self.client();
        let size = client.size.min(4096);
        assert!(client.read(0, u32::try_from(size).unwrap()).is_ok());
        client.disconnect();
    }
}

/// Bytes of which no two blocks are alike, with holes: chunks 2, 5, 8 and so on.
fn image(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for (chunk, part) in bytes.chunks_mut(1 << 20).enumerate() {
        if chunk % 3 == 2 {
            continue;
        }
        for word in part.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
    }
    bytes
}

fn memory(size: u64) -> MemSource {
    MemSource::from_bytes(&image(size))
}
