//! The command line: arguments in, one job, one document out, an exit code.

mod backup;
mod bench;
mod cache;
mod cat;
mod changed;
mod commit;
mod cp;
mod delete;
mod demo;
mod diff;
mod effort;
mod image;
mod ls;
mod maintenance;
mod map;
mod mount;
mod mount_server;
mod mounts;
mod node_check;
mod output;
mod password;
mod picture;
mod progress;
mod repository;
mod restore;
mod serve;
mod show;
mod signals;
mod size;
mod snapshots;
mod sync;
mod unmount;
mod verify;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{JobError, Result};
use output::Output;
use repo::blob::Location;

/// Moves block volumes into Kopia repositories and back, as fast as the device goes.
#[derive(Parser)]
#[command(name = "blockferry", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  blockferry repo create /backups/r1 --password-file pw
  blockferry backup /dev/vg0/data --repo /backups/r1 --password-file pw
  blockferry snapshots --repo /backups/r1 --password-file pw
  blockferry restore latest /dev/vg0/restored --verify --repo /backups/r1 --password-file pw

Exit codes: 0 done; 1 failed, nothing half-published; 2 wrong usage; 3 cancelled; 4 damage found.";

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Repository: a directory, s3://BUCKET/PREFIX/?endpoint=URL&region=NAME, gs://BUCKET/PREFIX/, az://CONTAINER/PREFIX/
    #[arg(long, global = true, env = "BLOCKFERRY_REPO", value_name = "REPO")]
    repo: Option<String>,
    /// File whose first line is the password. Else BLOCKFERRY_PASSWORD, KOPIA_PASSWORD, or a prompt on a terminal
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Progress on standard error
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto, value_name = "MODE")]
    progress: ProgressMode,
    /// More log lines on standard error (-v: info, -vv: debug)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Form of the log lines
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
    #[command(flatten)]
    storage: effort::Storage,
    #[command(flatten)]
    cache: cache::Flags,
}

impl Global {
    /// The arguments that lead another process to the same repository, wherever it runs. The password is not among them.
    fn arguments(&self) -> Result<Vec<String>> {
        let location = match image::location(self, None)? {
            Location::Directory(path) => {
                let full = std::path::absolute(&path).unwrap_or(path);
                full.display().to_string()
            }
            location => location.to_string(),
        };
        let mut arguments = vec!["--repo".to_owned(), location];
        arguments.extend(self.storage.arguments());
        arguments.extend(self.cache.arguments());
        if self.log_format == LogFormat::Json {
            arguments.extend(["--log-format".to_owned(), "json".to_owned()]);
        }
        arguments.push(if self.verbose > 1 { "-vv" } else { "-v" }.to_owned());
        Ok(arguments)
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProgressMode {
    /// A bar on a terminal, nothing elsewhere.
    Auto,
    /// JSON lines.
    Json,
    /// Nothing.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Create a repository, or tell its state
    #[command(subcommand)]
    Repo(repository::Command),
    /// Back a block device or image file up
    Backup(backup::Arguments),
    /// Write a snapshot to a block device or file
    Restore(restore::Arguments),
    /// Serve snapshots as block devices over NBD, read as they are needed, until stopped
    Serve(serve::Arguments),
    /// Make a snapshot a block device of this host, at once
    Mount(mount::Arguments),
    /// List what is mounted, and serve again what lost its server
    Mounts(mounts::Arguments),
    /// Take a mounted device away
    Unmount(unmount::Arguments),
    /// Serve one mount, in a process of its own
    #[command(hide = true)]
    MountServer(mount_server::Arguments),
    /// Make a snapshot of what was written over one that was mounted or served writable
    Commit(commit::Arguments),
    /// List snapshots
    Snapshots(snapshots::Arguments),
    /// Tell everything about one snapshot
    Show(show::Arguments),
    /// Tell which parts of a snapshot hold data and which are zero
    Map(map::Arguments),
    /// Ask a CSI SnapshotMetadata service which blocks are allocated, or changed, for `backup --changed`
    Changed(changed::Arguments),
    /// Tell which parts of a snapshot differ from another, from their lists alone
    Diff(diff::Arguments),
    /// List files of a snapshot
    Ls(ls::Arguments),
    /// Print a file of a snapshot
    Cat(cat::Arguments),
    /// Copy files and folders out of a snapshot
    Cp(cp::Arguments),
    /// Delete snapshots; their data goes with the repository's next maintenance
    Delete(delete::Arguments),
    /// Check snapshots against the index and the packs, and read a share of the contents
    Verify(verify::Arguments),
    /// Keep the repository small and its index short: run it, see how it stands, take it over
    #[command(subcommand)]
    Maintenance(maintenance::Command),
    /// Measure this host: device, hash, cipher, codec
    Bench(bench::Arguments),
    /// The tour: sample volume, backup, restore, comparison; prints what it measured and leaves nothing behind
    Demo(demo::Arguments),
    /// Tell what this host offers and what is missing
    NodeCheck(node_check::Arguments),
    /// Tell what the cache on this host holds, or clear it
    #[command(subcommand)]
    Cache(cache::Command),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(hide = true)]
    ManPages {
        /// Where
        directory: PathBuf,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Runs the command line `args`, whose first is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // nothing more can be said when standard error is gone
            if !e.use_stderr() {
                return ExitCode::SUCCESS;
            }
            // The flag was not parsed, since nothing was; who wrote it reads standard output as JSON.
            if args.iter().any(|arg| arg == "--json") {
                output::print_failure(&e.to_string(), USAGE);
            }
            return ExitCode::from(USAGE);
        }
    };
    start_log(&cli.global);
    let output = Output::new(cli.global.json);
    match dispatch(&cli, &output) {
        Ok(code) => code,
        Err(e) => {
            output.error(&e);
            ExitCode::from(e.exit_code())
        }
    }
}

