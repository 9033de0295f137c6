//! Backup programs: how each is set up and started. Flags are the best sensible ones for a block image, and are printed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::process::{self, find};

use crate::measure::files_below;
use crate::site::{Options, PASSWORD, Site};
use crate::{Result, host};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Blockferry,
    /// The Go implementation of the same format.
    Kopia,
    /// Content-defined chunks, AES-256, SHA-256.
    Restic,
    /// Fixed chunks, repokey-blake2.
    Borg,
}

/// An installed program.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Which one.
    pub kind: Kind,
    program: PathBuf,
}

/// The tools that were asked for and are here, and a sentence for each that is not.
pub fn installed(options: &Options) -> (Vec<Tool>, Vec<String>) {
    let (mut tools, mut left_out) = (Vec::new(), Vec::new());
    for kind in [Kind::Blockferry, Kind::Kopia, Kind::Restic, Kind::Borg] {
        if !options.wants(kind.name()) {
            continue;
        }
        let program = match kind {
            Kind::Blockferry => options
                .blockferry
                .clone()
                .or_else(beside_runner)
                .filter(|path| path.is_file()),
            Kind::Kopia => blockferry_tests::kopia::find().ok(),
            Kind::Restic | Kind::Borg => find(kind.name(), &[]),
        };
        match program {
            Some(program) => tools.push(Tool { kind, program }),
            None if kind == Kind::Blockferry => left_out.push("blockferry: not built; no ratios".to_owned()),
            None => left_out.push(format!("{}: not installed; `cargo xtask peers` does that", kind.name())),
        }
    }
    (tools, left_out)
}

fn beside_runner() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.with_file_name("blockferry"))
}

impl Kind {
    /// Name for tables and `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blockferry => "blockferry",
            Self::Kopia => "kopia",
            Self::Restic => "restic",
            Self::Borg => "borg",
        }
    }

    /// How the repository is made and the backup started.
    pub fn backup_flags(self) -> &'static str {
        match self {
            Self::Blockferry => "repo create; --compression none",
            Self::Kopia => "default algorithms, FIXED-1M, no compression, --parallel=2, caches as they come",
            Self::Restic => "repository version 2, --compression off",
            Self::Borg => "repokey-blake2, --compression none, fixed,1048576, --sparse",
        }
    }

    /// How the restore is started.
    pub fn restore_flags(self) -> &'static str {
        match self {
            Self::Blockferry => "as it comes",
            Self::Kopia => "--write-sparse-files --parallel=2, caches cleared",
            Self::Restic => "--sparse where the version has it",
            Self::Borg => "extract --sparse",
        }
    }
}

impl Tool {
    /// Version line of the program.
    pub fn version(&self) -> String {
        let flag = if self.kind == Kind::Restic {
            "version"
        } else {
            "--version"
        };
        host::first_line(Command::new(&self.program).arg(flag))
    }

    /// Folder of the repository.
    pub fn repository(&self, site: &Site) -> PathBuf {
        self.home(site).join("repo")
    }

    /// An empty repository and empty caches in place of what was there.
    ///
    /// # Errors
    /// When the program fails.
    pub fn create_repository(&self, site: &Site) -> Result<()> {
        let home = site.vacant(self.kind.name())?;
        fs::create_dir_all(&home).map_err(|error| format!("create {}: {error}", home.display()))?;
        let repo = self.repository(site);
        let mut create = self.command(site);
        match self.kind {
            Kind::Blockferry => create
                .args(["repo", "create"])
                .arg(&repo)
                .arg("--password-file")
                .arg(&site.password_file),
            Kind::Kopia => {
                fs::create_dir_all(&repo).map_err(|error| format!("create {}: {error}", repo.display()))?;
                create
                    .args([
                        "repository",
                        "create",
                        "filesystem",
                        "--object-splitter=FIXED-1M",
                        "--path",
                    ])
                    .arg(&repo)
            }
            Kind::Restic => create
                .args(["init", "--quiet", "--repository-version", "2", "--repo"])
                .arg(&repo),
            Kind::Borg => create.args(["init", "--encryption", "repokey-blake2"]).arg(&repo),
        };
        run(&mut create)
    }

    /// The command that backs the image up.
    pub fn backup(&self, site: &Site) -> Command {
        self.backup_as(site, "full")
    }

