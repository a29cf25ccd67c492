use super::*;
use sheepdog_types::NodeId;

fn peer(id: u8) -> Process {
    Process { node: NodeId([id; 16]), incarnation: 1 }
}

fn watching() -> Detector {
    let mut detector = Detector::default();
    detector.watch(0, &BTreeSet::from([peer(1), peer(2)]));
    detector
}

/// Looks whenever it wants to, until then. Returns what it did.
fn until(detector: &mut Detector, end: Now) -> Vec<Effect> {
    let mut out = Vec::new();
    while let Some(at) = detector.next_tick().filter(|at| *at <= end) {
        detector.tick(at, &mut out);
    }
    detector.tick(end, &mut out);
    out
}

fn suspects(detector: &Detector, now: Now) -> Vec<(u8, u64, bool)> {
    let all = detector.suspicions(now);
    all.iter().map(|s| (s.process.node.0[0], s.silent, s.reset)).collect()
}

#[test]
fn who_is_silent_is_asked_and_then_suspected() {
    let mut detector = watching();
    let asked = until(&mut detector, 900 * MS);
    assert_eq!(asked.len(), 6, "three times each");
    assert_eq!(suspects(&detector, 999 * MS), []);
    detector.heard(900 * MS, peer(1));
    until(&mut detector, 1000 * MS);
    assert_eq!(suspects(&detector, 1000 * MS), [(2, 1000, false)]);
    detector.heard(1100 * MS, peer(2));
    assert_eq!(suspects(&detector, 1100 * MS), []);
}

#[test]
fn a_reset_is_confirmed_by_a_second_look() {
    let mut detector = watching();
    let mut out = Vec::new();
    detector.reset(10 * MS, peer(1), &mut out);
    assert_eq!(out, [Effect::Probe(peer(1))]);
    assert_eq!(suspects(&detector, 10 * MS), [], "one look is not enough");
    detector.reset(11 * MS, peer(1), &mut out);
    assert_eq!(suspects(&detector, 11 * MS), [(1, 11, true)]);
    // Or nothing is heard in time.
    detector.reset(20 * MS, peer(2), &mut out);
    assert_eq!(detector.next_tick(), Some(120 * MS));
    until(&mut detector, 120 * MS);
    assert_eq!(suspects(&detector, 120 * MS).len(), 2);
    // A restarted connection ends it.
    detector.heard(121 * MS, peer(1));
    detector.heard(121 * MS, peer(2));
    assert_eq!(suspects(&detector, 500 * MS), []);
}

#[test]
fn ones_own_pause_is_no_silence_of_others() {
    let mut detector = watching();
    until(&mut detector, 200 * MS);
    let mut out = Vec::new();
    detector.reset(200 * MS, peer(2), &mut out);
    detector.tick(5200 * MS, &mut out);
    assert_eq!(suspects(&detector, 5200 * MS), []);
    until(&mut detector, 6100 * MS);
    assert_eq!(suspects(&detector, 6100 * MS).len(), 2, "but then it counts");
}

#[test]
fn only_peers_are_looked_at() {
    let mut detector = watching();
    detector.watch(100 * MS, &BTreeSet::from([peer(3)]));
    let mut out = Vec::new();
    detector.reset(100 * MS, peer(1), &mut out);
    assert_eq!(out, []);
    until(&mut detector, 1050 * MS);
    assert_eq!(suspects(&detector, 1050 * MS), [], "a new one has its time");
    until(&mut detector, 1100 * MS);
    assert_eq!(suspects(&detector, 1100 * MS), [(3, 1000, false)]);
}
