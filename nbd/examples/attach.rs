//! Attaches a file as a block device and serves it until standard input ends: `attach FILE IDENTIFIER KIND [read-only] [adopt]
//! [hangs] [/RUNTIME]`.
//!
//! Prints the device. `adopt` takes over the device of this identifier from a server that has died. A line on standard input
//! means that the file has grown: the device follows, and its new size is printed; the line `abort` gives the device
//! up. Reads of a volume that `hangs` wait while there is a file `/tmp/hang`. `attach list PREFIX` lists devices by the
//! start of their identifiers, `attach reclaim PREFIX [in-use]` takes away those that nobody serves. A FOLDER in place of FILE
//! is one of an overlay over zeros.

use blockio::{BlockError, BlockSink, BlockSource, Extent, ExtentKind, Geometry};
use nbd::attach::{self, AttachedDevice, InUse, Kind, Options};
use nbd::{Export, FileSource, MemSource, Overlay};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprint!("{error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().skip(2).any(|given| given == word);
    match &args[..] {
        [word, prefix, ..] if word == "list" => list(prefix),
        [word, prefix, ..] if word == "reclaim" => reclaim(prefix, has("in-use")),
        [file, identifier, kind, ..] => {
            let (export, volume) = if has("hangs") {
                let volume = Hanging(FileSource::open(Path::new(file), true)?);
                (Arc::new(Export::writable(Arc::new(volume))), None)
            } else {
                open(Path::new(file), !has("read-only"))?
            };
            let runtime = args.iter().skip(3).find(|word| word.starts_with('/'));
            let named = Options::named(identifier);
            let options = Options {
                runtime: runtime.map_or(named.runtime.clone(), PathBuf::from),
                kind: Kind::ALL.into_iter().find(|known| known.to_string() == *kind),
                accept_fragile: true,
                ..named
            };
            serve(volume.as_deref(), attached(&export, &options, has("adopt"))?)
        }
        _ => {
            Err("usage: attach FILE IDENTIFIER KIND [read-only] [adopt] | list PREFIX | reclaim PREFIX [in-use]".into())
        }
    }
}

/// Bytes of the volume under an overlay.
const OVERLAY_BYTES: u64 = 32 << 20;

/// A file that hangs on request.
struct Hanging(FileSource);

impl BlockSource for Hanging {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        while Path::new("/tmp/hang").exists() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        self.0.read_at(offset, buf)
    }

    fn extents(&self, range: Extent, out: &mut Vec<(Extent, ExtentKind)>) -> Result<(), BlockError> {
        self.0.extents(range, out)
    }
}

impl BlockSink for Hanging {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), BlockError> {
        self.0.write_at(offset, buf)
    }

    fn write_zeroes(&self, range: Extent) -> Result<(), BlockError> {
        self.0.write_zeroes(range)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.0.flush()
    }
}

/// What is served, and the file of it, if that is one that can grow.
type Opened = (Arc<Export>, Option<Arc<FileSource>>);

fn open(path: &Path, writable: bool) -> Result<Opened, Box<dyn Error>> {
    if path.is_dir() {
        let overlay = Overlay::open(path, Arc::new(MemSource::new(OVERLAY_BYTES)), "zeros")?;
        return Ok((Arc::new(Export::writable(Arc::new(overlay))), None));
    }
    let volume = Arc::new(FileSource::open(path, writable)?);
    let export = if writable {
        Export::writable(volume.clone())
    } else {
        Export::read_only(volume.clone())
    };
    Ok((Arc::new(export), Some(volume)))
}

fn attached(export: &Arc<Export>, options: &Options, adopt: bool) -> Result<AttachedDevice, Box<dyn Error>> {
    if adopt {
        return Ok(attach::adopt(export, options)?.ok_or("there is no device of this identifier")?);
    }
    Ok(attach::attach(export, options)?)
}

fn serve(volume: Option<&FileSource>, device: AttachedDevice) -> Result<ExitCode, Box<dyn Error>> {
    println!("{}", device.path().display());
    for line in std::io::stdin().lines() {
        if line? == "abort" {
            device.abort()?;
            println!("aborted");
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(volume) = volume {
            volume.look_again()?;
        }
        match device.grow() {
            Ok(size) => println!("{size}"),
            Err(error) => println!("no: {error}"),
        }
    }
    match device.detach(Duration::from_secs(30)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(refused) => {
            eprintln!("{}", refused.error);
            // The device stays as it is, and fails or waits for another server, as is its kind.
            std::mem::forget(refused);
            Ok(ExitCode::from(3))
        }
    }
}

fn list(prefix: &str) -> Result<ExitCode, Box<dyn Error>> {
    for found in attach::devices(&Options::named("").runtime, prefix)? {
        let served = if found.served { "served" } else { "leaked" };
        println!(
            "{} {} {} {} {served}",
            found.identifier,
            found.kind,
            found.path.display(),
            found.size
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn reclaim(prefix: &str, in_use: bool) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = Options::named("").runtime;
    let in_use = if in_use { InUse::Fail } else { InUse::Keep };
    for found in attach::leaked(&runtime, prefix)? {
        attach::reclaim(&found, &runtime, in_use)?;
        println!("{}", found.path.display());
    }
    Ok(ExitCode::SUCCESS)
}
