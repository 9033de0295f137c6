//! `blockferry cat`.

use std::io::{self, Write};
use std::process::ExitCode;

use blockio::Cancel;
use clap::Args;
use repo::directory::EntryKind;
use repo::tree::Tree;

use super::output::Output;
use super::{Global, image, signals};
use crate::error::{JobError, Result};

#[derive(Args)]
#[command(
    after_help = "Example: blockferry cat latest etc/hosts --repo /backups/r1 --password-file pw\nThe exit code is not 0 when the output is not all of the file."
)]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// File in it [default: its root, when that is a file]
    #[arg(default_value = "", hide_default_value = true)]
    path: String,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    if output.is_json() {
        return Err(JobError::Usage(
            "the output of cat is the file itself; leave --json out".into(),
        ));
    }
    let cancel = signals::cancel_on_signal()?;
    let repository = image::open(global)?;
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    let tree = Tree::new(&repository, &snapshot)?;
    let file = tree.find(&arguments.path)?;
    if file.kind != EntryKind::File {
        let what = format!(
            "{:?} in the snapshot is not a file; `blockferry ls` lists it",
            arguments.path
        );
        return Err(JobError::Usage(what));
    }
    // Lists and index are looked at whole before the first byte goes out.
    let bytes = tree.open(&file)?;
    let mut out = io::stdout().lock();
    match bytes
        .each_piece(&mut |piece| write(&mut out, piece, &cancel))
        .and_then(|()| flush(&mut out))
    {
        // Who reads has enough; like other programs, we end without a word.
        Err(JobError::File { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::FAILURE),
        Err(e) => Err(e),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn write(out: &mut impl Write, piece: &[u8], cancel: &Cancel) -> Result<()> {
    cancel.check().map_err(|_| JobError::Cancelled)?;
    out.write_all(piece).map_err(failed)
}

fn flush(out: &mut impl Write) -> Result<()> {
    out.flush().map_err(failed)
}

fn failed(source: io::Error) -> JobError {
    JobError::File {
        what: "write to standard output".into(),
        source,
    }
}
