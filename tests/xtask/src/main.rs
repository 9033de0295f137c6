//! `cargo xtask`: one command for set-up, lints, tests, the demo, benchmarks, golden data and fuzzing.
//!
//! No dependencies, so that it builds in seconds on a clean machine. Every external program is started directly, without
//! a shell, and is printed before it runs.

mod azurite;
mod bench;
mod demo;
mod fuzz;
mod garage;
mod golden;
mod install;
mod kopia;
mod lint;
mod process;
mod soak;
mod test;
mod vm;

use std::process::ExitCode;

/// What ends a sub-command.
enum Stop {
    /// Wrong usage: exit code 2, with the text of `--help` of that command.
    Usage(String),
    /// A step failed: exit code 1.
    Failed(String),
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

/// One sub-command: its name, one line for the list, its own help, and what it does with the arguments behind it.
struct Command {
    name: &'static str,
    summary: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<(), Stop>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "demo",
        summary: "build the release binary and run `blockferry demo`",
        help: demo::HELP,
        run: demo::run,
    },
    Command {
        name: "test",
        summary: "install what the tests need, run all tests",
        help: test::HELP,
        run: test::run,
    },
    Command {
        name: "soak",
        summary: "run the tests that repeat themselves, for about an hour",
        help: soak::HELP,
        run: soak::run,
    },
    Command {
        name: "lint",
        summary: "formatting, clippy, documentation, licences; warnings are errors",
        help: lint::HELP,
        run: lint::run,
    },
    Command {
        name: "ci",
        summary: "lint, then test: what continuous integration does",
        help: CI_HELP,
        run: ci,
    },
    Command {
        name: "bench",
        summary: "run benchmark suites against the bars and the peers",
        help: bench::HELP,
        run: bench::run,
    },
    Command {
        name: "peers",
        summary: "install the programs we compare with",
        help: bench::PEERS_HELP,
        run: bench::peers,
    },
    Command {
        name: "golden",
        summary: "make the golden repositories again with the real kopia",
        help: golden::HELP,
        run: golden::run,
    },
    Command {
        name: "fuzz",
        summary: "run one fuzz target, or all of them",
        help: fuzz::HELP,
        run: fuzz::run,
    },
];

const CI_HELP: &str = "cargo xtask ci

Runs `lint`, then `test`, each as described in its own help. .ci/run does the same.";

fn ci(args: &[String]) -> Result<(), Stop> {
    if let Some(extra) = args.first() {
        return Err(Stop::Usage(format!("`ci` takes no arguments, got `{extra}`")));
    }
    lint::run(&[])?;
    test::run(&[])
}

fn overview() -> String {
    let mut text = String::from("usage: cargo xtask COMMAND [ARGUMENTS]\n\ncommands:\n");
    for command in COMMANDS {
        text.push_str(&format!("  {:<8}{}\n", command.name, command.summary));
    }
    text.push_str(
        "\n`cargo xtask COMMAND --help` tells the rest. Exit codes: 0 done, 1 a step failed, 2 wrong usage.\n\
         Environment: CI=true turns every possible skip into a failure.",
    );
    text
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        eprintln!("{}", overview());
        return ExitCode::from(2);
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        println!("{}", overview());
        return ExitCode::SUCCESS;
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("xtask: no command `{name}`\n\n{}", overview());
        return ExitCode::from(2);
    };
    // Behind `--` the arguments belong to the program that is started.
    let ours = rest.iter().take_while(|arg| *arg != "--");
    if ours.clone().any(|arg| arg == "--help" || arg == "-h") {
        println!("{}", command.help);
        return ExitCode::SUCCESS;
    }
    match (command.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(message)) => {
            eprintln!("xtask {name}: {message}");
            ExitCode::FAILURE
        }
        Err(Stop::Usage(message)) => {
            eprintln!("xtask {name}: {message}\n\n{}", command.help);
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help_that_names_it() {
        for command in COMMANDS {
            assert!(
                command.help.starts_with(&format!("cargo xtask {}", command.name)),
                "{}",
                command.name
            );
            assert!(overview().contains(command.summary), "{}", command.name);
        }
    }

    #[test]
    fn ci_refuses_arguments() {
        assert!(matches!(ci(&["x".to_owned()]), Err(Stop::Usage(_))));
    }
}
