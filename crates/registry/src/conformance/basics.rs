//! One client, one step at a time.

use super::{Harness, changes, commit, delete, keys, put, unchanged};
use crate::check::{CHANGES_MAX, COMPARES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Compare, Outcome, Revision, Txn};

/// Values of any bytes, empty ones and the largest come back as they were put.
pub async fn a_key_is_put_read_replaced_and_deleted(harness: &impl Harness) {
    let registry = harness.client().await;
    assert_eq!(registry.get("a/b").await.expect("get"), None);
    let largest: Vec<u8> = (0..VALUE_BYTES_MAX).map(|i| (i * 7 % 251) as u8).collect();
    let mut last = Revision(0);
    for value in [vec![], vec![0, 255, 10], largest, b"x".to_vec()] {
        let revision = commit(&*registry, changes([put("a/b", value.clone())])).await;
        assert!(revision > last);
        last = revision;
        let entry = registry.get("a/b").await.expect("get").expect("there");
        assert_eq!((entry.key.as_str(), &entry.value[..]), ("a/b", &value[..]));
        assert_eq!(entry.modified, revision);
    }
    // Another key does not touch this one's revision.
    commit(&*registry, changes([put("a", "y")])).await;
    assert_eq!(registry.get("a/b").await.expect("get").map(|e| e.modified), Some(last));
    let gone = commit(&*registry, changes([delete("a/b")])).await;
    assert!(gone > last);
    assert_eq!(registry.get("a/b").await.expect("get"), None);
    assert_eq!(keys(&*registry, "").await, ["a"]);
}

/// Absent and unchanged, right and wrong, and after the key came and went.
pub async fn comparisons_decide(harness: &impl Harness) {
    let registry = harness.client().await;
    let attempt = async |compares: &[Compare]| {
        let txn = Txn { compares: compares.to_vec(), changes: vec![put("mark", "x")] };
        matches!(registry.commit(txn).await.expect("commit"), Outcome::Committed(_))
    };
    let absent = Compare::Absent("k".to_owned());
    let at = |r: Revision| Compare::Unchanged("k".to_owned(), r);
    assert!(!attempt(&[at(Revision(0))]).await);
    assert!(!attempt(&[at(Revision(1))]).await);
    assert!(attempt(std::slice::from_ref(&absent)).await);
    let first = commit(&*registry, changes([put("k", "1")])).await;
    assert!(!attempt(std::slice::from_ref(&absent)).await);
    assert!(!attempt(&[at(Revision(u64::MAX))]).await);
    assert!(attempt(&[at(first)]).await);
    // The same value again is a change.
    let second = commit(&*registry, changes([put("k", "1")])).await;
    assert!(!attempt(&[at(first)]).await);
    assert!(attempt(&[at(second), Compare::Absent("l".to_owned())]).await);
    assert!(!attempt(&[at(second), absent.clone()]).await);
    // Deleted and made again: not the key it was.
    commit(&*registry, changes([delete("k")])).await;
    assert!(!attempt(&[at(second)]).await);
    assert!(attempt(&[absent]).await);
    commit(&*registry, changes([put("k", "1")])).await;
    assert!(!attempt(&[at(second)]).await);
}

/// A conflict anywhere leaves everything as it was; a commit of the most changes shows at one
/// revision; comparisons look at what was before.
pub async fn a_commit_is_all_or_nothing(harness: &impl Harness) {
    let registry = harness.client().await;
    let other = harness.client().await;
    let many: Vec<_> = (0..CHANGES_MAX).map(|i| put(format!("many/{i:03}"), "v")).collect();
    let txn = Txn {
        compares: (0..COMPARES_MAX).map(|i| Compare::Absent(format!("many/{i:03}"))).collect(),
        changes: many,
    };
    let revision = commit(&*registry, txn.clone()).await;
    assert_eq!(other.commit(txn).await.expect("commit"), Outcome::Conflict);
    let listing = other.list("many/").await.expect("list");
    assert_eq!(listing.entries.len(), CHANGES_MAX);
    assert!(listing.entries.iter().all(|e| e.modified == revision));
    assert!(listing.revision >= revision);
    let entry = registry.get("many/007").await.expect("get");
    let txn = Txn {
        compares: vec![
            unchanged("many/007", entry.as_ref()),
            Compare::Unchanged("many/008".to_owned(), Revision(revision.0 + 1)),
        ],
        changes: vec![delete("many/007"), put("new", "x")],
    };
    assert_eq!(registry.commit(txn).await.expect("commit"), Outcome::Conflict);
    assert_eq!(registry.get("new").await.expect("get"), None);
    assert_eq!(registry.get("many/007").await.expect("get"), entry);
}

