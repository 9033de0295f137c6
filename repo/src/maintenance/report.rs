//! What a run did, or would do.

use serde::Serialize;
use serde_json::Value;

use super::journal::{Mode, Task};
use super::sessions::UnreadableMarker;
use crate::time::Time;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It did what it should.
    Done,
    /// A run would do this.
    Planned,
    /// There was nothing to do, or it is too early.
    Idle,
}

impl Outcome {
    /// Done, when something was to be done.
    pub(super) fn of(changes: bool) -> Self {
        if changes { Self::Done } else { Self::Idle }
    }
}

/// One task of a run.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// Which.
    pub task: Task,
    /// How it ended.
    pub outcome: Outcome,
    /// In a sentence.
    pub summary: String,
    /// In numbers.
    pub numbers: Value,
}

/// One run of maintenance.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What kind of run.
    pub mode: Mode,
    /// Nothing was written.
    pub dry_run: bool,
    /// "Now" for every rule about ages: the storage's time, in a dry run that of this host.
    pub now: Time,
    /// Tasks in their order.
    pub tasks: Vec<TaskReport>,
    /// Session markers that cannot be read.
    pub unreadable_markers: Vec<UnreadableMarker>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

impl Report {
    pub(super) fn new(mode: Mode, dry_run: bool, now: Time) -> Self {
        Self {
            mode,
            dry_run,
            now,
            tasks: Vec::new(),
            unreadable_markers: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds a task with its `numbers`.
    pub(super) fn add(&mut self, task: Task, outcome: Outcome, summary: String, numbers: &impl Serialize) {
        tracing::info!(task = task.name(), outcome = ?outcome, "{summary}");
        let numbers = serde_json::to_value(numbers).expect("plain data becomes JSON");
        self.tasks.push(TaskReport {
            task,
            outcome,
            summary,
            numbers,
        });
    }

    /// The report of a task.
    pub fn task(&self, task: Task) -> Option<&TaskReport> {
        self.tasks.iter().find(|report| report.task == task)
    }
}
