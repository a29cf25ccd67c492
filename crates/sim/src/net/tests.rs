use super::*;
use std::collections::BTreeMap;

const A: Host = Host(0);
const B: Host = Host(1);
const C: Host = Host(2);

struct World {
    queue: Queue<Step>,
    net: Net<u64>,
    /// What each host learned, in order; messages with the time at which they came.
    log: Vec<(u64, Report<u64>)>,
}

impl World {
    fn new(seed: u64, settings: Settings) -> Self {
        let mut queue = Queue::new();
        let mut net = Net::new(settings, Rng::new(seed));
        for host in [A, B, C] {
            queue.add_host(host, 0, crate::queue::TRUE_RATE);
            net.start(&mut queue, host);
        }
        let mut world = Self { queue, net, log: Vec::new() };
        world.run_until(10 * SECOND);
        world
    }

    fn run_until(&mut self, time: u64) {
        self.queue.at(time, Step { pair: (A, B), what: What::Down { link: 0, side: 0 } });
        while self.queue.now() < time {
            let Some(due) = self.queue.next() else { return };
            let mut out = Vec::new();
            self.net.step(&mut self.queue, due.event, &mut out);
            self.log.extend(out.into_iter().map(|report| (self.queue.now(), report)));
        }
    }

    fn run_for(&mut self, time: u64) {
        self.run_until(self.queue.now() + time);
    }

    fn send(&mut self, from: Host, to: Host, lane: Lane, message: u64) -> bool {
        self.net.send(&mut self.queue, (from, to), lane, 4096, message)
    }

    fn got(&self, host: Host, wanted: Lane) -> Vec<u64> {
        let messages = self.log.iter().filter_map(|(_, report)| match report {
            Report::Message { host: to, lane, message, .. } if *to == host && *lane == wanted => {
                Some(*message)
            }
            _ => None,
        });
        messages.collect()
    }

    /// `+` and `-` for connections of that host with that peer.
    fn ups(&self, of: Host, with: Host) -> String {
        let signs = self.log.iter().filter_map(|(_, report)| match report {
            Report::Connected { host, peer } if (*host, *peer) == (of, with) => Some('+'),
            Report::Disconnected { host, peer } if (*host, *peer) == (of, with) => Some('-'),
            _ => None,
        });
        signs.collect()
    }
}

#[test]
fn messages_keep_their_order_and_bulk_does_not_block_control() {
    let mut world = World::new(1, Settings::default());
    assert_eq!(world.ups(A, B), "+");
    world.log.clear();
    for message in 0..200 {
        assert!(world.send(A, B, Lane::Bulk, message));
    }
    assert!(world.send(A, B, Lane::Control, 1000));
    world.run_for(SECOND);
    assert_eq!(world.got(B, Lane::Bulk), (0..200).collect::<Vec<_>>());
    let place = world
        .log
        .iter()
        .position(|(_, r)| matches!(r, Report::Message { lane: Lane::Control, .. }));
    assert!(place.is_some_and(|place| place < 100), "control came at place {place:?}");
}

#[test]
fn a_short_partition_delays_and_a_long_one_disconnects() {
    let mut world = World::new(2, Settings::default());
    world.net.cut(&mut world.queue, A, B);
    world.send(A, B, Lane::Control, 1);
    world.send(B, A, Lane::Control, 2);
    world.run_for(SECOND / 2);
    assert_eq!((world.got(B, Lane::Control), world.got(A, Lane::Control)), (vec![], vec![2]));
    world.send(A, B, Lane::Control, 3);
    world.net.heal(&mut world.queue, A, B);
    world.send(A, B, Lane::Control, 4);
    world.run_for(SECOND);
    assert_eq!(world.got(B, Lane::Control), [1, 3, 4]);
    assert_eq!(world.ups(A, B), "+");

    world.net.cut(&mut world.queue, A, B);
    world.send(A, B, Lane::Control, 5);
    world.run_for(4 * SECOND);
    assert_eq!((world.ups(A, B).as_str(), world.ups(B, A).as_str()), ("+-", "+-"));
    assert!(!world.send(A, B, Lane::Control, 6), "it knows that it is not connected");
    world.net.heal(&mut world.queue, A, B);
    world.run_for(4 * SECOND);
    assert_eq!((world.ups(A, B).as_str(), world.ups(B, A).as_str()), ("+-+", "+-+"));
    assert_eq!(world.got(B, Lane::Control), [1, 3, 4], "what was swallowed is lost with it");
    assert_eq!(world.ups(A, C), "+", "nobody else is hurt");
}

#[test]
fn a_reset_loses_some_suffix() {
    let mut kept = BTreeMap::<usize, u32>::new();
    for seed in 0..100 {
        let mut world = World::new(seed, Settings::default());
        for message in 0..4 {
            world.send(A, B, Lane::Bulk, message);
        }
        assert!(world.net.reset(&mut world.queue, A, B));
        assert!(!world.net.reset(&mut world.queue, A, B), "once");
        assert!(world.send(A, B, Lane::Bulk, 9), "it does not know yet");
        world.run_for(5 * SECOND);
        let got = world.got(B, Lane::Bulk);
        assert_eq!(got, (0..got.len() as u64).collect::<Vec<_>>());
        *kept.entry(got.len()).or_default() += 1;
        assert_eq!((world.ups(A, B).as_str(), world.ups(B, A).as_str()), ("+-+", "+-+"));
    }
    assert_eq!(kept.len(), 5, "{kept:?}");
}

