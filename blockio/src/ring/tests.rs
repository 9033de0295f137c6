mod model;

use super::*;
use crate::device::OpenOptions;
use crate::fault::{Fault, Outcome};
use crate::geometry::{CHUNK_BYTES, CHUNK_SIZE};
use crate::testing::{LoopDevice, Mounted, pattern, patterned_file, run, scratch_file};
use std::fs;
use std::path::Path;

const MIB: usize = 1 << 20;
const BOTH: [EngineKind; 2] = [EngineKind::Uring, EngineKind::Pread];

fn device(path: &Path) -> Arc<Device> {
    Arc::new(
        Device::open(
            path,
            &OpenOptions {
                exclusive: false,
                ..OpenOptions::overwrite()
            },
        )
        .unwrap(),
    )
}

fn options(kind: EngineKind) -> EngineOptions {
    EngineOptions {
        kind,
        ..EngineOptions::default()
    }
}

fn with_faults(kind: EngineKind, faults: &FaultPlan) -> EngineOptions {
    EngineOptions {
        faults: Some(faults.clone()),
        ..options(kind)
    }
}

fn engine(path: &Path, pool: &BufPool, options: &EngineOptions) -> Engine {
    Engine::open(&[device(path)], std::slice::from_ref(pool), options).unwrap()
}

fn request(kind: OpKind, offset: usize, len: usize, buf: Option<BlockBuf>) -> Request {
    Request {
        device: 0,
        kind,
        offset: offset as u64,
        len,
        buf,
        tag: offset as u64,
    }
}

/// A read of one range with a buffer full of other bytes.
fn read(pool: &BufPool, offset: usize, len: usize) -> Request {
    let mut buf = pool.take();
    buf.fill(0xEE);
    request(OpKind::Read, offset, len, Some(buf))
}

fn all(engine: &mut Engine) -> Vec<Completion> {
    let mut out = Vec::new();
    engine.wait(usize::MAX, &mut out).unwrap();
    assert_eq!(engine.in_flight(), 0);
    out
}

/// Does one request; its result and its buffer.
fn one(engine: &mut Engine, request: Request) -> (Result<(), BlockError>, Option<BlockBuf>) {
    let tag = request.tag;
    engine.push(request).unwrap();
    let mut done = all(engine);
    assert_eq!((done.len(), done[0].tag), (1, tag));
    let Completion { result, buf, .. } = done.remove(0);
    (result, buf)
}

fn kind_of(result: Result<(), BlockError>) -> Kind {
    result.expect_err("it is to fail").kind
}

#[test]
fn irregular_ends_are_read_to_the_byte_and_padded() {
    for kind in BOTH {
        for size in [1, 511, MIB - 1, MIB, 5 * MIB + 512, 5 * MIB + 512 + 77] {
            let (file, bytes) = patterned_file(size);
            let pool = BufPool::new(CHUNK_BYTES, 8).unwrap();
            let mut engine = engine(file.path(), &pool, &options(kind));
            (0..size.div_ceil(MIB)).for_each(|chunk| engine.push(read(&pool, chunk * MIB, MIB)).unwrap());
            for completion in all(&mut engine) {
                completion.result.unwrap();
                let offset = usize::try_from(completion.offset).unwrap();
                let here = &bytes[offset..size.min(offset + MIB)];
                let buf = completion.buf.unwrap();
                assert!(
                    buf[..here.len()] == *here && buf[here.len()..].iter().all(|b| *b == 0),
                    "{kind} {size}"
                );
            }
        }
    }
}

#[test]
fn a_file_that_shrank_fails_its_reads() {
    for kind in BOTH {
        let (file, bytes) = patterned_file(4 * MIB + 100);
        let pool = BufPool::new(CHUNK_BYTES, 8).unwrap();
        let mut engine = engine(file.path(), &pool, &options(kind));
        let is = MIB + MIB / 2 + 10;
        file.as_file().set_len(is as u64).unwrap();
        (0..5).for_each(|chunk| engine.push(read(&pool, chunk * MIB, MIB)).unwrap());
        for completion in all(&mut engine) {
            if completion.offset == 0 {
                completion.result.unwrap();
                assert!(completion.buf.unwrap()[..] == bytes[..MIB]);
            } else {
                let shrunk = Kind::Shrunk {
                    was: 4 * CHUNK_SIZE + 100,
                    is: is as u64,
                };
                assert_eq!(kind_of(completion.result), shrunk, "{kind} at {}", completion.offset);
            }
        }
    }
}

