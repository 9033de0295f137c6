//! Our own command line, as a user has it: a separate process.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::bucket::Bucket;
use crate::{Failure, Result, process};

/// The `blockferry` program of the same profile as the caller, built when `cargo xtask` has not done so before.
///
/// The build runs once in a process; cargo's own lock on the target folder keeps processes apart.
///
/// # Errors
/// When it does not build, with cargo's messages.
pub fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|failure| failure.to_string()))
        .clone()
        .map_err(Failure::new)
}

fn build() -> Result<PathBuf> {
    let exe = env::current_exe().map_err(Failure::at("find own program"))?;
    let folder = profile_folder(&exe);
    let program = folder.join("blockferry");
    if env::var_os("BLOCKFERRY_BUILT").is_some() && program.is_file() {
        return Ok(program);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--package", "blockferry-daemon", "--bin", "blockferry"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if let Some(target) = folder.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    // The folder of the dev profile is named debug, all others bear the name of their profile.
    match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => {}
        Some(profile) => _ = cargo.args(["--profile", profile]),
    }
    process::run(&mut cargo)?;
    if program.is_file() {
        Ok(program)
    } else {
        Err(Failure::new(format!("cargo built no {}", program.display())))
    }
}

/// Folder of programs for a program (`target/debug/x`) or a test (`target/debug/deps/x-1234`).
fn profile_folder(exe: &Path) -> &Path {
    let folder = exe.parent().unwrap_or(exe);
    if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    }
}

/// `blockferry` on one repository.
#[derive(Debug)]
pub struct Blockferry {
    program: PathBuf,
    repo: String,
    password: String,
    environment: Vec<(&'static str, String)>,
    /// Holds what the program remembers of its sessions, and its caches; not the host's.
    home: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Blockferry {
    /// A client of the repository in the folder `repo`.
    ///
    /// # Errors
    /// When the program does not build.
    pub fn new(repo: &Path, password: &str) -> Result<Self> {
        Self::at(&repo.display().to_string(), password)
    }

    /// A client of the repository that is written `repo` on the command line, such as an `s3://` address.
    ///
    /// # Errors
    /// When the program does not build.
    pub fn at(repo: &str, password: &str) -> Result<Self> {
        Ok(Self {
            program: program()?,
            repo: repo.to_owned(),
            password: password.to_owned(),
            environment: Vec::new(),
            home: tempfile::tempdir().map_err(Failure::at("create folder for blockferry"))?,
        })
    }

    /// A client of the repository in a bucket, with its key.
    ///
    /// # Errors
    /// When the program does not build.
    pub fn in_bucket(bucket: &Bucket, password: &str) -> Result<Self> {
        Ok(Self {
            environment: bucket.environment().to_vec(),
            ..Self::at(&bucket.url(), password)?
        })
    }

    /// The same client with a variable of its environment set for every command.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Folder of this client's cache.
    pub fn cache(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    /// A command with repository and password in its environment, for tests that start it in the background.
    pub fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command
            .env_remove("KOPIA_PASSWORD")
            .env("BLOCKFERRY_STATE", self.home.path().join("state"))
            .env("BLOCKFERRY_CACHE_DIR", self.cache())
            .env("BLOCKFERRY_REPO", &self.repo)
            .env("BLOCKFERRY_PASSWORD", &self.password)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)));
        for arg in args {
            command.arg(arg.as_ref());
        }
        command
    }

    /// Runs a command and returns its standard output.
    ///
    /// # Errors
    /// When it fails; with all that it said.
    pub fn run<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        process::run(&mut self.command(args))
    }

    /// Runs a command with `--json` and returns the document.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn run_json<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<Value> {
        let text = process::run(self.command(args).arg("--json"))?;
        serde_json::from_str(&text).map_err(Failure::at(format!("blockferry printed `{text}`")))
    }

    /// Runs a command that may fail, and tells how it ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ended<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<Ended> {
        let output = process::output(&mut self.command(args), &[])?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        })
    }

    /// `blockferry backup`.
    ///
    /// # Errors
    /// When it fails.
    pub fn backup(&self, source: &Path, args: &[&str]) -> Result<Value> {
        let source = source.display().to_string();
        self.run_json(["backup", &source].iter().chain(args))
    }

    /// `blockferry restore`.
    ///
    /// # Errors
    /// When it fails.
    pub fn restore(&self, snapshot: &str, target: &Path, args: &[&str]) -> Result<Value> {
        let target = target.display().to_string();
        self.run_json(["restore", snapshot, &target].iter().chain(args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_lie_beside_tests_and_programs() {
        assert_eq!(
            profile_folder(Path::new("/t/debug/deps/it-0123")),
            Path::new("/t/debug")
        );
        assert_eq!(profile_folder(Path::new("/t/release/bench")), Path::new("/t/release"));
    }
}
