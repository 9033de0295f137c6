//! How fast, and at what cost, a volume is read through either engine.
//!
//! `cargo run --release -p blockferry-blockio --example read_rate -- [path] [MiB at most]`
//!
//! Without a path it makes a file of 2 GiB beside the program and removes it at the end. Prints MiB/s and microseconds of
//! processor time per MiB (user and system, all threads, those of the kernel that work for the ring included), for reads of
//! 1 MiB, 16 at once, past the page cache; the rate is the median of five passes, the cost the mean of all. A number is void
//! if something else uses the disk meanwhile.

use blockio::{
    BlockError, BufPool, CHUNK_BYTES, ChunkIndex, Device, Engine, EngineKind, EngineOptions, OpKind, OpenOptions,
    Request, is_zero,
};
use std::hint::black_box;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const DEPTH: usize = 16;
const PASSES: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let given = arguments.next().map(PathBuf::from);
    let chunks_max = arguments.next().map_or(Ok(u64::MAX), |text| text.parse())?;
    let made = match &given {
        Some(_) => None,
        None => Some(make_file(&std::env::current_exe()?.with_extension("volume"))?),
    };
    let path = given.as_ref().or(made.as_ref()).ok_or("a path")?;
    let outcome = measure(path, chunks_max);
    if let Some(made) = &made {
        std::fs::remove_file(made)?;
    }
    outcome?;
    zero_rate();
    Ok(())
}

fn measure(path: &Path, chunks_max: u64) -> Result<(), Box<dyn std::error::Error>> {
    let device = Arc::new(Device::open(path, &OpenOptions::read())?);
    let chunks = device.geometry().chunks().min(chunks_max);
    println!("{} MiB of {}, {:?}", chunks, path.display(), device.geometry());
    let ways = [
        ("uring", EngineKind::Uring, true),
        ("uring, buffers not registered", EngineKind::Uring, false),
        ("pread", EngineKind::Pread, true),
    ];
    for (name, kind, register_buffers) in ways {
        let options = EngineOptions {
            kind,
            register_buffers,
            ..EngineOptions::default()
        };
        let mib = f64::from(u32::try_from(chunks)?);
        let (mut rates, cpu) = (Vec::new(), cpu_seconds()?);
        let mut reason = String::new();
        for _ in 0..PASSES {
            let start = Instant::now();
            reason = read_all(&device, chunks, &options)?;
            rates.push(mib / start.elapsed().as_secs_f64());
        }
        let cost = (cpu_seconds()? - cpu) * 1e6 / (mib * f64::from(u32::try_from(PASSES)?));
        rates.sort_by(f64::total_cmp);
        println!(
            "{name}: {:.0} MiB/s, {cost:.1} us of cpu per MiB ({reason})",
            rates[PASSES / 2]
        );
    }
    Ok(())
}

fn read_all(device: &Arc<Device>, chunks: u64, options: &EngineOptions) -> Result<String, BlockError> {
    let pool = BufPool::new(CHUNK_BYTES, DEPTH)?;
    let mut engine = Engine::open(std::slice::from_ref(device), std::slice::from_ref(&pool), options)?;
    let mut next = 0;
    let mut done = Vec::with_capacity(DEPTH);
    while next < chunks || engine.in_flight() > 0 {
        while next < chunks
            && let Some(buf) = pool.try_take()
        {
            let offset = ChunkIndex::new(next).offset();
            let read = Request {
                device: 0,
                kind: OpKind::Read,
                offset,
                len: CHUNK_BYTES,
                buf: Some(buf),
                tag: next,
            };
            engine.push(read).expect("deeper than the pool");
            next += 1;
        }
        engine.wait(1, &mut done)?;
        for completion in done.drain(..) {
            completion.result?;
        }
    }
    Ok(engine.choice().reason.clone())
}

/// Processor time of this process so far: fields 14 and 15 of /proc/self/stat, in 1/100 s (proc(5)).
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, behind_name) = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?;
    let ticks = behind_name
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u32>);
    Ok(f64::from(ticks.sum::<Result<u32, _>>()?) / 100.0)
}

fn make_file(path: &Path) -> io::Result<PathBuf> {
    let mut file = std::fs::File::create(path)?;
    let chunk: Vec<u8> = (0..CHUNK_BYTES).map(|i| (i % 251 + 1).to_le_bytes()[0]).collect();
    for _ in 0..2048 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(path.to_owned())
}

/// The zero test on a chunk that is in the cache; the best of many, as anything else on the processor only adds.
fn zero_rate() {
    let chunk = vec![0u8; CHUNK_BYTES];
    let once = || {
        let start = Instant::now();
        assert!(is_zero(black_box(&chunk)));
        start.elapsed().as_secs_f64() * 1e6
    };
    let best = (0..20_000).map(|_| once()).fold(f64::MAX, f64::min);
    println!("is_zero: {best:.1} us per MiB of zeros");
}
