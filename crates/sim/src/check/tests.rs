use super::*;
use crate::Rng;
use sheepdog_types::Vid;

fn op(client: u64, kind: Kind, invoked: u64, end: End) -> Op {
    Op { client, gateway: 0, kind, invoked, end }
}

fn done(kind: Kind, invoked: u64, until: u64) -> Op {
    op(1, kind, invoked, End::Done(until))
}

fn wrong(ops: &[Op]) -> Violation {
    assert!(!search::is_linearizable(ops), "the slow checker sees nothing wrong");
    match register(ops) {
        Verdict::Wrong(violation) => violation,
        other => panic!("{other:?}"),
    }
}

fn fine(ops: &[Op]) {
    assert!(search::is_linearizable(ops));
    assert_eq!(register(ops), Verdict::Fine);
}

#[test]
fn stale_reads_are_found_and_explained() {
    let stale = wrong(&[
        done(Kind::Write(1), 1, 2),
        done(Kind::Read(1), 3, 4),
        done(Kind::Write(2), 5, 6),
        done(Kind::Read(2), 7, 8),
        done(Kind::Read(1), 9, 10),
    ]);
    let text = stale.to_string();
    assert_eq!(stale.ops.len(), 3, "{text}");
    assert!(text.starts_with("the block held 1 from before 2 to after 9, yet 2 between"), "{text}");
    assert!(text.contains("     9..10     client 1 at 0 reads 1\n"), "{text}");
    // The same while both writes overlap the reads.
    fine(&[
        done(Kind::Write(1), 1, 20),
        done(Kind::Write(2), 2, 20),
        done(Kind::Read(2), 7, 8),
        done(Kind::Read(1), 9, 10),
    ]);
    wrong(&[
        done(Kind::Write(1), 1, 20),
        done(Kind::Write(2), 2, 20),
        done(Kind::Read(2), 7, 8),
        done(Kind::Read(1), 9, 10),
        done(Kind::Read(2), 11, 12),
    ]);
}

#[test]
fn lost_writes_and_values_from_nowhere_are_found() {
    wrong(&[done(Kind::Write(1), 1, 2), done(Kind::Read(ZEROS), 3, 4)]);
    wrong(&[done(Kind::Read(1), 1, 2), done(Kind::Write(1), 3, 4)]);
    assert_eq!(wrong(&[done(Kind::Read(8), 1, 2)]).why, "nobody wrote 8");
    assert_eq!(wrong(&[done(Kind::Read(DAMAGED), 1, 2)]).why, "a block is no whole write's");
    let refused = [op(1, Kind::Write(1), 1, End::Never), done(Kind::Read(1), 3, 4)];
    assert_eq!(wrong(&refused).why, "the write of 1 was refused, yet it is read");
}

#[test]
fn a_vanished_write_happens_once_in_time_or_never() {
    let vanished = |until, reads: &[(Value, u64)]| {
        let mut ops = vec![done(Kind::Write(1), 1, 2), op(2, Kind::Write(2), 3, End::Open(until))];
        let reads = reads.iter().map(|(value, at)| done(Kind::Read(*value), *at, *at + 1));
        ops.extend(reads);
        ops
    };
    fine(&vanished(None, &[(1, 10), (1, 20)]));
    fine(&vanished(None, &[(1, 10), (2, 20), (2, 30)]));
    wrong(&vanished(None, &[(2, 10), (1, 20)]));
    // Ruled out at 10: seen by nobody who begins at 10 unless it was there already.
    fine(&vanished(Some(10), &[(2, 10), (2, 20)]));
    fine(&vanished(Some(10), &[(1, 10), (1, 20)]));
    wrong(&vanished(Some(10), &[(1, 10), (2, 20)]));
}

#[test]
fn zeros_are_written_often_and_by_anybody() {
    fine(&[
        done(Kind::Write(1), 1, 2),
        done(Kind::Zero, 3, 4),
        done(Kind::Read(ZEROS), 5, 6),
        done(Kind::Write(2), 7, 8),
        done(Kind::Zero, 9, 12),
        done(Kind::Read(2), 9, 10),
        done(Kind::Read(ZEROS), 13, 14),
    ]);
    wrong(&[
        done(Kind::Write(1), 1, 2),
        done(Kind::Zero, 3, 4),
        done(Kind::Write(2), 5, 6),
        done(Kind::Read(ZEROS), 7, 8),
    ]);
    // One write of zeros cannot happen twice.
    let twice = [
        op(2, Kind::Zero, 1, End::Open(None)),
        done(Kind::Write(1), 2, 3),
        done(Kind::Read(ZEROS), 4, 5),
        done(Kind::Write(2), 6, 7),
        done(Kind::Read(ZEROS), 8, 9),
    ];
    wrong(&twice);
    fine(&[twice.as_slice(), &[op(3, Kind::Zero, 1, End::Open(Some(8)))]].concat());
    wrong(&[twice.as_slice(), &[op(3, Kind::Zero, 1, End::Open(Some(6)))]].concat()[1..]);
}

