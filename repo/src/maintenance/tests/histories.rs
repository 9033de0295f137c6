//! Random histories of backups, deletions and maintenance, by virtual time.

use proptest::prelude::*;

use super::world::*;
use super::*;

#[derive(Clone, Debug)]
enum Event {
    /// A backup of these chunks; the snapshot is published so many minutes after its contents were looked up.
    BackUp(Vec<u8>, u64),
    /// Such a backup with maintenance between its two halves.
    BackUpAcross(Vec<u8>, u64, bool),
    /// A client that dies after its packs.
    Die(Vec<u8>),
    /// The n-th snapshot is deleted.
    Delete(prop::sample::Index),
    /// Hours pass.
    Pass(u64),
    Quick,
    Full,
}

fn event() -> impl Strategy<Value = Event> {
    let chunks = || prop::collection::vec(0..12_u8, 1..5);
    prop_oneof![
        3 => (chunks(), 0..45_u64).prop_map(|(chunks, minutes)| Event::BackUp(chunks, minutes)),
        2 => (chunks(), 0..45_u64, any::<bool>()).prop_map(|(chunks, minutes, full)| Event::BackUpAcross(chunks, minutes, full)),
        1 => chunks().prop_map(Event::Die),
        3 => any::<prop::sample::Index>().prop_map(Event::Delete),
        4 => (1..40_u64).prop_map(Event::Pass),
        1 => Just(Event::Quick),
        4 => Just(Event::Full),
    ]
}

fn maintain(world: &World, mode: Mode) {
    let options = Options {
        overrides: Overrides {
            no_snapshots: true,
            ..Overrides::default()
        },
        ..world.options(mode)
    };
    world.maintain_with(&options).expect("maintenance");
}

fn apply(world: &mut World, event: Event) {
    match event {
        Event::BackUp(chunks, minutes) => {
            let client = world.open();
            let running = world.begin(&client, &chunks);
            world.pass(minutes * MINUTE);
            world.commit(&client, running);
        }
        Event::BackUpAcross(chunks, minutes, full) => {
            let client = world.open();
            // The client's index is a quarter of an hour old when it looks its chunks up, the oldest that is allowed.
            world.pass(15 * MINUTE);
            let running = world.begin(&client, &chunks);
            maintain(world, if full { Mode::Full } else { Mode::Quick });
            world.pass(minutes * MINUTE);
            world.commit(&client, running);
        }
        Event::Die(chunks) => world.die(&chunks),
        Event::Delete(which) => {
            if let Some(id) =
                (!world.live.is_empty()).then(|| *which.get(&world.live.keys().copied().collect::<Vec<_>>()))
            {
                world.delete(id);
            }
        }
        Event::Pass(hours) => world.pass(hours * HOUR),
        Event::Quick => maintain(world, Mode::Quick),
        Event::Full => maintain(world, Mode::Full),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_history_loses_a_content_of_a_live_snapshot(events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::new();
        for (number, event) in events.iter().enumerate() {
            apply(&mut world, event.clone());
            world.check(&format!("event {number}: {event:?}"));
        }
        // Left alone, the repository comes to hold what its snapshots use, and little else.
        for day in 0..12 {
            world.pass(25 * HOUR);
            maintain(&world, Mode::Full);
            world.check(&format!("day {day}"));
        }
        prop_assert!(world.names("s").is_empty(), "markers of dead clients go: {:?}", world.names("s"));
        let used: std::collections::BTreeSet<u8> = world.live.values().flatten().copied().collect();
        let repository = world.open();
        for chunk in 0..12 {
            let content = repository.contents().content_id(None, &[chunk; CHUNK]);
            prop_assert_eq!(repository.lookup(&content).is_some(), used.contains(&chunk), "chunk {}", chunk);
        }
        prop_assert!(world.names("p").len() <= 4, "{:?}", world.names("p"));
    }
}
