//! What one core does with 1 MiB contents: hash kernels, sealing, opening, compressing.
//!
//! Run with `cargo run --release -p blockferry-repo --example crypto_rates`. Figures are MiB per second of this thread's
//! CPU time (median of 5), so that a busy neighbour matters little. Void when: not `--release`; a CPU without the
//! kernels named; a kernel without `/proc/thread-self/schedstat`; less than 1 GiB of free memory (the data must stay
//! resident).

use std::hint::black_box;
use std::time::Instant;

use repo::compress::{AutoLevel, Codec, CompressionPolicy, Compressor, Decompressor};
use repo::crypto::{Cipher, CipherAlgorithm, Digest, HashAlgorithm, Hasher, Kernel, OVERHEAD};

const MIB: usize = 1 << 20;

/// Contents in a data set: far more than the caches hold.
const CONTENTS: usize = 64;

/// Shortest measurement in seconds: schedstat counts in scheduler ticks of up to 10 ms.
const RUN_SECONDS_MIN: f64 = 0.4;

fn main() {
    let noise = noise(CONTENTS * MIB);
    let text = text(CONTENTS * MIB);
    println!("{:<44} {:>9} {:>9}", "", "MiB/cpu-s", "us/MiB");
    hashes(&noise);
    ciphers(&noise);
    codecs("random", &noise);
    codecs("text", &text);
}

fn hashes(data: &[u8]) {
    let contents: Vec<&[u8]> = data.chunks(MIB).collect();
    let mut digests: Vec<Digest> = Vec::new();
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
        let hasher = Hasher::new(HashAlgorithm::Blake2b256_128, &[1; 32]).and_then(|h| h.with_kernel(kernel));
        let hasher = hasher.expect("a 32-byte key and an available kernel");
        for batch in (1..=kernel.lanes()).rev() {
            let contents = &contents[..CONTENTS / batch * batch];
            rate(
                &format!("BLAKE2B-256-128 {kernel}, batches of {batch}"),
                contents.len(),
                || {
                    contents
                        .chunks(batch)
                        .for_each(|batch| hasher.hash_many(batch, &mut digests));
                },
            );
        }
    }
    for algorithm in [HashAlgorithm::Blake3_256_128, HashAlgorithm::HmacSha256_128] {
        let hasher = Hasher::new(algorithm, &[1; 32]).expect("a 32-byte key");
        rate(algorithm.name(), CONTENTS, || {
            for content in &contents {
                black_box(hasher.hash(content));
            }
        });
    }
}

fn ciphers(data: &[u8]) {
    for algorithm in CipherAlgorithm::ALL {
        let cipher = Cipher::new(algorithm, &[2; 32]).expect("a master key");
        let mut sealed = vec![0; CONTENTS * (MIB + OVERHEAD)];
        rate(&format!("{algorithm} seal_into"), CONTENTS, || {
            for (plain, sealed) in data.chunks(MIB).zip(sealed.chunks_mut(MIB + OVERHEAD)) {
                cipher.seal_into(&[3; 16], plain, sealed);
            }
        });
        let mut opened = vec![0; MIB];
        rate(&format!("{algorithm} open_into"), CONTENTS, || {
            for sealed in sealed.chunks(MIB + OVERHEAD) {
                cipher.open_into(&[3; 16], sealed, &mut opened).expect("sealed above");
            }
        });
    }
}

fn codecs(name: &str, data: &[u8]) {
    let mut compressor = Compressor::new();
    let mut decompressor = Decompressor::new();
    let mut out = vec![0; MIB];
    let zstd = AutoLevel::ALL.map(|level| (format!("zstd {}", level.get()), Codec::ZSTD_FASTEST, level.get()));
    let s2 = ["s2-default", "s2-better"].map(|name| {
        let codec = Codec::by_name(name).expect("a name kopia knows");
        (name.to_owned(), codec, codec.level())
    });
    for (codec_name, codec, level) in zstd.into_iter().chain(s2) {
        let mut streams: Vec<(usize, Vec<u8>)> = Vec::new();
        rate(&format!("{codec_name}, {name}"), CONTENTS, || {
            streams.clear();
            for plain in data.chunks(MIB) {
                let len = compressor.compress_into(codec, level, plain, &mut out);
                if let Some(len) = len.expect("a level in range") {
                    streams.push((plain.len(), out[..len].to_vec()));
                }
            }
        });
        if streams.is_empty() {
            continue;
        }
        let (before, after) = streams
            .iter()
            .fold((0, 0), |(a, b), (plain, packed)| (a + plain, b + packed.len()));
        let ratio = f64::from(u32::try_from(before * 100 / after).expect("a ratio")) / 100.0;
        rate(
            &format!("{codec_name}, {name}, decode (ratio {ratio:.2})"),
            streams.len(),
            || {
                for (_, stream) in &streams {
                    black_box(
                        decompressor
                            .decompress_into(codec.id().get(), stream, &mut out)
                            .expect("compressed above"),
                    );
                }
            },
        );
    }
    rate(&format!("auto, {name}"), CONTENTS, || {
        for plain in data.chunks(MIB) {
            let result = compressor.apply(CompressionPolicy::Auto, AutoLevel::START, plain, &mut out);
            black_box(result.expect("a level in range"));
        }
    });
}

/// Prints the median rate of `run`, which handles `contents` contents.
fn rate(name: &str, contents: usize, mut run: impl FnMut()) {
    let start = Instant::now();
    run();
    let repeats = (RUN_SECONDS_MIN / start.elapsed().as_secs_f64()).ceil().max(1.0);
    let mut seconds: Vec<f64> = (0..5)
        .map(|_| {
            let start = cpu_seconds();
            let mut left = repeats;
            while left > 0.0 {
                run();
                left -= 1.0;
            }
            (cpu_seconds() - start) / repeats
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let per_content = seconds[2] / f64::from(u32::try_from(contents).expect("a small number"));
    println!("{name:<44} {:>9.0} {:>9.1}", 1.0 / per_content, per_content * 1e6);
}

/// CPU time of this thread; the first field of schedstat is in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with schedstat");
    let nanoseconds = stat.split(' ').next().and_then(|field| field.parse::<f64>().ok());
    nanoseconds.expect("the first field is a number") / 1e9
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Log-like lines over a vocabulary, different in every content.
fn text(len: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "volume", "snapshot", "chunk", "pack", "index", "restore", "device", "offset", "content", "object", "ring",
        "worker", "buffer", "seal", "mount", "export",
    ];
    let mut bytes = Vec::with_capacity(len + 64);
    let mut state: u64 = 1;
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        for shift in [60, 56, 52, 48] {
            bytes.extend_from_slice(WORDS[usize::from((state >> shift).to_le_bytes()[0] & 15)].as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(format!("{:x}\n", state >> 40 & 0xff_ffff).as_bytes());
    }
    bytes.truncate(len);
    bytes
}
