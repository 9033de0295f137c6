//! Tables for people and raw numbers for later.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bars::Bar;
use crate::rounds::Row;
use crate::{MIB, Result, host};

/// One finished suite.
#[derive(Debug)]
pub struct Report {
    /// Name of the suite.
    pub suite: String,
    /// What was done, in a sentence or two.
    pub about: String,
    /// Bytes that a rate is counted on.
    pub size: u64,
    /// The lines of the table.
    pub rows: Vec<Row>,
    /// What has to be reached, and what was.
    pub bars: Vec<Bar>,
    /// Contenders that did not run, and why.
    pub left_out: Vec<String>,
    /// Further tables, as Markdown.
    pub details: String,
    /// Why its numbers say nothing, beside others at work.
    pub flaws: Vec<String>,
    /// Versions of the programs.
    pub versions: Value,
    /// Machine, kernel, device.
    pub host: Value,
}

/// The row that ratios are taken against.
const BASE: &str = "blockferry";

impl Report {
    /// The Markdown table with everything needed to read it.
    pub fn markdown(&self) -> String {
        let base = self.rows.iter().find(|row| row.name == BASE && !row.runs.is_empty());
        let mut text = format!("\n## {}\n\n{}\n\n", self.suite, self.about);
        text.push_str(
            "| tool | wall s | spread | others | MiB/s | CPU s | peak RSS MiB | stored MiB | wall ratio | CPU ratio | how |\n",
        );
        text.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let wall = row.median(|run| run.wall_s);
            let rate = wall.map(|wall| self.size as f64 / MIB / wall);
            let stored = row
                .runs
                .last()
                .and_then(|run| run.stored_bytes)
                .map(|bytes| bytes as f64 / MIB);
            let ratio = |figure: fn(&crate::measure::Measured) -> f64| base.and_then(|base| row.ratio(base, figure));
            let note = row
                .failure
                .as_ref()
                .map_or(row.note.clone(), |_| format!("FAILED, see above. {}", row.note));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {note} |",
                row.name,
                number(wall, 2),
                number(row.spread(), 2),
                number(row.others(), 2),
                number(rate, 0),
                number(row.median(|run| run.cpu_s()), 2),
                number(row.median(|run| run.rss_bytes as f64 / MIB), 0),
                number(stored, 0),
                number(ratio(|run| run.wall_s), 2),
                number(ratio(|run| run.cpu_s()), 2),
            );
        }
        if !self.bars.is_empty() {
            text.push_str("\n| bar | at most | measured | |\n|---|---|---|---|\n");
            self.bars.iter().for_each(|bar| {
                let _ = writeln!(text, "{}", bar.line());
            });
        }
        if !self.details.is_empty() {
            let _ = write!(text, "\n{}", self.details);
        }
        for left_out in &self.left_out {
            let _ = writeln!(text, "\nLeft out: {left_out}");
        }
        for flaw in &self.flaws {
            let _ = writeln!(text, "\nVOID: {flaw}");
        }
        let void = self.void();
        if !void.is_empty() {
            let limit = host::OTHERS_CORES_MAX;
            let _ = writeln!(
                text,
                "\nVOID: others kept more than {limit} cores busy beside {}.",
                void.join(", ")
            );
        }
        text
    }

    /// Names more programs with their versions.
    pub fn add_versions(&mut self, versions: impl IntoIterator<Item = (String, String)>) {
        if let Value::Object(known) = &mut self.versions {
            known.extend(versions.into_iter().map(|(name, version)| (name, version.into())));
        }
    }

    /// Names of the rows that say nothing, since others were at work.
    fn void(&self) -> Vec<&str> {
        let void = |row: &&Row| row.others().is_some_and(|cores| cores > host::OTHERS_CORES_MAX);
        self.rows.iter().filter(void).map(|row| row.name.as_str()).collect()
    }

    /// Everything, for later.
    pub fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let runs: Vec<Value> = row.runs.iter().map(crate::measure::Measured::to_json).collect();
            json!({"name": row.name, "how": row.note, "runs": runs, "failure": row.failure})
        });
        let bars = self
            .bars
            .iter()
            .map(|bar| json!({"what": bar.what, "atMost": bar.limit, "measured": bar.measured}));
        json!({
            "bars": bars.collect::<Vec<_>>(), "suite": self.suite, "about": self.about, "date": host::today(), "host": self.host,
            "versions": self.versions, "imageBytes": self.size, "void": self.void(), "flaws": self.flaws, "leftOut": self.left_out, "rows": rows.collect::<Vec<_>>(),
        })
    }

    /// Writes the raw numbers to `folder/<date>-<suite>.json` and returns that path. Paths in the folder `work` are written
    /// as below `WORK`: where it was says nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, folder: &Path, work: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}-{}.json", host::today(), self.suite));
        let text = format!("{:#}\n", self.to_json()).replace(&work.display().to_string(), "WORK");
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text));
        written.map_err(|error| format!("write {}: {error}", path.display()))?;
        Ok(path)
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measured;

    #[test]
    fn a_table_has_a_line_for_each_and_says_when_it_is_void() {
        let run = |wall_s, others_cores| Measured {
            wall_s,
            durable_s: 0.0,
            user_s: 1.0,
            sys_s: 0.5,
            rss_bytes: 10 << 20,
            servers_s: 0.0,
            others_cores,
            stored_bytes: Some(3 << 20),
            output: None,
        };
        let row = |name: &str, wall, others| Row {
            name: name.to_owned(),
            note: "as is".to_owned(),
            runs: vec![run(wall, others)],
            failure: None,
        };
        let report = Report {
            suite: "backup".to_owned(),
            about: "About.".to_owned(),
            size: 8 << 20,
            rows: vec![row("blockferry", 2.0, 0.0), row("kopia", 5.0, 0.75)],
            bars: vec![],
            left_out: vec!["borg: not installed".to_owned()],
            details: "| more |\n|---|\n".to_owned(),
            flaws: vec!["the link was not the limit".to_owned()],
            versions: json!({}),
            host: json!({}),
        };
        let text = report.markdown();
        assert!(
            text.contains("| blockferry | 2.00 | 1.00 | 0.00 | 4 | 1.50 | 10 | 3 | 1.00 | 1.00 | as is |"),
            "{text}"
        );
        assert!(
            text.contains("| kopia | 5.00 | 1.00 | 0.75 | 2 | 1.50 | 10 | 3 | 2.50 | 1.00 | as is |"),
            "{text}"
        );
        assert!(text.contains("Left out: borg: not installed"), "{text}");
        assert!(
            text.contains("VOID: others kept more than 0.5 cores busy beside kopia."),
            "{text}"
        );
        assert!(text.contains("\n\n| more |\n"), "{text}");
        assert!(text.contains("VOID: the link was not the limit"), "{text}");
        assert_eq!(report.to_json()["rows"][1]["runs"][0]["wallSeconds"], 5.0);
    }
}
