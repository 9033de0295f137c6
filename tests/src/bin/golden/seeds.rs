//! Seeds for the fuzzers: parts of the golden repositories as the parsers see them, after decryption by kopia.

use std::fs;
use std::path::{Path, PathBuf};

use blockferry_tests::golden::{Golden, folder};
use blockferry_tests::kopia::Kopia;
use blockferry_tests::repo::blob_file;
use blockferry_tests::{Failure, Result, process};

/// Seeds of one kind taken from one repository: enough for the fuzzer to learn the shape from.
const SEEDS_EACH: usize = 4;

pub(crate) fn write_all() -> Result<()> {
    let seeds = folder().with_file_name("fuzz").join("seeds");
    if seeds.exists() {
        fs::remove_dir_all(&seeds).map_err(Failure::at("remove old seeds"))?;
    }
    for name in ["blake3", "hmac-chacha", "tree", "deleted", "epochs"] {
        let golden = Golden::load(name)?;
        let copy = golden.materialise()?;
        let kopia = Kopia::new(&copy.repo, &golden.expected.password)?;
        kopia.connect()?;
        write(
            &seeds,
            "format_blob",
            name,
            &read(&copy.repo.join("kopia.repository.f"))?,
        )?;
        for blob in kopia.blobs("q")?.iter().take(SEEDS_EACH) {
            write(&seeds, "pack_postamble", blob, &read(&copy.repo.join(blob_file(blob)))?)?;
        }
        for prefix in ["xn", "xs", "xr"] {
            for blob in kopia.blobs(prefix)?.iter().take(SEEDS_EACH) {
                write(
                    &seeds,
                    "index",
                    blob,
                    &show(&kopia, &["blob", "show", "--decrypt", blob])?,
                )?;
            }
        }
        for (prefix, target) in [("m", "manifest"), ("x", "list"), ("k", "directory")] {
            let listed = kopia.run(["content", "list", &format!("--prefix={prefix}")])?;
            for content in listed
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .take(SEEDS_EACH)
            {
                // Manifests are gzip within the content; the fuzzer gets at the JSON.
                let unzip: &[&str] = if prefix == "m" { &["--unzip"] } else { &[] };
                let bytes = show(&kopia, &[&["content", "show"], unzip, &[content]].concat())?;
                write(&seeds, target, content, &bytes)?;
            }
        }
    }
    println!("seeds: {}", seeds.display());
    Ok(())
}

/// Standard output as bytes.
fn show(kopia: &Kopia, args: &[&str]) -> Result<Vec<u8>> {
    let output = process::output(&mut kopia.command(args), &[])?;
    if !output.status.success() {
        return Err(Failure::new(format!(
            "kopia {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Failure::at(format!("read {}", path.display())))
}

fn write(seeds: &Path, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder: PathBuf = seeds.join(target);
    // Names of blobs are long and unique in their first half.
    let name = &name[..name.len().min(24)];
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join(name), bytes))
        .map_err(Failure::at("write seed"))
}
