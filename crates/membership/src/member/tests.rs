use super::*;
use crate::map::{DiskEntry, DiskState, MapRecord, NodeEntry};
use crate::records::decode_process;
use crate::shards::{ShardPack, ShardRecord};
use sheepdog_types::NodeId;
use sheepdog_types::kv::Entry;

const ME: NodeId = NodeId([5; 16]);
const DISK: DiskId = DiskId([55; 16]);
const SHARD: ShardId = ShardId { set: 0, number: 3 };

fn stamp(generation: u64, serial: u64) -> Stamp {
    Stamp { generation, serial }
}

/// A member, and a registry that is played by hand.
struct Bench {
    now: Now,
    member: Member,
    revision: u64,
    entries: BTreeMap<String, Entry>,
    out: Vec<Effect>,
}

impl Bench {
    fn new(known_incarnation: u64) -> Self {
        let disk = LocalDisk { weight: 7, stamp: stamp(1, 100) };
        let config = Config {
            node: ME,
            address: "me".into(),
            zone: 1,
            vnodes: 128,
            disks: BTreeMap::from([(DISK, disk)]),
            known_incarnation,
            known_revision: Revision(0),
        };
        let member = Member::new(config);
        Self { now: 0, member, revision: 0, entries: BTreeMap::new(), out: Vec::new() }
    }

    fn put(&mut self, key: String, value: bytes::Bytes) -> Vec<Change> {
        self.revision += 1;
        let entry =
            Entry { key: key.clone(), value: value.clone(), modified: Revision(self.revision) };
        self.entries.insert(key.clone(), entry);
        vec![Change::Put(key, value)]
    }

    /// Somebody else commits, and the watch sees it.
    fn other(&mut self, key: String, value: bytes::Bytes) {
        let changes = self.put(key, value);
        let revision = Revision(self.revision);
        if let Some(token) = self.member.watch {
            self.give(Event::Watched { token, revision, changes });
        }
    }

    fn give(&mut self, event: Event) {
        let mut out = Vec::new();
        self.member.handle(self.now, event, &mut out);
        self.out.extend(out);
    }

    /// Answers all calls, until there are none. Commits meet `fate`: whether they happen, and what
    /// is answered.
    fn serve(&mut self, fate: impl Fn(&Txn) -> (bool, Option<ErrorKind>)) {
        for _ in 0..50 {
            let calls = std::mem::take(&mut self.out);
            let (calls, rest) = calls.into_iter().partition(|e| matches!(e, Effect::Registry(..)));
            self.out = rest;
            let calls: Vec<Effect> = calls;
            if calls.is_empty() {
                return;
            }
            for call in calls {
                let Effect::Registry(token, call) = call else {
                    continue;
                };
                let answer = match call {
                    Call::Begin => Answer::Session,
                    Call::End => Answer::Ended,
                    Call::List { .. } => Answer::Listing {
                        revision: Revision(self.revision),
                        entries: self.entries.values().cloned().collect(),
                    },
                    Call::Watch { .. } => continue,
                    Call::Commit { txn, .. } => {
                        let (happens, answer) = fate(&txn);
                        let outcome = if happens { self.commit(&txn) } else { Outcome::Conflict };
                        answer.map_or(Answer::Commit(outcome), Answer::Failed)
                    }
                };
                self.give(Event::Registry(token, answer));
            }
        }
        panic!("it never rests: {:?}", self.out);
    }

    fn commit(&mut self, txn: &Txn) -> Outcome {
        let holds = txn.compares.iter().all(|compare| match compare {
            Compare::Absent(key) => !self.entries.contains_key(key),
            Compare::Unchanged(key, at) => {
                self.entries.get(key).is_some_and(|entry| entry.modified == *at)
            }
        });
        if !holds {
            return Outcome::Conflict;
        }
        self.revision += 1;
        for change in &txn.changes {
            match change {
                Change::Put(key, value) => {
                    let modified = Revision(self.revision);
                    let entry = Entry { key: key.clone(), value: value.clone(), modified };
                    self.entries.insert(key.clone(), entry);
                }
                Change::Delete(key) => drop(self.entries.remove(key)),
            }
        }
        Outcome::Committed(Revision(self.revision))
    }