#[test]
fn faults_come_back_with_the_buffer_and_leave_the_engine_whole() {
    for kind in BOTH {
        let (file, bytes) = patterned_file(2 * MIB);
        let pool = BufPool::new(CHUNK_BYTES, 2).unwrap();
        let range = Extent {
            offset: CHUNK_SIZE,
            len: 1,
        };
        let plan = FaultPlan::new()
            .with(Fault {
                op: Op::Read,
                range,
                skip: 1,
                count: 1,
                outcome: Outcome::Errno(libc::EIO),
            })
            .with(Fault {
                op: Op::Write,
                range,
                skip: 0,
                count: 1,
                outcome: Outcome::Errno(libc::ENOSPC),
            })
            .with(Fault {
                op: Op::Sync,
                range,
                skip: 0,
                count: 1,
                outcome: Outcome::Errno(libc::EIO),
            });
        let mut engine = engine(file.path(), &pool, &with_faults(kind, &plan));
        one(&mut engine, read(&pool, MIB, MIB)).0.unwrap();
        let (result, buf) = one(&mut engine, read(&pool, MIB, MIB));
        let error = result.unwrap_err();
        assert_eq!(
            (error.kind, error.op, error.extent),
            (
                Kind::Io,
                Op::Read,
                Some(Extent {
                    offset: CHUNK_SIZE,
                    len: CHUNK_SIZE
                })
            )
        );
        assert!(error.path == file.path() && buf.is_some());
        let (result, _) = one(&mut engine, request(OpKind::Write, MIB, MIB, buf));
        assert_eq!(kind_of(result), Kind::NoSpace);
        assert_eq!(kind_of(one(&mut engine, request(OpKind::Sync, 0, 0, None)).0), Kind::Io);
        let (result, buf) = one(&mut engine, read(&pool, MIB, MIB));
        result.unwrap();
        assert!(buf.unwrap()[..] == bytes[MIB..]);
        assert_eq!((plan.hits(), pool.free()), (3, 2));
    }
}

#[test]
fn a_request_without_an_answer_fails_the_wait_and_keeps_its_buffer() {
    for kind in BOTH {
        let (file, _) = patterned_file(2 * MIB);
        let pool = BufPool::new(CHUNK_BYTES, 2).unwrap();
        let plan = FaultPlan::once(Op::Read, Outcome::Stuck);
        let options = EngineOptions {
            stuck_after: Duration::from_millis(50),
            ..with_faults(kind, &plan)
        };
        let mut engine = engine(file.path(), &pool, &options);
        engine.push(read(&pool, 0, MIB)).unwrap();
        engine.push(read(&pool, MIB, MIB)).unwrap();
        let mut out = Vec::new();
        let error = engine.wait(2, &mut out).unwrap_err();
        assert_eq!(
            (error.kind, error.extent),
            (
                Kind::Stuck(0),
                Some(Extent {
                    offset: 0,
                    len: CHUNK_SIZE
                })
            )
        );
        let deadline = Instant::now() + Duration::from_secs(20);
        while out.is_empty() {
            engine.wait(0, &mut out).unwrap();
            assert!(Instant::now() < deadline, "the other one is answered");
        }
        assert!(engine.wait(1, &mut out).is_err(), "and nothing else ever will be");
        drop((engine, out));
        assert_eq!(pool.free(), 1, "memory that may be in flight is not used again");
    }
}

