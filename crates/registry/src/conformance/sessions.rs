//! Sessions and the keys that vanish with them.

use super::{Harness, Kid, changes, commit, delete, keys, next, put, say, unchanged};
use crate::contract::{Registry, SessionState};
use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Compare, Outcome, Txn};
use std::time::Duration;

/// All in one commit, when the session ends; other sessions and keys stay.
pub async fn keys_go_with_their_session(harness: &impl Harness) {
    let (registry, other) = (harness.client().await, harness.client().await);
    let session = registry.session(harness.ttl()).await.expect("session");
    let second = registry.session(harness.ttl()).await.expect("session");
    commit(&*registry, changes([put("s/plain", "p")])).await;
    let elected = Txn {
        compares: vec![Compare::Absent("s/leader".to_owned())],
        changes: vec![put("s/leader", "1"), put("s/a", "1"), delete("s/none")],
    };
    let outcome = session.commit(elected.clone()).await.expect("commit");
    assert!(matches!(outcome, Outcome::Committed(_)));
    assert_eq!(second.commit(elected).await.expect("commit"), Outcome::Conflict);
    second.commit(changes([put("s/b", "2")])).await.expect("commit");
    assert_eq!(keys(&*other, "s/").await, ["s/a", "s/b", "s/leader", "s/plain"]);
    let from = other.list("").await.expect("list").revision;
    let mut watch = other.watch("s/", from).await.expect("watch");
    let state = session.state();
    assert_eq!(*state.borrow(), SessionState::Alive);
    session.end().await.expect("end");
    assert_eq!(*state.borrow(), SessionState::Expired);
    assert_eq!(keys(&*other, "s/").await, ["s/b", "s/plain"]);
    assert_eq!(next(&mut *watch).await.1, [delete("s/a"), delete("s/leader")]);
    // What the other session puts over a key of the first would be its own.
    assert_eq!(*second.state().borrow(), SessionState::Alive);
    second.end().await.expect("end");
    assert_eq!(keys(&*other, "s/").await, ["s/plain"]);
}

/// Without anybody waiting for it.
pub async fn a_dropped_session_ends(harness: &impl Harness) {
    let (registry, other) = (harness.client().await, harness.client().await);
    let session = registry.session(harness.ttl()).await.expect("session");
    session.commit(changes([put("s/a", "1")])).await.expect("commit");
    let from = other.list("").await.expect("list").revision;
    let mut watch = other.watch("s/", from).await.expect("watch");
    drop(session);
    assert_eq!(next(&mut *watch).await.1, [delete("s/a")]);
    // A client that goes takes its sessions along.
    let session = registry.session(harness.ttl()).await.expect("session");
    session.commit(changes([put("s/b", "1")])).await.expect("commit");
    assert_eq!(next(&mut *watch).await.1, [put("s/b", "1")]);
    drop((registry, session));
    assert_eq!(next(&mut *watch).await.1, [delete("s/b")]);
}

/// From then on it belongs to nobody, or to the session that put it last.
pub async fn an_ordinary_put_frees_a_key(harness: &impl Harness) {
    let registry = harness.client().await;
    let first = registry.session(harness.ttl()).await.expect("session");
    let second = registry.session(harness.ttl()).await.expect("session");
    for key in ["k/1", "k/2", "k/3"] {
        first.commit(changes([put(key, "1")])).await.expect("commit");
    }
    commit(&*registry, changes([put("k/1", "2")])).await;
    second.commit(changes([put("k/2", "2")])).await.expect("commit");
    first.end().await.expect("end");
    assert_eq!(keys(&*registry, "k/").await, ["k/1", "k/2"]);
    // And an ephemeral one may take the place of an ordinary one.
    second.commit(changes([put("k/1", "3")])).await.expect("commit");
    second.end().await.expect("end");
    assert_eq!(keys(&*registry, "k/").await, [""; 0]);
}