    fn start(&mut self) {
        // Somebody else is coordinator.
        let other = Process { node: NodeId([1; 16]), incarnation: 1 };
        self.put(keys::COORDINATOR.to_owned(), encode_process(other));
        self.give(Event::Start);
        self.serve(|_| (true, None));
    }

    fn took(&mut self, wanted: impl Fn(&Effect) -> bool) -> usize {
        let count = self.out.iter().filter(|effect| wanted(effect)).count();
        self.out.retain(|effect| !wanted(effect));
        count
    }

    fn me(&self) -> u64 {
        self.member.process().expect("joined").incarnation
    }

    fn recorded(&self) -> Stamp {
        Stamp::decode(&self.entries[&keys::stamp(DISK)].value).expect("stamp")
    }
}

fn node_record(incarnation: u64) -> NodeRecord {
    NodeRecord {
        incarnation,
        address: "old".into(),
        zone: 1,
        vnodes: 128,
        leaving: false,
        disks: BTreeMap::new(),
    }
}

fn map(incarnation: u64, state: NodeState) -> MapRecord {
    let entry = NodeEntry {
        incarnation,
        address: String::new(),
        zone: 1,
        vnodes: 128,
        vnodes_fixed: false,
        state,
        draining: false,
        disks: BTreeMap::from([(DISK, DiskEntry { weight: 7, state: DiskState::In })]),
    };
    MapRecord { epoch: 1, nodes: BTreeMap::from([(ME, entry)]), halted: BTreeSet::new() }
}

#[test]
fn it_joins_with_an_incarnation_larger_than_any_before() {
    let mut bench = Bench::new(3);
    bench.start();
    assert_eq!(bench.me(), 4, "than its store knows");
    let mut bench = Bench::new(3);
    bench.put(keys::node(ME), node_record(8).encode());
    bench.start();
    assert_eq!(bench.me(), 9, "than its record");
    let mut bench = Bench::new(3);
    bench.put(keys::MAP.to_owned(), map(11, NodeState::Up).encode());
    bench.start();
    assert_eq!(bench.me(), 12, "than the map");
    let alive = decode_process(&bench.entries[&keys::session(ME)].value).expect("alive");
    assert_eq!(alive.incarnation, 12);
    assert_eq!(bench.recorded(), stamp(1, 100));
}

#[test]
fn a_claim_that_may_have_happened_is_not_taken_up() {
    for happened in [true, false] {
        let mut bench = Bench::new(0);
        bench.give(Event::Start);
        bench.serve(|_| (happened, Some(ErrorKind::Unreachable)));
        assert_eq!(bench.member.process(), None);
        bench.now = RETRY;
        bench.give(Event::Tick);
        bench.serve(|_| (true, None));
        assert_eq!(bench.me(), 2);
    }
}

#[test]
fn a_session_that_ended_means_stop_and_join_anew() {
    let mut bench = Bench::new(0);
    bench.start();
    bench.give(Event::SessionExpired);
    assert_eq!(bench.took(|e| *e == Effect::Lost), 1);
    assert_eq!(bench.member.process(), None);
    bench.serve(|_| (true, None));
    assert_eq!(bench.me(), 2);
    assert_eq!(bench.took(|e| matches!(e, Effect::Joined(_))), 2);
}

#[test]
fn a_newer_process_of_its_node_stops_it_for_good() {
    let mut bench = Bench::new(0);
    bench.start();
    bench.other(keys::node(ME), node_record(2).encode());
    assert_eq!(bench.took(|e| *e == Effect::Superseded { by: 2 }), 1);
    bench.out.clear();
    bench.give(Event::Tick);
    assert_eq!((bench.out.len(), bench.member.next_tick()), (0, None));
}

#[test]
fn a_disk_behind_its_stamp_is_flagged_before_it_serves() {
    let mut bench = Bench::new(0);
    bench.put(keys::stamp(DISK), stamp(1, 101).encode());
    bench.start();
    let flagged = Effect::DiskBehind { disk: DISK, recorded: stamp(1, 101) };
    let at = |wanted: &dyn Fn(&Effect) -> bool| bench.out.iter().position(wanted);
    let (flag, joined) = (at(&|e| *e == flagged), at(&|e| matches!(e, Effect::Joined(_))));
    assert!(flag.is_some() && flag < joined, "{:?}", bench.out);
    // Until its vote is taken the record stays: a crash in between must flag it again.
    bench.now = 2 * STAMP;
    bench.give(Event::Stamped { disk: DISK, stamp: stamp(1, 100) });
    bench.serve(|_| (true, None));
    assert_eq!(bench.recorded(), stamp(1, 101));
    bench.give(Event::VoteTaken { disk: DISK, stamp: stamp(1, 90) });
    bench.serve(|_| (true, None));
    assert_eq!(bench.recorded(), stamp(1, 90));
}

