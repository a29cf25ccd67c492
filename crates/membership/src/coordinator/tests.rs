use super::*;
use crate::api::{Call, Suspicion};
use crate::keys;
use crate::records::{NodeRecord, Settings, encode_process};
use crate::shards::Activation;
use sheepdog_placement::Policy;
use sheepdog_types::DiskId;
use sheepdog_types::kv::{Change, Compare};

const S: u64 = 1000 * MS;
const SHARD: ShardId = ShardId { set: 0, number: 0 };

fn node(id: u8) -> NodeId {
    NodeId([id; 16])
}

fn process(id: u8, incarnation: u64) -> Process {
    Process { node: node(id), incarnation }
}

fn disk(id: u8) -> DiskId {
    DiskId([id; 16])
}

/// A coordinator with a registry that answers at once.
struct Bench {
    now: Now,
    view: View,
    coordinator: Coordinator,
    tokens: u64,
    out: Vec<Effect>,
    commits: usize,
}

impl Bench {
    fn put(&mut self, changes: &[Change]) {
        let revision = Revision(self.view.revision.0 + 1);
        self.view.commit(revision, changes);
        self.coordinator.poke(self.now);
    }

    fn record(id: u8, incarnation: u64) -> NodeRecord {
        NodeRecord {
            incarnation,
            address: String::new(),
            zone: id.into(),
            vnodes: 128,
            leaving: false,
            disks: BTreeMap::from([(disk(id), 1 << 40)]),
        }
    }

    fn join(&mut self, id: u8, incarnation: u64) {
        let alive = encode_process(process(id, incarnation));
        self.put(&[
            Change::Put(keys::node(node(id)), Self::record(id, incarnation).encode()),
            Change::Put(keys::session(node(id)), alive),
        ]);
    }

    fn die(&mut self, id: u8) {
        self.put(&[Change::Delete(keys::session(node(id)))]);
    }

    /// Nodes 1 to n; 1 is coordinator. One shard of so many copies.
    fn new(nodes: u8, copies: u8) -> Self {
        let mut view = View::default();
        let me = process(1, 1);
        let elected = Change::Put(keys::COORDINATOR.to_owned(), encode_process(me));
        view.commit(Revision(1), &[elected]);
        let coordinator = Coordinator::new(0, me, Revision(1));
        let mut bench = Self { now: 0, view, coordinator, tokens: 0, out: Vec::new(), commits: 0 };
        (1..=nodes).for_each(|id| bench.join(id, 1));
        bench.run(20 * MS);
        assert!(
            bench
                .order(Command::CreateSet { set: 0, policy: Policy::Copies(copies), bits: 0 })
                .is_none()
        );
        bench.recover();
        bench
    }

