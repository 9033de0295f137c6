//! Where a benchmark happens and what it was asked to do.

use std::fs;
use std::path::{Path, PathBuf};

use blockferry_tests::volume::{Layout, Zeros};

use crate::Result;

/// Seed of the images: the same bytes in every run on every machine.
const IMAGE_SEED: u64 = 42;

/// Password of all repositories that are made here.
pub const PASSWORD: &str = "bench-passw0rd";

/// Options of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Suites to run.
    pub suites: Vec<String>,
    /// Bytes of the image.
    pub size: u64,
    /// Runs of each tool.
    pub runs: usize,
    /// Work folder.
    pub dir: PathBuf,
    /// Names of the tools to run; all when empty.
    pub only: Vec<String>,
    /// The `blockferry` program; the one beside the runner when absent.
    pub blockferry: Option<PathBuf>,
    /// A repository with very many contents for the suite `open`, with [`PASSWORD`]; made when absent.
    pub open_repo: Option<PathBuf>,
    /// Contents of the repository that the suite `open` makes; those of `wide` and `maintenance` grow with it.
    pub contents: usize,
    /// Bytes a second that the line of the suite `latency` lets pass.
    pub line: u64,
    /// Whether raw numbers are written to `benches/results`.
    pub results: bool,
}

impl Options {
    /// Reads the command line. `suites` are the known ones, all of which run when none is named.
    ///
    /// # Errors
    /// Names the argument that is wrong.
    pub fn parse(args: impl Iterator<Item = String>, suites: &[&str], dir: PathBuf) -> Result<Self> {
        let mut options = Self {
            suites: Vec::new(),
            size: 4 << 30,
            runs: 3,
            dir,
            only: Vec::new(),
            blockferry: None,
            open_repo: None,
            contents: 1_000_000,
            // Low enough that Garage and the programs on two cores are not the limit; 5 MiB are on their way then at 50 ms, a quarter
            // of one pack.
            line: 100 << 20,
            results: true,
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--size" => options.size = parse_size(&value()?)?,
                "--runs" => {
                    let text = value()?;
                    options.runs = text
                        .parse()
                        .ok()
                        .filter(|&runs| runs > 0)
                        .ok_or(format!("--runs {text}: not 1 or more"))?;
                }
                "--dir" => options.dir = value()?.into(),
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--blockferry" => options.blockferry = Some(value()?.into()),
                "--open-repo" => options.open_repo = Some(value()?.into()),
                "--contents" => {
                    let text = value()?;
                    options.contents = text.parse().map_err(|_| format!("--contents {text}: not a number"))?;
                }
                "--line" => options.line = parse_size(&value()?)?,
                "--no-results" => options.results = false,
                name if suites.contains(&name) => options.suites.push(arg),
                _ => {
                    return Err(format!(
                        "`{arg}` is neither an option nor a suite ({})",
                        suites.join(", ")
                    ));
                }
            }
        }
        if options.suites.is_empty() {
            options.suites = suites.iter().map(|&suite| suite.to_owned()).collect();
        }
        Ok(options)
    }

    /// Whether the tool `name` was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// The work folder with the image in it.
#[derive(Clone, Debug)]
pub struct Site {
    /// Work folder, absolute.
    pub dir: PathBuf,
    /// The image to back up.
    pub image: PathBuf,
    /// Bytes of the image.
    pub size: u64,
    /// Bytes of the image in blocks that are not zero.
    pub data_bytes: u64,
    /// File with [`PASSWORD`].
    pub password_file: PathBuf,
}

impl Site {
    /// Makes the work folder and in it, unless it is there, the image of `layout`. The name of the image tells its content, so a
    /// finished one is used again.
    ///
    /// # Errors
    /// When the folder cannot hold it.
    pub fn prepare(dir: &Path, name: &str, layout: &Layout, zeros: Zeros) -> Result<Self> {
        let failed = |error: std::io::Error| format!("prepare {}: {error}", dir.display());
        fs::create_dir_all(dir).map_err(failed)?;
        let dir = dir.canonicalize().map_err(failed)?;
        let image = dir.join(format!("{name}-{}.raw", layout.size()));
        if !image.is_file() {
            eprintln!("making {}", image.display());
            let partial = dir.join("partial.raw");
            layout.write(&partial, zeros).map_err(|failure| failure.to_string())?;
            fs::rename(&partial, &image).map_err(failed)?;
        }
        let password_file = dir.join("password");
        fs::write(&password_file, PASSWORD).map_err(failed)?;
        Ok(Self {
            dir,
            image,
            size: layout.size(),
            data_bytes: layout.data_bytes(),
            password_file,
        })
    }

    /// The image of a used disk: zero blocks are written, as on a device.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn mixed(dir: &Path, size: u64) -> Result<Self> {
        Self::prepare(dir, "mixed", &Layout::mixed(IMAGE_SEED, size), Zeros::Written)
    }

    /// A nearly empty disk: `data_blocks` MiB of data in a file with holes.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn sparse(dir: &Path, size: u64, data_blocks: usize) -> Result<Self> {
        Self::prepare(
            dir,
            "sparse",
            &Layout::sparse(IMAGE_SEED, size, data_blocks),
            Zeros::Holes,
        )
    }

    /// A path in the work folder with nothing at it.
    ///
    /// # Errors
    /// When what is there cannot be removed.
    pub fn vacant(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("remove {}: {error}", path.display()))
            }
            _ => Ok(path),
        }
    }
}

/// `512`, `4KiB`, `1MiB`, `4GiB`, `1TiB` in bytes.
///
/// # Errors
/// When it is none of those, zero, or too large.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match &text[digits..] {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(format!("size `{text}`: use a number with KiB, MiB, GiB or TiB")),
    };
    let number: Option<u64> = text[..digits].parse().ok();
    let size = number
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|&size| size > 0);
    size.ok_or_else(|| format!("size `{text}`: not a size above zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        for wrong in ["", "0", "GiB", "4GB", "-1", "99999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_read_or_refused() {
        let parse = |line: &str| {
            Options::parse(
                line.split_whitespace().map(str::to_owned),
                &["backup", "open"],
                PathBuf::from("d"),
            )
        };
        let options = parse("open --size 1GiB --runs 5 --only dd-read,kopia").unwrap();
        assert_eq!(
            (options.suites.as_slice(), options.size, options.runs),
            (["open".to_owned()].as_slice(), 1 << 30, 5)
        );
        assert!(options.wants("kopia") && !options.wants("restic"));
        assert_eq!(parse("").unwrap().suites, ["backup", "open"]);
        for wrong in ["--runs 0", "--runs", "nosuch", "--size x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
