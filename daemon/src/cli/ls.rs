//! `blockferry ls`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use repo::directory::{DirectoryEntry, EntryKind};
use repo::tree::Tree;
use serde::Serialize;

use super::output::Output;
use super::{Global, image};
use crate::error::Result;

#[derive(Args)]
#[command(after_help = "Example: blockferry ls latest etc/ssh --recursive --repo /backups/r1 --password-file pw")]
pub(crate) struct Arguments {
    /// Snapshot: id, unique beginning of it, latest, or latest:USER@HOST:PATH
    snapshot: String,
    /// File or folder in it [default: its root]
    #[arg(default_value = "", hide_default_value = true)]
    path: String,
    /// Everything in the folders too
    #[arg(short, long)]
    recursive: bool,
}

/// One entry of `ls --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// Below the folder that was asked for; the name of the file when it was a file.
    path: String,
    /// `file`, `directory`, `symlink` or `unknown`.
    kind: &'static str,
    /// Permission bits in octal.
    mode: String,
    /// Bytes; of a folder, those of all files below it.
    size: u64,
    modified: Option<String>,
    uid: u32,
    gid: u32,
    object_id: String,
}

impl Row {
    fn of(path: &str, entry: &DirectoryEntry) -> Self {
        Self {
            path: path.to_owned(),
            kind: match entry.kind {
                EntryKind::File => "file",
                EntryKind::Directory => "directory",
                EntryKind::Symlink => "symlink",
                EntryKind::Unknown => "unknown",
            },
            mode: format!("{:04o}", entry.mode.unix()),
            size: size(entry),
            modified: (!entry.modified.is_unset()).then(|| entry.modified.to_string()),
            uid: entry.uid,
            gid: entry.gid,
            object_id: entry.object.to_string(),
        }
    }
}

/// Bytes of the file, or of all files below the folder.
fn size(entry: &DirectoryEntry) -> u64 {
    entry.summary.as_ref().map_or(entry.size, |summary| summary.size)
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let repository = image::open(global)?;
    let snapshot = image::snapshot(&repository, &arguments.snapshot)?;
    let tree = Tree::new(&repository, &snapshot)?;
    let entry = tree.find(&arguments.path)?;
    let mut rows = Vec::new();
    let mut text = String::new();
    let mut take = |path: &str, entry: DirectoryEntry| -> Result<()> {
        match output.is_json() {
            true => rows.push(Row::of(path, &entry)),
            false => line(&mut text, path, &entry),
        }
        Ok(())
    };
    match entry.kind {
        EntryKind::Directory => tree.walk(&entry, arguments.recursive, &mut take)?,
        _ => take(&entry.name.clone(), entry)?,
    }
    output.print(&rows, |_| text);
    Ok(ExitCode::SUCCESS)
}

/// The line of an entry, with columns that fit nearly every file.
fn line(text: &mut String, path: &str, entry: &DirectoryEntry) {
    let time = match entry.modified.is_unset() {
        true => "-".to_owned(),
        false => entry.modified.to_string(),
    };
    let slash = if entry.kind == EntryKind::Directory { "/" } else { "" };
    let written = writeln!(
        text,
        "{} {:>12} {time:<30} {}{slash}",
        mode(entry),
        size(entry),
        printable(path)
    );
    written.expect("writing to a string");
}

/// Kind and permissions as `ls -l` has them.
fn mode(entry: &DirectoryEntry) -> String {
    let kind = match entry.kind {
        EntryKind::File => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Unknown => '?',
    };
    let bits = entry.mode.unix();
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits_of_three = bits >> shift;
        text.push(if bits_of_three & 4 != 0 { 'r' } else { '-' });
        text.push(if bits_of_three & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & special != 0, bits_of_three & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// A name without what a terminal would act on.
fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use repo::directory::Mode;

    use super::*;

    #[test]
    fn modes_read_as_those_of_ls() {
        let entry = |kind: &str, mode: u32| {
            let json = format!(r#"{{"name":"x","type":"{kind}","obj":"00"}}"#);
            let entry: DirectoryEntry = serde_json::from_str(&json).expect("valid");
            mode_of(DirectoryEntry {
                mode: Mode(mode),
                ..entry
            })
        };
        fn mode_of(entry: DirectoryEntry) -> String {
            mode(&entry)
        }
        assert_eq!(entry("f", 0o644), "-rw-r--r--");
        assert_eq!(entry("d", 0o777 | 1 << 20), "drwxrwxrwt");
        assert_eq!(entry("f", 0o654 | 1 << 23 | 1 << 22), "-rwSr-sr--");
        assert_eq!(entry("s", 0o777), "lrwxrwxrwx");
        assert_eq!(entry("b", 0), "?---------");
    }

    #[test]
    fn names_cannot_steer_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable("grüße"), "grüße");
    }
}