#[test]
fn stamps_are_recorded_every_ten_minutes_and_when_it_leaves() {
    let mut bench = Bench::new(0);
    bench.start();
    bench.give(Event::Stamped { disk: DISK, stamp: stamp(1, 110) });
    bench.serve(|_| (true, None));
    assert_eq!(bench.recorded(), stamp(1, 100));
    bench.now = STAMP;
    assert!(bench.member.next_tick().is_some_and(|at| at <= STAMP));
    bench.give(Event::Tick);
    bench.serve(|_| (true, None));
    assert_eq!(bench.recorded(), stamp(1, 110));
    bench.give(Event::Stamped { disk: DISK, stamp: stamp(1, 120) });
    bench.give(Event::Leave);
    bench.serve(|_| (true, None));
    let record = NodeRecord::decode(&bench.entries[&keys::node(ME)].value).expect("record");
    assert!(record.leaving);
    assert_eq!(bench.recorded(), stamp(1, 110), "it still serves");
    assert_eq!(bench.took(|e| *e == Effect::Left), 0);
    bench.other(keys::MAP.to_owned(), map(1, NodeState::Left { grace: 5 }).encode());
    bench.serve(|_| (true, None));
    assert_eq!(bench.recorded(), stamp(1, 120));
    assert_eq!(bench.took(|e| *e == Effect::Left), 1);
}

fn pack(cur: u64, disk: DiskId) -> bytes::Bytes {
    let mut record = ShardRecord::default();
    let process = Process { node: ME, incarnation: 1 };
    assert!(record.begin(Interval(cur - 1), &[(disk, process)], disk));
    ShardPack { shards: BTreeMap::from([(SHARD.number, record)]) }.encode()
}

fn told(effect: &Effect) -> bool {
    matches!(effect, Effect::ShardChanged { .. })
}

#[test]
fn records_are_told_to_whom_they_concern() {
    let mut bench = Bench::new(0);
    bench.start();
    let other = DiskId([66; 16]);
    bench.other(keys::pack(0, 0), pack(1, other));
    assert_eq!(bench.took(told), 0);
    bench.other(keys::pack(0, 0), pack(2, DISK));
    assert_eq!(bench.took(told), 1);
    bench.other(keys::pack(0, 0), pack(3, other));
    assert_eq!(bench.took(told), 1, "that it is out of it");
    bench.other(keys::pack(0, 0), pack(4, other));
    assert_eq!(bench.took(told), 0);
    bench.give(Event::Holds { shard: SHARD, held: true });
    assert_eq!(bench.took(told), 1, "whoever holds a replica may know better");
    bench.other(keys::pack(0, 0), pack(5, other));
    assert_eq!(bench.took(told), 1);
    bench.give(Event::Holds { shard: SHARD, held: false });
    bench.other(keys::pack(0, 0), pack(6, other));
    assert_eq!(bench.took(told), 0);
    // The same again is no news, nor is what came before.
    let (token, revision) = (bench.member.watch.expect("watch"), Revision(bench.revision - 2));
    let changes = vec![Change::Put(keys::pack(0, 0), pack(2, DISK))];
    bench.give(Event::Watched { token, revision, changes });
    assert_eq!(bench.took(told), 0);
}

#[test]
fn what_a_shard_asks_for_is_repeated_until_the_record_shows_it() {
    let mut bench = Bench::new(0);
    bench.start();
    bench.other(keys::pack(0, 0), pack(1, DISK));
    let sent = |e: &Effect| matches!(e, Effect::Send { message: Message::Activated { .. }, .. });
    bench.give(Event::Activated { shard: SHARD, interval: Interval(1) });
    assert_eq!(bench.took(sent), 1);
    bench.give(Event::Tick);
    assert_eq!(bench.took(sent), 0);
    bench.now = REPEAT;
    bench.give(Event::Tick);
    assert_eq!(bench.took(sent), 1);
    // To a new coordinator at its turn, and no more once another interval began.
    bench.other(keys::pack(0, 0), pack(2, DISK));
    bench.now = 2 * REPEAT;
    bench.give(Event::Tick);
    assert_eq!(bench.took(sent), 0);
}