/// The device really does not answer: a file on a frozen file system takes no writes.
#[test]
fn a_device_that_hangs_fails_the_wait_and_the_drop_returns() {
    for kind in BOTH {
        let Some(mounted) = Mounted::ext4() else { return };
        let place = mounted.place().to_str().unwrap().to_owned();
        let path = mounted.place().join("volume");
        fs::write(&path, pattern(4 * MIB, 1)).unwrap();
        let pool = BufPool::new(CHUNK_BYTES, 4).unwrap();
        let mut engine = engine(
            &path,
            &pool,
            &EngineOptions {
                stuck_after: Duration::from_millis(300),
                ..options(kind)
            },
        );
        run("fsfreeze", &["--freeze", &place]).unwrap();
        engine.push(request(OpKind::Write, 0, MIB, Some(pool.take()))).unwrap();
        engine
            .push(request(OpKind::Write, MIB, MIB, Some(pool.take())))
            .unwrap();
        let mut out = Vec::new();
        let error = engine.wait(1, &mut out).map_err(|e| e.kind);
        drop(engine);
        let free = pool.free();
        run("fsfreeze", &["--unfreeze", &place]).unwrap();
        assert_eq!(error, Err(Kind::Stuck(0)), "{kind}");
        assert_eq!(free, 2, "{kind}: memory in flight is not used again");
        // A thread that hung ends by itself, and lets go of the file.
        drop(pool);
        let deadline = Instant::now() + Duration::from_secs(20);
        while run("umount", &[&place]).is_err() {
            assert!(Instant::now() < deadline, "the file system stays in use");
            std::thread::yield_now();
        }
    }
}

#[test]
fn dropping_an_engine_awaits_what_is_in_flight() {
    for kind in BOTH {
        let (file, _) = patterned_file(16 * MIB);
        let pool = BufPool::new(CHUNK_BYTES, 16).unwrap();
        for round in 0..20 {
            let mut engine = engine(file.path(), &pool, &options(kind));
            for chunk in 0..8 {
                engine.push(read(&pool, chunk * MIB, MIB)).unwrap();
            }
            for chunk in 8..15 {
                let mut buf = pool.take();
                buf.fill(round);
                engine
                    .push(request(OpKind::Write, chunk * MIB, MIB, Some(buf)))
                    .unwrap();
            }
            engine.push(request(OpKind::Zero, 15 * MIB, MIB, None)).unwrap();
            if round % 2 == 0 {
                engine.submit().unwrap();
            }
            drop(engine);
            assert_eq!(pool.free(), 16);
            let bytes = fs::read(file.path()).unwrap();
            assert!(
                bytes[8 * MIB..15 * MIB].iter().all(|b| *b == round),
                "what was accepted is done"
            );
            assert!(bytes[15 * MIB..].iter().all(|b| *b == 0));
        }
    }
}

#[test]
fn auto_falls_back_to_threads_and_says_why() {
    let (file, bytes) = patterned_file(MIB);
    let pool = BufPool::new(CHUNK_BYTES, 1).unwrap();
    for (errno, why) in [(libc::EPERM, "io_uring_disabled"), (libc::ENOSYS, "not in this kernel")] {
        let plan = FaultPlan::always(Op::Open, Outcome::Errno(errno));
        let mut engine = engine(file.path(), &pool, &with_faults(EngineKind::Auto, &plan));
        assert_eq!(engine.choice().kind, EngineKind::Pread);
        assert!(engine.choice().reason.contains(why), "{}", engine.choice().reason);
        let (result, buf) = one(&mut engine, read(&pool, 0, MIB));
        result.unwrap();
        assert!(buf.unwrap()[..] == bytes);
        let insisted = Engine::open(&[device(file.path())], &[], &with_faults(EngineKind::Uring, &plan));
        assert!(matches!(insisted.unwrap_err().kind, Kind::Unsupported(_)));
    }
}

#[test]
fn buffers_that_cannot_be_registered_are_used_all_the_same() {
    let (file, bytes) = patterned_file(MIB);
    let pool = BufPool::new(CHUNK_BYTES, 1).unwrap();
    let plan = FaultPlan::once(Op::Map, Outcome::Errno(libc::ENOMEM));
    let mut engine = engine(file.path(), &pool, &with_faults(EngineKind::Auto, &plan));
    assert_eq!(engine.choice().kind, EngineKind::Uring);
    assert!(
        engine.choice().reason.contains("RLIMIT_MEMLOCK"),
        "{}",
        engine.choice().reason
    );
    let (result, buf) = one(&mut engine, read(&pool, 0, MIB));
    result.unwrap();
    assert!(buf.unwrap()[..] == bytes);
}

