//! The real `kopia` command line on a repository of its own: its own configuration, caches and logs in a temporary folder.
//!
//! Kopia runs no maintenance on its own account here ([`Kopia::maintenance_full_unsafe`] does), asks the network for nothing,
//! and never sees the configuration of the user who runs the tests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::bucket::Bucket;
use crate::{Failure, Result, process};

/// Whether tests may use kopia. False only outside CI, when `cargo xtask test` could not get one and said so; then the test
/// returns at once. In any other case a missing kopia fails the test.
pub fn available() -> bool {
    let ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0");
    let skip = !ci && env::var_os("BLOCKFERRY_NO_KOPIA").is_some();
    if skip {
        eprintln!("SKIPPED: needs the real kopia");
    }
    !skip
}

/// Where the kopia program is: on PATH or in Go's bin folder.
///
/// # Errors
/// Says how to get it when there is none.
pub fn find() -> Result<PathBuf> {
    let gopath = env::var_os("GOPATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let gopath = gopath.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join("go")));
    let bins: Vec<PathBuf> = gopath.iter().map(|path| path.join("bin")).collect();
    process::find("kopia", &bins).ok_or_else(|| {
        Failure::new("no kopia on PATH or in Go's bin folder; `cargo xtask test` and `cargo xtask peers` install it")
    })
}

/// Where a repository is.
#[derive(Clone, Debug)]
enum Place {
    Folder(PathBuf),
    Bucket(Bucket),
}

/// One client of one repository.
#[derive(Debug)]
pub struct Kopia {
    program: PathBuf,
    place: Place,
    password: String,
    home: TempDir,
}

/// User and host under which snapshots of tests are kept, whatever the machine.
pub const USER: &str = "tester";
/// Host of [`USER`].
pub const HOST: &str = "testhost";

impl Kopia {
    /// A client that is not connected yet. `repo` is the folder of the repository; it need not exist before [`Self::create`].
    ///
    /// # Errors
    /// When there is no kopia, or no temporary folder for its files.
    pub fn new(repo: &Path, password: &str) -> Result<Self> {
        Self::at(Place::Folder(repo.to_owned()), password)
    }

    /// As [`Self::new`], of a repository in a bucket.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_bucket(bucket: &Bucket, password: &str) -> Result<Self> {
        Self::at(Place::Bucket(bucket.clone()), password)
    }

    fn at(place: Place, password: &str) -> Result<Self> {
        let home = tempfile::tempdir().map_err(Failure::at("create folder for kopia"))?;
        Ok(Self {
            program: find()?,
            place,
            password: password.to_owned(),
            home,
        })
    }

    /// Folder of the repository.
    ///
    /// # Panics
    /// When it is in a bucket.
    pub fn repo(&self) -> &Path {
        match &self.place {
            Place::Folder(folder) => folder,
            Place::Bucket(bucket) => panic!("{} is no folder", bucket.url()),
        }
    }

    /// Release of kopia, such as `0.23.1`: the first word of `kopia --version`.
    ///
    /// # Errors
    /// When kopia does not start.
    pub fn version(&self) -> Result<String> {
        Ok(self
            .run(["--version"])?
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned())
    }

    /// A kopia command with the environment of this client, for what has no method here.
    pub fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let home = self.home.path();
        let mut command = Command::new(&self.program);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KOPIA_")) {
            command.env_remove(name);
        }
        command
            .env("KOPIA_CONFIG_PATH", home.join("repository.config"))
            .env("KOPIA_CACHE_DIRECTORY", home.join("cache"))
            .env("KOPIA_LOG_DIR", home.join("log"))
            .env("KOPIA_CHECK_FOR_UPDATES", "false")
            .env("KOPIA_PERSIST_CREDENTIALS_ON_CONNECT", "false")
            .env("KOPIA_USE_KEYRING", "false")
            .env("KOPIA_PASSWORD", &self.password);
        for arg in args {
            command.arg(arg.as_ref());
        }
        command
    }

    /// Runs any kopia command and returns its standard output.
    ///
    /// # Errors
    /// When kopia fails; with all that it said.
    pub fn run<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        process::run(&mut self.command(args))
    }

    /// Runs any kopia command that prints JSON.
    ///
    /// # Errors
    /// When kopia fails, or prints something else.
    pub fn run_json<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<Value> {
        let text = self.run(args)?;
        serde_json::from_str(&text).map_err(Failure::at(format!("kopia printed `{text}`")))
    }

    /// Creates the repository and connects to it. `args` are further options of `repository create`.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn create(&self, args: &[&str]) -> Result<String> {
        self.attach("create", args)
    }

    /// Connects to the repository that is there already.
    ///
    /// # Errors
    /// When kopia fails: not a repository, wrong password.
    pub fn connect(&self) -> Result<String> {
        self.attach("connect", &[])
    }

    fn attach(&self, verb: &str, args: &[&str]) -> Result<String> {
        let mut line = vec!["repository".to_owned(), verb.to_owned()];
        match &self.place {
            Place::Folder(folder) => {
                line.extend([
                    "filesystem".to_owned(),
                    "--path".to_owned(),
                    folder.display().to_string(),
                ]);
            }
            Place::Bucket(bucket) => {
                line.push("s3".to_owned());
                line.extend(bucket.kopia_args());
            }
        }
        line.extend(["--override-username", USER, "--override-hostname", HOST].map(str::to_owned));
        line.extend(args.iter().map(|&arg| arg.to_owned()));
        self.run(line)
    }

    /// Snapshots a file or folder and returns the manifest as kopia prints it (`id`, `source`, `rootEntry`).
    ///
    /// # Errors
    /// When kopia fails.
    pub fn snapshot_create(&self, source: &Path, args: &[&str]) -> Result<Value> {
        let path = source.display().to_string();
        self.run_json(
            ["--no-auto-maintenance", "snapshot", "create", "--json", &path]
                .iter()
                .chain(args),
        )
    }

    /// Snapshots `input` as the file `name` in a folder that exists only in the repository, `source`.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn snapshot_stdin(&self, source: &str, name: &str, input: &[u8], args: &[&str]) -> Result<Value> {
        let fixed = [
            "--no-auto-maintenance",
            "snapshot",
            "create",
            "--json",
            source,
            "--stdin-file",
            name,
        ];
        let text = process::run_with_input(&mut self.command(fixed.iter().chain(args)), input)?;
        serde_json::from_str(&text).map_err(Failure::at(format!("kopia printed `{text}`")))
    }

    /// All snapshots of all sources, as kopia prints them.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn snapshot_list_json(&self) -> Result<Vec<Value>> {
        match self.run_json([
            "snapshot",
            "list",
            "--all",
            "--show-identical",
            "--max-results=1000",
            "--json",
        ])? {
            Value::Array(snapshots) => Ok(snapshots),
            other => Err(Failure::new(format!("snapshot list is no array: {other}"))),
        }
    }

    /// Deletes a snapshot by manifest id.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn snapshot_delete(&self, id: &str) -> Result<String> {
        self.run(["--no-auto-maintenance", "snapshot", "delete", id, "--delete"])
    }

    /// Restores a snapshot (or `id/path`) to `target`, owners left alone.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn restore(&self, id: &str, target: &Path) -> Result<String> {
        self.run([
            "restore",
            "--skip-owners",
            "--no-ignore-permission-errors",
            id,
            &target.display().to_string(),
        ])
    }

    /// Reads every file of every snapshot.
    ///
    /// # Errors
    /// When kopia finds damage.
    pub fn verify_full(&self) -> Result<String> {
        self.run(["snapshot", "verify", "--verify-files-percent=100"])
    }

    /// Reads and decrypts every content, deleted ones included.
    ///
    /// # Errors
    /// When kopia finds damage.
    pub fn content_verify_full(&self) -> Result<String> {
        self.run(["content", "verify", "--full", "--include-deleted"])
    }

    /// Rebuilds the index from the packs alone: proves that packs carry a local index kopia accepts. Use it on a copy.
    ///
    /// # Errors
    /// When kopia finds a pack it cannot read.
    pub fn index_recover(&self) -> Result<String> {
        self.run([
            "--dangerous-commands=enabled",
            "index",
            "recover",
            "--delete-indexes",
            "--commit",
        ])
    }

    /// Full maintenance without any safety margin: what is not referenced goes at once. Use it on a copy.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn maintenance_full_unsafe(&self) -> Result<String> {
        self.run(["maintenance", "run", "--full", "--safety=none"])
    }

    /// Sets options of a policy; `target` is a source such as `tester@testhost:/path`, or `--global`.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn policy_set(&self, target: &str, args: &[&str]) -> Result<String> {
        self.run(["--no-auto-maintenance", "policy", "set", target].iter().chain(args))
    }

    /// Blobs of the repository whose names begin with `prefix`.
    ///
    /// # Errors
    /// When kopia fails.
    pub fn blobs(&self, prefix: &str) -> Result<Vec<String>> {
        let listed = self.run_json(["blob", "list", "--json", &format!("--prefix={prefix}")])?;
        let blobs = listed.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(blobs
            .iter()
            .filter_map(|blob| Some(blob["id"].as_str()?.to_owned()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Layout, Volume};

    #[test]
    fn what_goes_in_comes_out_and_failures_tell_why() {
        if !available() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let kopia = Kopia::new(&folder.path().join("repo"), "secret words").unwrap();
        kopia.create(&["--object-splitter=FIXED-1M"]).unwrap();
        let volume = Volume::create(&Layout::mixed(11, (2 << 20) + 512)).unwrap();
        let taken = kopia.snapshot_create(volume.path(), &[]).unwrap();
        let listed = kopia.snapshot_list_json().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["id"], taken["id"]);
        kopia.verify_full().unwrap();
        kopia.content_verify_full().unwrap();
        let target = folder.path().join("restored");
        kopia.restore(taken["id"].as_str().unwrap(), &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), volume.bytes().unwrap());

        let copy = folder.path().join("copy");
        crate::repo::copy_tree(kopia.repo(), &copy).unwrap();
        let second = Kopia::new(&copy, "secret words").unwrap();
        second.connect().unwrap();
        second.index_recover().unwrap();
        second.maintenance_full_unsafe().unwrap();
        second.verify_full().unwrap();

        let wrong = Kopia::new(kopia.repo(), "wrong").unwrap();
        let failure = wrong.connect().unwrap_err().to_string();
        assert!(failure.contains("invalid repository password"), "{failure}");
    }

    /// Plain, by way of the proxy, and by way of TLS: the servers of the tests do what a client of S3 expects.
    #[test]
    fn a_bucket_serves_kopia_on_every_way() {
        use crate::garage::{self, Garage};
        use crate::proxy::{Op, Proxy, Weather, tls};
        if !available() || !garage::available() {
            return;
        }
        let garage = Garage::start().unwrap();
        let bucket = Bucket::of(&garage, "some/prefix/");
        let volume = Volume::create(&Layout::mixed(11, (24 << 20) + 512)).unwrap();
        let first = Kopia::in_bucket(&bucket, "secret words").unwrap();
        first.create(&[]).unwrap();
        first.snapshot_create(volume.path(), &[]).unwrap();

        let proxy = Proxy::start(&garage.address(0), 1, Weather::default()).unwrap();
        let second = Kopia::in_bucket(&bucket.through(proxy.endpoint()), "secret words").unwrap();
        second.connect().unwrap();
        let taken = second.snapshot_create(volume.path(), &[]).unwrap();
        second.verify_full().unwrap();
        for op in [Op::Get, Op::List, Op::Put, Op::Delete] {
            assert!(
                proxy.count(op) > 0,
                "{op:?} is not told from others: {:?}",
                proxy.records()
            );
        }
        assert!(proxy.records().iter().all(|record| record.name.contains("prefix")));

        let folder = tempfile::tempdir().unwrap();
        let front = tls::Front::start(&garage.address(0)).unwrap();
        let authority = folder.path().join("ca.pem");
        std::fs::write(&authority, tls::AUTHORITY).unwrap();
        let third = Kopia::in_bucket(
            &Bucket {
                authority: Some(authority),
                ..bucket.through(front.endpoint())
            },
            "secret words",
        );
        let third = third.unwrap();
        third.connect().unwrap();
        let target = folder.path().join("restored");
        third.restore(taken["id"].as_str().unwrap(), &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), volume.bytes().unwrap());
        third.maintenance_full_unsafe().unwrap();
    }
}