    fn run(&mut self, time: u64) {
        let end = self.now + time;
        while let Some(at) = self.coordinator.next_tick().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            let mut out = Vec::new();
            self.coordinator.tick(self.now, &self.view, &mut self.tokens, &mut out);
            for effect in out {
                match effect {
                    Effect::Registry(token, Call::Commit { txn, session: false }) => {
                        self.commits += 1;
                        let elected = Compare::Unchanged(keys::COORDINATOR.to_owned(), Revision(1));
                        assert!(txn.compares.contains(&elected));
                        assert_eq!(txn.compares.len(), txn.changes.len() + 1);
                        let revision = Revision(self.view.revision.0 + 1);
                        let outcome = Some(Outcome::Committed(revision));
                        let done =
                            self.coordinator.committed(self.now, token, outcome, &mut self.out);
                        let (done, unsure) = done.expect("it is under way");
                        let (revision, txn) = done.expect("it happened");
                        assert!(!unsure);
                        self.view.commit(revision, &txn.changes);
                    }
                    other => self.out.push(other),
                }
            }
        }
        self.now = end;
    }

    fn send(&mut self, from: Process, message: Message) {
        self.coordinator.message(self.now, from, message, &self.view, &mut self.out);
    }

    fn order(&mut self, command: Command) -> Option<(ErrorKind, String)> {
        self.send(process(1, 1), Message::Command { id: 7, command });
        self.run(20 * MS);
        let answer = self.out.iter().find_map(|effect| match effect {
            Effect::Send { message: Message::CommandDone { id: 7, refused }, .. } => {
                Some(refused.clone())
            }
            _ => None,
        });
        self.out.clear();
        answer.expect("an answer")
    }

    fn shard(&self) -> &ShardRecord {
        self.view.shard(SHARD).expect("shard").0
    }

    fn acting(&self) -> Vec<u8> {
        self.shard().disks().iter().map(|disk| disk.0[0]).collect()
    }

    fn state(&self, id: u8) -> NodeState {
        self.view.map().expect("map").nodes[&node(id)].state
    }

    fn activate(&mut self) {
        let (from, interval) = (self.shard().primary().expect("primary"), self.shard().cur);
        self.send(from, Message::Activated { shard: SHARD, interval });
        self.run(20 * MS);
    }

    fn clean(&mut self) {
        let (from, interval) = (self.shard().primary().expect("primary"), self.shard().cur);
        self.send(from, Message::Clean { shard: SHARD, interval });
        self.run(20 * MS);
    }

    /// Everyone does what is to be done, until nothing changes.
    fn recover(&mut self) {
        for _ in 0..4 {
            self.activate();
            self.clean();
        }
        assert!(self.shard().is_clean(), "{:?}", self.shard());
    }

    fn suspect(&mut self, by: u8, about: &[u8], silent: u64) {
        let all = about.iter().map(|id| {
            let incarnation = self.view.map().expect("map").nodes[&node(*id)].incarnation;
            Suspicion { process: process(*id, incarnation), silent, reset: false }
        });
        let suspicions = all.collect();
        self.send(process(by, 1), Message::Suspect(suspicions));
    }

    /// The ids of acting set and primary, and of one that is neither.
    fn roles(&self) -> (u8, u8, u8) {
        let primary = self.shard().primary().expect("primary").node.0[0];
        let acting = self.acting();
        let replica = *acting.iter().find(|id| **id != primary).expect("replica");
        let other = (1..9).find(|id| !acting.contains(id)).expect("other");
        (primary, replica, other)
    }
}

#[test]
fn changes_of_one_moment_are_one_transaction() {
    let bench = Bench::new(4, 3);
    assert_eq!(bench.view.map().expect("map").epoch, 1);
    assert_eq!(bench.acting().len(), 3);
    // Map; set and records; Activated; Clean.
    assert_eq!(bench.commits, 4);
    let mut bench = bench;
    bench.run(60 * S);
    assert_eq!(bench.commits, 4, "at rest nothing is written");
}

#[test]
fn a_node_whose_session_ended_is_down_and_its_shards_go_on() {
    let mut bench = Bench::new(4, 3);
    let (primary, ..) = bench.roles();
    let (cur, commits) = (bench.shard().cur, bench.commits);
    bench.die(primary);
    bench.run(20 * MS);
    assert_eq!(bench.state(primary), NodeState::Down { grace: 600_000 });
    assert_eq!(bench.commits, commits + 1, "the map and the new interval at once");
    assert_eq!(bench.view.map().expect("map").epoch, 2);
    assert_eq!(bench.shard().cur, Interval(cur.0 + 1));
    assert_eq!(bench.acting().len(), 2, "no substitute: two are enough");
    bench.activate();
    bench.join(primary, 2);
    bench.run(20 * MS);
    assert_eq!(bench.acting().len(), 3);
    assert_eq!(bench.view.map().expect("map").epoch, 3);
    assert_ne!(bench.shard().primary(), Some(process(primary, 2)), "it lacks something");
    bench.recover();
    assert_eq!(bench.shard().primary(), Some(process(primary, 2)), "it is the first again");
}

#[test]
fn a_request_for_another_interval_or_by_another_process_changes_nothing() {
    let mut bench = Bench::new(3, 2);
    let (primary, replica, other) = bench.roles();
    bench.die(replica);
    bench.run(20 * MS);
    let before = bench.shard().clone();
    let cur = before.cur;
    for (by, interval) in [
        (process(primary, 1), Interval(cur.0 - 1)),
        (process(primary, 1), Interval(cur.0 + 1)),
        (process(other, 1), cur),
        (process(primary, 2), cur),
    ] {
        bench.send(by, Message::Activated { shard: SHARD, interval });
        bench.send(by, Message::Clean { shard: SHARD, interval });
        bench.run(20 * MS);
        assert_eq!(*bench.shard(), before);
    }
    // Twice is once.
    bench.activate();
    let commits = bench.commits;
    bench.activate();
    assert_eq!(bench.commits, commits);
    assert_eq!(bench.shard().last.interval, cur);
    assert_eq!(bench.shard().older.len(), 1);
    bench.clean();
    assert!(bench.shard().is_clean() && bench.commits == commits + 1);
    // One that comes before its Activated waits for it.
    bench.join(replica, 2);
    bench.run(20 * MS);
    let before = bench.shard().clone();
    bench.clean();
    assert_eq!(*bench.shard(), before);
    bench.activate();
    assert!(bench.shard().last.interval == before.cur && bench.shard().older.is_empty());
}