#[test]
fn a_whole_history_is_judged_block_by_block() {
    let vid = Vid::new(3).expect("in range");
    let mut history = crate::history::History::new();
    let write = history.invoke((1, 1), vid, 5, &[Kind::Write(1), Kind::Write(1)]);
    history.done(write);
    let read = history.invoke((2, 2), vid, 5, &[Kind::Read(0); 2]);
    history.read(read, &[1, ZEROS]);
    let judgement = super::history(&history);
    assert_eq!((judgement.blocks, judgement.ops, judgement.undecided), (2, 4, 0));
    let places: Vec<u64> = judgement.violations.iter().map(|(block, _)| block.number).collect();
    assert_eq!(places, [6]);
}

/// A register and its clients, some of whom vanish; the operations are right by construction.
struct Generator<'a> {
    rng: &'a mut Rng,
    ops: Vec<Op>,
    event: u64,
    value: Value,
    zeros: u64,
    /// The operation that each client waits for, and whether it took effect.
    clients: Vec<Option<(usize, bool)>>,
    /// What vanished clients left.
    ghosts: Vec<(usize, bool)>,
}

impl Generator<'_> {
    fn apply(&mut self, place: usize) {
        match &mut self.ops[place].kind {
            Kind::Write(value) => self.value = *value,
            Kind::Zero => self.value = ZEROS,
            Kind::Read(value) => *value = self.value,
        }
    }

    fn client(&mut self, client: usize, room: bool) {
        match self.clients[client] {
            None if room => {
                let place = self.ops.len();
                let kind = match self.rng.below(100) {
                    n if n < self.zeros => Kind::Zero,
                    n if n < 50 => Kind::Write(place as u64 + 1),
                    _ => Kind::Read(ZEROS),
                };
                self.event += 1;
                self.ops.push(op(client as u64, kind, self.event, End::Open(None)));
                self.clients[client] = Some((place, false));
            }
            None => {}
            Some((place, false)) => match self.rng.below(20) {
                0..14 => {
                    self.apply(place);
                    self.clients[client] = Some((place, true));
                }
                14 => {
                    self.ops[place].end = End::Never;
                    self.clients[client] = None;
                }
                15 => {
                    self.ghosts.push((place, false));
                    self.clients[client] = None;
                }
                _ => {}
            },
            Some((place, true)) => match self.rng.below(20) {
                0..12 => {
                    self.event += 1;
                    self.ops[place].end = End::Done(self.event);
                    self.clients[client] = None;
                }
                12 => {
                    self.ghosts.push((place, true));
                    self.clients[client] = None;
                }
                _ => {}
            },
        }
    }

    fn ghost(&mut self) {
        let at = self.rng.index(self.ghosts.len());
        let (place, happened) = self.ghosts[at];
        if self.rng.chance(50) && !happened {
            self.apply(place);
            self.ghosts[at].1 = true;
        } else if self.rng.chance(50) {
            // Often at the very event that begins something.
            self.ops[place].end = End::Open(Some(self.event + 1));
            self.event += u64::from(self.rng.chance(50));
            self.ghosts.swap_remove(at);
        }
    }
}

fn random(rng: &mut Rng, clients: usize, most: usize) -> Vec<Op> {
    let zeros = [0, 10, 20, 30][rng.index(4)];
    let (ops, ghosts) = (Vec::new(), Vec::new());
    let clients = vec![None; clients];
    let mut made = Generator { rng, ops, event: 0, value: ZEROS, zeros, clients, ghosts };
    while made.ops.len() < most || made.rng.chance(95) {
        if !made.ghosts.is_empty() && made.rng.chance(20) {
            made.ghost();
        } else {
            let client = made.rng.index(made.clients.len());
            let room = made.ops.len() < most;
            made.client(client, room);
        }
    }
    made.ops
}

