//! Which registry a store gets: the table of [`LocalRegistry::open`], line by line.

use super::super::{Joined, LocalRegistry, Member, RecordedStore};
use super::{Host, commit, format, is_formatted, member, put, run};
use crate::contract::{Registry, SessionState, WatchEvent};
use sheepdog_types::kv::Revision;
use sheepdog_types::{DiskId, ErrorKind};
use std::time::Duration;

/// A formatted cluster of these stores, closed, the stores filled.
async fn cluster(host: &Host, stores: &[&str]) -> uuid::Uuid {
    let mut open = Vec::new();
    for store in stores {
        open.push(host.empty(store).await.expect("open"));
    }
    format(&open[0]).await;
    let cluster = open[0].cluster();
    for registry in open {
        assert_eq!(registry.cluster(), cluster);
        registry.close().await.expect("close");
    }
    for store in stores {
        host.fill(store);
    }
    cluster
}

fn remove(host: &Host, store: &str) {
    std::fs::remove_dir_all(host.path().join(store)).expect("remove");
}

async fn running(registry: &LocalRegistry) -> Vec<(String, bool)> {
    let name = |r: RecordedStore| {
        let name = r.store.file_name().expect("a name").to_string_lossy().into_owned();
        (name, r.running)
    };
    registry.members().await.expect("members").into_iter().map(name).collect()
}

fn states(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
    expected.iter().map(|(name, running)| ((*name).to_owned(), *running)).collect()
}

#[test]
fn siblings_join_one_registry_and_see_who_runs() {
    run(async {
        let host = Host::new();
        let a = host.empty("a").await.expect("a");
        assert_eq!(*a.joined(), Joined::Created);
        let b = host.empty("b").await.expect("b");
        assert_eq!(*b.joined(), Joined::NewMember);
        assert_eq!(a.cluster(), b.cluster());
        assert_eq!(running(&a).await, states(&[("a", true), ("b", true)]));
        b.close().await.expect("close");
        assert_eq!(running(&a).await, states(&[("a", true), ("b", false)]));
        let b = host.empty("b").await.expect("b");
        assert_eq!(*b.joined(), Joined::Member);
        assert_eq!(running(&b).await, states(&[("a", true), ("b", true)]));
        // Another spelling of the same path, and a look from outside.
        a.close().await.expect("close");
        let spelled = host.path().join("b/../a/.");
        let a = host.open_as(Some(member(spelled))).await.expect("a");
        assert_eq!(*a.joined(), Joined::Member);
        let outside = host.look().await.expect("look");
        assert_eq!(*outside.joined(), Joined::Member);
        assert_eq!(running(&outside).await, states(&[("a", true), ("b", true)]));
    });
}

#[test]
fn a_formatted_cluster_is_joined_again_and_waited_for() {
    run(async {
        let host = Host::new();
        let id = cluster(&host, &["a", "b"]).await;
        let a = host.filled("a", id).await.expect("a");
        assert_eq!((a.joined(), a.cluster()), (&Joined::Member, id));
        assert!(is_formatted(&a).await);
        // A new store joins; `b` is waited for until it is forgotten.
        let c = host.empty("c").await.expect("c");
        assert_eq!((c.joined(), c.cluster()), (&Joined::NewMember, id));
        assert_eq!(running(&c).await, states(&[("a", true), ("b", false), ("c", true)]));
        assert!(c.forget(&host.path().join("b")).await.expect("forget"));
        assert!(!c.forget(&host.path().join("b")).await.expect("forget"));
        assert_eq!(running(&a).await, states(&[("a", true), ("c", true)]));
    });
}

#[test]
fn an_abandoned_registry_is_moved_aside() {
    run(async {
        let host = Host::new();
        let old = cluster(&host, &["a", "b"]).await;
        remove(&host, "a");
        remove(&host, "b");
        // One missing, one there and empty, both gone.
        host.store("b");
        let a = host.empty("a").await.expect("a");
        let aside = host.beside(&format!(".{old}"));
        assert_eq!(*a.joined(), Joined::CreatedAnew { old: aside.clone() });
        assert_ne!(a.cluster(), old);
        assert!(!is_formatted(&a).await);
        assert!(aside.is_file());
        assert_eq!(running(&a).await, states(&[("a", true)]));
    });
}

