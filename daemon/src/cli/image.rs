//! From arguments to things: the repository, its password, a snapshot by name.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use repo::blob::{BlobStore, Location, Settings, Throttle};
use repo::listing::Listing;
use repo::snapshot::{Snapshot, Source};
use repo::{ManifestId, Repository};

use super::output::chain;
use super::{Global, signals};
use crate::error::{JobError, Result};

/// Environment variables that hold the password, in the order they are tried.
const PASSWORD_VARIABLES: [&str; 2] = ["BLOCKFERRY_PASSWORD", "KOPIA_PASSWORD"];

/// Longest password file read, in bytes.
const PASSWORD_FILE_LEN_MAX: u64 = 64 << 10;

/// The place the arguments name.
pub(crate) fn location(global: &Global, given: Option<&str>) -> Result<Location> {
    let text = given.or(global.repo.as_deref());
    let text = text.ok_or_else(|| {
        JobError::Usage(
            "no repository; give --repo with a directory or an s3://, gs:// or az:// address, or set BLOCKFERRY_REPO"
                .into(),
        )
    })?;
    Ok(text.parse()?)
}

/// How this process uses storage: one budget of retries, one set of rates, one count of requests.
pub(crate) fn settings(global: &Global) -> Settings {
    static SHARED: OnceLock<Settings> = OnceLock::new();
    let shared = SHARED.get_or_init(|| Settings {
        throttle: Arc::new(Throttle::new(global.storage.limits())),
        in_flight_max: global.storage.in_flight.map(usize::from),
        cancel: signals::token(),
        ..Settings::default()
    });
    shared.clone()
}

/// The storage of the repository the arguments name.
pub(crate) fn store(global: &Global) -> Result<Arc<dyn BlobStore>> {
    Ok(location(global, None)?.open(&settings(global))?)
}

/// Opens the repository the arguments name, by way of the cache.
pub(crate) fn open(global: &Global) -> Result<Repository> {
    let location = location(global, None)?;
    let store = location.open(&settings(global))?;
    let password = password(global, false)?;
    Ok(Repository::open_cached(
        store,
        &password,
        global.cache.options(&location).as_ref(),
    )?)
}

/// The same for a server of volumes.
pub(crate) fn open_for_server(global: &Global) -> Result<Repository> {
    open_with(global, &password(global, false)?)
}

/// Opens it with a password that is known, for a server of volumes.
pub(crate) fn open_with(global: &Global, password: &str) -> Result<Repository> {
    let location = location(global, None)?;
    let store = location.open(&settings(global))?;
    let cache = global.cache.options_of_server(&location);
    Ok(Repository::open_cached(store, password, cache.as_ref())?)
}

/// The same past the cache: for commands that look for damage, or rely on the index to delete.
pub(crate) fn open_uncached(global: &Global) -> Result<Repository> {
    let store = store(global)?;
    let password = password(global, false)?;
    Ok(Repository::open(store, &password)?)
}

/// The password: from the file, the environment, or a prompt (twice for a `new` one).
pub(crate) fn password(global: &Global, new: bool) -> Result<String> {
    if let Some(file) = &global.password_file {
        return password_from(file);
    }
    // A variable that is set to nothing is as good as none: no repository has an empty password.
    let set = |name: &&str| std::env::var(name).ok().filter(|password| !password.is_empty());
    if let Some(password) = PASSWORD_VARIABLES.iter().find_map(set) {
        return Ok(password);
    }
    if !std::io::stdin().is_terminal() {
        return Err(JobError::Usage(
            "no password; give --password-file FILE or set BLOCKFERRY_PASSWORD".into(),
        ));
    }
    let ask =
        |prompt: &str| rpassword::prompt_password(prompt).map_err(|e| JobError::Usage(format!("read password: {e}")));
    let password = ask("Password of the repository: ")?;
    if new && ask("The same password again: ")? != password {
        return Err(JobError::Usage("the two passwords differ".into()));
    }
    Ok(password)
}

/// The first line of `file`.
pub(crate) fn password_from(file: &Path) -> Result<String> {
    let bad = |why: String| JobError::Usage(format!("password file {}: {why}", file.display()));
    let len = std::fs::metadata(file).map_err(|e| bad(e.to_string()))?.len();
    if len > PASSWORD_FILE_LEN_MAX {
        return Err(bad(format!("{len} bytes, more than {PASSWORD_FILE_LEN_MAX}")));
    }
    let text = std::fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_string()),
        _ => Err(bad("its first line is empty".into())),
    }
}

/// The snapshot of `repository` called `name`, as [`find_snapshot`] has it. Those that cannot be read are told of and hide none
/// of the others.
pub(crate) fn snapshot(repository: &Repository, name: &str) -> Result<Snapshot> {
    let listing = repository.list_snapshots()?;
    for damaged in &listing.damaged {
        let error = chain(&damaged.error);
        tracing::warn!(error, "a snapshot cannot be read and is passed over");
    }
    find_listed(&listing, name)
}

