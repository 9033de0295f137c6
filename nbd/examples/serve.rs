//! Serves an image on a Unix socket until it is killed: `serve memory|file IMAGE SOCKET`. What the benchmarks measure.

use nbd::{Export, Exports, FileSource, Limits, MemSource, Server, UnixListen};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, image, socket] = &args[..] else {
        return Err("usage: serve memory|file IMAGE SOCKET".into());
    };
    let export = match kind.as_str() {
        "memory" => Export::read_only(Arc::new(MemSource::from_bytes(&std::fs::read(image)?))),
        "file" => Export::read_only(Arc::new(FileSource::open(Path::new(image), false)?)),
        other => return Err(format!("neither memory nor file: {other}").into()),
    };
    let exports = Arc::new(Exports::new());
    exports.insert("disk", Arc::new(export))?;
    let mut server = Server::new(exports, Limits::default());
    server.listen_unix(&UnixListen::at(socket))?;
    loop {
        std::thread::park();
    }
}
