//! The same random script on both engines, against memory.

use super::*;
use proptest::prelude::*;

/// One request for each of some chunks; different chunks, so that their order does not matter.
type Round = Vec<(usize, OpKind, u64)>;

fn scripts() -> impl Strategy<Value = (usize, Vec<Round>, Option<usize>)> {
    let sizes = prop_oneof![Just(1), Just(MIB - 1), Just(5 * MIB + 512), 1usize..6 * MIB];
    sizes.prop_flat_map(|size| {
        let chunks = size.div_ceil(MIB);
        let kind = prop_oneof![Just(OpKind::Read), Just(OpKind::Write), Just(OpKind::Zero)];
        let round = prop::collection::btree_map(0..chunks, (kind, any::<u64>()), 1..=chunks).prop_map(|round| {
            round
                .into_iter()
                .map(|(chunk, (kind, seed))| (chunk, kind, seed))
                .collect()
        });
        let limit = prop::option::of(1usize..2 * MIB);
        (Just(size), prop::collection::vec(round, 1..4), limit)
    })
}

/// Plays `rounds` on an engine over a file of `size` bytes, against memory. Calls transfer `limit` bytes at most.
fn play(kind: EngineKind, size: usize, rounds: &[Round], limit: Option<usize>) -> Vec<u8> {
    let (file, mut model) = patterned_file(size);
    let pool = BufPool::new(CHUNK_BYTES, 6).unwrap();
    let short = |op| Fault {
        op,
        range: crate::fault::EVERYWHERE,
        skip: 0,
        count: u64::MAX,
        outcome: Outcome::Short(limit.unwrap_or(MIB)),
    };
    let faults = limit.map(|_| FaultPlan::new().with(short(Op::Read)).with(short(Op::Write)));
    let mut engine = engine(
        file.path(),
        &pool,
        &EngineOptions {
            faults,
            depth: 6,
            ..options(kind)
        },
    );
    for round in rounds {
        for (chunk, kind, seed) in round {
            let offset = chunk * MIB;
            let len = MIB.min(size - offset);
            engine
                .push(match kind {
                    OpKind::Read => read(&pool, offset, MIB),
                    OpKind::Write => {
                        let mut buf = pool.take();
                        buf[..len].copy_from_slice(&pattern(len, *seed));
                        request(OpKind::Write, offset, len, Some(buf))
                    }
                    _ => request(OpKind::Zero, offset, len, None),
                })
                .unwrap();
        }
        let done = all(&mut engine);
        assert_eq!(done.len(), round.len());
        for completion in done {
            completion.result.unwrap();
            let offset = usize::try_from(completion.tag).unwrap();
            let (_, kind, seed) = round.iter().find(|(chunk, ..)| chunk * MIB == offset).unwrap();
            let here = offset..size.min(offset + MIB);
            match kind {
                OpKind::Read => {
                    let buf = completion.buf.unwrap();
                    assert!(buf[..here.len()] == model[here.clone()]);
                    assert!(buf[here.len()..].iter().all(|b| *b == 0), "zeros behind the end");
                }
                OpKind::Write => model[here.clone()].copy_from_slice(&pattern(here.len(), *seed)),
                _ => model[here].fill(0),
            }
        }
    }
    one(&mut engine, request(OpKind::Sync, 0, 0, None)).0.unwrap();
    assert_eq!(pool.free(), 6);
    assert!(fs::read(file.path()).unwrap() == model);
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]
    #[test]
    fn both_engines_behave_as_memory((size, rounds, limit) in scripts()) {
        prop_assert!(play(EngineKind::Uring, size, &rounds, limit) == play(EngineKind::Pread, size, &rounds, limit));
    }
}
