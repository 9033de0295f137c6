//! One golden repository in the making: every command is run, written down, and its effect noted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use blockferry_tests::golden::{Expected, ExpectedSnapshot, PASSWORD};
use blockferry_tests::kopia::{HOST, Kopia, USER};
use blockferry_tests::repo::{TreeEntry, TreeKind, copy_tree, list_tree, sha256};
use blockferry_tests::{Failure, Result, process};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct Maker {
    name: String,
    kopia: Kopia,
    work: TempDir,
    /// Lines of the recipe.
    steps: Vec<String>,
    snapshots: Vec<ExpectedSnapshot>,
    deleted: Vec<String>,
}

impl Maker {
    /// Creates the repository with further options for `kopia repository create filesystem`.
    pub(crate) fn create(name: &str, args: &[&str]) -> Result<Self> {
        let work = tempfile::tempdir().map_err(Failure::at("create work folder"))?;
        let kopia = Kopia::new(&work.path().join("repo"), PASSWORD)?;
        fs::create_dir_all(kopia.repo()).map_err(Failure::at("create repository folder"))?;
        let mut maker = Self {
            name: name.to_owned(),
            kopia,
            work,
            steps: vec![],
            snapshots: vec![],
            deleted: vec![],
        };
        maker.kopia.create(args)?;
        maker.note(&["repository create filesystem --path repo"], args);
        Ok(maker)
    }

    /// A path for source data, gone when the repository is made.
    pub(crate) fn source(&self, name: &str) -> PathBuf {
        self.work.path().join("source").join(name)
    }

    /// Snapshots what is at [`Self::source`] under the same path on every machine, `/golden/<name>`.
    pub(crate) fn snapshot(&mut self, name: &str) -> Result<String> {
        let source = self.source(name);
        let named = format!("{USER}@{HOST}:/golden/{name}");
        let manifest = self.kopia.snapshot_create(&source, &["--override-source", &named])?;
        self.note(
            &[
                "snapshot create",
                &format!("source/{name}"),
                "--override-source",
                &named,
            ],
            &[],
        );
        self.remember(&manifest, list_tree(&source)?)
    }

    /// Snapshots `input` as `file` in a folder of the repository only.
    pub(crate) fn snapshot_stdin(&mut self, name: &str, file: &str, input: &[u8]) -> Result<String> {
        let path = format!("/golden/{name}");
        let manifest = self.kopia.snapshot_stdin(&path, file, input, &[])?;
        self.note(&["snapshot create", &path, "--stdin-file", file], &["<", file]);
        let kind = TreeKind::File {
            size: input.len() as u64,
            sha256: sha256(input),
        };
        let root = TreeEntry {
            path: String::new(),
            kind: TreeKind::Directory,
        };
        self.remember(
            &manifest,
            vec![
                root,
                TreeEntry {
                    path: file.to_owned(),
                    kind,
                },
            ],
        )
    }

    pub(crate) fn delete(&mut self, id: &str) -> Result<()> {
        self.kopia.snapshot_delete(id)?;
        self.note(&["snapshot delete", id, "--delete"], &[]);
        self.snapshots.retain(|snapshot| snapshot.id != id);
        self.deleted.push(id.to_owned());
        Ok(())
    }

    pub(crate) fn policy(&mut self, target: &str, args: &[&str]) -> Result<()> {
        self.kopia.policy_set(target, args)?;
        self.note(&["policy set", target], args);
        Ok(())
    }

    pub(crate) fn run(&mut self, args: &[&str]) -> Result<()> {
        self.kopia.run(args)?;
        self.note(args, &[]);
        Ok(())
    }

    pub(crate) fn maintenance(&mut self) -> Result<()> {
        self.kopia.maintenance_full_unsafe()?;
        self.note(&["maintenance run --full --safety=none"], &[]);
        Ok(())
    }

    /// Raises the format version to the newest. Kopia waits for other clients, of which there are none, as short as it lets.
    pub(crate) fn upgrade(&mut self) -> Result<()> {
        const SWITCH: (&str, &str) = ("KOPIA_UPGRADE_LOCK_ENABLED", "1");
        let args = [
            "--upgrade-owner-id=upgrader",
            "repository",
            "upgrade",
            "begin",
            "--io-drain-timeout=1s",
            "--allow-unsafe-upgrade",
            "--status-poll-interval=1s",
            "--max-permitted-clock-drift=1s",
        ];
        process::run(self.kopia.command(args).env(SWITCH.0, SWITCH.1))?;
        self.steps
            .push(format!("{}={} kopia {}", SWITCH.0, SWITCH.1, args.join(" ")));
        Ok(())
    }

    /// Makes all index blobs look `age` old, so that epochs may end now. Kopia goes by file times on a filesystem.
    pub(crate) fn age_index_blobs(&mut self, age: Duration) -> Result<()> {
        let time = SystemTime::now() - age;
        for entry in list_tree(self.kopia.repo())? {
            if entry.path.starts_with('x') && matches!(entry.kind, TreeKind::File { .. }) {
                set_modified(&self.kopia.repo().join(&entry.path), time)?;
            }
        }
        self.steps.push(format!(
            "touch --date '{} hours ago' on every index blob (x*)",
            age.as_secs() / 3600
        ));
        // Caches of index blobs and of listings hold the old times.
        self.kopia.run(["cache", "clear"])?;
        Ok(())
    }