    /// The same, under a name for those that give their backups names.
    pub fn backup_as(&self, site: &Site, name: &str) -> Command {
        let repo = self.repository(site);
        let mut backup = self.command(site);
        match self.kind {
            Kind::Blockferry => backup
                .arg("backup")
                .arg(&site.image)
                .arg("--repo")
                .arg(&repo)
                .arg("--password-file")
                .arg(&site.password_file)
                .args(["--compression", "none", "--json"]),
            Kind::Kopia => backup
                .args([
                    "--no-auto-maintenance",
                    "snapshot",
                    "create",
                    "--json",
                    "--parallel=2",
                    "--no-progress",
                ])
                .arg(&site.image),
            Kind::Restic => backup
                .args(["backup", "--quiet", "--compression", "off", "--repo"])
                .arg(&repo)
                .arg(&site.image),
            Kind::Borg => backup
                .args([
                    "create",
                    "--sparse",
                    "--compression",
                    "none",
                    "--chunker-params",
                    "fixed,1048576",
                ])
                .arg(format!("{}::{name}", repo.display()))
                .arg(&site.image),
        };
        backup
    }

    /// The command that restores the newest backup into the folder `target`, which exists and is empty. Local caches of content
    /// are gone when this returns.
    ///
    /// # Errors
    /// When the program cannot be asked for what it needs.
    pub fn restore(&self, site: &Site, target: &Path) -> Result<Command> {
        let repo = self.repository(site);
        let mut restore = self.command(site);
        match self.kind {
            Kind::Blockferry => {
                restore
                    .args(["restore", "latest"])
                    .arg(target.join("disk.img"))
                    .arg("--repo")
                    .arg(&repo);
                restore.arg("--password-file").arg(&site.password_file).arg("--json");
            }
            Kind::Kopia => {
                run(self.command(site).args(["cache", "clear"]))?;
                let id = self.kopia_snapshot(site)?;
                restore.args([
                    "restore",
                    "--no-progress",
                    "--write-sparse-files",
                    "--parallel=2",
                    "--skip-owners",
                    &id,
                ]);
                restore.arg(target.join("disk.img"));
            }
            Kind::Restic => {
                restore
                    .args(["restore", "--quiet", "latest", "--repo"])
                    .arg(&repo)
                    .arg("--target")
                    .arg(target);
                let help = process::run(self.command(site).args(["restore", "--help"]));
                if help.is_ok_and(|help| help.contains("--sparse")) {
                    restore.arg("--sparse");
                }
            }
            Kind::Borg => {
                restore
                    .args(["extract", "--sparse"])
                    .arg(format!("{}::full", repo.display()))
                    .current_dir(target);
            }
        }
        Ok(restore)
    }

    /// The one file that [`Self::restore`] left below `target`.
    ///
    /// # Errors
    /// When there is none, or more.
    pub fn restored_file(&self, target: &Path) -> Result<PathBuf> {
        let mut files = files_below(target)?;
        match (files.pop(), files.is_empty()) {
            (Some(file), true) => Ok(file),
            _ => Err(format!("{}: not one file below {}", self.kind.name(), target.display())),
        }
    }

    fn kopia_snapshot(&self, site: &Site) -> Result<String> {
        let listed = process::run(self.command(site).args(["snapshot", "list", "--all", "--json"]));
        let listed = listed.map_err(|failure| failure.to_string())?;
        let snapshots: serde_json::Value =
            serde_json::from_str(&listed).map_err(|error| format!("kopia list: {error}"))?;
        let last = snapshots
            .as_array()
            .and_then(|snapshots| snapshots.last()?["id"].as_str());
        last.map(str::to_owned)
            .ok_or_else(|| "kopia: no snapshot to restore".to_owned())
    }

    fn home(&self, site: &Site) -> PathBuf {
        site.dir.join(self.kind.name())
    }

    /// The program with an environment of its own: no configuration or cache of the user.
    pub fn command(&self, site: &Site) -> Command {
        let home = self.home(site);
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Blockferry => command
                .env("XDG_CACHE_HOME", home.join("cache"))
                .env_remove("BLOCKFERRY_PASSWORD"),
            Kind::Kopia => command
                .env("KOPIA_CONFIG_PATH", home.join("repository.config"))
                .env("KOPIA_CACHE_DIRECTORY", home.join("cache"))
                .env("KOPIA_LOG_DIR", home.join("log"))
                .env("KOPIA_CHECK_FOR_UPDATES", "false")
                .env("KOPIA_PERSIST_CREDENTIALS_ON_CONNECT", "false")
                .env("KOPIA_PASSWORD", PASSWORD),
            Kind::Restic => command
                .env("RESTIC_CACHE_DIR", home.join("cache"))
                .env("RESTIC_PASSWORD", PASSWORD),
            Kind::Borg => command
                .env("BORG_BASE_DIR", home.join("base"))
                .env("BORG_PASSPHRASE", PASSWORD)
                .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes"),
        };
        command
    }
}

fn run(command: &mut Command) -> Result<()> {
    process::run(command).map(drop).map_err(|failure| failure.to_string())
}
