//! Many clients at once.

use super::{Harness, all, changes, number, put, unchanged};
use crate::contract::Registry;
use sheepdog_types::kv::{Outcome, Revision, Txn};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const CLIENTS: usize = 4;

async fn clients(harness: &impl Harness) -> Vec<Arc<dyn Registry>> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(harness.client().await);
    }
    clients
}

/// Adds one, however often others come first; says at which revision.
async fn increment(registry: &dyn Registry, key: &str) -> Revision {
    loop {
        let entry = registry.get(key).await.expect("get");
        let value = entry.as_ref().map_or(0, |e| number(&e.value)) + 1;
        let txn = Txn {
            compares: vec![unchanged(key, entry.as_ref())],
            changes: vec![put(key, value.to_string())],
        };
        if let Outcome::Committed(revision) = registry.commit(txn).await.expect("commit") {
            return revision;
        }
    }
}

/// Compare-and-swap races: two tasks on each client, two counters, exact sums, and no revision
/// given twice.
pub async fn counters_lose_no_increment(harness: &impl Harness) {
    const EACH: usize = 15;
    let tasks = clients(harness).await.into_iter().cycle().take(2 * CLIENTS);
    let revisions = all(tasks.enumerate().map(|(i, client)| async move {
        let key = format!("counter/{}", i % 2);
        let mut revisions = Vec::new();
        for _ in 0..EACH {
            revisions.push(increment(&*client, &key).await);
        }
        assert!(revisions.is_sorted());
        revisions
    }))
    .await;
    let registry = harness.client().await;
    let listing = registry.list("counter/").await.expect("list");
    let sums: Vec<u64> = listing.entries.iter().map(|e| number(&e.value)).collect();
    assert_eq!(sums, [(CLIENTS * EACH) as u64; 2]);
    let mut revisions: Vec<Revision> = revisions.into_iter().flatten().collect();
    let count = revisions.len();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), count);
}

/// Money moves between accounts while others list them: the sum is the same in every listing,
/// and listings of one client never go back.
pub async fn transfers_keep_their_sum(harness: &impl Harness) {
    const ACCOUNTS: u64 = 5;
    const SUM: u64 = ACCOUNTS * 100;
    let registry = harness.client().await;
    let open: Vec<_> = (0..ACCOUNTS).map(|i| put(format!("account/{i}"), "100")).collect();
    super::commit(&*registry, changes(open)).await;
    all(clients(harness).await.into_iter().enumerate().map(|(i, client)| async move {
        let mut last = Revision(0);
        for round in 0..20u64 {
            let listing = client.list("account/").await.expect("list");
            assert!(listing.revision >= last);
            last = listing.revision;
            assert!(listing.entries.iter().all(|e| e.modified <= last));
            assert_eq!(listing.entries.iter().map(|e| number(&e.value)).sum::<u64>(), SUM);
            let at = |n: u64| &listing.entries[(n % ACCOUNTS) as usize];
            let (from, to) = (at(round + i as u64), at(round * 3 + i as u64 + 1));
            let (have, amount) = (number(&from.value), round % 7);
            if from.key == to.key || have < amount {
                continue;
            }
            let txn = Txn {
                compares: vec![unchanged(&from.key, Some(from)), unchanged(&to.key, Some(to))],
                changes: vec![
                    put(&*from.key, (have - amount).to_string()),
                    put(&*to.key, (number(&to.value) + amount).to_string()),
                ],
            };
            // A conflict is fine: somebody else moved money.
            client.commit(txn).await.expect("commit");
        }
    }))
    .await;
    let listing = registry.list("account/").await.expect("list");
    assert_eq!(listing.entries.iter().map(|e| number(&e.value)).sum::<u64>(), SUM);
}

/// One register, blind writes of distinct values, reads by `get` and by `list`. As every write
/// says its revision, the order is known, and it is enough to check that it agrees with real time:
/// nothing takes effect before it was asked or after it was answered.
pub async fn reads_and_commits_are_linearizable(harness: &impl Harness) {
    // The newest revision anybody was told; whatever begins later must not be older.
    let newest = Arc::new(AtomicU64::new(0));
    let clients = clients(harness).await.into_iter().enumerate();
    let seen = all(clients.map(|(i, client)| {
        let newest = newest.clone();
        async move {
            let mut seen: Vec<(Revision, Vec<u8>)> = Vec::new();
            for round in 0..40 {
                let before = Revision(newest.load(Ordering::SeqCst));
                let (revision, value) = match (round + i) % 3 {
                    0 => {
                        let value = format!("{i}.{round}").into_bytes();
                        let txn = changes([put("register", value.clone())]);
                        let revision = super::commit(&*client, txn).await;
                        assert!(revision > before, "a write before its time");
                        (revision, value)
                    }
                    1 => match client.get("register").await.expect("get") {
                        Some(entry) => (entry.modified, entry.value.to_vec()),
                        None => (Revision(0), Vec::new()),
                    },
                    _ => match client.list("register").await.expect("list").entries.first() {
                        Some(entry) => (entry.modified, entry.value.to_vec()),
                        None => (Revision(0), Vec::new()),
                    },
                };
                assert!(revision >= before, "a stale read");
                newest.fetch_max(revision.0, Ordering::SeqCst);
                seen.push((revision, value));
            }
            seen
        }
    }))
    .await;
    // Everybody saw the same value at the same revision.
    let mut history = BTreeMap::new();
    for (revision, value) in seen.into_iter().flatten() {
        let first = history.entry(revision).or_insert_with(|| value.clone());
        assert_eq!(*first, value, "two values at {revision:?}");
    }
}