/// The snapshot of `listing` called `name`, as [`find_snapshot`] has it; `Damage` when it is one that cannot be read.
pub(crate) fn find_listed(listing: &Listing, name: &str) -> Result<Snapshot> {
    let named = |id: ManifestId| !name.is_empty() && id.to_string().starts_with(name);
    // The newest of those that can be read may not be the newest.
    let newest_unknown = listing.damaged.first().filter(|_| name.starts_with("latest"));
    if let Some(damaged) = newest_unknown {
        return Err(JobError::Damage(format!(
            "nobody can tell the latest snapshot while a manifest cannot be read; give an id from `blockferry snapshots` ({})",
            chain(&damaged.error)
        )));
    }
    match listing.damaged.iter().find(|damaged| damaged.id.is_some_and(named)) {
        Some(damaged) => Err(JobError::Damage(chain(&damaged.error))),
        None => find_snapshot(&listing.snapshots, name),
    }
}

/// The snapshot called `name`: an id, a unique beginning of one, `latest`, or `latest:SOURCE`.
pub(crate) fn find_snapshot(snapshots: &[Snapshot], name: &str) -> Result<Snapshot> {
    if name.is_empty() {
        // It is the beginning of every id, and what a script passes whose variable is not set.
        return Err(JobError::Usage(
            "an empty name of a snapshot; `blockferry snapshots` lists them".into(),
        ));
    }
    let complete = || snapshots.iter().filter(|s| s.incomplete.is_empty());
    let found: Vec<&Snapshot> = match name.strip_prefix("latest") {
        Some("") => complete().next_back().into_iter().collect(),
        Some(rest) if rest.starts_with(':') => {
            let source: Source = rest[1..].parse()?;
            complete().rfind(|s| s.source == source).into_iter().collect()
        }
        _ if name.is_empty() => Vec::new(),
        _ => snapshots
            .iter()
            .filter(|s| s.id.is_some_and(|id| id.to_string().starts_with(name)))
            .collect(),
    };
    match found[..] {
        [only] => Ok(only.clone()),
        [] => Err(JobError::Usage(format!(
            "no snapshot {name:?}; `blockferry snapshots` lists them"
        ))),
        _ => Err(JobError::Usage(format!(
            "{} snapshots begin with {name:?}; give more of the id",
            found.len()
        ))),
    }
}

/// The id of `snapshot`, as text.
pub(crate) fn id_of(snapshot: &Snapshot) -> Result<String> {
    let id = snapshot.id.map(|id| id.to_string());
    id.ok_or_else(|| JobError::Damage("a snapshot without an id".into()))
}

/// A snapshot that is to be used as a whole volume is one.
pub(crate) fn require_complete(snapshot: &Snapshot) -> Result<()> {
    match snapshot.incomplete.as_str() {
        "" => Ok(()),
        why => Err(JobError::Usage(format!(
            "snapshot {} is incomplete ({why}); blocks that its backup had not reached are missing from it",
            id_of(snapshot)?
        ))),
    }
}

/// Folder of what this host remembers from run to run: `BLOCKFERRY_STATE`, else where the system keeps such things.
pub(crate) fn state_folder() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("BLOCKFERRY_STATE")
        .or_else(|| Some(set("XDG_STATE_HOME")?.join("blockferry")))
        .or_else(|| match user_name().as_str() {
            "root" => Some("/var/lib/blockferry".into()),
            _ => Some(set("HOME")?.join(".local/state/blockferry")),
        })
}

/// The volume at `path` as a source of snapshots: this user, this host, the absolute path.
pub(crate) fn own_source(path: &Path) -> Result<Source> {
    let full = std::path::absolute(path).map_err(|e| JobError::Usage(format!("{}: {e}", path.display())))?;
    Ok(Source {
        host: host_name(),
        user: user_name(),
        path: full.display().to_string(),
    })
}

/// Name of the user who runs this.
pub(crate) fn user_name() -> String {
    std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "root".into())
}

/// Name of this host.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().to_lowercase();
    if name.is_empty() { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, path: &str, incomplete: &str) -> Snapshot {
        let text = format!(
            r#"{{"id":"","source":{{"host":"h","userName":"u","path":"{path}"}},"startTime":"2026-01-01T00:00:00Z","endTime":"2026-01-01T00:00:00Z","incomplete":"{incomplete}"}}"#
        );
        let mut snapshot: Snapshot = serde_json::from_str(&text).expect("valid");
        snapshot.id = Some(id.parse().expect("valid"));
        snapshot
    }

    #[test]
    fn snapshots_are_found_by_id_beginning_and_latest() {
        let a = "aa112233445566778899aabbccddeeff";
        let b = "ab112233445566778899aabbccddeeff";
        let c = "cc112233445566778899aabbccddeeff";
        let all = [
            snapshot(a, "/a", ""),
            snapshot(b, "/b", ""),
            snapshot(c, "/b", "checkpoint"),
        ];
        let id = |name: &str| find_snapshot(&all, name).map(|s| s.id.expect("set").to_string());
        assert_eq!(id("aa").expect("unique"), a);
        assert_eq!(id("latest").expect("complete"), b);
        assert_eq!(id("latest:u@h:/a").expect("of a source"), a);
        assert_eq!(id(c).expect("whole id"), c);
        for bad in ["", "a", "dd", "latest:u@h:/x", "latest:x", "latestx"] {
            assert!(
                matches!(
                    find_snapshot(&all, bad),
                    Err(JobError::Usage(_) | JobError::Repository(_))
                ),
                "{bad}"
            );
        }
    }
}