fn dispatch(cli: &Cli, output: &Output) -> Result<ExitCode> {
    let global = &cli.global;
    match &cli.command {
        Command::Repo(command) => repository::run(command, global, output),
        Command::Backup(arguments) => backup::run(arguments, global, output),
        Command::Restore(arguments) => restore::run(arguments, global, output),
        Command::Serve(arguments) => serve::run(arguments, global, output),
        Command::Mount(arguments) => mount::run(arguments, global, output),
        Command::Mounts(arguments) => mounts::run(arguments, global, output),
        Command::Unmount(arguments) => unmount::run(arguments, output),
        Command::MountServer(arguments) => mount_server::run(arguments, global),
        Command::Commit(arguments) => commit::run(arguments, global, output),
        Command::Snapshots(arguments) => snapshots::run(arguments, global, output),
        Command::Show(arguments) => show::run(arguments, global, output),
        Command::Map(arguments) => map::run(arguments, global, output),
        Command::Changed(arguments) => changed::run(arguments, global, output),
        Command::Diff(arguments) => diff::run(arguments, global, output),
        Command::Ls(arguments) => ls::run(arguments, global, output),
        Command::Cat(arguments) => cat::run(arguments, global, output),
        Command::Cp(arguments) => cp::run(arguments, global, output),
        Command::Delete(arguments) => delete::run(arguments, global, output),
        Command::Verify(arguments) => verify::run(arguments, global, output),
        Command::Maintenance(command) => maintenance::run(command, global, output),
        Command::Bench(arguments) => bench::run(arguments, global, output),
        Command::Demo(arguments) => demo::run(arguments, global, output),
        Command::NodeCheck(arguments) => node_check::run(arguments, global, output),
        Command::Cache(command) => cache::run(command, global, output),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "blockferry", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::ManPages { directory } => {
            clap_mangen::generate_to(Cli::command(), directory)
                .map_err(|e| JobError::Usage(format!("write man pages to {}: {e}", directory.display())))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Our crates, by the names their log lines bear. Of the libraries below them only warnings are of use to a reader.
const LOGGED: [&str; 5] = ["blockio", "csi_glue", "daemon", "nbd", "repo"];

fn start_log(global: &Global) {
    let level = match global.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let targets = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets(LOGGED.map(|name| (name, level)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let registry = tracing_subscriber::registry().with(targets);
    // A second start in one process (tests) keeps the first.
    let _ = match global.log_format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_arguments_for_another_process_say_the_same() {
        let line = [
            "blockferry",
            "snapshots",
            "--repo",
            "rel/r1",
            "--cache-dir",
            "/c",
            "--cache-limit",
            "1GiB",
            "--limit-upload",
            "5MiB",
            "--limit-requests",
            "7",
            "--in-flight",
            "3",
            "--log-format",
            "json",
            "--password-file",
            "/pw",
        ];
        let first = Cli::try_parse_from(line).unwrap().global.arguments().unwrap();
        assert!(!first.iter().any(|argument| argument.contains("pw")), "{first:?}");
        let again = ["blockferry".to_owned()]
            .into_iter()
            .chain(first.clone())
            .chain(["snapshots".to_owned()]);
        let second = Cli::try_parse_from(again).unwrap().global.arguments().unwrap();
        assert_eq!(first, second);
        assert!(Path::new(&first[1]).is_absolute(), "{first:?}");
        for flag in [
            "--cache-dir",
            "--cache-limit",
            "--limit-upload",
            "--limit-requests",
            "--in-flight",
            "--log-format",
        ] {
            assert!(first.iter().any(|argument| argument == flag), "{flag}");
        }
    }
}
