//! A bad network: whatever it does, a run ends with success or a clear error, and what is restored is right.

use std::time::Duration;

use blockferry_tests::blockferry::Blockferry;
use blockferry_tests::bucket::Bucket;
use blockferry_tests::garage::Garage;
use blockferry_tests::proxy::{Fault, Op, Proxy, Rule, Weather, When};
use blockferry_tests::volume::{Layout, Volume};

use super::servers_are_here;
use crate::kopia_compat::judge::{MIB, PASSWORD, Shared, Taken, our_source};

/// Three packs and what belongs to them.
const VOLUME: u64 = 64 * MIB + 512;

/// Runs in CI for each sort of weather, and with soak.
const RUNS: (u64, u64) = (1, 20);

/// Backs up, restores and verifies in this weather, then lets both clients judge in fair weather.
fn endure(name: &str, weather: Weather) {
    endure_with(name, weather, &[(1, "s3://")]);
}

/// The same where a run may also end with one of these exit codes and texts.
fn endure_with(name: &str, weather: Weather, ends: &[(i32, &str)]) {
    if !servers_are_here() {
        return;
    }
    let garage = Garage::start().unwrap();
    let fair = Bucket::of(&garage, "bad-network/");
    let shared = Shared::in_bucket(&fair);
    shared.we_create(&[]);
    let volume = Volume::create(&Layout::mixed(77, VOLUME)).unwrap();
    let mut taken: Vec<Taken> = Vec::new();
    let (mut faults, mut failures) = (0, 0);
    for run in 0..blockferry_tests::rounds(RUNS.0, RUNS.1) {
        volume.change_blocks(run, 48).unwrap();
        let proxy = Proxy::start(&garage.address(0), run, weather.clone()).unwrap();
        let ours = Blockferry::in_bucket(&fair.through(proxy.endpoint()), PASSWORD).unwrap();
        let path = volume.path().display().to_string();
        let ended = ours
            .ended(["backup", &path, "--as", &our_source("v"), "--json"])
            .unwrap();
        match ended.code {
            Some(0) => {
                let document = serde_json::from_str(&ended.stdout).unwrap();
                taken.push(Taken::ours(&document, volume.bytes().unwrap()));
            }
            _ => {
                clear_error(name, ends, ended.code, &ended.stderr);
                failures += 1;
            }
        }
        if let Some(latest) = taken.last() {
            let target = shared.file("restored");
            let ended = ours
                .ended(["restore", &latest.id, &target.display().to_string(), "--json"])
                .unwrap();
            if ended.code == Some(0) {
                latest.is_same(&std::fs::read(&target).unwrap(), name);
                std::fs::remove_file(&target).unwrap();
            } else {
                clear_error(name, ends, ended.code, &ended.stderr);
                assert!(!target.exists(), "{name}: a half file is left");
                failures += 1;
            }
        }
        faults += proxy.faults();
        // What a failed run published is none of ours; what it left may not hurt.
        shared.kopia.verify_full().unwrap();
    }
    eprintln!(
        "{name}: {faults} faults, {failures} runs failed, {} snapshots",
        taken.len()
    );
    assert!(faults > 0 || weather.rules.is_empty(), "{name}: nothing was hit");
    shared.both_approve(&taken);
}

/// One error in words, of the sort that says the storage failed.
#[track_caller]
fn clear_error(name: &str, ends: &[(i32, &str)], code: Option<i32>, stderr: &str) {
    assert!(!stderr.contains("panicked"), "{name}: {stderr}");
    let told = |(end, text): &(i32, &str)| code == Some(*end) && stderr.contains(text);
    assert!(ends.iter().any(told), "{name}: exit code {code:?} with: {stderr}");
}

fn rules(rules: Vec<Rule>) -> Weather {
    Weather {
        rules,
        ..Weather::default()
    }
}

#[test]
fn latency_and_little_bandwidth() {
    let weather = Weather {
        latency: Duration::from_millis(50),
        bandwidth: Some(32 << 20),
        ..Weather::default()
    };
    endure("latency", weather);
}

#[test]
fn rounds_of_connections_reset_before_the_request_arrives() {
    endure(
        "reset before",
        rules(vec![Rule::new(Fault::ResetBefore, &[], When::Percent(15.0))]),
    );
}

#[test]
fn rounds_of_connections_reset_after_the_request_is_done() {
    endure(
        "reset after",
        rules(vec![Rule::new(Fault::ResetAfter, &[], When::Percent(15.0))]),
    );
}

#[test]
fn rounds_of_bodies_that_end_in_the_middle() {
    let hit = [Op::Get, Op::List];
    endure(
        "cut bodies",
        rules(vec![Rule::new(Fault::CutBody, &hit, When::Percent(30.0))]),
    );
}

#[test]
fn rounds_of_bodies_that_are_short_and_say_so() {
    // Nothing but its seal tells that a blob of unknown length is short: it looks damaged, as it would be were it stored so.
    endure_with(
        "short bodies",
        rules(vec![Rule::new(Fault::ShortBody, &[Op::Get], When::Every(3))]),
        &[(1, "s3://"), (4, "s3://")],
    );
}

#[test]
fn rounds_of_slow_down_and_errors_inside() {
    let busy = vec![
        Rule::new(Fault::slow_down(), &[], When::Every(4)),
        Rule::new(Fault::internal_error(), &[], When::Every(5)),
    ];
    endure("busy", rules(busy));
}

#[test]
fn rounds_of_lists_as_they_were_before() {
    // In an old list the newest snapshot is not there yet.
    endure_with(
        "old lists",
        rules(vec![Rule::new(Fault::StaleList, &[Op::List], When::Percent(50.0))]),
        &[(1, "s3://"), (2, "no snapshot")],
    );
}

#[test]
fn rounds_of_requests_that_arrive_twice() {
    let twice = vec![
        Rule::new(Fault::Again(0), &[Op::Put], When::Every(2)),
        Rule::new(Fault::Again(3), &[Op::Put], When::Every(3)),
    ];
    endure("twice", rules(twice));
}