#[test]
fn a_registry_that_went_back_is_told_and_gets_its_keys_again() {
    let mut bench = Bench::new(0);
    bench.start();
    bench.give(Event::SessionExpired);
    bench.serve(|_| (true, None));
    assert_eq!(bench.me(), 2);
    // A backup of before it joined.
    bench.revision = 1;
    bench.entries.retain(|key, _| key == keys::COORDINATOR);
    let token = bench.member.watch.expect("watch");
    bench.give(Event::Registry(token, Answer::Failed(ErrorKind::Invalid)));
    bench.now = RETRY;
    bench.give(Event::Tick);
    bench.serve(|_| (true, None));
    let record = NodeRecord::decode(&bench.entries[&keys::node(ME)].value).expect("record");
    assert_eq!(record.incarnation, 2, "its own, not one that was used");
    assert!(bench.entries.contains_key(&keys::session(ME)));
    bench.now = REPEAT;
    bench.give(Event::Tick);
    let told = |e: &Effect| matches!(e, Effect::Send { message: Message::WentBack { .. }, .. });
    assert!(bench.took(told) >= 1);
    let from = Process { node: NodeId([1; 16]), incarnation: 1 };
    let message = Message::Ask { round: 1, shards: vec![SHARD] };
    bench.give(Event::Message { from, message });
    assert_eq!(bench.took(|e| matches!(e, Effect::AskLocal { round: 1, .. })), 1);
    bench.now = 2 * REPEAT;
    bench.give(Event::Tick);
    assert_eq!(bench.took(told), 0);
}

#[test]
fn it_stands_for_coordinator_and_makes_the_map() {
    let mut bench = Bench::new(0);
    bench.give(Event::Start);
    bench.serve(|_| (true, None));
    for _ in 0..20 {
        bench.now = bench.member.next_tick().expect("it is not over").max(bench.now);
        bench.give(Event::Tick);
        bench.serve(|_| (true, None));
    }
    assert!(bench.member.is_coordinator());
    let map = MapRecord::decode(&bench.entries[keys::MAP].value).expect("map");
    assert_eq!((map.epoch, map.up().count()), (1, 1));
    // An order to itself is answered, and one without a coordinator too.
    let command = crate::api::Command::Vnodes { node: ME, vnodes: 5 };
    bench.give(Event::Command { id: 1, command: command.clone() });
    bench.now += 20 * MS;
    bench.give(Event::Tick);
    bench.serve(|_| (true, None));
    let done = |e: &Effect| matches!(e, Effect::CommandDone { refused: None, .. });
    assert_eq!(bench.took(done), 1);
    bench.give(Event::SessionExpired);
    assert!(!bench.member.is_coordinator());
    bench.give(Event::Command { id: 2, command });
    let refused = |e: &Effect| matches!(e, Effect::CommandDone { id: 2, refused: Some(_) });
    assert_eq!(bench.took(refused), 1);
}

#[test]
fn without_the_registry_nothing_is_decided() {
    let mut bench = Bench::new(0);
    bench.start();
    let token = bench.member.watch.expect("watch");
    bench.out.clear();
    bench.give(Event::Registry(token, Answer::Failed(ErrorKind::Unreachable)));
    for _ in 0..10 {
        bench.serve_nothing();
    }
    assert_eq!(bench.me(), 1, "it is still what it was");
    assert_eq!(bench.took(|e| matches!(e, Effect::Lost | Effect::ShardChanged { .. })), 0);
}

impl Bench {
    /// Every call fails.
    fn serve_nothing(&mut self) {
        self.now += RETRY;
        self.give(Event::Tick);
        for effect in std::mem::take(&mut self.out) {
            match effect {
                Effect::Registry(token, call) => {
                    assert!(!matches!(call, Call::Commit { .. }), "{call:?}");
                    let failed = Answer::Failed(ErrorKind::Unreachable);
                    self.give(Event::Registry(token, failed));
                }
                other => self.out.push(other),
            }
        }
    }
}
