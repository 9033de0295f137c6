//! `cargo xtask soak`.

use crate::{Stop, azurite, garage, install, kopia, process, vm};

pub(crate) const HELP: &str = "cargo xtask soak [TEST NAMES] [--factor N]

Runs the tests that repeat themselves (rounds with kopia and its maintenance, injected storage faults, object stores behind a bad
network, an index of a million contents, chains of increments, lists that lie, servers killed and power cut under volumes in use)
with many more rounds than `cargo xtask test` does: their full number, times N (1 unless given). Hours on two cores. Nothing is
skipped: kopia, garage, azurite and QEMU have to be there or be installable.";

/// Tells the tests how many times their full number of rounds they run; absent means the short form of CI.
const VARIABLE: &str = "BLOCKFERRY_SOAK";

/// Tests whose name has one of these words take [`VARIABLE`] into account: those called after their rounds, and modules of such.
const WORDS: [&str; 10] = [
    "rounds",
    "neighbours",
    "storage_faults",
    "wide::",
    "ranges::",
    "fuse_loop::",
    "attach::power::",
    "attach::survivor::",
    "mount::fio::",
    "mount::power::",
];

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let (names, factor) = parse(args).map_err(Stop::Usage)?;
    install::ensure(install::FOR_TESTS)?;
    kopia::require()?;
    garage::require()?;
    azurite::require()?;
    vm::require()?;
    // What runs in virtual machines.
    process::run(process::cargo_locked("build").args(["--package", "blockferry-nbd", "--examples"]))?;
    // What `cargo xtask test` has built: the crates with the data path are optimised in it too.
    process::run(process::cargo_locked("build").args(["--package", "blockferry-daemon", "--bins"]))?;
    let mut test = process::cargo_locked("test");
    test.args(["--package", "blockferry-tests", "--test", "it", "--"])
        .args(["--nocapture", "--test-threads", "1"])
        .args(if names.is_empty() {
            WORDS.map(str::to_owned).to_vec()
        } else {
            names
        })
        .env("CI", "true")
        .env("BLOCKFERRY_BUILT", "1")
        .env(VARIABLE, factor.to_string());
    Ok(process::run(&mut test)?)
}

/// Names of tests, and the factor.
fn parse(args: &[String]) -> Result<(Vec<String>, u32), String> {
    let (mut names, mut factor) = (Vec::new(), 1);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--factor" => {
                let value = args.next().ok_or("--factor needs a number")?;
                let number = value.parse().ok().filter(|&number| number > 0);
                factor = number.ok_or_else(|| format!("--factor {value}: not 1 or more"))?;
            }
            flag if flag.starts_with('-') => return Err(format!("no option `{flag}`")),
            name => names.push(name.to_owned()),
        }
    }
    Ok((names, factor))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries
            .flat_map(|path| match path.is_dir() {
                true => sources(&path),
                false => vec![path],
            })
            .collect()
    }

    /// Module by module, as names of tests begin.
    fn module(file: &Path, root: &Path) -> String {
        let inside = file.strip_prefix(root).unwrap().with_extension("");
        inside.iter().map(|part| format!("{}::", part.display())).collect()
    }

    #[test]
    fn every_test_that_repeats_itself_is_soaked() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../it");
        let mut found = 0;
        for file in sources(&root) {
            let text = fs::read_to_string(&file).unwrap();
            if !text.contains("blockferry_tests::rounds") {
                continue;
            }
            found += 1;
            let module = module(&file, &root);
            let is_soaked = text.contains("\nfn rounds_") || WORDS.iter().any(|word| module.contains(word));
            assert!(is_soaked, "no word for {module}");
        }
        assert!(found > 12, "{found}");
    }

    #[test]
    fn the_command_line_is_checked() {
        let parse = |line: &str| {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&args)
        };
        assert_eq!(parse(""), Ok((vec![], 1)));
        assert_eq!(parse("soak_rounds --factor 3"), Ok((vec!["soak_rounds".to_owned()], 3)));
        for wrong in ["--factor", "--factor 0", "--factor x", "--rounds"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
