//! The cache on this host: flags of every command, and `blockferry cache`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use repo::blob::Location;
use repo::cache::{self, CacheOptions, LIMIT_DEFAULT, Usage};
use serde::Serialize;
use tracing::warn;

use super::Global;
use super::output::{Output, table};
use super::size::{parse_size, show_size};
use crate::error::{JobError, Result};

/// Where the cache is and how large.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cache")]
pub(crate) struct Flags {
    /// Folder of the cache [default: $XDG_CACHE_HOME/blockferry, ~/.cache/blockferry, /var/cache/blockferry for root without HOME]
    #[arg(long, global = true, env = "BLOCKFERRY_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes of the cache at most, of all repositories together [default: 2GiB]
    #[arg(long, global = true, env = "BLOCKFERRY_CACHE_LIMIT", value_parser = parse_size, value_name = "SIZE")]
    cache_limit: Option<u64>,
    /// Read everything from the repository, and keep nothing of it on this host
    #[arg(long, global = true)]
    no_cache: bool,
}

#[derive(Subcommand)]
#[command(
    after_help = "Examples:\n  blockferry cache status\n  blockferry cache clear --cache-dir /var/cache/blockferry"
)]
pub(crate) enum Command {
    /// Where it is, and what it holds of which repository
    Status,
    /// Remove everything from it; who uses it goes on
    Clear,
}

impl Flags {
    /// The arguments that say the same, wherever they are used: folders in full.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.no_cache {
            arguments.push("--no-cache".to_owned());
        }
        if let Some(folder) = self.folder() {
            let full = std::path::absolute(&folder).unwrap_or(folder);
            arguments.extend(["--cache-dir".to_owned(), full.display().to_string()]);
        }
        if let Some(limit) = self.cache_limit {
            arguments.extend(["--cache-limit".to_owned(), limit.to_string()]);
        }
        arguments
    }

    /// The same for a server of volumes, whose readers come back to what they read: pieces of volumes are kept, too.
    pub(crate) fn options_of_server(&self, location: &Location) -> Option<CacheOptions> {
        // What lies in a directory is one read of a file away, in the cache or not.
        let data = !matches!(location, Location::Directory(_));
        self.options(location).map(|options| CacheOptions { data, ..options })
    }

    /// The cache of the repository at `location`; none when none is wanted or there is no place for it.
    pub(crate) fn options(&self, location: &Location) -> Option<CacheOptions> {
        if self.no_cache {
            return None;
        }
        let Some(folder) = self.folder() else {
            warn!("no place for a cache; give --cache-dir or set HOME; going on without");
            return None;
        };
        Some(CacheOptions {
            folder,
            limit: self.limit(),
            metadata: keeps_metadata(location),
            data: false,
        })
    }

    fn limit(&self) -> u64 {
        self.cache_limit.unwrap_or(LIMIT_DEFAULT)
    }

    fn folder(&self) -> Option<PathBuf> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        self.cache_dir
            .clone()
            .or_else(|| default_folder(&variable, rustix::process::geteuid().is_root()))
    }
}

/// Where the cache is unless it is said.
fn default_folder(variable: &dyn Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    variable("XDG_CACHE_HOME")
        .filter(|folder| folder.is_absolute()) // others are to be ignored (XDG Base Directory Specification)
        .map(|folder| folder.join("blockferry"))
        .or_else(|| Some(variable("HOME")?.join(".cache/blockferry")))
        .or_else(|| is_root.then(|| "/var/cache/blockferry".into()))
}

/// Manifests, folders and lists in a directory are one read of a file away, as in the cache, and would be on the disk twice: only
/// the merged index pays there.
fn keeps_metadata(location: &Location) -> bool {
    !matches!(location, Location::Directory(_))
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> Result<ExitCode> {
    let no_place = || JobError::Usage("no place for a cache; give --cache-dir or set HOME".into());
    let folder = global.cache.folder().ok_or_else(no_place)?;
    match command {
        Command::Status => status(folder, global.cache.limit(), output),
        Command::Clear => clear(folder, output),
    }
}

/// The document of `cache status --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    place: String,
    bytes: u64,
    limit_bytes: u64,
    /// By unique id.
    repositories: BTreeMap<String, Usage>,
}

fn status(folder: PathBuf, limit_bytes: u64, output: &Output) -> Result<ExitCode> {
    let repositories = cache::usage(&folder).map_err(|source| failed("list the cache", &folder, source))?;
    let status = Status {
        place: folder.display().to_string(),
        bytes: repositories.values().map(|usage| usage.total().bytes).sum(),
        limit_bytes,
        repositories,
    };
    output.print(&status, status_text);
    Ok(ExitCode::SUCCESS)
}

fn status_text(status: &Status) -> String {
    let mut rows = vec![
        vec!["place".to_owned(), status.place.clone()],
        vec![
            "size".to_owned(),
            format!("{} of {}", show_size(status.bytes), show_size(status.limit_bytes)),
        ],
    ];
    for (id, usage) in &status.repositories {
        let parts = [
            ("index", usage.index),
            ("metadata", usage.metadata),
            ("data", usage.data),
        ];
        let parts = parts.iter().filter(|(_, amount)| amount.files > 0);
        let text: Vec<String> = parts
            .map(|(kind, amount)| format!("{kind} {} in {} files", show_size(amount.bytes), amount.files))
            .collect();
        rows.push(vec![format!("repository {}", &id[..16.min(id.len())]), text.join(", ")]);
    }
    table(&rows)
}

/// The document of `cache clear --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cleared {
    place: String,
    files: u64,
    bytes: u64,
}

fn clear(folder: PathBuf, output: &Output) -> Result<ExitCode> {
    let removed = cache::clear(&folder).map_err(|source| failed("clear the cache", &folder, source))?;
    let cleared = Cleared {
        place: folder.display().to_string(),
        files: removed.files,
        bytes: removed.bytes,
    };
    output.print(&cleared, |c| {
        format!("removed {} files, {}, from {}\n", c.files, show_size(c.bytes), c.place)
    });
    Ok(ExitCode::SUCCESS)
}

fn failed(doing: &str, folder: &std::path::Path, source: std::io::Error) -> JobError {
    JobError::File {
        what: format!("{doing} in {}", folder.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], is_root: bool, expect: Option<&str>) {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| PathBuf::from(value))
        };
        assert_eq!(default_folder(&variable, is_root), expect.map(PathBuf::from));
    }

    #[test]
    fn the_cache_is_where_the_system_keeps_caches() {
        let home = ("HOME", "/home/a");
        check(&[("XDG_CACHE_HOME", "/c"), home], false, Some("/c/blockferry"));
        check(&[home], false, Some("/home/a/.cache/blockferry"));
        check(&[home], true, Some("/home/a/.cache/blockferry"));
        check(
            &[("XDG_CACHE_HOME", "relative"), home],
            false,
            Some("/home/a/.cache/blockferry"),
        );
        check(&[], true, Some("/var/cache/blockferry"));
        check(&[], false, None);
    }
}
