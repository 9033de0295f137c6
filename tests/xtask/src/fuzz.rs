//! `cargo xtask fuzz`.

use std::fs;

use crate::{Stop, install, process};

pub(crate) const HELP: &str = "cargo xtask fuzz [TARGET] [--seconds N]

Runs one fuzz target of tests/fuzz, or each of them in turn, for N seconds (60 unless given). Needs the nightly toolchain
(added by rustup when missing), cargo-fuzz (by `cargo install` when missing) and a C++ compiler (by apt when root).
A crash leaves its input in tests/fuzz/artifacts; seeds are in tests/fuzz/seeds.";

/// libFuzzer itself is C++.
const CXX: install::Tool = install::Tool {
    program: "c++",
    package: "g++",
};

/// What the command line asked for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    target: Option<String>,
    seconds: u32,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            target: None,
            seconds: 60,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--seconds" => {
                    let value = args.next().ok_or("--seconds needs a number")?;
                    options.seconds = value
                        .parse()
                        .map_err(|_| format!("--seconds {value}: not a whole number"))?;
                }
                flag if flag.starts_with('-') => return Err(format!("no option `{flag}`")),
                name if options.target.is_none() => options.target = Some(name.to_owned()),
                name => return Err(format!("one target at a time, `{name}` is the second")),
            }
        }
        Ok(options)
    }
}

pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let options = Options::parse(args).map_err(Stop::Usage)?;
    let all = targets()?;
    let chosen = match options.target {
        None => all,
        Some(name) if all.contains(&name) => vec![name],
        Some(name) => {
            return Err(Stop::Usage(format!(
                "no target `{name}`; there are: {}",
                all.join(", ")
            )));
        }
    };
    prepare()?;
    for target in chosen {
        // A folder of its own for what the fuzzer finds; the committed seeds are only read.
        let corpus = format!("tests/fuzz/corpus/{target}");
        let seeds = format!("tests/fuzz/seeds/{target}");
        fs::create_dir_all(process::root().join(&corpus)).map_err(|error| format!("create {corpus}: {error}"))?;
        let mut fuzz = process::program("rustup");
        fuzz.args([
            "run",
            "nightly",
            "cargo",
            "fuzz",
            "run",
            "--fuzz-dir",
            "tests/fuzz",
            &target,
            &corpus,
        ]);
        if process::root().join(&seeds).is_dir() {
            fuzz.arg(&seeds);
        }
        // 4 GiB of resident memory: far above what a parser that checks claimed sizes needs.
        fuzz.args([
            "--",
            &format!("-max_total_time={}", options.seconds),
            "-rss_limit_mb=4096",
        ]);
        process::run(&mut fuzz)?;
    }
    Ok(())
}

fn targets() -> Result<Vec<String>, String> {
    let folder = process::root().join("tests/fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).map_err(|error| format!("list {}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn prepare() -> Result<(), String> {
    install::ensure(&[CXX])?;
    if process::find("rustup").is_none() {
        return Err("fuzzing needs a nightly toolchain, and there is no rustup here to get one".to_owned());
    }
    let nightly = process::first_line(process::program("rustup").args(["run", "nightly", "rustc", "--version"]));
    if nightly.is_none() {
        process::run(process::program("rustup").args(["toolchain", "install", "nightly", "--profile", "minimal"]))?;
    }
    if process::find("cargo-fuzz").is_none() {
        process::run(process::cargo().args(["install", "--locked", "cargo-fuzz"]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expect: Result<(Option<&str>, u32), &str>) {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let expect = expect
            .map(|(target, seconds)| Options {
                target: target.map(str::to_owned),
                seconds,
            })
            .map_err(str::to_owned);
        assert_eq!(Options::parse(&args), expect, "{line}");
    }

    #[test]
    fn the_command_line_is_checked() {
        check("", Ok((None, 60)));
        check("index --seconds 5", Ok((Some("index"), 5)));
        check("--seconds", Err("--seconds needs a number"));
        check("--seconds x", Err("--seconds x: not a whole number"));
        check("index list", Err("one target at a time, `list` is the second"));
        check("--jobs", Err("no option `--jobs`"));
    }
}
