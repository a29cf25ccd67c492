//! Bad files, full ones, and what is left lying beside them.

use super::super::db::Tuning;
use super::super::{LocalOptions, LocalRegistry};
use super::{Host, commit, put, run};
use crate::contract::{Registry, SessionState, WatchEvent};
use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Change, Revision, Txn};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(1);

/// A closed registry with some keys.
async fn made(host: &Host) {
    let registry = host.look().await.expect("open");
    for n in 0..50u8 {
        commit(&registry, put(&format!("k/{n}"), vec![n; 2000])).await;
    }
    registry.close().await.expect("close");
}

async fn refused(host: &Host) -> sheepdog_types::Error {
    let error = host.look().await.expect_err("refused");
    let line = error.full();
    assert!(line.contains("registry.db") && !line.contains('\n'), "{line}");
    error
}

#[test]
fn a_newer_format_is_refused_untouched() {
    run(async {
        let host = Host::new();
        made(&host).await;
        let conn = rusqlite::Connection::open(host.file()).expect("open");
        conn.pragma_update(None, "user_version", 2).expect("set");
        conn.close().expect("close");
        let before = std::fs::read(host.file()).expect("read");
        assert_eq!(refused(&host).await.kind(), ErrorKind::VersionMismatch);
        assert!(std::fs::read(host.file()).expect("read") == before);
    });
}

#[test]
fn other_files_are_refused_untouched() {
    run(async {
        let host = Host::new();
        std::fs::create_dir(host.path().join(".sheepdog-local")).expect("directory");
        let database = {
            let path = host.path().join("other.db");
            let conn = rusqlite::Connection::open(&path).expect("open");
            conn.execute_batch("CREATE TABLE t (x); PRAGMA user_version = 1").expect("make");
            conn.close().expect("close");
            std::fs::read(path).expect("read")
        };
        for content in [&b""[..], b"hello", &[0; 8192], &[0xA5; 8192], &database] {
            std::fs::write(host.file(), content).expect("write");
            let kind = refused(&host).await.kind();
            assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::Io), "{kind:?}");
            assert_eq!(std::fs::read(host.file()).expect("read"), content);
        }
        std::fs::remove_file(host.file()).expect("remove");
        std::fs::create_dir(host.file()).expect("directory");
        refused(&host).await;
    });
}

#[test]
fn a_damaged_file_is_named_so() {
    run(async {
        let host = Host::new();
        made(&host).await;
        let good = std::fs::read(host.file()).expect("read");
        for page in 1..good.len() / 4096 {
            let mut bad = good.clone();
            bad[page * 4096..][..4096].fill(0xA5);
            std::fs::write(host.file(), &bad).expect("write");
            // Pages full of nothing but a value's bytes cannot be told from damage.
            if let Err(error) = host.look().await {
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(error.context().contains("is damaged"), "{error}");
            }
        }
        std::fs::write(host.file(), &good[..good.len() / 2]).expect("cut");
        let error = refused(&host).await;
        assert!(error.context().contains("is damaged"), "{error}");
        std::fs::write(host.file(), &good).expect("mend");
        let registry = host.look().await.expect("open");
        assert_eq!(registry.list("k/").await.expect("list").entries.len(), 50);
    });
}

#[test]
fn paths_that_can_be_none_are_refused() {
    run(async {
        let host = Host::new();
        std::fs::write(host.path().join("file"), "x").expect("write");
        std::fs::create_dir(host.path().join("dir")).expect("make a directory");
        for path in ["file/registry.db", "none/none/registry.db", "dir"] {
            let file = host.path().join(path);
            let options = LocalOptions { file, member: None };
            let error = LocalRegistry::open(options).await.expect_err(path);
            assert!(!error.full().contains('\n'), "{error}");
        }
        let options = LocalOptions { file: "/proc/registry.db".into(), member: None };
        LocalRegistry::open(options).await.expect_err("proc");
    });
}

