use super::*;
use crate::{MS, SECOND};
use sheepdog_types::kv::Compare;

const A: Host = Host(0);
const B: Host = Host(1);

struct World {
    queue: Queue<Step>,
    registry: Registry,
    log: Vec<Report>,
}

fn world(seed: u64) -> World {
    let mut queue = Queue::new();
    for host in [A, B] {
        queue.add_host(host, 0, crate::queue::TRUE_RATE);
    }
    let registry = Registry::new(Settings::default(), Rng::new(seed));
    World { queue, registry, log: Vec::new() }
}

impl World {
    fn run_for(&mut self, time: u64) {
        let until = self.queue.now() + time;
        while self.queue.next_time().is_some_and(|next| next <= until) {
            let due = self.queue.next().expect("there is one");
            self.registry.step(&mut self.queue, due.event, &mut self.log);
        }
        self.queue.at(until, Step(What::Tells(0)));
        while self.queue.now() < until {
            let due = self.queue.next().expect("it was just put");
            self.registry.step(&mut self.queue, due.event, &mut self.log);
        }
    }

    fn call(&mut self, host: Host, call: Call) -> CallId {
        self.registry.call(&mut self.queue, host, call)
    }

    fn answer_to(&self, wanted: CallId) -> Option<Result<Answer, ErrorKind>> {
        self.log.iter().find_map(|report| match report {
            Report::Answer { call, result, .. } if *call == wanted => Some(result.clone()),
            _ => None,
        })
    }

    fn ask(&mut self, host: Host, call: Call) -> Result<Answer, ErrorKind> {
        let id = self.call(host, call);
        self.run_for(6 * SECOND);
        self.answer_to(id).expect("every call is answered")
    }

    fn put(&mut self, host: Host, key: &str, value: &'static str) -> Result<Answer, ErrorKind> {
        self.ask(host, put(key, value, None))
    }

    fn open(&mut self, host: Host) -> SessionId {
        match self.ask(host, Call::Open(2 * SECOND)) {
            Ok(Answer::Opened(session)) => session,
            other => panic!("{other:?}"),
        }
    }

    fn told(&self, wanted: CallId) -> Vec<WatchEvent> {
        let told = self.log.iter().filter_map(|report| match report {
            Report::Watch { watch, event, .. } if *watch == wanted => Some(event.clone()),
            _ => None,
        });
        told.collect()
    }
}

fn put(key: &str, value: &'static str, session: Option<SessionId>) -> Call {
    let changes = vec![Change::Put(key.to_owned(), value.into())];
    Call::Commit(Txn { compares: Vec::new(), changes }, session)
}

fn committed(revision: u64) -> Result<Answer, ErrorKind> {
    Ok(Answer::Commit(Outcome::Committed(Revision(revision))))
}

fn revisions(events: &[WatchEvent]) -> Vec<u64> {
    let found = events.iter().filter_map(|event| match event {
        WatchEvent::Committed(revision, _) => Some(revision.0),
        _ => None,
    });
    found.collect()
}

#[test]
fn transactions_compare_and_swap() {
    let mut world = world(1);
    assert_eq!(world.put(A, "a", "1"), committed(1));
    let swap = |at: u64, key: &str| {
        let compares =
            vec![Compare::Unchanged("a".to_owned(), Revision(at)), Compare::Absent("b".to_owned())];
        let changes =
            vec![Change::Put(key.to_owned(), "x".into()), Change::Delete("none".to_owned())];
        Call::Commit(Txn { compares, changes }, None)
    };
    assert_eq!(world.ask(B, swap(9, "c")), Ok(Answer::Commit(Outcome::Conflict)));
    assert_eq!(world.ask(B, swap(1, "b")), committed(2));
    assert_eq!(world.ask(B, swap(1, "c")), Ok(Answer::Commit(Outcome::Conflict)));
    let nothing = Txn { compares: vec![], changes: vec![Change::Delete("none".to_owned())] };
    assert_eq!(world.ask(A, Call::Commit(nothing, None)), committed(2), "no new revision");
    let twice = Change::Delete("a".to_owned());
    let twice = Txn { compares: vec![], changes: vec![twice.clone(), twice] };
    assert_eq!(world.ask(A, Call::Commit(twice, None)), Err(ErrorKind::Invalid));
    let Ok(Answer::Listed(revision, entries)) = world.ask(A, Call::List(String::new())) else {
        panic!("it is listed");
    };
    let keys: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.modified.0)).collect();
    assert_eq!((revision, keys), (Revision(2), vec![("a", 1), ("b", 2)]));
}

#[test]
fn a_watch_tells_everything_below_its_prefix_once_and_in_order() {
    let mut world = world(2);
    for key in ["w/a", "other", "w/b"] {
        world.put(A, key, "1").expect("committed");
    }
    let watch = world.call(B, Call::Watch("w/".to_owned(), Revision(1)));
    let all = world.call(B, Call::Watch(String::new(), Revision(0)));
    let mut differ = false;
    for _ in 0..50 {
        world.call(A, put("w/c", "2", None));
        world.call(A, put("other", "2", None));
        world.run_for(2 * MS);
        differ |= world.told(all).len() < world.told(watch).len();
    }
    world.run_for(SECOND);
    assert_eq!(revisions(&world.told(all)), (1..=103).collect::<Vec<_>>());
    let told = revisions(&world.told(watch));
    assert_eq!((told[0], told.len()), (3, 51));
    assert!(told.is_sorted());
    assert!(differ, "one watch runs ahead of another");
    assert_eq!(
        world.ask(B, Call::Watch(String::new(), Revision(104))),
        Err(ErrorKind::Invalid),
        "there is no such history"
    );
}

