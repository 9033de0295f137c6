//! Makes the golden repositories with the real kopia. Started by `cargo xtask golden`.

mod maker;
mod recipes;
mod seeds;

use std::path::PathBuf;
use std::process::ExitCode;

use blockferry_tests::{Failure, Result, golden};

const USAGE: &str = "usage: golden [DIR] [--only NAME]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("golden: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut folder, mut only) = (None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => only = Some(args.next().ok_or_else(|| Failure::new(USAGE))?),
            _ if arg.starts_with('-') || folder.is_some() => return Err(Failure::new(USAGE)),
            _ => folder = Some(PathBuf::from(arg)),
        }
    }
    if let Some(name) = only.as_deref().filter(|name| !golden::NAMES.contains(name)) {
        return Err(Failure::new(format!(
            "no golden repository `{name}`; there are: {}",
            golden::NAMES.join(", ")
        )));
    }
    let committed = folder.is_none();
    let folder = folder.unwrap_or_else(golden::folder);
    for name in golden::NAMES
        .iter()
        .filter(|name| only.as_deref().is_none_or(|only| only == **name))
    {
        recipes::make(name, &folder)?;
    }
    // Fuzz seeds are cut out of the committed repositories, so they are made along with those only.
    if committed { seeds::write_all() } else { Ok(()) }
}
