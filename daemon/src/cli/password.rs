//! `blockferry repo password`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use repo::format::change_password;
use serde::Serialize;

use super::output::Output;
use super::{Global, image};
use crate::error::{JobError, Result};

/// Environment variable that holds the new password.
const VARIABLE: &str = "BLOCKFERRY_NEW_PASSWORD";

#[derive(Args)]
#[command(
    after_help = "The present password comes from --password-file, BLOCKFERRY_PASSWORD or KOPIA_PASSWORD as for every command.\n\
                  Every other client, Velero's secret included, needs the new one from then on. A change that was cut short is\n\
                  completed by the same command with the same two passwords.\n\
                  Example: blockferry repo password --new-password-file new --repo /backups/r1 --password-file pw"
)]
pub(crate) struct Arguments {
    /// File whose first line is the new password. Else BLOCKFERRY_NEW_PASSWORD, or a prompt on a terminal
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

/// The document of `repo password --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    repository: String,
    changed: bool,
    /// An earlier change had been cut short and is complete now.
    resumed: bool,
}

pub(crate) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<ExitCode> {
    let store = image::store(global)?;
    let old = image::password(global, false)?;
    let new = new_password(arguments)?;
    let change = change_password(&*store, &old, &new)?;
    let document = Document {
        repository: store.place(),
        changed: true,
        resumed: change.resumed,
    };
    output.print(&document, |d| {
        format!(
            "the password of {} is changed; other clients need the new one\n",
            d.repository
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// The new password: from the file, the environment, or a prompt that is answered twice.
fn new_password(arguments: &Arguments) -> Result<String> {
    if let Some(file) = &arguments.new_password_file {
        return image::password_from(file);
    }
    if let Some(password) = std::env::var(VARIABLE).ok().filter(|password| !password.is_empty()) {
        return Ok(password);
    }
    if !std::io::stdin().is_terminal() {
        return Err(JobError::Usage(format!(
            "no new password; give --new-password-file FILE or set {VARIABLE}"
        )));
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt).map_err(|e| JobError::Usage(format!("read new password: {e}")))
    };
    let password = ask("New password of the repository: ")?;
    match ask("The same password again: ")? == password {
        true => Ok(password),
        false => Err(JobError::Usage("the two new passwords differ".into())),
    }
}