#[test]
fn grace_runs_out_and_survives_the_coordinator() {
    let mut bench = Bench::new(4, 3);
    let (_, replica, _) = bench.roles();
    bench.die(replica);
    bench.run(300 * S);
    let NodeState::Down { grace } = bench.state(replica) else {
        panic!("{:?}", bench.state(replica));
    };
    assert!((240_000..=360_000).contains(&grace), "{grace}");
    bench.coordinator = Coordinator::new(bench.now, process(1, 1), Revision(1));
    bench.run(230 * S);
    assert!(matches!(bench.state(replica), NodeState::Down { .. }));
    bench.run(140 * S);
    assert_eq!(bench.state(replica), NodeState::Out { clean: false });
    bench.recover();
    assert!(bench.shard().is_clean() && bench.acting().len() == 3, "made again elsewhere");
    assert!(!bench.acting().contains(&replica));
    assert_eq!(bench.view.map().expect("map").epoch, 2, "out is no new epoch");
}

#[test]
fn without_grace_data_is_made_again_at_once() {
    let mut bench = Bench::new(4, 3);
    assert!(bench.order(Command::Settings(Settings { grace: 0, ..Settings::default() })).is_none());
    let (_, replica, other) = bench.roles();
    bench.die(replica);
    bench.run(20 * MS);
    assert_eq!(bench.state(replica), NodeState::Out { clean: false });
    assert!(bench.acting().contains(&other));
}

#[test]
fn substitutes_join_at_once_where_too_few_act() {
    let mut bench = Bench::new(5, 3);
    let (_, replica, _) = bench.roles();
    bench.die(replica);
    bench.run(20 * MS);
    bench.activate();
    let (_, replica, _) = bench.roles();
    bench.die(replica);
    bench.run(20 * MS);
    assert_eq!(bench.acting().len(), 2, "{:?}", bench.acting());
    assert!(!bench.acting().contains(&replica));
}

#[test]
fn one_reporter_parts_two_and_two_reporters_put_one_down() {
    let mut bench = Bench::new(4, 3);
    bench.run(2 * S);
    let acting = bench.acting();
    let (a, b) = (acting[1], acting[2]);
    bench.suspect(a, &[b], 1000);
    bench.run(20 * MS);
    assert_eq!(bench.acting(), [acting[0], a], "the higher id goes");
    assert_eq!(bench.state(b), NodeState::Up, "but it is not down");
    bench.activate();
    bench.suspect(a, &[b], 3000);
    bench.suspect(1, &[b], 2900);
    bench.run(20 * MS);
    assert_eq!(bench.state(b), NodeState::Up, "two of three seconds");
    bench.suspect(1, &[b], 3000);
    bench.run(20 * MS);
    assert!(matches!(bench.state(b), NodeState::Down { .. }));
    // While two still suspect it, it does not come back; then it does, by its old incarnation.
    bench.suspect(1, &[b], 1);
    bench.suspect(a, &[b], 1);
    bench.run(20 * MS);
    assert!(matches!(bench.state(b), NodeState::Down { .. }));
    bench.suspect(a, &[], 0);
    bench.suspect(1, &[], 0);
    bench.run(20 * MS);
    assert_eq!(bench.state(b), NodeState::Up);
    assert!(bench.acting().contains(&b));
}

#[test]
fn an_old_report_says_nothing() {
    let mut bench = Bench::new(4, 3);
    let acting = bench.acting();
    bench.suspect(acting[1], &[acting[2]], 1000);
    bench.run(20 * MS);
    assert_eq!(bench.acting().len(), 2);
    bench.run(REPORT_TTL + IDLE);
    assert_eq!(bench.acting().len(), 3);
}

