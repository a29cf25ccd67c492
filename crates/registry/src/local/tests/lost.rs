//! A registry that is lost while sessions are suspected: its thread rests, it does not spin.

use super::super::Settings;
use super::super::bell::Heard;
use super::super::db::Tuning;
use super::super::worker::{Started, Worker};
use super::Host;
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
