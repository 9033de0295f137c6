//! What a command prints: text for people, or one JSON document.

use std::io::Write;

use serde::Serialize;

use crate::error::JobError;
pub(crate) use crate::error::chain;

/// The way to standard output.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// JSON was asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `document` as JSON, or what `text` makes of it. A reader that went away ends the output silently.
    pub(crate) fn print<T: Serialize>(&self, document: &T, text: impl FnOnce(&T) -> String) {
        let text = match self.json {
            true => serde_json::to_string_pretty(document).expect("plain data becomes JSON") + "\n",
            false => text(document),
        };
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }

    /// Prints an error with its causes, once: on standard error, and as the document when JSON was asked for.
    pub(crate) fn error(&self, error: &JobError) {
        let text = chain(error);
        if self.json {
            print_failure(&text, error.exit_code());
        }
        let _ = writeln!(std::io::stderr().lock(), "blockferry: {text}");
    }
}

/// Prints the document of a failure on standard output.
pub(crate) fn print_failure(error: &str, exit_code: u8) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure<'a> {
        error: &'a str,
        exit_code: u8,
    }
    Output::new(true).print(&Failure { error, exit_code }, |_| String::new());
}

/// Largest resident memory of this process so far, in bytes.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Rows of words in columns as wide as their widest word.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(|c| c.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_word() {
        let rows = [vec!["a".to_string(), "bbb".into()], vec!["cc".into(), "d".into()]];
        assert_eq!(super::table(&rows), "a   bbb\ncc  d\n");
    }

    #[test]
    fn peak_memory_is_known() {
        assert!(super::peak_rss_bytes() > 1 << 20);
    }
}
