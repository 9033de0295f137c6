//! The bars: what the file system does with plain sequential direct access, one request at a time.

use std::path::Path;
use std::process::Command;

use crate::measure::{Input, make_cold, measure};
use crate::rounds::Contender;
use crate::site::{Options, Site};

/// `dd` reading the image.
pub const READ: &str = "dd-read";
/// `dd` copying the image.
pub const COPY: &str = "dd-copy";
/// `dd` writing as many non-zero bytes as the image has.
pub const WRITE: &str = "dd-write";

/// Those of `names` that were asked for.
pub fn contenders<'a>(site: &'a Site, options: &Options, names: &[&'static str]) -> Vec<Contender<'a>> {
    let wanted = names.iter().filter(|name| options.wants(name));
    wanted.map(|name| contender(site, name)).collect()
}

/// `dd` reading `file`.
pub fn reader<'a>(site: &'a Site, file: &'a Path) -> Contender<'a> {
    let run = move || {
        make_cold(file)?;
        let mut dd = Command::new("dd");
        dd.args(["bs=1M", "status=none", "iflag=direct", "of=/dev/null"]);
        dd.arg(format!("if={}", file.display()));
        measure(&mut dd, Input::Nothing, &site.dir, None)
    };
    Contender {
        name: READ.to_owned(),
        note: format!("bs=1M iflag=direct if={} of=/dev/null", file.display()),
        run: Box::new(run),
    }
}

fn contender<'a>(site: &'a Site, name: &'static str) -> Contender<'a> {
    let note = match name {
        READ => "bs=1M iflag=direct to /dev/null",
        COPY => "bs=1M iflag=direct oflag=direct",
        _ => "bs=1M oflag=direct, non-zero bytes from memory, as many as the image has",
    };
    let run = move || {
        make_cold(&site.image)?;
        let out = site.vacant("dd.out")?;
        let mut dd = Command::new("dd");
        dd.args(["bs=1M", "status=none"]);
        let image = format!("if={}", site.image.display());
        let target = format!("of={}", out.display());
        let input = match name {
            READ => {
                dd.args([image.as_str(), "of=/dev/null", "iflag=direct"]);
                Input::Nothing
            }
            COPY => {
                dd.args([image.as_str(), &target, "iflag=direct", "oflag=direct"]);
                Input::Nothing
            }
            _ => {
                dd.args([target.as_str(), "iflag=fullblock", "oflag=direct"]);
                Input::NonZero(site.data_bytes)
            }
        };
        let measured = measure(&mut dd, input, &site.dir, Some(&out));
        site.vacant("dd.out")?;
        measured
    };
    Contender {
        name: name.to_owned(),
        note: note.to_owned(),
        run: Box::new(run),
    }
}
