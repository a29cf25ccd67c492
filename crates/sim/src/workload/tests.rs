use super::*;
use crate::history::{BlockId, History, Request};
use crate::{Counts, check, stamp};
use bytes::Bytes;
use sheepdog_types::BLOCK_SIZE;

/// A system of one array of blocks behind gateways, which executes requests block by block in any
/// order; and mistakes that it may make.
#[derive(Default)]
struct Toy {
    blocks: BTreeMap<BlockId, Bytes>,
    /// Requests with the blocks that are still to be done, and the bytes read so far.
    running: BTreeMap<u64, Running>,
    requests: BTreeMap<u64, Request>,
    history: History,
    seen: Counts,
    mistake: Option<Mistake>,
}

struct Running {
    ask: Ask,
    left: Vec<u64>,
    values: BTreeMap<u64, Value>,
    /// Its client is gone.
    orphan: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    /// A read now and then sees what was there before the last write.
    Stale,
    /// What a vanished client left is executed whenever.
    LateWrite,
    /// A write now and then is done in part.
    Torn,
    /// A write is answered and not done.
    Lost,
}

impl Toy {
    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { gateway, vid, .. } => {
                // What earlier connections left is done or dropped before this one is served.
                if self.mistake != Some(Mistake::LateWrite) {
                    self.running.retain(|_, running| {
                        let same = running.ask.gateway == gateway && running.ask.vid == vid;
                        !(running.orphan && same)
                    });
                }
                self.history.served(gateway, vid);
                self.seen.one("connect");
            }
            Action::Disconnect { connection } => {
                for running in self.running.values_mut() {
                    if running.ask.connection == connection {
                        running.orphan = true;
                        self.seen.one("orphan");
                    }
                }
                self.history.disconnect(connection);
                self.seen.one("disconnect");
            }
            Action::Ask(ask) => {
                let client = (ask.connection, ask.gateway);
                let request = self.history.invoke(client, ask.vid, ask.first, &ask.kinds);
                self.requests.insert(ask.number, request);
                let left = (ask.first..).take(ask.kinds.len()).collect();
                self.seen.one("ask");
                self.seen.add("again", u64::from(ask.again));
                let (number, values) = (ask.number, BTreeMap::new());
                self.running.insert(number, Running { ask, left, values, orphan: false });
            }
        }
    }

    /// Does one block of something; returns what was answered by that.
    fn work(&mut self, rng: &mut Rng) -> Option<u64> {
        let numbers: Vec<u64> = self.running.keys().copied().collect();
        let number = *rng.pick(numbers.get(..).filter(|numbers| !numbers.is_empty())?);
        let running = self.running.get_mut(&number)?;
        let block = running.left.swap_remove(rng.index(running.left.len()));
        let vid = running.ask.vid;
        let place = BlockId { vid, number: block };
        let mistaken = |mistake, rng: &mut Rng| self.mistake == Some(mistake) && rng.chance(10);
        let zeros = Bytes::from_static(&[0; BLOCK_SIZE]);
        let old = self.blocks.get(&place).cloned().unwrap_or(zeros.clone());
        let new = match running.ask.kinds[0] {
            Kind::Read(_) => {
                let mut value = stamp::value_of(&old, vid, block);
                if mistaken(Mistake::Stale, rng) {
                    value = value.saturating_sub(1);
                }
                running.values.insert(block, value);
                None
            }
            Kind::Zero => Some(zeros),
            Kind::Write(value) => Some(stamp::fill(value, vid, block)),
        };
        if let Some(new) = new
            && !mistaken(Mistake::Lost, rng)
        {
            let torn = mistaken(Mistake::Torn, rng);
            let new = if torn { [&new[..512], &old[512..]].concat().into() } else { new };
            self.blocks.insert(place, new);
        }
        if !running.left.is_empty() {
            return None;
        }
        let done = self.running.remove(&number)?;
        if done.orphan {
            return None;
        }
        let request = self.requests[&number];
        if done.ask.is_write() {
            self.history.done(request);
        } else {
            let values: Vec<Value> = done.values.into_values().collect();
            self.history.read(request, &values);
        }
        Some(number)
    }
}

fn run(seed: u64, mistake: Option<Mistake>) -> Toy {
    let mut rng = Rng::new(seed);
    let settings = Settings::random(&mut rng);
    let mut workload = Workload::new(settings, rng.fork("clients"));
    let mut toy = Toy { mistake, ..Toy::default() };
    for _ in 0..600 {
        if rng.chance(40) {
            if let Some(action) = workload.next(&[1, 2, 3]) {
                toy.act(action);
            }
        } else if let Some(number) = toy.work(&mut rng) {
            workload.answered(number);
        }
    }
    toy
}

#[test]
fn a_right_system_is_found_right_and_clients_do_everything() {
    let mut seen = Counts::default();
    let (mut ops, mut undecided) = (0, 0);
    for seed in 0..2000 {
        let toy = run(seed, None);
        let judgement = check::history(&toy.history);
        let wrong = judgement.violations.first();
        assert!(wrong.is_none(), "seed {seed}: {:?} {}", wrong.map(|w| w.0), wrong.unwrap().1);
        (ops, undecided) = (ops + judgement.ops, undecided + judgement.undecided);
        seen += &toy.seen;
    }
    println!("{ops} operations on blocks, {undecided} blocks undecided, {seen:?}");
    assert_eq!(undecided, 0);
    let least = [("ask", 100_000), ("connect", 5_000), ("orphan", 2_000), ("again", 500)];
    for (name, least) in least {
        assert!(seen.of(name) > least, "{name}: {seen:?}");
    }
}

#[test]
fn every_mistake_is_found() {
    for (mistake, least) in
        [(Mistake::Stale, 150), (Mistake::Lost, 150), (Mistake::Torn, 150), (Mistake::LateWrite, 3)]
    {
        let found = (0..200).filter(|seed| {
            let toy = run(*seed, Some(mistake));
            !check::history(&toy.history).violations.is_empty()
        });
        let found = found.count();
        println!("{mistake:?} found in {found} of 200 runs");
        assert!(found >= least, "{mistake:?} found in {found} of 200 runs");
    }
}

#[test]
fn a_lost_gateway_takes_its_connections_with_it() {
    let settings = Settings { disconnects: 0, ..Settings::random(&mut Rng::new(1)) };
    let mut workload = Workload::new(settings, Rng::new(2));
    for _ in 0..200 {
        workload.next(&[1]);
    }
    let connections = workload.through(1);
    assert!(!connections.is_empty() && workload.open() > 0);
    for connection in connections {
        workload.lost(connection);
    }
    assert_eq!(workload.open(), 0);
    assert!(workload.next(&[]).is_none());
    let next = (0..100).find_map(|_| workload.next(&[2]));
    assert!(matches!(next, Some(Action::Connect { gateway: 2, .. })), "{next:?}");
}