/// What was answered stays, what does not fit is refused, and deleting makes room again.
#[test]
fn a_full_registry_refuses_and_recovers() {
    run(async {
        let host = Host::new();
        let tuning = Tuning { pages: 400, ..Tuning::STANDARD };
        let registry = host.look_with(tuning).await;
        let mut kept: Vec<String> = Vec::new();
        let full = loop {
            let key = format!("k/{:03}", kept.len());
            match registry.commit(put(&key, vec![7; 20_000])).await {
                Ok(_) => kept.push(key),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::NoSpace, "{full}");
        // 400 pages of 4 KiB hold 80 such values: history gave way to them.
        assert!((70..80).contains(&kept.len()), "{}", kept.len());
        let there: Vec<String> =
            registry.list("").await.expect("list").entries.into_iter().map(|e| e.key).collect();
        assert_eq!(there, kept);
        // Several at once: none of them.
        let many = (0..5).map(|n| Change::Put(format!("m/{n}"), vec![1; 20_000].into()));
        let txn = Txn { compares: Vec::new(), changes: many.collect() };
        let error = registry.commit(txn.clone()).await.expect_err("full");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(registry.list("m/").await.expect("list").entries, []);
        let room = Txn {
            compares: Vec::new(),
            changes: kept[..20].iter().cloned().map(Change::Delete).collect(),
        };
        commit(&registry, room).await;
        commit(&registry, txn).await;
        registry.close().await.expect("close");
        let registry = host.look().await.expect("open");
        assert_eq!(registry.list("").await.expect("list").entries.len(), kept.len() - 15);
    });
}

/// However much is written, the history stays small, and no watch misses anything unsaid.
#[test]
fn history_is_bounded() {
    run(async {
        let host = Host::new();
        let tuning = Tuning { history_bytes: 100_000, ..Tuning::STANDARD };
        let registry = host.look_with(tuning).await;
        let mut behind = registry.watch("", Revision(0)).await.expect("watch");
        let mut quiet = registry.watch("quiet", Revision(0)).await.expect("watch");
        for n in 0..300u16 {
            commit(&registry, put("k", vec![n as u8; 2000])).await;
            // A watch that waits is never too old, though nothing happens in it.
            let nothing = tokio::time::timeout(Duration::from_micros(1), quiet.next()).await;
            assert!(nothing.is_err());
        }
        assert_eq!(behind.next().await.expect("behind"), WatchEvent::TooOld);
        // About as much as it may be is still there, gapless up to now.
        let head = registry.list("").await.expect("list").revision;
        let mut oldest = Revision(head.0 - 30);
        let mut late = registry.watch("", oldest).await.expect("watch");
        while oldest < head {
            let Ok(WatchEvent::Committed { revision, .. }) = late.next().await else {
                panic!("30 commits of 2 kB fit");
            };
            assert_eq!(revision.0, oldest.0 + 1);
            oldest = revision;
        }
        let last = commit(&registry, put("quiet/x", "now")).await;
        let WatchEvent::Committed { revision, .. } = quiet.next().await.expect("quiet") else {
            panic!("too old");
        };
        assert_eq!(revision, last);
        let bytes: i64 = rusqlite::Connection::open(host.file())
            .and_then(|c| c.query_row("SELECT SUM(bytes) FROM history", [], |r| r.get(0)))
            .expect("sum");
        assert!(bytes <= 100_000, "{bytes}");
    });
}

#[test]
fn a_removed_file_ends_everything() {
    run(async {
        let host = Host::new();
        let registry = host.look().await.expect("open");
        let session = registry.session(TTL).await.expect("session");
        let mut state = session.state();
        let mut watch = registry.watch("", Revision(0)).await.expect("watch");
        std::fs::remove_dir_all(host.path().join(".sheepdog-local")).expect("remove");
        // Found out even if nobody asks.
        let error = watch.next().await.expect_err("watch");
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        state.wait_for(|s| *s == SessionState::Expired).await.expect("expires");
        let error = registry.commit(put("k", "x")).await.expect_err("commit");
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.context().contains("removed"), "{error}");
        // A new one begins from nothing.
        let registry = host.look().await.expect("open");
        assert_eq!(registry.list("").await.expect("list").entries, []);
    });
}

fn count(path: &Path) -> usize {
    std::fs::read_dir(path).expect("directory").count()
}

#[test]
fn nothing_is_left_behind() {
    run(async {
        let host = Host::new();
        let registry = host.empty("a").await.expect("open");
        let sessions = host.beside(".run/sessions");
        let one = registry.session(TTL).await.expect("session");
        let two = registry.session(TTL).await.expect("session");
        assert_eq!(count(&sessions), 3, "two and the process's own");
        one.end().await.expect("end");
        drop(two);
        registry.close().await.expect("close");
        assert_eq!(count(&sessions), 0);
        let log = host.beside("-wal").metadata().expect("the log's space stays");
        assert_eq!(log.len(), 0, "the file is all there is");
        assert!(log.blocks() * 512 >= 1 << 20, "nobody takes it: {}", log.blocks());
        // Those of processes that died before or after their session was begun; other files are
        // none of ours.
        for name in [uuid::Uuid::new_v4().to_string(), "README".to_owned()] {
            std::fs::write(sessions.join(name), "").expect("write");
        }
        host.look().await.expect("open");
        assert_eq!(count(&sessions), 1);
    });
}

#[test]
fn a_closed_registry_answers_so() {
    run(async {
        let host = Host::new();
        let registry = host.look().await.expect("open");
        let clone = registry.clone();
        let session = registry.session(TTL).await.expect("session");
        session.commit(put("e", "1")).await.expect("commit");
        let mut watch = registry.watch("none", Revision(0)).await.expect("watch");
        registry.close().await.expect("close");
        assert_eq!(*session.state().borrow(), SessionState::Expired);
        for error in [
            clone.get("e").await.expect_err("closed"),
            session.commit(put("e", "1")).await.expect_err("closed"),
            watch.next().await.expect_err("closed"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        }
        let registry = host.look().await.expect("open");
        assert_eq!(registry.get("e").await.expect("get"), None);
    });
}

/// On a host that has run out of inotify instances, everything works by the timer.
#[test]
fn without_inotify_nobody_is_deaf() {
    run(async {
        let host = Host::new();
        let tuning = Tuning { inotify: false, ..Tuning::STANDARD };
        let (one, two) = (host.look_with(tuning).await, host.look_with(tuning).await);
        let session = one.session(TTL).await.expect("session");
        session.commit(put("s", "1")).await.expect("commit");
        let from = two.list("").await.expect("list").revision;
        let mut watch = two.watch("", from).await.expect("watch");
        let waiting = tokio::spawn(async move {
            let first = watch.next().await.expect("watch");
            (first, watch.next().await.expect("watch"))
        });
        tokio::task::yield_now().await;
        let revision = commit(&one, put("k", "1")).await;
        // Its process is as good as dead: the lock is gone, and nobody said so.
        for file in std::fs::read_dir(host.beside(".run/sessions")).expect("sessions").flatten() {
            std::fs::remove_file(file.path()).expect("remove");
        }
        let (put_seen, gone_seen) = waiting.await.expect("task");
        let WatchEvent::Committed { revision: seen, .. } = put_seen else { panic!("too old") };
        assert_eq!(seen, revision);
        let WatchEvent::Committed { changes, .. } = gone_seen else { panic!("too old") };
        assert_eq!(changes, [Change::Delete("s".to_owned())]);
        let mut state = session.state();
        state.wait_for(|s| *s == SessionState::Expired).await.expect("expires");
    });
}