#[test]
fn a_death_is_seen_at_once_or_late() {
    for (death, seen_within) in [(Death::Reset, 10 * MS), (Death::Silence, 4 * SECOND)] {
        let mut world = World::new(3, Settings::default());
        let before = world.queue.now();
        world.queue.forget(A);
        world.net.die(&mut world.queue, A, death);
        world.run_for(10 * SECOND);
        let seen = world
            .log
            .iter()
            .rev()
            .find(|(_, report)| *report == Report::Disconnected { host: B, peer: A });
        let after = seen.expect("B learns it").0 - before;
        assert!(after <= seen_within, "{death:?} seen after {after}");
        assert_eq!(death == Death::Silence, after >= SECOND);
        assert_eq!(world.ups(A, B), "+", "the dead learn nothing");
        world.net.start(&mut world.queue, A);
        world.run_for(5 * SECOND);
        assert_eq!((world.ups(A, B).as_str(), world.ups(B, A).as_str()), ("++", "+-+"));
    }
}

#[test]
fn a_restart_replaces_what_a_peer_still_believes_in() {
    let mut world = World::new(4, Settings::default());
    world.queue.forget(A);
    world.net.die(&mut world.queue, A, Death::Silence);
    world.net.start(&mut world.queue, A);
    world.run_for(SECOND / 2);
    assert_eq!(world.ups(B, A), "+-+");
    world.send(B, A, Lane::Control, 7);
    world.run_for(5 * SECOND);
    assert_eq!(world.got(A, Lane::Control), [7]);
    assert_eq!(world.ups(B, A), "+-+", "the old one's end is not taken for the new one's");
}

#[test]
fn a_paused_host_gets_its_messages_before_the_end_of_the_connection() {
    let mut world = World::new(5, Settings::default());
    world.queue.pause(B);
    world.send(A, B, Lane::Control, 1);
    world.run_for(SECOND);
    assert_eq!(world.got(B, Lane::Control), [0_u64; 0]);
    world.net.reset(&mut world.queue, A, B);
    world.run_for(SECOND);
    world.queue.resume(B);
    world.run_for(5 * SECOND);
    assert!(world.got(B, Lane::Control).len() <= 1);
    assert!(world.ups(B, A).ends_with("-+"));
    assert_eq!(world.ups(A, B), "+-+");
}

#[test]
fn old_messages_come_again_after_a_reconnect() {
    let mut world = World::new(6, Settings { late: 1000, ..Settings::default() });
    world.send(A, B, Lane::Bulk, 1);
    world.run_for(SECOND);
    world.net.reset(&mut world.queue, A, B);
    world.run_for(5 * SECOND);
    assert_eq!(world.got(B, Lane::Bulk), [1, 1]);
    assert!(world.log.iter().any(|(_, r)| matches!(r, Report::Message { old: true, .. })));
    assert_eq!(world.net.faults.of("net: old message again"), 1);
}

/// Everything at once, at random: order within a connection, no message from nowhere, both sides
/// agree in the end, and the same seed is the same run.
#[test]
fn random_faults_keep_the_rules() {
    let run = |seed| {
        let mut world = World::new(seed, Settings { late: 20, ..Settings::default() });
        let mut rng = Rng::new(seed).fork("test");
        let hosts = [A, B, C];
        let mut message = 0;
        let mut down = None;
        for _ in 0..400 {
            let (a, b) = (*rng.pick(&hosts), *rng.pick(&hosts));
            match rng.below(40) {
                0 if a != b => world.net.cut(&mut world.queue, a, b),
                1 | 2 if a != b => world.net.heal(&mut world.queue, a, b),
                3 if a != b => drop(world.net.reset(&mut world.queue, a, b)),
                4 if down.is_none() => {
                    down = Some(a);
                    let death = *rng.pick(&[Death::Reset, Death::Silence]);
                    world.queue.forget(a);
                    world.net.die(&mut world.queue, a, death);
                }
                5 | 6 => {
                    if let Some(host) = down.take() {
                        world.net.start(&mut world.queue, host);
                    }
                }
                7 => world.queue.pause(a),
                8 | 9 => world.queue.resume(a),
                _ if a != b && down != Some(a) => {
                    message += 1;
                    let lane = *rng.pick(&[Lane::Control, Lane::Bulk]);
                    world.send(a, b, lane, message);
                }
                _ => world.run_for(rng.below(SECOND)),
            }
        }
        for host in hosts {
            world.queue.resume(host);
        }
        if let Some(host) = down {
            world.net.start(&mut world.queue, host);
        }
        world.net.heal_all(&mut world.queue);
        world.run_for(60 * SECOND);
        world
    };
    for seed in 0..200 {
        let world = run(seed);
        for (a, b) in [(A, B), (A, C), (B, C)] {
            assert!(world.net.is_connected(a, b) && world.net.is_connected(b, a), "seed {seed}");
        }
        let mut last = BTreeMap::new();
        for (_, report) in &world.log {
            if let Report::Message { host, peer, lane, old: false, message } = report {
                let before = last.insert((*host, *peer, *lane), *message);
                assert!(before.is_none_or(|before| before < *message), "seed {seed}");
            }
        }
        let again = run(seed);
        assert_eq!(world.log, again.log, "seed {seed}");
    }
}