#[test]
fn a_watch_that_cannot_tell_everything_says_so() {
    let mut world = world(3);
    for _ in 0..10 {
        world.put(A, "a", "1").expect("committed");
    }
    world.registry.compact(3);
    let old = world.call(B, Call::Watch(String::new(), Revision(6)));
    let young = world.call(B, Call::Watch(String::new(), Revision(7)));
    world.run_for(SECOND);
    assert_eq!(world.told(old), [WatchEvent::TooOld]);
    assert_eq!(revisions(&world.told(young)), [8, 9, 10]);
    world.registry.lose_watches(&mut world.queue);
    world.put(A, "a", "2").expect("committed");
    assert_eq!(world.told(young).last(), Some(&WatchEvent::TooOld), "it is over");
    assert_eq!(world.told(old).len(), 1);
    world.registry.settings.lost = 1000;
    let lossy = world.call(B, Call::Watch(String::new(), Revision(11)));
    world.put(A, "a", "3").expect("committed");
    assert_eq!(world.told(lossy), [WatchEvent::TooOld]);
}

#[test]
fn sessions_live_as_long_as_their_host_runs_and_reaches_the_registry() {
    let mut world = world(4);
    let session = world.open(A);
    let other = world.open(B);
    assert_eq!(world.ask(A, put("alive/a", "1", Some(session))), committed(1));
    assert_eq!(world.ask(B, put("alive/b", "1", Some(other))), committed(2));
    world.run_for(20 * SECOND);
    assert_eq!(world.registry.peek_all("alive/").len(), 2);

    world.queue.pause(A);
    world.run_for(3 * SECOND);
    assert_eq!(world.registry.peek("alive/a"), None);
    world.queue.resume(A);
    world.run_for(SECOND);
    assert!(world.log.contains(&Report::Expired { host: A, session }));
    assert_eq!(world.ask(A, put("alive/a", "2", Some(session))), Err(ErrorKind::Conflict));

    world.registry.set_reach(&mut world.queue, B, false);
    world.run_for(3 * SECOND);
    assert!(world.log.contains(&Report::Expired { host: B, session: other }));
    assert_eq!(world.registry.peek("alive/b"), None);
}

#[test]
fn without_a_leader_calls_fail_and_may_have_happened() {
    let (mut late, mut never, mut unheard) = (0, 0, 0);
    for seed in 0..100 {
        let mut world = world(seed);
        let session = world.open(A);
        assert_eq!(world.ask(A, put("alive", "1", Some(session))), committed(1));
        // One is on its way back, one comes to nobody.
        let first = world.call(A, put("first", "1", None));
        while world.registry.peek("first").is_none() {
            let due = world.queue.next().expect("it arrives");
            world.registry.step(&mut world.queue, due.event, &mut world.log);
        }
        world.registry.set_leader(&mut world.queue, false);
        let second = world.call(B, put("second", "1", None));
        world.run_for(10 * SECOND);
        let told = world.answer_to(first).expect("every call is answered");
        unheard += u32::from(told == Err(ErrorKind::Unreachable));
        assert_eq!(world.answer_to(second), Some(Err(ErrorKind::Unreachable)));
        assert!(world.registry.peek("second").is_none() && world.registry.peek("alive").is_some());
        world.registry.heal(&mut world.queue);
        if world.registry.peek("second").is_some() {
            late += 1;
        } else {
            never += 1;
        }
        world.run_for(10 * SECOND);
        assert_eq!(world.registry.peek("alive"), None, "its host gave it up meanwhile");
    }
    assert!(late > 10 && never > 10 && unheard > 10, "{late} {never} {unheard}");
}

#[test]
fn a_backup_takes_it_back_in_time() {
    let mut world = world(5);
    let session = world.open(A);
    world.ask(A, put("alive", "1", Some(session))).expect("committed");
    let backup = world.registry.backup();
    world.put(A, "later", "1").expect("committed");
    let watch = world.call(B, Call::Watch(String::new(), Revision(2)));
    world.run_for(SECOND);
    world.registry.restore(&mut world.queue, &backup);
    world.run_for(SECOND);
    assert_eq!(world.told(watch), [WatchEvent::Broken]);
    assert_eq!(world.registry.peek("later"), None);
    assert_eq!(world.ask(B, Call::Watch(String::new(), Revision(2))), Err(ErrorKind::Invalid));
    assert_eq!(world.put(B, "other", "1"), committed(2), "the revision is given again");
    assert!(world.registry.peek("alive").is_some(), "its host renews it still");
    world.queue.forget(A);
    world.registry.forget(A);
    world.run_for(5 * SECOND);
    assert_eq!(world.registry.peek("alive"), None);
}

#[test]
fn out_of_reach_nothing_is_heard_and_nothing_is_missed() {
    let mut world = world(6);
    let watch = world.call(B, Call::Watch(String::new(), Revision(0)));
    world.run_for(SECOND);
    world.registry.set_reach(&mut world.queue, B, false);
    for _ in 0..5 {
        world.put(A, "a", "1").expect("committed");
    }
    assert_eq!(world.ask(B, Call::Get("a".to_owned())), Err(ErrorKind::Unreachable));
    assert_eq!(world.told(watch), []);
    world.registry.heal(&mut world.queue);
    world.run_for(SECOND);
    assert_eq!(revisions(&world.told(watch)), [1, 2, 3, 4, 5]);
}

#[test]
fn a_dead_process_hears_nothing_though_its_commit_happens() {
    let mut world = world(7);
    let call = world.call(A, put("a", "1", None));
    let watch = world.call(A, Call::Watch(String::new(), Revision(0)));
    world.queue.forget(A);
    world.registry.forget(A);
    world.run_for(5 * SECOND);
    assert_eq!((world.answer_to(call), world.answer_to(watch)), (None, None));
    assert!(world.registry.peek("a").is_some() && world.log.is_empty());
}