#[test]
fn several_pools_registered_or_not_serve_one_engine() {
    for kind in BOTH {
        let (file, bytes) = patterned_file(4 * MIB);
        let small = BufPool::new(CHUNK_BYTES, 3).unwrap();
        let large = BufPool::new(4 * MIB, 2).unwrap();
        let foreign = BufPool::new(CHUNK_BYTES, 1).unwrap();
        let pools = [small.clone(), large.clone()];
        let mut engine = Engine::open(&[device(file.path())], &pools, &options(kind)).unwrap();
        if kind == EngineKind::Uring {
            assert!(
                engine.choice().reason.contains("5 registered buffers"),
                "{}",
                engine.choice().reason
            );
        }
        let _others = (small.take(), small.take(), large.take());
        for (pool, len) in [(&small, MIB), (&large, 4 * MIB), (&foreign, MIB)] {
            let (result, buf) = one(&mut engine, read(pool, 0, len));
            result.unwrap();
            assert!(buf.unwrap()[..len] == bytes[..len]);
        }
    }
}

#[test]
fn requests_that_cannot_be_done_come_back_with_the_reason() {
    for kind in BOTH {
        let (file, bytes) = patterned_file(2 * MIB);
        let pool = BufPool::new(CHUNK_BYTES, 1).unwrap();
        let mut engine = engine(file.path(), &pool, &options(kind));
        let mut tell = |request: Request| {
            let had_buf = request.buf.is_some();
            let (result, buf) = one(&mut engine, request);
            assert_eq!(buf.is_some(), had_buf, "a buffer comes back");
            kind_of(result)
        };
        let is_invalid = |kind: Kind| matches!(kind, Kind::InvalidInput(_));
        assert!(is_invalid(tell(request(OpKind::Read, 0, MIB, None))));
        assert!(is_invalid(tell(read(&pool, 0, MIB + 1))));
        assert!(is_invalid(tell(read(&pool, 0, 0))));
        assert!(is_invalid(tell(read(&pool, 100, 512))), "direct IO is aligned");
        assert!(is_invalid(tell(read(&pool, 0, 100))), "or reaches the end");
        assert!(is_invalid(tell(Request {
            device: 1,
            ..read(&pool, 0, MIB)
        })));
        assert_eq!(tell(read(&pool, 2 * MIB, MIB)), Kind::OutOfRange);
        assert_eq!(
            tell(request(OpKind::Write, MIB + 4096, MIB, Some(pool.take()))),
            Kind::OutOfRange
        );
        assert_eq!(tell(request(OpKind::Zero, 2 * MIB, 1, None)), Kind::OutOfRange);
        assert_eq!(tell(request(OpKind::Zero, usize::MAX, 1, None)), Kind::OutOfRange);
        assert!(fs::read(file.path()).unwrap() == bytes);
    }
}

#[test]
fn an_engine_takes_as_many_requests_as_it_is_deep() {
    for kind in BOTH {
        let (file, _) = patterned_file(4 * MIB);
        let pool = BufPool::new(CHUNK_BYTES, 4).unwrap();
        let mut engine = engine(
            file.path(),
            &pool,
            &EngineOptions {
                depth: 3,
                ..options(kind)
            },
        );
        (0..3).for_each(|chunk| engine.push(read(&pool, chunk * MIB, MIB)).unwrap());
        assert_eq!((engine.room(), engine.in_flight()), (0, 3));
        let back = engine.push(read(&pool, 3 * MIB, MIB)).unwrap_err();
        assert_eq!((back.tag, back.buf.is_some()), (3 * CHUNK_SIZE, true));
        let mut out = Vec::new();
        engine.wait(1, &mut out).unwrap();
        assert!(!out.is_empty() && engine.room() == out.len());
        engine.push(back).unwrap();
        out.extend(all(&mut engine));
        assert_eq!((out.len(), engine.room()), (4, 3));
        engine.wait(5, &mut out).unwrap();
        assert_eq!(out.len(), 4, "with nothing in flight there is nothing to wait for");
    }
    let (file, _) = patterned_file(1);
    for depth in [0, DEPTH_MAX + 1] {
        let odd = Engine::open(
            &[device(file.path())],
            &[],
            &EngineOptions {
                depth,
                ..EngineOptions::default()
            },
        );
        assert!(matches!(odd.unwrap_err().kind, Kind::InvalidInput(_)));
    }
}