#[test]
fn nothing_is_moved_while_a_store_may_live() {
    run(async {
        let host = Host::new();
        let id = cluster(&host, &["a", "b", "deep/c"]).await;
        let joins = async |name: &str| {
            let registry = host.empty(name).await.expect("open");
            let same = registry.cluster() == id;
            registry.close().await.expect("close");
            same
        };
        // Data in b.
        remove(&host, "a");
        remove(&host, "deep");
        assert!(joins("a").await, "b has data");
        // The directory around c is missing: perhaps not mounted.
        remove(&host, "b");
        assert!(joins("a").await, "c may be on another disk");
        // c is a link to nowhere: perhaps not mounted.
        host.store("deep");
        let link = host.path().join("deep/c");
        std::os::unix::fs::symlink("/nonexistent/c", &link).expect("link");
        assert!(joins("a").await, "c is linked elsewhere");
        std::fs::remove_file(&link).expect("unlink");
        // A file where b was.
        std::fs::write(host.path().join("b"), "?").expect("write");
        assert!(joins("a").await, "b cannot be looked at");
        std::fs::remove_file(host.path().join("b")).expect("remove");
        // Somebody has it open.
        let look = host.look().await.expect("look");
        assert!(joins("a").await, "in use");
        look.close().await.expect("close");
        // Now all are gone.
        assert!(!joins("a").await, "nothing is left of it");
    });
}

#[test]
fn missing_from_another_file_system_may_be_unmounted() {
    // /dev/shm is a file system of its own wherever the tests run.
    let Ok(other) = tempfile::TempDir::new_in("/dev/shm") else {
        return;
    };
    run(async {
        let host = Host::new();
        let store = other.path().join("a");
        std::fs::create_dir(&store).expect("a store");
        let a = host.open_as(Some(member(store.clone()))).await.expect("a");
        format(&a).await;
        let id = a.cluster();
        a.close().await.expect("close");
        std::fs::remove_dir(&store).expect("remove");
        let b = host.empty("b").await.expect("b");
        assert_eq!(b.cluster(), id, "the disk of a may be missing");
    });
}

#[test]
fn a_store_brings_its_registry_back() {
    run(async {
        let host = Host::new();
        let old = cluster(&host, &["a"]).await;
        // Its disk is away; somebody starts anew.
        std::fs::rename(host.path().join("a"), host.path().join("away")).expect("rename");
        let b = host.empty("b").await.expect("b");
        assert!(matches!(b.joined(), Joined::CreatedAnew { .. }));
        let new = b.cluster();
        commit(&b, put("k", "new")).await;
        let session = b.session(Duration::from_secs(1)).await.expect("session");
        let mut watch = b.watch("", Revision(0)).await.expect("watch");
        assert!(matches!(watch.next().await, Ok(WatchEvent::Committed { .. })));
        // The disk is back, while b runs.
        std::fs::rename(host.path().join("away"), host.path().join("a")).expect("rename");
        let a = host.filled("a", old).await.expect("a");
        assert_eq!((a.joined(), a.cluster()), (&Joined::BroughtBack, old));
        assert!(is_formatted(&a).await);
        assert!(host.beside(&format!(".{new}")).is_file(), "nothing is deleted");
        assert!(!host.beside(&format!(".{old}")).exists());
        // b is told, in every way there is.
        let mut state = session.state();
        state.wait_for(|s| *s == SessionState::Expired).await.expect("expires");
        let errors = [
            b.get("k").await.expect_err("get"),
            b.commit(put("k", "x")).await.expect_err("commit"),
            session.commit(put("k", "x")).await.expect_err("session"),
            watch.next().await.expect_err("watch"),
            watch.next().await.expect_err("watch"),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
            assert!(error.context().contains("gave way"), "{error}");
        }
        // And may join as the empty store it is, whatever it remembers.
        let again = Member { cluster: Some(new), ..member(host.store("b")) };
        let b = host.open_as(Some(again)).await.expect("b");
        assert_eq!((b.joined(), b.cluster()), (&Joined::NewMember, old));
        assert_eq!(b.get("k").await.expect("get"), None);
    });
}

#[test]
fn a_formatted_registry_is_never_pushed_away() {
    run(async {
        let host = Host::new();
        let old = cluster(&host, &["a"]).await;
        std::fs::rename(host.path().join("a"), host.path().join("away")).expect("rename");
        let b = host.empty("b").await.expect("b");
        format(&b).await;
        let new = b.cluster();
        std::fs::rename(host.path().join("away"), host.path().join("a")).expect("rename");
        for _ in 0..2 {
            let error = host.filled("a", old).await.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Invalid);
            // The line says where its registry is.
            let line = error.full();
            assert!(line.contains(&format!("local:{}", host.beside(&format!(".{old}")).display())));
            assert!(line.contains(&new.to_string()), "{line}");
        }
        assert!(is_formatted(&b).await, "b is not disturbed");
        // Following the advice works.
        let options = super::LocalOptions {
            file: host.beside(&format!(".{old}")),
            member: Some(Member {
                empty: false,
                cluster: Some(old),
                ..member(host.path().join("a"))
            }),
        };
        let a = LocalRegistry::open(options).await.expect("a");
        assert_eq!(a.cluster(), old);
    });
}

