//! House rules: length of files, where `unsafe` may stand, which crate may know which, what must not be left behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockferry_tests::process;
use serde_json::Value;

/// Folders with our code.
const CODE: [&str; 7] = ["blockio", "repo", "nbd", "csi-glue", "daemon", "benches", "tests"];

/// Folders at the top beside plain files, dot-folders and cargo's `target`.
const TOP: [&str; 8] = [
    "daemon", "blockio", "nbd", "repo", "csi-glue", "deploy", "benches", "tests",
];

/// Past this a file holds more than one noun.
const LINES_MAX: usize = 600;

/// Modules with a safe face behind which `unsafe` may stand: `<module>.rs` and everything in the folder `<module>`.
const SYS_MODULES: [&str; 4] = [
    "blockio/src/sys",
    "repo/src/crypto/lanes/sys",
    "nbd/src/attach/sys",
    "benches/src/sys",
];

/// Stubs, leftovers of debugging, and tests that look as if they were run.
const LEFTOVERS: [&str; 4] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace");
    root.to_path_buf()
}

/// Every file of ours that ends in `.rs`, by its path below the root, with its text.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    for folder in CODE {
        collect(&root.join(folder), &mut found);
    }
    let name = |path: &Path| {
        path.strip_prefix(&root)
            .expect("below the root")
            .to_string_lossy()
            .into_owned()
    };
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    let sources: Vec<_> = found.iter().map(|path| (name(path), text(path))).collect();
    assert!(
        sources.len() > 100,
        "only {} files found: this test looks at the wrong place",
        sources.len()
    );
    sources
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("list {}: {e}", folder.display())) {
        let entry = entry.expect("entry of a folder");
        let (path, kind) = (entry.path(), entry.file_type().expect("kind of an entry"));
        if kind.is_dir() && entry.file_name() != "target" {
            collect(&path, found);
        } else if kind.is_file() && path.extension() == Some(OsStr::new("rs")) {
            found.push(path);
        }
    }
}

/// `text` without comments and without what is between quotes, line breaks kept.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if rest.starts_with('\'') {
            character(rest)
        } else if starts_raw(&text[..at], rest) {
            raw(rest)
        } else {
            0
        };
        if skip > 0 {
            code.extend(rest[..skip].chars().filter(|c| *c == '\n'));
            code.push(' ');
            at += skip;
        } else {
            let c = rest.chars().next().expect("not at the end");
            code.push(c);
            at += c.len_utf8();
        }
    }
    code
}

/// Length of the comment at the start of `rest`. They nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let pair = rest.as_bytes().get(at..at + 2);
        match pair {
            Some(b"/*") => depth += 1,
            Some(b"*/") => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of the literal at the start of `rest` that ends at the next `quote` without a backslash.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Length of the character literal at the start of `rest`; 0 when it is a lifetime.
fn character(rest: &str) -> usize {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(rest, '\''),
        _ => 0,
    }
}

/// Whether a raw string begins here: `r"`, `r#"`, and so on, not at the end of a longer word.
fn starts_raw(before: &str, rest: &str) -> bool {
    let word = before.trim_end_matches('b').chars().next_back().is_some_and(is_word);
    !word
        && rest
            .strip_prefix('r')
            .is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
}

/// Length of the raw string at the start of `rest`.
fn raw(rest: &str) -> usize {
    let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
    let close = format!("\"{}", "#".repeat(hashes));
    let start = 1 + hashes + 1;
    rest[start..]
        .find(&close)
        .map_or(rest.len(), |at| start + at + close.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `code` on its own.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_word);
        let after = code[at + word.len()..].chars().next().is_some_and(is_word);
        !before && !after
    })
}

#[test]
fn no_file_is_longer_than_the_limit() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    assert!(
        long.is_empty(),
        "more than {LINES_MAX} lines, pull a noun out:\n{}",
        long.join("\n")
    );
}

