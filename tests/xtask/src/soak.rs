//! `cargo xtask soak`.

use crate::{Stop, azurite, garage, install, kopia, process};

pub(crate) const HELP: &str = "cargo xtask soak [TEST NAMES] [--factor N]

Runs the tests that repeat themselves (rounds with kopia and its maintenance, injected storage faults, object stores behind a bad
network, an index of a million contents, chains of increments, lists that lie) with many more rounds than `cargo xtask test` does: their full number, times N (1 unless given).
Two hours and more on two cores. Nothing is skipped: kopia and garage have to be there or be installable.";

/// Tells the tests how many times their full number of rounds they run; absent means the short form of CI.
const VARIABLE: &str = "BLOCKFERRY_SOAK";

/// Tests whose name has one of these words take [`VARIABLE`] into account.
const WORDS: [&str; 4] = ["rounds", "neighbours", "storage_faults", "wide::"];

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let (names, factor) = parse(args).map_err(Stop::Usage)?;
    install::ensure(install::FOR_TESTS)?;
    kopia::require()?;
    garage::require()?;
    azurite::require()?;
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
    use super::*;

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
