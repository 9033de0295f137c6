//! `blockferry maintenance run | status | own`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use blockio::Progress;
use clap::{Args, Subcommand, ValueEnum};
use repo::maintenance::{self, Explanation, History, Mode, Options, Outcome, Overrides, Parameters, Report, Safety};
use repo::{BlobId, Repository};
use serde::Serialize;
use tracing::warn;

use super::output::{Output, table};
use super::size::show_size;
use super::{Global, image, progress, signals};
use crate::error::{JobError, Result};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Compact the index; with --full also collect unused data and delete it, with days of margin
    Run(Run),
    /// Tell how it stands: due times, what waits for what, why a pack is still there
    Status(StatusArguments),
    /// Make a client the owner of maintenance: the one that runs it
    Own(Own),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  blockferry maintenance run --full --dry-run   what would go, and why the rest stays
  blockferry maintenance run --full             once a day, by the owner
  blockferry maintenance run --if-due           from a timer: what is due, if anything

Data goes in three steps, days apart: contents that no snapshot uses are
marked deleted; marks that a second run confirms become final; packs that
nothing refers to are deleted.")]
pub(crate) struct Run {
    /// Everything, not only the index
    #[arg(long)]
    full: bool,
    /// Only what is due by the repository's schedule; nothing when nothing is
    #[arg(long, conflicts_with = "full")]
    if_due: bool,
    /// Say what a run would do; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Margins of time. DANGER: "none" loses data of every client that is writing
    #[arg(long, value_enum, default_value_t = Level::Full, value_name = "LEVEL")]
    safety: Level,
    #[command(flatten)]
    identity: Identity,
    /// Run though another client is the owner. DANGER when that one runs it too
    #[arg(long)]
    force_owner: bool,
    /// Run on a repository that Velero maintains. DANGER when its job runs too
    #[arg(long)]
    force_velero: bool,
    /// Delete even when it is more than half of a large repository
    #[arg(long)]
    yes_delete_many: bool,
    /// Delete everything when the repository lists no snapshot
    #[arg(long)]
    yes_no_snapshots: bool,
}

#[derive(Args)]
struct Identity {
    /// The client this is [default: you at this host]
    #[arg(long = "as", value_name = "USER@HOST")]
    client: Option<String>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  blockferry maintenance status
  blockferry maintenance status --blob p0123…-s0011223344556677144")]
pub(crate) struct StatusArguments {
    /// Explain this pack or session marker: what holds it, and when it can go
    #[arg(long, value_name = "BLOB")]
    blob: Option<String>,
    #[command(flatten)]
    identity: Identity,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  blockferry maintenance own                you at this host
  blockferry maintenance own backup@store1")]
pub(crate) struct Own {
    /// The client [default: you at this host]
    client: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Safe beside clients that read and write.
    Full,
    /// For tests, and for repositories that nobody else has open.
    None,
}

pub(crate) fn run(command: &Command, global: &Global, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Run(arguments) => run_maintenance(arguments, global, output),
        Command::Status(arguments) => run_status(arguments, global, output),
        Command::Own(arguments) => run_own(arguments, global, output),
    }
}

impl Identity {
    fn name(&self) -> Result<String> {
        client(self.client.as_deref())
    }
}

/// The client called `given`, or you at this host.
fn client(given: Option<&str>) -> Result<String> {
    match given {
        None => Ok(format!("{}@{}", image::user_name(), image::host_name())),
        Some(name) => match name.split_once('@') {
            Some((user, host)) if !user.is_empty() && !host.is_empty() => Ok(name.to_owned()),
            _ => Err(JobError::Usage(format!("{name:?} is not of the form USER@HOST"))),
        },
    }
}

/// Folders for lock files, in the order they are tried: that of the user, that of the host, one that always exists.
fn lock_folder() -> PathBuf {
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let candidates = of_user.into_iter().chain([PathBuf::from("/run/lock")]);
    candidates
        .into_iter()
        .find(|folder| folder.is_absolute() && folder.is_dir())
        .unwrap_or_else(std::env::temp_dir)
}

/// The document of a run that found nothing due.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NotDue {
    due: Option<Mode>,
    next_quick: String,
    next_full: String,
}

fn run_maintenance(arguments: &Run, global: &Global, output: &Output) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signal()?;
    let repository = image::open_uncached(global)?;
    let mode = match (arguments.full, arguments.if_due) {
        (true, _) => Mode::Full,
        (false, false) => Mode::Quick,
        (false, true) => match due(&repository)? {
            Ok(mode) => mode,
            Err(nothing) => {
                output.print(&nothing, |n| {
                    format!("nothing is due: quick at {}, full at {}\n", n.next_quick, n.next_full)
                });
                return Ok(ExitCode::SUCCESS);
            }
        },
    };
    if arguments.safety == Level::None && !arguments.dry_run {
        warn!("maintenance without margins: data of clients that are writing now is lost");
    }
    let options = Options {
        safety: match arguments.safety {
            Level::Full => Safety::FULL,
            Level::None => Safety::NONE,
        },
        overrides: Overrides {
            not_owner: arguments.force_owner,
            velero: arguments.force_velero,
            delete_many: arguments.yes_delete_many,
            no_snapshots: arguments.yes_no_snapshots,
        },
        lock_folder: Some(lock_folder()),
        ..Options::new(mode, arguments.identity.name()?)
    };
    let progress = Progress::new();
    let display = progress::Display::start(global, "maintenance", &progress);
    let report = match arguments.dry_run {
        true => maintenance::plan(&repository, &options, &cancel, &progress),
        false => maintenance::run(&repository, &options, &cancel, &progress),
    };
    drop(display);
    output.print(&report?, report_text);
    Ok(ExitCode::SUCCESS)
}