#[test]
fn unsafe_code_stands_only_in_sys_modules() {
    let allowed = |name: &str| {
        SYS_MODULES.iter().any(|module| {
            name.strip_prefix(module)
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    };
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(name, text)| !allowed(name) && has_word(&code_of(text), "unsafe"))
        .map(|(name, _)| name)
        .collect();
    assert!(wrong.is_empty(), "unsafe outside {SYS_MODULES:?}: {wrong:?}");
}

#[test]
fn nothing_unfinished_is_left_behind() {
    let mut left = Vec::new();
    for (name, text) in sources() {
        for (line, code) in code_of(&text).lines().enumerate() {
            for leftover in LEFTOVERS.iter().filter(|leftover| code.contains(**leftover)) {
                left.push(format!("{name}:{}: {leftover}", line + 1));
            }
        }
    }
    assert!(left.is_empty(), "{}", left.join("\n"));
}

#[test]
fn top_level_folders_are_the_agreed_ones() {
    let entries = fs::read_dir(root())
        .expect("list the root")
        .map(|entry| entry.expect("entry of the root"));
    let folders = entries.filter(|entry| entry.file_type().expect("kind of an entry").is_dir());
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found: BTreeSet<String> = names
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    let agreed: BTreeSet<String> = TOP.iter().map(ToString::to_string).collect();
    assert_eq!(found, agreed);
}

/// What `cargo metadata` says of the crates of the workspace.
fn packages() -> Vec<Value> {
    let mut cargo = cargo();
    cargo.args(["metadata", "--no-deps", "--format-version=1", "--offline"]);
    let text = process::run(&mut cargo).unwrap();
    let document: Value = serde_json::from_str(&text).expect("cargo prints JSON");
    let packages = document["packages"].as_array().expect("packages").clone();
    assert!(packages.len() >= CODE.len(), "{} crates", packages.len());
    packages
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Names of all crates that the Cargo.toml of `package` names, for whatever purpose.
fn dependencies(packages: &[Value], package: &str) -> BTreeSet<String> {
    let found = packages
        .iter()
        .find(|p| p["name"] == package)
        .unwrap_or_else(|| panic!("no crate {package}"));
    let names = found["dependencies"].as_array().expect("dependencies").iter();
    names.map(|d| d["name"].as_str().expect("name").to_owned()).collect()
}

/// The arrows of ARCHITECTURE.md: a crate may know those named beside it, of ours.
const ARROWS: [(&str, &[&str]); 5] = [
    ("blockferry-blockio", &[]),
    ("blockferry-repo", &["blockferry-blockio"]),
    ("blockferry-nbd", &["blockferry-blockio"]),
    ("blockferry-csi-glue", &["blockferry-blockio"]),
    (
        "blockferry-daemon",
        &[
            "blockferry-blockio",
            "blockferry-repo",
            "blockferry-nbd",
            "blockferry-csi-glue",
        ],
    ),
];

#[test]
fn crates_know_only_what_they_may_know() {
    let packages = packages();
    for (package, may) in ARROWS {
        let names = dependencies(&packages, package);
        let ours = names.into_iter().filter(|name| name.starts_with("blockferry-"));
        let wrong: Vec<_> = ours.filter(|name| !may.contains(&name.as_str())).collect();
        assert!(wrong.is_empty(), "{package} must not know {wrong:?}");
    }
}

/// Parts of the names of crates that are, or bring, a Kubernetes client.
const KUBERNETES: [&str; 2] = ["kube", "k8s"];

#[test]
fn the_privileged_program_has_no_kubernetes_client() {
    let mut tree = cargo();
    tree.args([
        "tree",
        "--offline",
        "--package",
        "blockferry-daemon",
        "--edges=normal,build",
        "--prefix=none",
    ]);
    let listed = process::run(&mut tree).unwrap();
    assert!(
        listed.contains("blockferry-repo "),
        "not the tree of the daemon:\n{listed}"
    );
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let wrong: BTreeSet<_> = listed
        .lines()
        .map(name)
        .filter(|name| {
            KUBERNETES
                .iter()
                .any(|part| name.split(['-', '_']).any(|word| word == *part))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_crate_inherits_the_lints() {
    let path = |package: &Value| package["manifest_path"].as_str().expect("path").to_owned();
    for manifest in packages().iter().map(path) {
        let text = fs::read_to_string(&manifest).expect("read manifest");
        let lines = text
            .lines()
            .map(str::trim)
            .skip_while(|line| *line != "[lints]")
            .skip(1);
        let inherits = lines
            .take_while(|line| !line.starts_with('['))
            .any(|line| line == "workspace = true");
        assert!(inherits, "{manifest} has no `[lints] workspace = true`");
    }
}

#[test]
fn comments_and_quotes_are_no_code() {
    let text = concat!(
        "// unsafe\nlet a = \"unsafe \\\" unsafe\"; /* unsafe /* unsafe */ unsafe */ let b = br#\"unsafe\"#;\n",
        "let c = '\"'; let d: &'a str = \"x\"; let e = '\\''; fn unsafe_looking() {}\n",
    );
    let code = code_of(text);
    assert!(!has_word(&code, "unsafe"), "{code}");
    assert!(code.contains("unsafe_looking"), "{code}");
    assert_eq!(code.lines().count(), text.lines().count());
    assert!(has_word(&code_of("let x = r\"\"; unsafe { }"), "unsafe"));
    assert!(has_word(&code_of("fn f<'a>(x: &'a u8) { unsafe {} }"), "unsafe"));
}
