//! Kopia's own looks into a repository: index, blobs, contents, maintenance.

use std::collections::{BTreeMap, BTreeSet};

use crate::kopia_compat::judge::{Shared, Taken};

/// First letters of the blobs that kopia knows (repo/content/content_manager.go, repo/format, cli/command_blob_list.go).
const BLOBS: [&str; 7] = ["kopia.", "p", "q", "x", "s", "_log_", "n"];

/// Kopia's commands take the state of the repository, and agree with each other about it.
pub(crate) fn kopia_accepts(shared: &Shared, left: &[Taken]) {
    let kopia = &shared.kopia;
    let blobs: BTreeSet<String> = kopia.blobs("").unwrap().into_iter().collect();
    for blob in &blobs {
        assert!(
            BLOBS.iter().any(|known| blob.starts_with(known)),
            "kopia knows no blob {blob}"
        );
    }
    assert!(
        !blobs.iter().any(|blob| blob.starts_with('s')),
        "nobody is writing, and there is a session: {blobs:?}"
    );

    // A line for each entry: time and name of the index blob, content, whether it is deleted, since when, pack, offset, length.
    // An entry that a later one overrides may name a pack that is gone; one of those of a
    // content is right, unless it is deleted.
    let inspected = kopia.run(["index", "inspect", "--active"]).unwrap();
    let mut packs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in inspected.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., pack, _, _] = words[..] else { panic!("{line}") };
        let known = packs.entry(words[4]).or_default();
        known.push(if words[5] == "deleted" { "deleted" } else { pack });
    }
    assert!(packs.len() >= left.len(), "{inspected}");
    for (content, packs) in packs {
        assert!(
            packs.iter().any(|pack| *pack == "deleted" || blobs.contains(*pack)),
            "none of the packs of {content} is there: {packs:?}"
        );
    }

    let info = kopia.run_json(["maintenance", "info", "--json"]).unwrap();
    assert_eq!(info["owner"], "tester@testhost", "{info}");
    for kind in ["quick", "full"] {
        assert!(info[kind]["enabled"].is_boolean(), "{info}");
    }
    kopia.run(["maintenance", "info"]).unwrap();
    let stats = kopia.run(["content", "stats", "--raw"]).unwrap();
    assert!(stats.contains("Count:"), "{stats}");
    kopia.run(["index", "list"]).unwrap();
    kopia.run(["index", "epoch", "list"]).unwrap();
    kopia.run(["blob", "stats"]).unwrap();
}
