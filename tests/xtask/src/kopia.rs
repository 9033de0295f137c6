//! The real kopia: the judge of the repositories we write and the maker of the golden ones.

use std::path::PathBuf;

use crate::process::{find, first_line, is_ci, program, run};

/// The release that the format notes and the golden repositories were made with.
pub(crate) const VERSION: &str = "0.23.1";

/// Set for the tests when kopia could not be had outside CI: the tests that need it pass without doing anything.
pub(crate) const SKIP_VARIABLE: &str = "BLOCKFERRY_NO_KOPIA";

/// Finds kopia on PATH or in Go's bin folder, else installs it with Go.
///
/// # Errors
/// Says how to get kopia when neither works.
pub(crate) fn require() -> Result<PathBuf, String> {
    if let Some(found) = find("kopia") {
        let version = first_line(program("kopia").arg("--version")).unwrap_or_default();
        eprintln!("kopia: {} ({version})", found.display());
        if !version.starts_with(VERSION) {
            eprintln!("kopia: the format notes describe {VERSION}; another release judges just as well but may differ");
        }
        return Ok(found);
    }
    let help = format!(
        "kopia is needed: put a `kopia` {VERSION} on PATH, or have Go 1.24 or newer and access to a Go module proxy for\n  \
         go install -tags nohtmlui github.com/kopia/kopia@v{VERSION}"
    );
    if find("go").is_none() {
        return Err(format!("{help}\nThere is no `go` here."));
    }
    // The HTML user interface is left out: its module is large and nothing here opens it.
    let target = format!("github.com/kopia/kopia@v{VERSION}");
    run(program("go").args(["install", "-tags", "nohtmlui", &target])).map_err(|error| format!("{help}\n{error}"))?;
    find("kopia").ok_or_else(|| format!("{help}\n`go install` succeeded but there is no kopia in Go's bin folder"))
}

/// As [`require`] in CI. Elsewhere a missing kopia is said loudly and `false` comes back.
pub(crate) fn require_in_ci() -> Result<bool, String> {
    match require() {
        Ok(_) => Ok(true),
        Err(error) if is_ci() => Err(error),
        Err(error) => {
            eprintln!("\n*** {error}\n***\n*** SKIPPED: every test in which the real kopia judges or is judged. ***\n");
            Ok(false)
        }
    }
}