#[test]
fn a_store_whose_registry_is_lost_is_refused() {
    run(async {
        let host = Host::new();
        let old = cluster(&host, &["a"]).await;
        std::fs::remove_dir_all(host.path().join(".sheepdog-local")).expect("remove");
        let refused = async |why: &str| {
            let error = host.filled("a", old).await.expect_err(why);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.context().contains(&old.to_string()), "{error}");
        };
        refused("there is none").await;
        assert!(!host.file().exists(), "none is made in its place");
        let b = host.empty("b").await.expect("b");
        refused("there is another").await;
        commit(&b, put("k", "b is not disturbed")).await;
        // Nor is a store with data of no cluster taken in.
        let odd = Member { empty: false, ..member(host.path().join("a")) };
        assert!(host.open_as(Some(odd)).await.is_err());
    });
}

#[test]
fn a_moved_store_is_the_same_store() {
    run(async {
        let host = Host::new();
        let known = |name: &str, id: u8| Member {
            disk: Some(DiskId([id; 16])),
            ..member(host.store(name))
        };
        let a = host.open_as(Some(known("a", 1))).await.expect("a");
        let b = host.open_as(Some(known("b", 2))).await.expect("b");
        a.close().await.expect("close");
        let moved = host.open_as(Some(known("c", 1))).await.expect("c");
        assert_eq!(running(&moved).await, states(&[("b", true), ("c", true)]));
        drop(b);
    });
}

#[test]
fn an_unformatted_registry_waits_for_nobody_who_left() {
    run(async {
        let host = Host::new();
        for name in ["a", "b", "c"] {
            host.empty(name).await.expect("open").close().await.expect("close");
        }
        remove(&host, "b");
        host.fill("c");
        let a = host.empty("a").await.expect("a");
        assert_eq!(running(&a).await, states(&[("a", true), ("c", false)]));
    });
}

#[test]
fn many_open_at_once() {
    run(async {
        let host = std::sync::Arc::new(Host::new());
        let old = cluster(&host, &["x"]).await;
        remove(&host, "x");
        let opening: Vec<_> = (0..8)
            .map(|n| {
                let host = host.clone();
                tokio::spawn(async move { host.empty(&format!("s{n}")).await.expect("open") })
            })
            .collect();
        let mut open = Vec::new();
        for task in opening {
            open.push(task.await.expect("task"));
        }
        // One moved the old one, and all are in the new one.
        assert!(open.iter().all(|r| r.cluster() == open[0].cluster()));
        assert_ne!(open[0].cluster(), old);
        assert_eq!(running(&open[3]).await.len(), 8);
        let anew = open.iter().filter(|r| matches!(r.joined(), Joined::CreatedAnew { .. }));
        assert_eq!(anew.count(), 1);
    });
}

/// A cluster aside, and an unformatted one in its place that is in use.
async fn displaced(host: &Host) -> (uuid::Uuid, LocalRegistry) {
    let old = cluster(host, &["a"]).await;
    std::fs::rename(host.path().join("a"), host.path().join("away")).expect("rename");
    let b = host.empty("b").await.expect("b");
    std::fs::rename(host.path().join("away"), host.path().join("a")).expect("rename");
    (old, b)
}

#[test]
fn a_registry_in_use_or_damaged_is_not_brought_back() {
    run(async {
        let host = Host::new();
        let (old, b) = displaced(&host).await;
        let aside = host.beside(&format!(".{old}"));
        let options = super::LocalOptions { file: aside.clone(), member: None };
        let direct = LocalRegistry::open(options).await.expect("open");
        let error = host.filled("a", old).await.expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        direct.close().await.expect("close");
        let good = std::fs::read(&aside).expect("read");
        std::fs::write(&aside, &good[..good.len() / 2]).expect("cut");
        let error = host.filled("a", old).await.expect_err("damaged");
        assert!(error.context().contains("is damaged"), "{error}");
        commit(&b, put("k", "b is not disturbed")).await;
        std::fs::write(&aside, &good).expect("mend");
        let a = host.filled("a", old).await.expect("a");
        assert_eq!((a.joined(), a.cluster()), (&Joined::BroughtBack, old));
    });
}

#[test]
fn nothing_is_ever_overwritten() {
    run(async {
        let host = Host::new();
        let old = cluster(&host, &["a"]).await;
        remove(&host, "a");
        // Something has the name that the old registry would get.
        let aside = host.beside(&format!(".{old}"));
        std::fs::write(&aside, "precious").expect("write");
        let error = host.empty("a").await.expect_err("refused");
        assert!(error.full().contains(&aside.display().to_string()), "{}", error.full());
        assert_eq!(std::fs::read(&aside).expect("read"), b"precious");
        std::fs::remove_file(&aside).expect("remove");
        host.empty("a").await.expect("a");
        // A log without its file is somebody's commits.
        let host = Host::new();
        host.look().await.expect("open").close().await.expect("close");
        std::fs::remove_file(host.file()).expect("remove");
        std::fs::write(host.beside("-wal"), "precious").expect("write");
        let error = host.empty("a").await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(std::fs::read(host.beside("-wal")).expect("read"), b"precious");
        assert!(!host.file().exists());
    });
}
