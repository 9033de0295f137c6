//! The real Azurite: Microsoft's emulator of Azure Blob Storage that tests talk to. A peer of the tests only.

use std::path::PathBuf;

use crate::install::{self, Tool};
use crate::process::{find, is_ci, program, run};

/// The release the tests were written against.
const VERSION: &str = "3.35.0";

/// Set for the tests when Azurite could not be had outside CI: the tests that need it pass without doing anything.
pub(crate) const SKIP_VARIABLE: &str = "BLOCKFERRY_NO_AZURITE";

/// It is a program of Node.
const NPM: Tool = Tool {
    program: "npm",
    package: "npm",
};

/// The folder npm installs into, below the home folder; the tests look there as well.
const FOLDER: &str = ".cache/blockferry/azurite";

/// Finds Azurite on PATH or where an earlier run put it, else installs it with npm.
///
/// # Errors
/// Says how to get Azurite when neither works.
pub(crate) fn require() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").map(PathBuf::from).ok_or("HOME is not set")?;
    let folder = home.join(FOLDER);
    let installed = folder.join("node_modules/.bin/azurite-blob");
    if let Some(found) = find("azurite-blob").or_else(|| installed.is_file().then(|| installed.clone())) {
        eprintln!("azurite: {}", found.display());
        return Ok(found);
    }
    let help = format!(
        "azurite is needed: put `azurite-blob` {VERSION} on PATH, or have access to the npm registry for\n  \
         npm install --prefix ~/{FOLDER} azurite@{VERSION}"
    );
    let failed = |error: String| format!("{help}\n{error}");
    install::ensure(&[NPM]).map_err(failed)?;
    std::fs::create_dir_all(&folder).map_err(|e| failed(e.to_string()))?;
    eprintln!("azurite: installing it once; about a minute");
    let mut install = program("npm");
    install
        .args(["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"])
        .arg(&folder)
        .arg(format!("azurite@{VERSION}"));
    run(&mut install).map_err(failed)?;
    match installed.is_file() {
        true => Ok(installed),
        false => Err(format!(
            "{help}\n`npm install` succeeded but there is no {}",
            installed.display()
        )),
    }
}

/// Gets Azurite in CI. Elsewhere a missing one is said loudly and `false` comes back.
pub(crate) fn require_in_ci() -> Result<bool, String> {
    match require() {
        Ok(_) => Ok(true),
        Err(error) if is_ci() => Err(error),
        Err(error) => {
            eprintln!("\n*** {error}\n***\n*** SKIPPED: every test that talks to Azure's emulator. ***\n");
            Ok(false)
        }
    }
}
