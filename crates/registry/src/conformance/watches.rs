//! Watches: complete, in order, honest about what is forgotten.

use super::{Harness, all, changed_key, changes, commit, delete, keys, next, put};
use crate::contract::WatchEvent;
use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Change, Revision};
use std::collections::BTreeMap;
use std::time::Duration;

const WRITERS: usize = 3;
const COMMITS: usize = 40;

/// Writers on clients of their own commit puts and deletes below `w/`; gives back every commit
/// with its changes, as the writers know it (deletes of missing keys left out).
async fn write_concurrently(harness: &impl Harness) -> BTreeMap<Revision, Vec<Change>> {
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        clients.push(harness.client().await);
    }
    let committed = all(clients.into_iter().enumerate().map(|(i, client)| async move {
        let mut committed = Vec::new();
        for n in 0..COMMITS {
            let (one, two) = (format!("w/{i}/{}", n % 5), format!("w/{i}/x{}", n % 3));
            let list = match n % 4 {
                // Both were put by rounds before.
                3 => vec![delete(&one_before(i, n)), put(two, n.to_string())],
                _ => vec![put(one, n.to_string()), put(two, vec![n as u8; 3000])],
            };
            committed.push((commit(&*client, changes(list.clone())).await, list));
        }
        committed
    }))
    .await;
    let count = committed.iter().map(Vec::len).sum::<usize>();
    let mut history: BTreeMap<Revision, Vec<Change>> = committed.into_iter().flatten().collect();
    assert_eq!(history.len(), count);
    for list in history.values_mut() {
        list.sort_by(|a, b| changed_key(a).cmp(changed_key(b)));
    }
    history
}

/// The key put one round ago.
fn one_before(writer: usize, n: usize) -> String {
    format!("w/{writer}/{}", (n - 1) % 5)
}

/// Watches from the beginning and from the middle of the writing, on clients of their own.
pub async fn every_commit_is_seen_once_in_order(harness: &impl Harness) {
    let (registry, watcher) = (harness.client().await, harness.client().await);
    let start = registry.list("").await.expect("list").revision;
    let mut watch = watcher.watch("w/", start).await.expect("watch");
    let mut narrow = watcher.watch("w/1/", start).await.expect("watch");
    let collect = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < WRITERS * COMMITS {
            seen.push(next(&mut *watch).await);
        }
        seen
    });
    let history = write_concurrently(harness).await;
    let seen = collect.await.expect("collect");
    let expected: Vec<_> = history.clone().into_iter().collect();
    assert!(seen == expected, "the watch saw another history");
    for (revision, list) in history {
        if changed_key(&list[0]).starts_with("w/1/") {
            assert_eq!(next(&mut *narrow).await, (revision, list));
        }
    }
    // What the events add up to is what is there.
    let mut state = BTreeMap::new();
    for change in seen.into_iter().flat_map(|(_, list)| list) {
        match change {
            Change::Put(key, value) => drop(state.insert(key, value)),
            Change::Delete(key) => drop(state.remove(&key)),
        }
    }
    let listing = registry.list("w/").await.expect("list");
    let there: BTreeMap<_, _> = listing.entries.into_iter().map(|e| (e.key, e.value)).collect();
    assert_eq!(state, there);
}

/// From any old revision: exactly the rest.
pub async fn a_late_watch_sees_what_an_early_one_saw(harness: &impl Harness) {
    let history: Vec<_> = write_concurrently(harness).await.into_iter().collect();
    let registry = harness.client().await;
    for skip in [0, 1, history.len() / 2, history.len() - 1] {
        let from = if skip == 0 { Revision(0) } else { history[skip - 1].0 };
        let mut watch = registry.watch("w/", from).await.expect("watch");
        for expected in &history[skip..] {
            assert_eq!(next(&mut *watch).await, *expected);
        }
    }
    // A listing and a watch from its revision leave no gap and no overlap.
    let listing = registry.list("w/").await.expect("list");
    let mut watch = registry.watch("w/", listing.revision).await.expect("watch");
    let revision = commit(&*registry, changes([put("w/end", "1")])).await;
    assert_eq!(next(&mut *watch).await, (revision, vec![put("w/end", "1")]));
}

/// With those of its changes that are below the prefix, and without deletes that did nothing.
pub async fn a_commit_is_one_event(harness: &impl Harness) {
    let registry = harness.client().await;
    let mut watch = registry.watch("a/", Revision(0)).await.expect("watch");
    commit(&*registry, changes([put("b/1", "other")])).await;
    let first = commit(
        &*registry,
        changes([put("a/1", "x"), put("a", "not below"), put("a/2", ""), delete("a/3")]),
    )
    .await;
    commit(&*registry, changes([delete("a/3")])).await;
    let second = commit(&*registry, changes([delete("a/1"), delete("b/1")])).await;
    let expected = vec![put("a/1", "x"), put("a/2", "")];
    assert_eq!(next(&mut *watch).await, (first, expected));
    assert_eq!(next(&mut *watch).await, (second, vec![delete("a/1")]));
}

/// Waits given up at any moment.
pub async fn a_dropped_wait_loses_nothing(harness: &impl Harness) {
    const COUNT: u32 = 50;
    let (registry, other) = (harness.client().await, harness.client().await);
    let mut watch = registry.watch("n/", Revision(0)).await.expect("watch");
    let writing = tokio::spawn(async move {
        for n in 0..COUNT {
            commit(&*other, changes([put("n/x", n.to_string())])).await;
        }
    });
    let mut seen = 0;
    let mut patience = 0;
    while seen < COUNT {
        patience = (patience + 37) % 400;
        let wait = Duration::from_micros(patience);
        if let Ok(event) = tokio::time::timeout(wait, next(&mut *watch)).await {
            assert_eq!(event.1, [put("n/x", seen.to_string())]);
            seen += 1;
        }
    }
    writing.await.expect("write");
}

/// Never a gap: a watch that begins in, or falls into, forgotten history says so, and keeps
/// saying so; a new one from a listing goes on.
pub async fn forgotten_history_is_announced(harness: &impl Harness) {
    let registry = harness.client().await;
    let first = commit(&*registry, changes([put("k", "1")])).await;
    let mut behind = registry.watch("k", first).await.expect("watch");
    for n in 2..5 {
        commit(&*registry, changes([put("k", n.to_string())])).await;
    }
    harness.compact().await;
    for from in [Revision(0), first] {
        let mut old = registry.watch("k", from).await.expect("watch");
        assert_eq!(old.next().await.expect("old"), WatchEvent::TooOld);
    }
    for _ in 0..2 {
        assert_eq!(behind.next().await.expect("behind"), WatchEvent::TooOld);
    }
    let listing = registry.list("").await.expect("list");
    assert_eq!(keys(&*registry, "").await, ["k"]);
    let mut watch = registry.watch("", listing.revision).await.expect("watch");
    let revision = commit(&*registry, changes([delete("k")])).await;
    assert_eq!(next(&mut *watch).await, (revision, vec![delete("k")]));
}

/// A revision this registry never had comes from another one, or from before a backup was
/// restored.
pub async fn the_future_is_refused(harness: &impl Harness) {
    let registry = harness.client().await;
    let revision = commit(&*registry, changes([put("k", "1")])).await;
    let error = registry.watch("k", Revision(revision.0 + 1)).await.err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(registry.watch("k", revision).await.is_ok());
}