#[test]
fn who_comes_and_goes_joins_only_after_a_growing_wait() {
    let mut bench = Bench::new(4, 3);
    let acting = bench.acting();
    let b = acting[2];
    let mut waits = Vec::new();
    for _ in 0..5 {
        bench.suspect(acting[1], &[b], 1000);
        bench.run(20 * MS);
        assert!(!bench.acting().contains(&b));
        bench.activate();
        bench.suspect(acting[1], &[], 0);
        let since = bench.now;
        while !bench.acting().contains(&b) {
            bench.run(100 * MS);
        }
        waits.push((bench.now - since) / S);
        bench.activate();
    }
    assert_eq!(waits, [0, 0, 2, 4, 8]);
}

#[test]
fn a_clean_leave_moves_primaries_first() {
    let mut bench = Bench::new(3, 2);
    let (primary, replica, _) = bench.roles();
    let leaving = NodeRecord { leaving: true, ..Bench::record(primary, 1) };
    bench.put(&[Change::Put(keys::node(node(primary)), leaving.encode())]);
    bench.run(20 * MS);
    assert_eq!(bench.shard().primary(), Some(process(replica, 1)));
    assert_eq!(bench.acting().len(), 2, "it still acts");
    assert_eq!(bench.state(primary), NodeState::Up);
    bench.run(S);
    assert_eq!(bench.state(primary), NodeState::Up, "not before the other serves");
    bench.activate();
    bench.run(20 * MS);
    assert_eq!(bench.state(primary), NodeState::Left { grace: 600_000 });
    assert_eq!(bench.acting(), [replica]);
    bench.die(primary);
    bench.run(20 * MS);
    assert_eq!(bench.state(primary), NodeState::Left { grace: 600_000 });
}

#[test]
fn a_leave_that_nobody_can_take_over_is_not_held_up() {
    let mut bench = Bench::new(2, 1);
    let (primary, incarnation) = (bench.acting()[0], 1);
    let leaving = NodeRecord { leaving: true, ..Bench::record(primary, incarnation) };
    bench.put(&[Change::Put(keys::node(node(primary)), leaving.encode())]);
    bench.run(20 * MS);
    assert!(matches!(bench.state(primary), NodeState::Left { .. }));
    assert_eq!(bench.acting(), [primary], "its shard waits for it");
}

#[test]
fn draining_moves_data_away_and_then_the_node_has_none() {
    let mut bench = Bench::new(4, 3);
    let (_, replica, other) = bench.roles();
    assert!(bench.order(Command::Drain { node: node(replica), drain: true }).is_none());
    assert_eq!(bench.acting().len(), 4, "it acts until the other is complete");
    bench.recover();
    assert!(bench.acting().contains(&other) && !bench.acting().contains(&replica));
    assert!(bench.order(Command::Drain { node: node(9), drain: true }).is_some());
}

#[test]
fn a_lost_disk_is_replaced_at_once_and_may_come_back() {
    let mut bench = Bench::new(4, 3);
    let (_, replica, other) = bench.roles();
    let without = NodeRecord { disks: BTreeMap::new(), ..Bench::record(replica, 1) };
    bench.put(&[Change::Put(keys::node(node(replica)), without.encode())]);
    bench.run(20 * MS);
    assert!(bench.acting().contains(&other) && !bench.acting().contains(&replica));
    assert_eq!(bench.state(replica), NodeState::Up);
    bench.recover();
    bench.put(&[Change::Put(keys::node(node(replica)), Bench::record(replica, 1).encode())]);
    bench.run(20 * MS);
    bench.recover();
    let entry = &bench.view.map().expect("map").nodes[&node(replica)];
    assert_eq!(entry.disks[&disk(replica)].state, DiskState::In);
}

#[test]
fn strict_clusters_halt_with_fewer_zones_than_copies() {
    let mut bench = Bench::new(3, 3);
    let strict = Settings { strict: true, ..Settings::default() };
    assert!(bench.order(Command::Settings(strict)).is_none());
    assert!(bench.view.map().expect("map").halted.is_empty());
    bench.die(3);
    bench.run(20 * MS);
    assert_eq!(bench.view.map().expect("map").halted, BTreeSet::from([0]));
    bench.join(3, 2);
    bench.run(20 * MS);
    assert!(bench.view.map().expect("map").halted.is_empty());
}

#[test]
fn fewer_zones_than_copies_is_one_per_zone() {
    let mut bench = Bench::new(2, 3);
    assert_eq!(bench.acting().len(), 2);
    bench.join(3, 1);
    bench.run(20 * MS);
    bench.recover();
    assert_eq!(bench.acting().len(), 3);
}

