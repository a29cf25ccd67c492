//! A registry that is lost while sessions are suspected: its thread rests, it does not spin.

use super::super::Settings;
use super::super::bell::Heard;
use super::super::db::{Db, Stop, Tuning};
use super::super::paths::Paths;
use super::super::worker::{Started, Worker};
use super::Host;
use rusqlite::ffi;
use sheepdog_types::ErrorKind;
use uuid::Uuid;

/// A registry's worker, driven by the test instead of a thread of its own.
fn worker(host: &Host) -> (Worker, Started) {
    std::fs::create_dir_all(host.path().join(".sheepdog-local")).expect("directory");
    let settings = Settings { file: host.file(), member: None, tuning: Tuning::STANDARD };
    Worker::open(&settings).expect("open")
}

/// Somebody's session file was closed, as when its process died.
fn suspect(worker: &mut Worker) {
    worker.look(&Heard { news: true, time: false, closed: vec![Uuid::new_v4()] });
}

/// Turns that the thread makes until its slow timer has gone off twice.
fn turns(worker: &mut Worker) -> u32 {
    let (mut turns, mut times) = (0, 0);
    while times < 2 {
        let heard = worker.bell.wait(worker.next_look());
        worker.look(&heard);
        turns += 1;
        times += u32::from(heard.time);
    }
    turns
}

#[test]
fn a_lost_registry_leaves_no_suspects() {
    let host = Host::new();
    let (mut worker, _started) = worker(&host);
    std::fs::remove_dir_all(host.path().join(".sheepdog-local")).expect("remove");
    suspect(&mut worker);
    assert!(worker.store.is_none(), "it is gone");
    // Nor do they come back.
    suspect(&mut worker);
    assert_eq!(worker.next_look(), None);
    let turns = turns(&mut worker);
    assert!(turns < 100, "{turns} turns in two periods of the timer");
}

#[test]
fn a_registry_that_cannot_be_read_is_not_asked_all_the_time() {
    let host = Host::new();
    let (mut worker, _started) = worker(&host);
    let conn = rusqlite::Connection::open(host.file()).expect("open");
    conn.execute_batch("ALTER TABLE session RENAME TO elsewhere").expect("break");
    suspect(&mut worker);
    assert!(worker.store.is_some(), "it may recover");
    assert!(worker.next_look().is_some());
    let broken = turns(&mut worker);
    assert!(broken < 100, "{broken} turns in two periods of the timer");
    // And it does.
    conn.execute_batch("ALTER TABLE elsewhere RENAME TO session").expect("mend");
    turns(&mut worker);
    assert_eq!(worker.next_look(), None);
}

/// Only a file that is not there, or another one, is gone: what the file system says of itself is
/// not about the registry.
#[test]
fn a_registry_whose_file_system_fails_is_not_given_up() {
    let host = Host::new();
    let (mut worker, _started) = worker(&host);
    let (dir, aside) = (host.path().join(".sheepdog-local"), host.path().join("aside"));
    std::fs::rename(&dir, &aside).expect("rename");
    // Looking at it is an error now, if not EIO.
    std::os::unix::fs::symlink(&dir, &dir).expect("a link to itself");
    let error = worker.with_db(|db| db.get("key")).expect_err("it cannot be looked at");
    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.full());
    assert!(worker.store.is_some(), "it may recover");
    std::fs::remove_file(&dir).expect("remove");
    std::fs::rename(&aside, &dir).expect("rename");
    assert_eq!(worker.with_db(|db| db.get("key")).expect("it did"), None);
    std::fs::remove_dir_all(&dir).expect("remove");
    let error = worker.with_db(|db| db.get("key")).expect_err("it is gone");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(worker.store.is_none());
}

#[test]
fn what_looks_damaged_after_an_io_error_is_not_to_be_put_aside() {
    let host = Host::new();
    drop(worker(&host));
    let mut db = Db::open(&Paths::of(&host.file()), Tuning::STANDARD).expect("open");
    let mut fail = |code| {
        let error = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let failed = db.read::<()>(|_, _| Err(Stop::Sql(error())));
        failed.expect_err("it failed").full()
    };
    assert!(fail(ffi::SQLITE_CORRUPT).contains("put it aside and restore a copy"));
    assert!(fail(ffi::SQLITE_IOERR_READ).contains("read registry"));
    for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB] {
        let said = fail(code);
        assert!(said.contains("fails: look at that first") && !said.contains("aside"), "{said}");
    }
}
