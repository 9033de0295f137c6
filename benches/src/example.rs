//! Repositories of a size that nobody backs up for a benchmark: lists and index are real, the packs of data do not exist. The
//! example `wide_repository` of the crate `blockferry-repo` makes them.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use blockferry_tests::{kopia, process};

use crate::Result;
use crate::site::{PASSWORD, Site};

/// The example `name`, beside the runner.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().map_err(|error| format!("find own program: {error}"))?;
    let program = exe.with_file_name("examples").join(name);
    if program.is_file() {
        return Ok(program);
    }
    Err(format!(
        "{} is missing; `cargo xtask bench` builds it",
        program.display()
    ))
}

/// What is in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wide {
    /// Snapshots, each of another volume.
    pub snapshots: usize,
    /// Chunks of 1 MiB of each volume.
    pub chunks: usize,
    /// Share of the chunks that differ from the snapshot before.
    pub percent: usize,
    /// Contents of the index.
    pub contents: usize,
    /// Index blobs they are in.
    pub blobs: usize,
}

impl Wide {
    /// The client that owns its maintenance: kopia's, as the tests start it.
    pub fn owner() -> String {
        format!("{}@{}", kopia::USER, kopia::HOST)
    }

    fn name(self) -> String {
        let Self {
            snapshots,
            chunks,
            percent,
            contents,
            blobs,
        } = self;
        format!("wide-{snapshots}-{chunks}-{percent}-{contents}-{blobs}")
    }

    /// The folder of it below the work folder, made unless one is there that is younger than `age_max`.
    ///
    /// # Errors
    /// When the example is not built beside the runner, or fails.
    pub fn prepare(self, site: &Site, age_max: Duration) -> Result<PathBuf> {
        let folder = site.dir.join(self.name());
        let modified = fs::metadata(&folder).and_then(|meta| meta.modified());
        if modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < age_max)) {
            return Ok(folder);
        }
        let program = program("wide_repository")?;
        site.vacant(&self.name())?;
        let partial = site.vacant("wide-partial")?;
        eprintln!("making {}", folder.display());
        let numbers = [self.snapshots, self.chunks, self.percent, self.contents, self.blobs];
        let mut make = Command::new(program);
        make.arg(&partial).arg(PASSWORD).arg(Self::owner());
        make.args(numbers.map(|number| number.to_string()));
        process::run(&mut make).map_err(|failure| failure.to_string())?;
        fs::rename(&partial, &folder).map_err(|error| format!("keep {}: {error}", folder.display()))?;
        Ok(folder)
    }
}
