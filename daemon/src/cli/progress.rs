//! Progress while a job runs: a bar on a terminal, JSON lines for programs.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockio::{Progress, ProgressSnapshot};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Global, ProgressMode};

/// A terminal bar moves ten times a second, which reads as motion.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Programs get a line a second.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the counters; for the last time when the second argument is true.
type Show = Box<dyn FnMut(&ProgressSnapshot, bool) + Send>;

/// Shows progress until dropped.
pub(crate) struct Display {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One line of `--progress json`. Bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    job: &'static str,
    total: u64,
    done: u64,
    zero: u64,
    unchanged: u64,
    new: u64,
    elapsed_ms: u128,
}

impl Display {
    /// Begins to show `progress` of `job` as the arguments ask.
    pub(crate) fn start(global: &Global, job: &'static str, progress: &Progress) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let (interval, mut show): (Duration, Show) = match global.progress {
            ProgressMode::None => {
                return Self {
                    end: None,
                    thread: None,
                };
            }
            ProgressMode::Auto if !terminal => {
                return Self {
                    end: None,
                    thread: None,
                };
            }
            ProgressMode::Auto => (BAR_INTERVAL, Box::new(bar(job))),
            ProgressMode::Json => (JSON_INTERVAL, Box::new(json(job))),
        };
        let (end, ended) = channel();
        let progress = progress.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let last = !matches!(ended.recv_timeout(interval), Err(RecvTimeoutError::Timeout));
                show(&progress.snapshot(), last);
                if last {
                    return;
                }
            }
        });
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a display that broke must not break the job
        }
    }
}

fn bar(job: &'static str) -> impl FnMut(&ProgressSnapshot, bool) + Send {
    let bar = ProgressBar::new(0);
    let template = "{prefix} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(job);
    move |now, last| {
        bar.set_length(now.total_bytes);
        bar.set_position(now.done_bytes);
        let share = |bytes: u64| u128::from(bytes) * 100 / u128::from(now.done_bytes.max(1));
        let (zero, unchanged, new) = (share(now.zero_bytes), share(now.unchanged_bytes), share(now.new_bytes));
        bar.set_message(format!("zero {zero}% unchanged {unchanged}% new {new}%"));
        if last {
            bar.finish_and_clear();
        }
    }
}

fn json(job: &'static str) -> impl FnMut(&ProgressSnapshot, bool) + Send {
    let started = Instant::now();
    move |now, _| {
        let line = Line {
            job,
            total: now.total_bytes,
            done: now.done_bytes,
            zero: now.zero_bytes,
            unchanged: now.unchanged_bytes,
            new: now.new_bytes,
            elapsed_ms: started.elapsed().as_millis(),
        };
        let text = serde_json::to_string(&line).expect("plain data becomes JSON");
        let _ = writeln!(std::io::stderr().lock(), "{text}"); // a reader that went away does not end the job
    }
}
