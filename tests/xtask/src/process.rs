//! Starting programs: found without a shell, printed before they run, failing with a sentence.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or_else(|| here.to_owned(), Path::to_owned)
}

/// True when nobody watches and a skipped check would go unseen.
pub(crate) fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

/// True when packages may be installed. `/proc/self` belongs to the effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// The cargo that runs us, so that the same toolchain does everything.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("PATH", search_path());
    command
}

/// A cargo sub-command that uses Cargo.lock as it is when in CI: a lock file that lags behind is a finding there.
pub(crate) fn cargo_locked(subcommand: &str) -> Command {
    let mut command = cargo();
    command.arg(subcommand);
    if is_ci() {
        command.arg("--locked");
    }
    command
}

/// A program by name, started in the workspace.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.current_dir(root()).env("PATH", search_path());
    command
}

/// Prints the command, runs it with its output shown and without standard input, and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("start `{line}`: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{line}` failed: {status}"))
    }
}

/// First line of what a program prints, or nothing when it cannot be started or fails.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Where a program is, in the folders of [`search_path`].
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

/// PATH, then the folders that a plain user's PATH lacks: system tools, Go's and cargo's own `bin`.
pub(crate) fn search_path() -> OsString {
    let mut folders: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    folders.extend(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from));
    let home = env::var_os("HOME").map(PathBuf::from);
    let gopath = env::var_os("GOPATH").filter(|value| !value.is_empty());
    match gopath {
        Some(gopath) => folders.extend(env::split_paths(&gopath).map(|folder| folder.join("bin"))),
        None => folders.extend(home.iter().map(|home| home.join("go/bin"))),
    }
    folders.extend(home.iter().map(|home| home.join(".cargo/bin")));
    env::join_paths(folders).unwrap_or_default()
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn describe(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let mut line = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_an_error_that_names_it() {
        let error = run(program("false").arg("x")).expect_err("false succeeded");
        assert!(error.starts_with("`false x` failed"), "{error}");
        let error = run(&mut Command::new("/nonexistent/tool")).expect_err("started nothing");
        assert!(error.starts_with("start `tool`"), "{error}");
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find("true").is_some());
        assert!(find("no-such-program-anywhere").is_none());
        assert!(root().join("tests/xtask").is_dir());
    }
}