/// What is due now, or when something will be.
fn due(repository: &Repository) -> Result<std::result::Result<Mode, NotDue>> {
    let history = History::read(repository)?;
    let due = history.due(&Parameters::read(repository)?, repo::time::Time::now());
    Ok(due.ok_or_else(|| NotDue {
        due,
        next_quick: history.next(Mode::Quick).to_string(),
        next_full: history.next(Mode::Full).to_string(),
    }))
}

fn report_text(report: &Report) -> String {
    let mut text = String::new();
    let kind = match report.mode {
        Mode::Quick => "quick",
        Mode::Full => "full",
    };
    let verb = if report.dry_run { "would do" } else { "did" };
    let _ = writeln!(text, "what a {kind} maintenance {verb}:");
    let rows: Vec<Vec<String>> = report
        .tasks
        .iter()
        .map(|task| {
            let outcome = match task.outcome {
                Outcome::Done => "done",
                Outcome::Planned => "would",
                Outcome::Idle => "-",
            };
            vec![task.task.name().into(), outcome.into(), task.summary.clone()]
        })
        .collect();
    text.push_str(&table(&rows));
    for marker in &report.unreadable_markers {
        let _ = writeln!(text, "warning: {}", marker.advice());
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn run_status(arguments: &StatusArguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open_uncached(global)?;
    let options = Options::new(Mode::Full, arguments.identity.name()?);
    match &arguments.blob {
        Some(blob) => {
            let explanation = maintenance::explain(&repository, &BlobId::new(blob.as_str())?, &options)?;
            output.print(&explanation, explanation_text);
        }
        None => output.print(&maintenance::status(&repository, &options)?, status_text),
    }
    Ok(ExitCode::SUCCESS)
}

fn explanation_text(e: &Explanation) -> String {
    let mut text = format!("{}: {}, stored {}\n", e.blob, show_size(e.bytes), e.stored);
    e.held_by.iter().for_each(|why| text.push_str(&format!("  {why}\n")));
    if e.can_go {
        text.push_str("  nothing holds it: the next full maintenance deletes it\n");
    }
    text
}

fn status_text(s: &maintenance::Status) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let count = |c: &maintenance::Count| format!("{} ({})", c.count, show_size(c.bytes));
    let owner = match (s.owner.as_str(), s.is_owner) {
        ("", _) => "nobody; `blockferry maintenance own` takes it".into(),
        (owner, true) => format!("{owner}, which is you"),
        (owner, false) => owner.to_owned(),
    };
    let cycle = |c: &maintenance::CycleStatus| match c.enabled {
        true => format!("every {} min, next {}", c.interval_s / 60, c.next),
        false => "switched off".into(),
    };
    let due = match s.due {
        Some(Mode::Full) => "full maintenance",
        Some(Mode::Quick) => "quick maintenance",
        None => "nothing",
    };
    let mut rows = vec![
        row("owner", owner),
        row("due now", due.into()),
        row("quick", cycle(&s.quick)),
        row("full", cycle(&s.full)),
        row(
            "index",
            format!(
                "epoch {}, {} blobs in force, {} epochs without checkpoint",
                s.epoch, s.index_blobs, s.open_epochs
            ),
        ),
        row("contents", count(&s.contents)),
        row("marked deleted", count(&s.deleted_contents)),
        row("packs in use", count(&s.packs.in_use)),
        row("packs of deleted contents", count(&s.packs.deleted_only)),
        row("packs that can go now", count(&s.packs.to_delete)),
        row("live sessions", s.live_sessions.to_string()),
    ];
    for (why, kept) in &s.packs.kept {
        let earliest = kept.earliest.map(|t| format!(", the first can go at {t}"));
        rows.push(row(
            "packs kept",
            format!("{}: {why}{}", count(&kept.blobs), earliest.unwrap_or_default()),
        ));
    }
    for task in &s.tasks {
        let how = match task.success {
            true => "done".into(),
            false => format!("FAILED: {}", task.error),
        };
        rows.push(row(&task.task, format!("last {} {how}", task.start)));
    }
    if s.is_veleros {
        rows.push(row(
            "warning",
            "the repository is Velero's, whose job maintains it".into(),
        ));
    }
    rows.extend(s.unreadable_markers.iter().map(|m| row("warning", m.advice())));
    table(&rows)
}

#[derive(Serialize)]
struct Owned {
    owner: String,
}

fn run_own(arguments: &Own, global: &Global, output: &Output) -> Result<ExitCode> {
    let owner = client(arguments.client.as_deref())?;
    let repository = image::open_uncached(global)?;
    maintenance::set_owner(&repository, &owner)?;
    output.print(&Owned { owner }, |o| format!("maintenance is owned by {}\n", o.owner));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_a_user_and_a_host() {
        assert_eq!(client(Some("a@b")).expect("valid"), "a@b");
        assert!(client(None).expect("you").contains('@'));
        for bad in ["", "a", "@b", "a@"] {
            assert!(client(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