#[test]
fn a_fenced_process_is_down_for_ever() {
    let mut bench = Bench::new(3, 2);
    let (_, replica, _) = bench.roles();
    assert!(bench.order(Command::Fence(process(replica, 1))).is_none());
    assert!(matches!(bench.state(replica), NodeState::Down { .. }));
    bench.activate();
    bench.run(10 * S);
    assert!(!bench.acting().contains(&replica));
    bench.join(replica, 2);
    bench.run(20 * MS);
    assert_eq!(bench.state(replica), NodeState::Up);
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let mut bench = Bench::new(3, 2);
    let copies = |copies| Command::CreateSet { set: 0, policy: Policy::Copies(copies), bits: 0 };
    assert_eq!(bench.order(copies(2)), None, "it is so already");
    for command in [
        copies(3),
        Command::CreateSet { set: 1, policy: Policy::Copies(0), bits: 0 },
        Command::Vnodes { node: node(1), vnodes: 70_000 },
        Command::Disk { disk: disk(1), state: DiskState::Lost },
        Command::GiveUp { node: node(1) },
        Command::Remove { node: node(1) },
        Command::Force { shard: ShardId { set: 3, number: 0 }, lost: Vec::new() },
    ] {
        assert!(bench.order(command.clone()).is_some(), "{command:?}");
    }
    bench.die(3);
    bench.run(20 * MS);
    assert_eq!(bench.order(Command::GiveUp { node: node(3) }), None);
    assert_eq!(bench.state(3), NodeState::Out { clean: true });
    assert_eq!(bench.order(Command::Remove { node: node(3) }), None);
    assert!(!bench.view.map().expect("map").nodes.contains_key(&node(3)));
    assert!(!bench.view.nodes.contains_key(&node(3)));
}

fn knows(shard: ShardId, id: u8, promised: u64, activation: (u64, &[u8])) -> Knowledge {
    let members = activation.1.iter().map(|id| disk(*id)).collect();
    let activation = Activation { interval: Interval(activation.0), members };
    Knowledge { shard, disk: disk(id), promised: Interval(promised), activation }
}