    /// Blobs that begin with `prefix`; an error when there are none, as then the recipe no longer makes what it is for.
    pub(crate) fn must_have(&self, prefix: &str) -> Result<usize> {
        match self.kopia.blobs(prefix)?.len() {
            0 => Err(Failure::new(format!("{}: no blob {prefix}*", self.name))),
            count => Ok(count),
        }
    }

    /// The roots of the snapshots so far begin with `prefixes`, in order; else the recipe no longer makes what it is for.
    pub(crate) fn must_be_rooted_at(&self, prefixes: &[&str]) -> Result<()> {
        let roots: Vec<&str> = self.snapshots.iter().map(|s| s.root_object.as_str()).collect();
        match roots.len() == prefixes.len()
            && roots
                .iter()
                .zip(prefixes)
                .all(|(root, prefix)| root.starts_with(prefix))
        {
            true => Ok(()),
            false => Err(Failure::new(format!(
                "{}: roots {roots:?}, not {prefixes:?}",
                self.name
            ))),
        }
    }

    /// Checks everything with kopia and writes the result to `folder/<name>`.
    pub(crate) fn finish(self, folder: &Path) -> Result<()> {
        self.kopia.verify_full()?;
        self.kopia.content_verify_full()?;
        for snapshot in &self.snapshots {
            let target = self.work.path().join("restored").join(&snapshot.id);
            fs::create_dir_all(self.work.path().join("restored")).map_err(Failure::at("create folder"))?;
            self.kopia.restore(&snapshot.id, &target)?;
            if list_tree(&target)? != snapshot.entries {
                return Err(Failure::new(format!(
                    "{}: kopia restores {} differently",
                    self.name, snapshot.id
                )));
            }
        }
        let expected = self.expected()?;
        let out = folder.join(&self.name);
        let failed = || Failure::at::<std::io::Error>(format!("write {}", out.display()));
        if out.exists() {
            fs::remove_dir_all(&out).map_err(failed())?;
        }
        copy_tree(self.kopia.repo(), &out.join("repo"))?;
        let json = serde_json::to_string_pretty(&expected).map_err(Failure::at("print listing"))?;
        fs::write(out.join("expected.json"), one_line_entries(&json)).map_err(failed())?;
        fs::write(out.join("recipe.md"), self.recipe(&expected)).map_err(failed())?;
        println!(
            "{}: {} snapshots, {} deleted",
            self.name,
            expected.snapshots.len(),
            expected.deleted.len()
        );
        Ok(())
    }

    fn expected(&self) -> Result<Expected> {
        let status = self.kopia.run_json(["repository", "status", "--json"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let format = &status["contentFormat"];
        Ok(Expected {
            kopia: self.kopia.version()?,
            password: PASSWORD.to_owned(),
            hash: text(&format["hash"]),
            encryption: text(&format["encryption"]),
            splitter: text(&status["objectFormat"]["splitter"]),
            snapshots: self.snapshots.clone(),
            deleted: self.deleted.clone(),
        })
    }

    fn recipe(&self, expected: &Expected) -> String {
        let mut text = format!(
            "# Golden repository `{}`\n\nMade by kopia {}. Password: `{}`. {} + {}, {}.\n\nSource data comes from \
             `blockferry_tests::volume` and tests/src/bin/golden/recipes.rs; kopia ran as {USER}@{HOST}:\n\n```\n",
            self.name, expected.kopia, expected.password, expected.hash, expected.encryption, expected.splitter
        );
        for step in &self.steps {
            text.push_str(step);
            text.push('\n');
        }
        text + "```\n"
    }

    fn remember(&mut self, manifest: &Value, entries: Vec<TreeEntry>) -> Result<String> {
        let text = |value: &Value| {
            let missing = || Failure::new(format!("a field is missing in {manifest}"));
            value.as_str().map(str::to_owned).ok_or_else(missing)
        };
        let source = &manifest["source"];
        let id = text(&manifest["id"])?;
        self.snapshots.push(ExpectedSnapshot {
            id: id.clone(),
            source: format!(
                "{}@{}:{}",
                text(&source["userName"])?,
                text(&source["host"])?,
                text(&source["path"])?
            ),
            root_kind: text(&manifest["rootEntry"]["type"])?,
            root_object: text(&manifest["rootEntry"]["obj"])?,
            entries,
        });
        Ok(id)
    }

    fn note(&mut self, words: &[&str], more: &[&str]) {
        self.steps.push(
            ["kopia"]
                .iter()
                .chain(words)
                .chain(more)
                .copied()
                .collect::<Vec<_>>()
                .join(" "),
        );
    }
}

/// Sets the time of a file or folder.
pub(crate) fn set_modified(path: &Path, time: SystemTime) -> Result<()> {
    File::open(path)
        .and_then(|file| file.set_modified(time))
        .map_err(Failure::at(format!("set time of {}", path.display())))
}

/// Puts the fields of each tree entry on one line, so that a listing of 2,000 files stays readable.
fn one_line_entries(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut inside = false;
    for line in json.lines() {
        let trimmed = line.trim_start();
        let depth = line.len() - trimmed.len();
        // Tree entries are the objects four levels down, two spaces a level.
        if depth == 8 && trimmed == "{" {
            inside = true;
            text.push_str(line);
        } else if inside && depth == 8 {
            inside = false;
            text.push_str(trimmed);
            text.push('\n');
        } else if inside {
            text.push_str(trimmed);
            text.push_str(if trimmed.ends_with(',') { " " } else { "" });
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