/// And still answers, with the revision there is.
pub async fn what_changes_nothing_makes_no_revision(harness: &impl Harness) {
    let registry = harness.client().await;
    let revision = commit(&*registry, changes([put("a", "1")])).await;
    assert_eq!(commit(&*registry, changes([])).await, revision);
    assert_eq!(commit(&*registry, changes([delete("b")])).await, revision);
    let compared = Txn { compares: vec![Compare::Absent("a".to_owned())], changes: Vec::new() };
    assert_eq!(registry.commit(compared).await.expect("commit"), Outcome::Conflict);
    assert_eq!(registry.list("").await.expect("list").revision, revision);
}

/// Ascending, exact at the edges of a prefix.
pub async fn lists_follow_bytes_not_components(harness: &impl Harness) {
    let registry = harness.client().await;
    assert_eq!(keys(&*registry, "").await, [""; 0]);
    let mut all =
        ["a", "a b", "a!", "a-", "a/b", "a/b/c", "a/~", "a0", "aa", "a~", "a~~", "b", "B"];
    for key in all {
        commit(&*registry, changes([put(key, key)])).await;
    }
    all.sort_unstable();
    assert_eq!(keys(&*registry, "").await, all);
    for prefix in ["a", "a/", "a/b", "a~", "A", "b", "c", " ", "~", "a/b/c/d"] {
        let expected: Vec<&str> = all.into_iter().filter(|k| k.starts_with(prefix)).collect();
        assert_eq!(keys(&*registry, prefix).await, expected, "{prefix}");
    }
    let listing = registry.list("a/").await.expect("list");
    assert!(listing.entries.iter().all(|e| e.key.as_bytes() == &e.value[..]));
}

/// At the limit it works, one beyond it is refused, and nothing happens.
pub async fn limits_are_kept_and_refused_alike(harness: &impl Harness) {
    let registry = harness.client().await;
    let key = "k".repeat(KEY_BYTES_MAX);
    let revision = commit(&*registry, changes([put(&*key, "v")])).await;
    assert_eq!(keys(&*registry, &key).await, [key.as_str()]);
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let refused = [
        changes([put(&*long, "v")]),
        changes([delete(&long)]),
        changes([put("ä", "v")]),
        changes([put("", "v")]),
        changes([put("a//b", "v")]),
        changes([put("a\0", "v")]),
        changes([put("a", vec![0; VALUE_BYTES_MAX + 1])]),
        changes([put("a", "1"), delete("a")]),
        changes((0..=CHANGES_MAX).map(|i| put(format!("c{i}"), "v")).collect::<Vec<_>>()),
        Txn { compares: vec![Compare::Absent("/".to_owned())], changes: vec![put("a", "v")] },
        Txn {
            compares: (0..=COMPARES_MAX).map(|i| Compare::Absent(format!("c{i}"))).collect(),
            changes: vec![put("a", "v")],
        },
    ];
    for txn in refused {
        let error = registry.commit(txn).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let invalid = |kind| assert_eq!(kind, Some(ErrorKind::Invalid));
    invalid(registry.get(&long).await.err().map(|e| e.kind()));
    invalid(registry.list(&long).await.err().map(|e| e.kind()));
    invalid(registry.watch("\n", Revision(0)).await.err().map(|e| e.kind()));
    let session = registry.session(harness.ttl()).await.expect("session");
    invalid(session.commit(changes([put("a//b", "v")])).await.err().map(|e| e.kind()));
    let listing = registry.list("").await.expect("list");
    assert_eq!((listing.revision, listing.entries.len()), (revision, 1));
}
