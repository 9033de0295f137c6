//! Running a program to its end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs, thread};

use crate::{Failure, Result};

/// Runs to the end and returns what was printed, whatever the exit code. `input` is the standard input.
///
/// # Errors
/// When the program cannot be started or its pipes fail.
pub fn output(command: &mut Command, input: &[u8]) -> Result<Output> {
    let line = describe(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Failure::at(format!("start `{line}`")))?;
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        // A program may stop reading early; its exit code tells whether that was right.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child
            .wait_with_output()
            .map_err(Failure::at(format!("wait for `{line}`")))
    })
}

/// Runs to the end and returns standard output as text.
///
/// # Errors
/// When the program fails; the error holds the command and all of its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, &[])
}

/// As [`run`], with `input` as standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let output = output(command, input)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!(
        "`{}` failed: {}\n{stderr}\n{stdout}",
        describe(command),
        output.status
    )))
}

/// Where a program is: in the folders of PATH, then in those of `others`.
pub fn find(name: &str, others: &[PathBuf]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(others.iter().cloned())
        .map(|folder| folder.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file()))
}

/// Processor seconds a running process has used so far, in user mode and in the kernel; 0 when it is gone.
pub fn cpu_s(pid: u32) -> f64 {
    /// Unit of /proc (`USER_HZ`) on every architecture we run on.
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses; utime and stime are the fields 14 and 15 (proc(5)).
    let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// The command as one line for messages.
pub fn describe(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default();
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(name.to_string_lossy().into_owned())
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_holds_the_command_and_all_it_said() {
        let failure = run(Command::new("ls").arg("/no/such/folder")).unwrap_err().to_string();
        assert!(failure.contains("`ls /no/such/folder` failed"), "{failure}");
        assert!(failure.contains("cannot access"), "{failure}");
    }

    #[test]
    fn input_larger_than_a_pipe_gets_through() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(
            run_with_input(&mut Command::new("cat"), &input).unwrap().len(),
            input.len()
        );
    }
}