#[test]
fn a_registry_that_went_back_is_brought_up_from_all_replicas() {
    let mut bench = Bench::new(4, 2);
    let (primary, replica, other) = bench.roles();
    let before = bench.shard().clone();
    // What was lost: intervals up to 20, the last one that served with the other one in it.
    bench.send(
        process(replica, 1),
        Message::KnowsLater(knows(SHARD, replica, 20, (12, &[primary, replica]))),
    );
    bench.activate();
    bench.run(5 * S);
    assert_eq!(*bench.shard(), before, "nothing changes before everyone has answered");
    let asked = |bench: &Bench| {
        let all = bench.out.iter().filter_map(|effect| match effect {
            Effect::Send { to, message: Message::Ask { round, shards } } => {
                assert_eq!(*shards, [SHARD]);
                Some((to.node.0[0], *round))
            }
            _ => None,
        });
        all.collect::<BTreeMap<u8, u64>>()
    };
    let rounds = asked(&bench);
    assert_eq!(rounds.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (id, round) in rounds {
        let mut all = Vec::new();
        if id == replica {
            all.push(knows(SHARD, id, 20, (12, &[primary, replica])));
        } else if id == other {
            all.push(knows(SHARD, id, 17, (17, &[replica, other])));
        }
        bench.send(process(id, 1), Message::Know { round, knows: all });
    }
    bench.run(S);
    let after = bench.shard().clone();
    assert!(after.cur.0 > 20, "above all that was reported: {after:?}");
    let members = BTreeSet::from([disk(replica), disk(other)]);
    assert_eq!(after.last, Activation { interval: Interval(17), members });
    assert!(after.older.iter().any(|old| old.interval == Interval(12)));
    assert!(after.acting.iter().all(|seat| !seat.complete));
    assert!(after.disks().contains(&disk(other)), "{after:?}");
    bench.recover();
}

#[test]
fn nodes_that_are_away_are_waited_for_when_the_registry_went_back() {
    let mut bench = Bench::new(3, 2);
    let (primary, replica, other) = bench.roles();
    bench.die(other);
    bench.run(20 * MS);
    let cur = bench.shard().cur;
    bench.send(process(primary, 1), Message::WentBack { known: Revision(1000) });
    bench.send(process(primary, 1), Message::KnowsLater(knows(SHARD, primary, 9, (9, &[primary]))));
    bench.run(20 * MS);
    let round = bench.out.iter().rev().find_map(|effect| match effect {
        Effect::Send { message: Message::Ask { round, .. }, .. } => Some(*round),
        _ => None,
    });
    let round = round.expect("asked");
    for id in [primary, replica] {
        bench.send(process(id, 1), Message::Know { round, knows: Vec::new() });
    }
    bench.run(PATIENCE - S);
    assert_eq!(bench.shard().cur, cur);
    bench.run(2 * S);
    assert!(bench.shard().cur.0 > 9);
}

#[test]
fn the_last_resort_goes_on_with_what_remains() {
    let mut bench = Bench::new(4, 3);
    let acting = bench.acting();
    let settings = Settings { min_copies: Some(1), ..Settings::default() };
    assert_eq!(bench.order(Command::Settings(settings)), None);
    // Interval by interval fewer are left: J is the last of them alone.
    for gone in &acting[1..] {
        bench.die(*gone);
        bench.run(20 * MS);
        bench.activate();
    }
    let last = bench.shard().last.members.clone();
    assert!(last.contains(&disk(acting[0])));
    bench.die(acting[0]);
    bench.join(acting[1], 2);
    bench.run(20 * MS);
    let (stuck, before) = (bench.shard().cur, bench.shard().last.clone());
    assert_eq!(bench.order(Command::Force { shard: SHARD, lost: Vec::new() }), None);
    let after = bench.shard().clone();
    assert!(after.cur > stuck && after.last.interval < before.interval);
    assert_eq!(after.last.members, BTreeSet::from([disk(acting[1])]));
    assert!(bench.view.fences.as_ref().expect("fences").0.disks.contains(&disk(acting[0])));
    // It comes back, and is no member again.
    bench.recover();
    bench.join(acting[0], 2);
    bench.run(20 * MS);
    bench.recover();
    assert!(!bench.acting().contains(&acting[0]), "{:?} {:?}", acting, bench.shard());
    assert!(bench.acting().contains(&acting[1]));
}

#[test]
fn an_unknown_outcome_means_reading_again_and_deciding_anew() {
    let mut bench = Bench::new(3, 2);
    let (primary, replica, _) = bench.roles();
    bench.die(replica);
    let take = |bench: &mut Bench| {
        bench.now += BATCH;
        let mut out = Vec::new();
        bench.coordinator.tick(bench.now, &bench.view, &mut bench.tokens, &mut out);
        match out.pop() {
            Some(Effect::Registry(token, Call::Commit { txn, .. })) => (token, txn),
            other => panic!("{other:?}"),
        }
    };
    let (token, txn) = take(&mut bench);
    let mut out = Vec::new();
    bench.coordinator.tick(bench.now + S, &bench.view, &mut bench.tokens, &mut out);
    assert_eq!(out, [], "one at a time");
    let unsure = bench.coordinator.committed(bench.now, token, None, &mut out);
    assert_eq!(unsure, Some((None, true)));
    // It did not happen: the same again. It did: nothing to do.
    let (token, again) = take(&mut bench);
    assert_eq!(again, txn);
    assert_eq!(bench.coordinator.committed(bench.now, token, None, &mut out), Some((None, true)));
    let commits = bench.commits;
    bench.put(&txn.changes);
    bench.run(S);
    assert_eq!(bench.commits, commits);
    assert!(bench.acting() == [primary] || bench.acting().len() == 2);
}

#[test]
fn what_cannot_be_read_is_not_changed() {
    let mut bench = Bench::new(3, 2);
    bench.put(&[Change::Put(keys::set(5), b"\x08\x63".to_vec().into())]);
    let commits = bench.commits;
    bench.die(2);
    bench.run(S);
    assert_eq!(bench.commits, commits);
    assert!(bench.out.iter().any(|e| matches!(e, Effect::Log(LogLevel::Error, _))));
}

#[test]
fn a_disk_that_was_carried_to_another_node_is_found_there() {
    let mut bench = Bench::new(3, 2);
    let (_, replica, other) = bench.roles();
    let mut both = Bench::record(other, 1);
    both.disks.insert(disk(replica), 1 << 40);
    bench.put(&[Change::Put(keys::node(node(other)), both.encode())]);
    bench.run(20 * MS);
    assert_eq!(bench.view.map().expect("map").owner(disk(replica)), Some(node(replica)));
    bench.die(replica);
    bench.run(50 * MS);
    assert_eq!(bench.view.map().expect("map").owner(disk(replica)), Some(node(other)));
}