/// Changes something that may make it wrong.
fn mutate(ops: &mut [Op], rng: &mut Rng) {
    let answered = |op: &Op| matches!((op.kind, op.end), (Kind::Read(_), End::Done(_)));
    let reads: Vec<usize> = (0..ops.len()).filter(|place| answered(&ops[*place])).collect();
    let read = rng.chance(60) && !reads.is_empty();
    let place = if read { *rng.pick(&reads) } else { rng.index(ops.len()) };
    let other = ops[rng.index(ops.len())];
    let op = &mut ops[place];
    match (op.kind, op.end, rng.below(4)) {
        (Kind::Read(_), _, 0..2) => {
            op.kind = match other.kind {
                Kind::Zero => Kind::Read(ZEROS),
                Kind::Read(value) | Kind::Write(value) => Kind::Read(value),
            };
        }
        (_, End::Done(until), 2) if op.invoked + 1 < until => {
            op.end = End::Done(rng.between(op.invoked + 1, until - 1));
        }
        (_, End::Done(until), _) if op.invoked + 1 < until => {
            op.invoked = rng.between(op.invoked + 1, until - 1);
        }
        (_, End::Open(until), 0..3) => {
            let until = until.unwrap_or(op.invoked + 20);
            op.end = End::Open(Some(rng.between(op.invoked, until)));
        }
        (Kind::Write(_) | Kind::Zero, _, 0) => op.end = End::Never,
        _ => {}
    }
}

#[test]
fn the_fast_checker_agrees_with_the_slow_one() {
    const HISTORIES: u64 = 300_000;
    let mut rng = Rng::new(20).fork("histories");
    let (mut right, mut bad, mut with_zeros) = (0, 0, [0, 0]);
    let (mut by_orders, mut explained) = (0, 0);
    for number in 0..HISTORIES {
        let (clients, most) = (2 + rng.index(4), 5 + rng.index(10));
        let mut ops = random(&mut rng, clients, most);
        let mutations = [0, 1, 2, 4, 6, 8][rng.index(6)];
        for _ in 0..mutations {
            mutate(&mut ops, &mut rng);
        }
        let slow = search::is_linearizable(&ops);
        assert!(slow || mutations > 0, "history {number} is right by construction: {ops:#?}");
        let zeros = ops.iter().any(|op| op.kind == Kind::Zero);
        match register(&ops) {
            Verdict::Fine => {
                assert!(slow, "history {number} is wrong: {ops:#?}");
                right += 1;
                with_zeros[0] += u64::from(zeros);
            }
            Verdict::Wrong(violation) => {
                assert!(!slow, "history {number} is right, not {violation}");
                assert!(!search::is_linearizable(&violation.ops), "{number}: {violation}");
                explained += violation.ops.len() as u64;
                bad += 1;
                with_zeros[1] += u64::from(zeros);
                by_orders += u64::from(violation.why.starts_with("no order"));
            }
            Verdict::Undecided => panic!("history {number} is small"),
        }
    }
    let counts = format!(
        "{right} right, {bad} wrong, with zeros {with_zeros:?}, {by_orders} wrong by orders, \
         {explained} operations shown"
    );
    println!("{counts}");
    for count in [right, bad, with_zeros[0], with_zeros[1], by_orders * 4] {
        assert!(count >= HISTORIES / 10, "{counts}");
    }
    assert!(explained < 5 * bad, "explanations are short");
}

#[test]
fn long_histories_are_judged_quickly_and_completely() {
    let mut rng = Rng::new(21).fork("long");
    let mut found = 0;
    for _ in 0..20 {
        let mut ops = random(&mut rng, 6, 2_000);
        assert_eq!(register(&ops), Verdict::Fine);
        for _ in 0..20 {
            mutate(&mut ops, &mut rng);
        }
        found += u64::from(matches!(register(&ops), Verdict::Wrong(_)));
    }
    assert!(found >= 15, "{found} of 20");
}

#[test]
fn too_many_overlapping_operations_are_said_to_be_too_many() {
    let mut ops: Vec<Op> = (1..80).map(|value| done(Kind::Write(value), value, 1000)).collect();
    ops.push(done(Kind::Zero, 90, 1000));
    ops.push(done(Kind::Read(ZEROS), 1001, 1002));
    assert_eq!(register(&ops), Verdict::Undecided);
}