/// Its client commits on and on while it is cut off: from some moment on everything is refused,
/// and nothing committed before or after that moment stays.
pub async fn an_expired_session_commits_nothing(harness: &impl Harness) {
    let (registry, other) = (harness.client().await, harness.client().await);
    let session = registry.session(harness.ttl()).await.expect("session");
    let mut state = session.state();
    session.commit(changes([put("s/a", "1")])).await.expect("commit");
    let committing = tokio::spawn(async move {
        for n in 0.. {
            if let Err(error) = session.commit(changes([put(format!("s/{}", n % 5), "1")])).await {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                return session;
            }
        }
        unreachable!("it expires");
    });
    harness.expire_sessions().await;
    let session = committing.await.expect("commit");
    state.wait_for(|s| *s == SessionState::Expired).await.expect("expires");
    assert_eq!(keys(&*other, "s/").await, [""; 0]);
    let again = session.commit(changes([put("s/a", "1")])).await.expect_err("over");
    assert_eq!(again.kind(), ErrorKind::Conflict);
    session.end().await.expect("ending what is over is no error");
    // The client itself is well.
    let session = registry.session(harness.ttl()).await.expect("session");
    session.commit(changes([put("s/b", "1")])).await.expect("commit");
    assert_eq!(keys(&*other, "s/").await, ["s/b"]);
}

/// Child process: a session with two keys, until killed.
pub(super) async fn hold(registry: &dyn Registry, ttl: Duration, prefix: &str) {
    let session = registry.session(ttl).await.expect("session");
    let txn = changes([put(format!("{prefix}/a"), "1"), put(format!("{prefix}/b"), "1")]);
    session.commit(txn).await.expect("commit");
    say("holding");
    std::future::pending::<()>().await;
}

/// kill -9: all its keys go in one commit, and others can take its place.
pub async fn a_killed_process_loses_its_keys(harness: &impl Harness) {
    let registry = harness.client().await;
    for round in 0..3 {
        let mut kid = Kid::start(harness, "hold e/kid");
        assert_eq!(kid.hear().as_deref(), Some("holding"), "round {round}");
        assert_eq!(keys(&*registry, "e/").await, ["e/kid/a", "e/kid/b"]);
        let held = registry.get("e/kid/a").await.expect("get");
        let from = registry.list("").await.expect("list").revision;
        let mut watch = registry.watch("e/", from).await.expect("watch");
        kid.kill();
        assert_eq!(next(&mut *watch).await.1, [delete("e/kid/a"), delete("e/kid/b")]);
        assert_eq!(keys(&*registry, "e/").await, [""; 0]);
        // A decision made while it lived is void.
        let late = Txn {
            compares: vec![unchanged("e/kid/a", held.as_ref())],
            changes: vec![put("e/late", "1")],
        };
        assert_eq!(registry.commit(late).await.expect("commit"), Outcome::Conflict);
    }
}

/// Several processes die together; one that lives keeps its keys.
pub async fn many_sessions_die_at_once(harness: &impl Harness) {
    let registry = harness.client().await;
    let session = registry.session(harness.ttl()).await.expect("session");
    session.commit(changes([put("m/alive", "1")])).await.expect("commit");
    let mut kids: Vec<Kid> = (0..4).map(|n| Kid::start(harness, &format!("hold m/{n}"))).collect();
    for kid in &mut kids {
        assert_eq!(kid.hear().as_deref(), Some("holding"));
    }
    let listing = registry.list("m/").await.expect("list");
    assert_eq!(listing.entries.len(), 9);
    let mut watch = registry.watch("m/", listing.revision).await.expect("watch");
    for kid in &mut kids[..3] {
        kid.kill();
    }
    let mut gone = Vec::new();
    for _ in 0..3 {
        gone.extend(next(&mut *watch).await.1);
    }
    gone.sort_by(|a, b| super::changed_key(a).cmp(super::changed_key(b)));
    let expected = ["m/0/a", "m/0/b", "m/1/a", "m/1/b", "m/2/a", "m/2/b"].map(delete);
    assert_eq!(gone, expected);
    assert_eq!(keys(&*registry, "m/").await, ["m/3/a", "m/3/b", "m/alive"]);
    assert_eq!(*session.state().borrow(), SessionState::Alive);
}