#[test]
fn a_file_system_in_memory_is_served_as_well() {
    let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        return;
    };
    for kind in BOTH {
        fs::write(file.path(), pattern(2 * MIB + 5, 1)).unwrap();
        let pool = BufPool::new(CHUNK_BYTES, 1).unwrap();
        let mut engine = engine(file.path(), &pool, &options(kind));
        let (result, buf) = one(&mut engine, read(&pool, 2 * MIB, MIB));
        result.unwrap();
        one(&mut engine, request(OpKind::Write, 0, MIB, buf)).0.unwrap();
        one(&mut engine, request(OpKind::Zero, MIB, MIB, None)).0.unwrap();
        let mut expect = pattern(2 * MIB + 5, 1);
        let tail = expect[2 * MIB..].to_vec();
        expect[..2 * MIB].fill(0);
        expect[..5].copy_from_slice(&tail);
        assert!(fs::read(file.path()).unwrap() == expect, "{kind}");
    }
}

#[test]
fn zeroing_runs_beside_reads_and_is_reported() {
    for kind in BOTH {
        let (file, bytes) = patterned_file(8 * MIB);
        let pool = BufPool::new(CHUNK_BYTES, 4).unwrap();
        let mut engine = engine(
            file.path(),
            &pool,
            &EngineOptions {
                keep_sparse: true,
                ..options(kind)
            },
        );
        (0..4).for_each(|chunk| engine.push(read(&pool, chunk * MIB, MIB)).unwrap());
        (4..8).for_each(|chunk| engine.push(request(OpKind::Zero, chunk * MIB, MIB, None)).unwrap());
        let done = all(&mut engine);
        assert_eq!(done.len(), 8);
        done.into_iter().for_each(|c| c.result.unwrap());
        assert_eq!(engine.zero_report(0).unwrap().punch_hole_bytes, 4 * CHUNK_SIZE);
        assert!(engine.zero_report(1).is_none());
        let seen = fs::read(file.path()).unwrap();
        assert!(seen[..4 * MIB] == bytes[..4 * MIB] && seen[4 * MIB..].iter().all(|b| *b == 0));
    }
}

#[test]
fn a_block_device_is_copied_through_either_engine() {
    for kind in BOTH {
        let (from, bytes) = patterned_file(8 * MIB);
        let to = scratch_file();
        to.as_file().set_len(8 * CHUNK_SIZE).unwrap();
        let Some(source) = LoopDevice::over(from.path(), &["--read-only"]) else {
            return;
        };
        let target = LoopDevice::over(to.path(), &["--sector-size", "4096"]).unwrap();
        let pool = BufPool::new(CHUNK_BYTES, 8).unwrap();
        let source = Arc::new(Device::open(source.path(), &OpenOptions::read()).unwrap());
        let devices = [source, device(target.path())];
        let mut engine = Engine::open(&devices, std::slice::from_ref(&pool), &options(kind)).unwrap();
        (0..8).for_each(|chunk| engine.push(read(&pool, chunk * MIB, MIB)).unwrap());
        for completion in all(&mut engine) {
            completion.result.unwrap();
            let Completion {
                offset, len, buf, tag, ..
            } = completion;
            engine
                .push(Request {
                    device: 1,
                    kind: OpKind::Write,
                    offset,
                    len,
                    buf,
                    tag,
                })
                .unwrap();
        }
        all(&mut engine).into_iter().for_each(|c| c.result.unwrap());
        one(
            &mut engine,
            Request {
                device: 1,
                ..request(OpKind::Sync, 0, 0, None)
            },
        )
        .0
        .unwrap();
        assert!(fs::read(to.path()).unwrap() == bytes, "{kind}");
    }
}

#[test]
fn names_of_engines_are_read_as_they_are_written() {
    for kind in [EngineKind::Auto, EngineKind::Uring, EngineKind::Pread] {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert!(
        "fast"
            .parse::<EngineKind>()
            .unwrap_err()
            .contains("auto, uring or pread")
    );
}
