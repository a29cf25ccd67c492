//! What survives: restarts of the registry, kill -9 of its clients while they commit.

use super::{Harness, Kid, changes, commit, delete, keys, next, number, put, say, unchanged};
use crate::contract::Registry;
use sheepdog_types::kv::{Change, Outcome, Revision, Txn};

/// Entries, revisions and the history; sessions do not survive their client.
pub async fn everything_is_there_after_a_restart(harness: &impl Harness) {
    let registry = harness.client().await;
    let mut revisions = Vec::new();
    for n in 0..20u8 {
        let list = [put(format!("d/{}", n % 7), vec![n; 5000])];
        revisions.push(commit(&*registry, changes(list)).await);
    }
    revisions.push(commit(&*registry, changes([delete("d/0")])).await);
    let before = registry.list("").await.expect("list");
    let session = registry.session(harness.ttl()).await.expect("session");
    session.commit(changes([put("e/x", "1")])).await.expect("commit");
    session.end().await.expect("end");
    drop(registry);
    harness.restart().await;
    let registry = harness.client().await;
    let after = registry.list("").await.expect("list");
    assert_eq!(after.entries, before.entries);
    assert!(after.revision > before.revision);
    let mut watch = registry.watch("d/", Revision(0)).await.expect("watch");
    for revision in &revisions {
        assert_eq!(next(&mut *watch).await.0, *revision);
    }
    let later = commit(&*registry, changes([put("d/0", "x")])).await;
    assert!(later > after.revision, "revisions go on");
    assert_eq!(next(&mut *watch).await, (later, vec![put("d/0", "x")]));
}

/// Child process: commits of three keys each, one after the other, each told when it is answered.
pub(super) async fn commit_for_ever(registry: &dyn Registry, prefix: &str) {
    let last = format!("{prefix}/last");
    let entry = registry.get(&last).await.expect("get");
    let mut n = entry.as_ref().map_or(0, |e| number(&e.value));
    let mut compare = unchanged(&last, entry.as_ref());
    loop {
        n += 1;
        let mut list = vec![put(&*last, n.to_string())];
        for side in ["a", "b"] {
            // Some span many pages.
            let bytes = if n.is_multiple_of(3) { 60_000 } else { 10 };
            list.push(put(format!("{prefix}/{side}/{}", n % 16), format!("{n:0bytes$}")));
        }
        let txn = Txn { compares: vec![compare], changes: list };
        match registry.commit(txn).await.expect("commit") {
            Outcome::Committed(revision) => {
                compare = sheepdog_types::kv::Compare::Unchanged(last.clone(), revision);
            }
            Outcome::Conflict => panic!("nobody else writes here"),
        }
        say(&n.to_string());
    }
}

/// What was answered is there, what was not is there entirely or not at all, and the history
/// tells the same; while another client goes on committing.
pub async fn a_killed_process_tears_no_commit(harness: &impl Harness) {
    let registry = harness.client().await;
    let mut watch = registry.watch("c/", Revision(0)).await.expect("watch");
    let mut seen = 0;
    for round in 0..12u64 {
        let mut kid = Kid::start(harness, "commit c");
        let mut answered = 0;
        for _ in 0..=round * 3 {
            answered = kid.hear().map(|n| number(n.as_bytes())).expect("an answer");
            commit(&*registry, changes([put("other", "x")])).await;
        }
        kid.kill();
        while let Some(said) = kid.hear() {
            answered = number(said.as_bytes());
        }
        let entries = registry.list("c/").await.expect("list").entries;
        let value = |key: &str| {
            let at = entries.binary_search_by(|e| e.key.as_str().cmp(key)).expect("there");
            number(&entries[at].value)
        };
        let last = value("c/last");
        assert!(last == answered || last == answered + 1, "{last}, answered {answered}");
        for side in ["a", "b"] {
            for n in last.saturating_sub(15).max(1)..=last {
                assert_eq!(value(&format!("c/{side}/{}", n % 16)), n);
            }
        }
        while seen < last {
            let (_, list) = next(&mut *watch).await;
            seen += 1;
            assert_eq!(list.len(), 3);
            for change in list {
                let Change::Put(_, value) = change else { panic!("a delete") };
                assert_eq!(number(&value), seen);
            }
        }
    }
    assert_eq!(keys(&*registry, "other").await, ["other"]);
}
