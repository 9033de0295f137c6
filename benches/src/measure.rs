//! One program, from its start until what it wrote is on stable storage.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::{Result, host, sys};

/// What one run took.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Seconds from start to exit, plus [`Self::durable_s`].
    pub wall_s: f64,
    /// Seconds that making the result durable took after the program had ended: programs that sync themselves pay within their
    /// own time, the others here.
    pub durable_s: f64,
    /// Processor seconds in user mode.
    pub user_s: f64,
    /// Processor seconds in the kernel.
    pub sys_s: f64,
    /// Peak resident memory in bytes.
    pub rss_bytes: u64,
    /// Processor seconds of the servers it talked to, which is no work of others. 0 without servers.
    pub servers_s: f64,
    /// Cores that others kept busy meanwhile, on average: other programs, the kernel on its own account, the hypervisor.
    pub others_cores: f64,
    /// Bytes of the files it left, when that is a result (a repository).
    pub stored_bytes: Option<u64>,
    /// The JSON document it printed, if it printed one.
    pub output: Option<Value>,
}

impl Measured {
    /// Processor seconds in all.
    pub fn cpu_s(&self) -> f64 {
        self.user_s + self.sys_s
    }

    /// All of it for the raw results.
    pub fn to_json(&self) -> Value {
        json!({
            "wallSeconds": self.wall_s, "durableSeconds": self.durable_s, "userSeconds": self.user_s,
            "systemSeconds": self.sys_s, "peakRssBytes": self.rss_bytes, "serversSeconds": self.servers_s,
            "othersCores": self.others_cores, "storedBytes": self.stored_bytes, "output": self.output,
        })
    }
}

/// What a program gets on standard input.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// So many bytes without a zero among them, from memory.
    NonZero(u64),
}

/// Runs `command` in a cold state that the caller has made, then makes everything below `result` durable.
///
/// # Errors
/// When it cannot be started or fails; with the end of what it said.
pub fn measure(command: &mut Command, input: Input, logs: &Path, result: Option<&Path>) -> Result<Measured> {
    measure_beside(command, input, logs, result, &|| 0.0)
}

/// The same beside servers, whose processor time so far `servers_s` tells.
///
/// # Errors
/// As [`measure`].
pub fn measure_beside(
    command: &mut Command,
    input: Input,
    logs: &Path,
    result: Option<&Path>,
    servers_s: &dyn Fn() -> f64,
) -> Result<Measured> {
    let line = blockferry_tests::process::describe(command);
    let (out, err) = (logs.join("stdout.log"), logs.join("stderr.log"));
    let create = |path: &PathBuf| File::create(path).map_err(|error| format!("create {}: {error}", path.display()));
    command.stdout(create(&out)?).stderr(create(&err)?);
    command.stdin(if matches!(input, Input::Nothing) {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let (busy_s, own_s, served_s) = (host::busy_s(), host::own_s(), servers_s());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("start `{line}`: {error}"))?;
    let stdin = child.stdin.take();
    let usage = thread::scope(|scope| {
        if let (Input::NonZero(bytes), Some(stdin)) = (input, stdin) {
            scope.spawn(move || feed(stdin, bytes));
        }
        sys::wait(child).map_err(|error| format!("wait for `{line}`: {error}"))
    })?;
    let ran_s = start.elapsed().as_secs_f64();
    if !usage.status.success() {
        return Err(format!(
            "`{line}` failed: {}\n{}{}",
            usage.status,
            tail(&err),
            tail(&out)
        ));
    }
    let start = Instant::now();
    let mut stored = None;
    if let Some(result) = result {
        for file in files_below(result)? {
            open(&file)?
                .sync_all()
                .map_err(|error| format!("sync {}: {error}", file.display()))?;
        }
    }
    let durable_s = start.elapsed().as_secs_f64();
    let cpu_s = usage.user.as_secs_f64() + usage.system.as_secs_f64();
    let served_s = servers_s() - served_s;
    let others_s = (host::busy_s() - busy_s) - (host::own_s() - own_s) - cpu_s - served_s;
    if let Some(result) = result.filter(|result| result.is_dir()) {
        stored = Some(size_below(result)?);
    }
    let output = fs::read_to_string(&out)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    Ok(Measured {
        wall_s: ran_s + durable_s,
        durable_s,
        user_s: usage.user.as_secs_f64(),
        sys_s: usage.system.as_secs_f64(),
        rss_bytes: usage.rss_bytes,
        servers_s: served_s,
        others_cores: (others_s / (ran_s + durable_s)).max(0.0),
        stored_bytes: stored,
        output,
    })
}

/// Puts everything below `path` on stable storage and out of the page cache.
///
/// # Errors
/// When a file cannot be opened or synced.
pub fn make_cold(path: &Path) -> Result<()> {
    for file in files_below(path)? {
        let opened = open(&file)?;
        let cold = opened.sync_all().and_then(|()| sys::drop_cache(&opened));
        cold.map_err(|error| format!("drop {} from the page cache: {error}", file.display()))?;
    }
    Ok(())
}

/// Regular files below `path`, or `path` itself; nothing when there is nothing.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            let entries = fs::read_dir(&path).map_err(|error| format!("list {}: {error}", path.display()))?;
            pending.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        } else if meta.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

fn size_below(path: &Path) -> Result<u64> {
    Ok(files_below(path)?
        .iter()
        .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
        .sum())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| format!("open {}: {error}", path.display()))
}

fn feed(mut stdin: impl Write, bytes: u64) {
    // Bytes 1 to 251 in turn: no zeros to leave out, and no period that divides a block.
    let block: Vec<u8> = (1..=251).cycle().take(1 << 20).collect();
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        // The reader may end early; its exit code tells whether that was right.
        if stdin.write_all(&block[..part]).is_err() {
            return;
        }
        left -= part as u64;
    }
}

/// The last lines of a log: the cause is there.
fn tail(path: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_measured_with_its_input_and_output() {
        let folder = blockferry_tests::volume::Volume::create(&blockferry_tests::volume::Layout::mixed(1, 10)).unwrap();
        let logs = folder.path().parent().unwrap();
        let result = logs.join("result");
        let mut dd = Command::new("dd");
        dd.args([
            "bs=1M",
            "iflag=fullblock",
            "status=none",
            &format!("of={}", result.display()),
        ]);
        let measured = measure(&mut dd, Input::NonZero((2 << 20) + 5), logs, Some(&result)).unwrap();
        let bytes = fs::read(&result).unwrap();
        assert_eq!(bytes.len(), (2 << 20) + 5);
        assert!(!bytes.contains(&0));
        assert!(measured.wall_s > 0.0 && measured.wall_s >= measured.durable_s && measured.rss_bytes > 0);
        let json = measure(Command::new("echo").arg("{\"a\":1}"), Input::Nothing, logs, None).unwrap();
        assert_eq!(json.output.unwrap()["a"], 1);
        let failure = measure(Command::new("ls").arg("/no/such"), Input::Nothing, logs, None).unwrap_err();
        assert!(failure.contains("cannot access"), "{failure}");
    }
}
