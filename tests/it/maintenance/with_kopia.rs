//! Kopia accepts what our maintenance leaves, shows our runs, and maintains in turn with us.

use serde_json::Value;

use super::shared::{Both, US, numbers, outcome};
use crate::bad_input::support::{assert_words, names};

#[test]
fn kopia_accepts_our_state_and_shows_our_runs() {
    let Some(mut both) = Both::new() else { return };
    let goes = both.we_take(1, 8);
    both.we_take(2, 3);
    both.kopia_takes(3);
    let theirs = both.kopia_takes(4);
    both.we_delete(&goes);
    both.kopia_deletes(&theirs);

    // With margins everything is too young.
    let planned = both.we_maintain(&["--full", "--dry-run"]);
    assert_eq!(numbers(&planned, "snapshot-gc")["toDelete"]["count"], 0, "{planned}");
    assert!(numbers(&planned, "snapshot-gc")["tooYoung"]["count"].as_u64().unwrap() > 8);
    let before = names(&*both.world.store(), "");
    let report = both.we_maintain(&["--full"]);
    assert_eq!(outcome(&report, "full-rewrite-contents"), "idle");
    both.check("safe run");
    let after = names(&*both.world.store(), "");
    assert!(
        before.iter().all(|name| after.contains(name)),
        "a safe run deletes nothing young"
    );

    let planned = both.we_maintain(&["--full", "--dry-run", "--safety=none"]);
    assert!(
        numbers(&planned, "full-delete-blobs")["toDelete"]["count"]
            .as_u64()
            .unwrap()
            > 0,
        "{planned}"
    );
    let packs = names(&*both.world.store(), "p").len();
    // Deletions of the second in which they were made become final with the next run.
    for _ in 0..2 {
        both.we_maintain(&["--full", "--safety=none"]);
        both.check("run without margins");
    }
    assert!(names(&*both.world.store(), "p").len() < packs);
    assert_eq!(names(&*both.world.store(), "s"), Vec::<String>::new());

    both.we_maintain(&[]);
    both.kopia.run(["index", "inspect", "--all"]).unwrap();
    both.kopia.run(["blob", "list"]).unwrap();
    both.kopia.run(["content", "stats"]).unwrap();
    both.kopia.run(["index", "epoch", "list"]).unwrap();
    check_info(&both);
}

fn check_info(both: &Both) {
    let info = both.kopia.run_json(["maintenance", "info", "--json"]).unwrap();
    assert_eq!(info["owner"], US);
    let runs = |task: &str| -> Vec<Value> { info["schedule"]["runs"][task].as_array().cloned().unwrap_or_default() };
    assert_eq!(runs("snapshot-gc").len(), 3, "{info}");
    assert_eq!(runs("compact-single-epoch").len(), 4);
    assert_eq!(runs("cleanup-logs").len(), 3);
    assert!(!runs("full-delete-blobs").is_empty() && !runs("full-rewrite-contents").is_empty());
    let starts: Vec<_> = runs("snapshot-gc")
        .iter()
        .map(|run| run["start"].as_str().unwrap().to_owned())
        .collect();
    assert!(starts.is_sorted_by(|a, b| a >= b), "newest first: {starts:?}");
    let text = both.kopia.run(["maintenance", "info"]).unwrap();
    assert_words(
        &text,
        &[
            &format!("Owner: {US}"),
            "snapshot-gc:",
            "unreferenced contents and marked",
            "full-delete-blobs:",
            "unreferenced pack blobs to delete and deleted",
            "full-rewrite-contents:",
            "contents to rewrite and rewrote",
            "advance-epoch:",
            "Stayed at epoch 0",
            "cleanup-logs:",
        ],
    );
    assert!(!text.contains("ERROR"), "{text}");
}

#[test]
fn we_and_kopia_maintain_in_turn() {
    let Some(mut both) = Both::new() else { return };
    let mut older: Vec<String> = Vec::new();
    for round in 0..4_u64 {
        let ours = both.we_take(100 + round % 3, 3 + round);
        let theirs = both.kopia_takes(200 + round % 2);
        match (older.pop(), round % 2) {
            (Some(id), 0) => both.we_delete(&id),
            (Some(id), _) => both.kopia_deletes(&id),
            (None, _) => {}
        }
        older.push(if round % 2 == 0 { ours } else { theirs });
        if round % 2 == 0 {
            both.world.ferry.run(["maintenance", "own", US]).unwrap();
            both.we_maintain(&["--full", "--safety=none"]);
            both.we_maintain(&["--full"]);
        } else {
            both.kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
            both.world
                .refuses(&["maintenance", "run", "--full", "--as", US], 2, &["tester@testhost"]);
            both.kopia.maintenance_full_unsafe().unwrap();
            both.kopia
                .run(["maintenance", "run", "--full", "--safety=full"])
                .unwrap();
        }
        both.check(&format!("round {round}"));
    }
    // What either moved or gave back is known to both: the same volumes again are not stored again.
    let packs = names(&*both.world.store(), "p").len();
    both.we_take(101, 4);
    assert!(names(&*both.world.store(), "p").len() <= packs + 1);
    both.check("after");
}

#[test]
fn what_we_mark_deleted_kopia_gives_back_when_a_snapshot_needs_it() {
    let Some(mut both) = Both::new() else { return };
    both.we_take(1, 2);
    let goes = both.we_take(2, 4);
    both.we_delete(&goes);
    let margins_of_collection_only = ["--full", "--safety=none"];
    both.we_maintain(&margins_of_collection_only);
    // The same bytes again: found deleted, or gone, and stored anew.
    both.we_take(2, 4);
    both.check("stored again");
    both.kopia.run(["maintenance", "set", "--owner=me"]).unwrap();
    both.kopia.maintenance_full_unsafe().unwrap();
    both.check("collected by kopia");
}

#[test]
fn the_command_line_tells_who_maintains_and_what_holds_a_pack() {
    let Some(mut both) = Both::new() else { return };
    both.we_take(1, 3);
    let status = both
        .world
        .ferry
        .run_json(["maintenance", "status", "--as", US])
        .unwrap();
    assert_eq!(status["owner"], US);
    assert_eq!(status["isOwner"], true);
    assert_eq!(status["due"], "full");
    let text = both.world.ferry.run(["maintenance", "status"]).unwrap();
    assert_words(&text, &["owner", US, "due now", "full maintenance", "packs in use"]);
    let pack = names(&*both.world.store(), "p").remove(0);
    let explained = both
        .world
        .ferry
        .run_json(["maintenance", "status", "--blob", &pack])
        .unwrap();
    assert_eq!(explained["canGo"], false);
    assert_words(&explained.to_string(), &["contents of", "exist", "it is young"]);
    both.world.refuses(
        &["maintenance", "status", "--blob", "kopia.repository"],
        2,
        &["neither"],
    );
    both.world.refuses(&["maintenance", "own", "nobody"], 2, &["USER@HOST"]);

    let nothing = ["maintenance", "run", "--if-due", "--as", US];
    both.world.ferry.run_json(nothing).unwrap();
    let due = both.world.ferry.run_json(nothing).unwrap();
    assert_eq!(due["due"], Value::Null, "{due}");
    assert_words(&both.world.ferry.run(nothing).unwrap(), &["nothing is due"]);
}
