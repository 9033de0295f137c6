//! Attaches a file as a block device and serves it until standard input ends: `attach FILE IDENTIFIER KIND [read-only] [adopt]`.
//!
//! Prints the device. `adopt` takes over the device of this identifier from a server that has died.

use nbd::attach::{self, AttachedDevice, Kind, Options};
use nbd::{Export, FileSource};
use std::error::Error;
use std::io::Read;
use std::path::Path;
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
    let [file, identifier, kind, words @ ..] = &args[..] else {
        return Err("usage: attach FILE IDENTIFIER KIND [read-only] [adopt]".into());
    };
    let kind = Kind::ALL.into_iter().find(|known| known.to_string() == *kind);
    let has = |word: &str| words.iter().any(|given| given == word);
    let volume = Arc::new(FileSource::open(Path::new(file), !has("read-only"))?);
    let export = Arc::new(if has("read-only") {
        Export::read_only(volume)
    } else {
        Export::writable(volume)
    });
    let device = serve(&export, identifier, kind, has("adopt"))?;
    println!("{}", device.path().display());
    // Whatever comes in means nothing; its end is the sign.
    std::io::stdin().read_to_end(&mut Vec::new())?;
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

fn serve(
    export: &Arc<Export>,
    identifier: &str,
    kind: Option<Kind>,
    adopt: bool,
) -> Result<AttachedDevice, Box<dyn Error>> {
    if adopt {
        return Ok(attach::adopt(export, identifier)?.ok_or("there is no device of this identifier")?);
    }
    let options = Options {
        kind,
        accept_fragile: true,
        ..Options::named(identifier)
    };
    Ok(attach::attach(export, &options)?)
}
