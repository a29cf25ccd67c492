//! One fragment of one shard, with all that can happen to it between two messages.

use sheepdog_shard::{Activation, Candidates, Copy, Decision};
use sheepdog_types::{DiskId, Interval, Version};
use std::collections::{BTreeMap, BTreeSet};

/// What a schedule leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// P1: without a member of the last activated interval, the best of those that answer decide.
    Quorum,
    /// P2: everybody decides, whenever he was activated.
    Candidates,
    /// P2: a missing fragment counts with the version that it must come to hold.
    Needed,
    /// P2: the old bytes of a missing fragment are no source.
    Complete,
    /// A replica refuses writes of an interval older than what it promised.
    Promise,
    /// A replica takes writes in the order of the chain only.
    Chain,
    /// P3: what differs is missing, not only what is older.
    Differs,
    /// P4: activated is committed only if no newer interval has begun.
    Current,
}

impl Rule {
    /// Each of them is left out.
    pub const ALL: [Self; 8] = [
        Self::Quorum,
        Self::Candidates,
        Self::Needed,
        Self::Complete,
        Self::Promise,
        Self::Chain,
        Self::Differs,
        Self::Current,
    ];
}

#[derive(Default)]
struct Replica {
    up: bool,
    promised: Interval,
    les: Interval,
    copy: Copy,
    /// The writes that its bytes show, in order; worth nothing while they are missing.
    shows: Vec<u64>,
}

struct Write {
    id: u64,
    version: Version,
    before: Version,
    durable: BTreeSet<usize>,
}

enum Phase {
    Asking(BTreeMap<DiskId, (Interval, Copy)>),
    Activating { head: Version, confirmed: BTreeSet<usize> },
    Serving { head: Version, seq: u64, open: Vec<Write> },
}

/// A process that orders the writes of one interval, or did.
struct Primary {
    interval: Interval,
    acting: BTreeSet<usize>,
    phase: Phase,
}

/// The cluster.
pub struct World {
    replicas: Vec<Replica>,
    primaries: Vec<Primary>,
    /// Registry: the newest interval.
    cur: Interval,
    /// Registry: the last one that was activated.
    last: Activation,
    /// The bytes of each version.
    bytes: BTreeMap<Version, Vec<u64>>,
    next_id: u64,
    /// Acknowledged writes.
    pub acknowledged: Vec<u64>,
    /// Decisions taken.
    pub decided: usize,
    /// Times that nobody could be decided.
    pub waited: usize,
    left_out: Option<Rule>,
    random: u64,
}

const STEPS: usize = 400;

/// One schedule; why it is illegal if it is.
pub fn run(seed: u64, left_out: Option<Rule>) -> Result<World, String> {
    let mut world = World {
        replicas: Vec::new(),
        primaries: Vec::new(),
        cur: Interval(0),
        last: Activation::default(),
        bytes: BTreeMap::new(),
        next_id: 1,
        acknowledged: Vec::new(),
        decided: 0,
        waited: 0,
        left_out,
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
    };
    let replicas = 3 + world.below(3);
    world.replicas.resize_with(replicas, || Replica { up: true, ..Replica::default() });
    world.reconfigure();
    for _ in 0..STEPS {
        world.step()?;
    }
    Ok(world)
}

fn disk(replica: usize) -> DiskId {
    DiskId([replica as u8; 16])
}

impl World {
    /// xorshift64*.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        ((self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % bound
    }

    fn holds(&self, rule: Rule) -> bool {
        self.left_out != Some(rule)
    }

    fn step(&mut self) -> Result<(), String> {
        let replica = self.below(self.replicas.len());
        match self.below(100) {
            0..2 => self.reconfigure(),
            2..4 => self.replicas[replica].up = false,
            4..8 => self.replicas[replica].up = true,
            // Often enough for all members of an interval to be wiped.
            8 if self.below(2) == 0 => {
                let up = self.replicas[replica].up;
                self.replicas[replica] = Replica { up, ..Replica::default() };
            }
            9 if !self.primaries.is_empty() => {
                let gone = self.below(self.primaries.len());
                self.primaries.remove(gone);
            }
            _ if !self.primaries.is_empty() => {
                // Mostly the newest; the others were replaced and do not know it.
                let newest =
                    (0..self.primaries.len()).max_by_key(|at| self.primaries[*at].interval);
                let any = self.below(self.primaries.len());
                let which = newest.filter(|_| self.below(4) > 0).unwrap_or(any);
                let mut primary = self.primaries.swap_remove(which);
                if self.go_on(&mut primary, replica)? {
                    self.primaries.push(primary);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The coordinator begins an interval; nobody tells the primaries before.
    fn reconfigure(&mut self) {
        let mut acting = BTreeSet::new();
        for _ in 0..3 {
            let replica = self.below(self.replicas.len());
            if self.replicas[replica].up {
                acting.insert(replica);
            }
        }
        if acting.is_empty() {
            return;
        }
        self.cur = Interval(self.cur.0 + 1);
        let phase = Phase::Asking(BTreeMap::new());
        self.primaries.push(Primary { interval: self.cur, acting, phase });
    }

    /// One message between a primary and a replica, or something that it does alone; whether it
    /// goes on.
    fn go_on(&mut self, primary: &mut Primary, replica: usize) -> Result<bool, String> {
        let interval = primary.interval;
        let is_acting = primary.acting.contains(&replica);
        let up = self.replicas[replica].up;
        match &mut primary.phase {
            Phase::Asking(answers) => {
                if up && self.below(3) > 0 {
                    let asked = &mut self.replicas[replica];
                    if asked.promised > interval {
                        return Ok(false);
                    }
                    asked.promised = interval;
                    answers.insert(disk(replica), (asked.les, asked.copy));
                } else if primary.acting.iter().all(|acting| answers.contains_key(&disk(*acting)))
                    && let Some(head) = self.decide(answers)
                {
                    primary.phase = Phase::Activating { head, confirmed: BTreeSet::new() };
                }
            }
            Phase::Activating { head, confirmed } => {
                if up && is_acting && !confirmed.contains(&replica) {
                    let differs = self.holds(Rule::Differs);
                    let member = &mut self.replicas[replica];
                    if member.promised != interval {
                        return Ok(false);
                    }
                    let copy = &mut member.copy;
                    let is_other = if differs { copy.head != *head } else { copy.head < *head };
                    if is_other || copy.needed.is_some() {
                        copy.needed = Some(*head);
                    }
                    member.les = interval;
                    if copy.counted() != *head {
                        return Err(format!("an activation with {head} left {}", copy.counted()));
                    }
                    confirmed.insert(replica);
                }
                if *confirmed == primary.acting && self.below(2) == 0 {
                    if self.cur != interval && self.holds(Rule::Current) {
                        return Ok(false);
                    }
                    let members = primary.acting.iter().map(|acting| disk(*acting)).collect();
                    self.last = Activation { interval, members };
                    self.check_acknowledged(*head)?;
                    primary.phase = Phase::Serving { head: *head, seq: 0, open: Vec::new() };
                }
            }
            Phase::Serving { head, seq, open } => {
                if !is_acting || !up {
                    return Ok(true);
                }
                match self.below(4) {
                    0 => {
                        // Where nobody has the bytes, they are recovered before they are changed.
                        let has = |at: &usize| self.replicas[*at].copy.is_source_of(*head);
                        if open.len() < 3 && (!open.is_empty() || primary.acting.iter().any(has)) {
                            *seq += 1;
                            let version = Version { interval, seq: *seq };
                            let durable = BTreeSet::new();
                            open.push(Write { id: self.next_id, version, before: *head, durable });
                            self.next_id += 1;
                            *head = version;
                        }
                    }
                    1 => self.recover(&primary.acting, replica)?,
                    _ => self.replicate(interval, replica, open)?,
                }
                // Only the oldest: later ones follow it.
                while let Some(first) = open.first()
                    && first.durable == primary.acting
                {
                    self.acknowledged.push(first.id);
                    open.remove(0);
                }
            }
        }
        Ok(true)
    }

    fn decide(&mut self, answers: &BTreeMap<DiskId, (Interval, Copy)>) -> Option<Version> {
        let les: BTreeMap<_, _> = answers.iter().map(|(disk, (les, _))| (*disk, *les)).collect();
        let mut last = self.last.clone();
        if !self.holds(Rule::Quorum) {
            let best = les.values().max().copied().unwrap_or_default();
            last = Activation { interval: best.min(last.interval), members: BTreeSet::new() };
        } else if !self.holds(Rule::Candidates) {
            let _ = Candidates::of(&last, &les).ok()?;
            last = Activation::default();
        }
        let Ok(candidates) = Candidates::of(&last, &les) else {
            self.waited += 1;
            return None;
        };
        let told = answers.iter().map(|(disk, (_, copy))| {
            let copy = match copy.needed {
                // The old bytes are taken for bytes, and the needed version is forgotten.
                Some(_) if !self.holds(Rule::Needed) => Copy::complete(copy.head),
                // The old bytes are taken for those that are needed.
                Some(needed) if !self.holds(Rule::Complete) => Copy::complete(needed),
                _ => *copy,
            };
            (*disk, copy)
        });
        match candidates.decide(&told.collect()) {
            Decision::Take { head, .. } => {
                self.decided += 1;
                Some(head)
            }
            Decision::Wait { .. } => {
                self.waited += 1;
                None
            }
        }
    }

    /// The next write that a replica has not got reaches it.
    fn replicate(
        &mut self,
        interval: Interval,
        replica: usize,
        open: &mut [Write],
    ) -> Result<(), String> {
        let mut not_there = open.iter_mut().filter(|write| !write.durable.contains(&replica));
        let (first, second) = (not_there.next(), not_there.next());
        // Messages may overtake each other.
        let (in_order, overtakes) = (self.holds(Rule::Chain), self.below(4) == 0);
        let Some(write) = (if overtakes && second.is_some() { second } else { first }) else {
            return Ok(());
        };
        let promises = self.holds(Rule::Promise);
        let member = &mut self.replicas[replica];
        if member.les != interval || (promises && member.promised != interval) {
            return Ok(());
        }
        if in_order && member.copy.counted() != write.before {
            return Ok(());
        }
        write.durable.insert(replica);
        if member.copy.needed.is_some() {
            member.copy.needed = Some(write.version);
        } else {
            member.copy.head = write.version;
            member.shows.push(write.id);
        }
        self.check_bytes(replica)
    }

    /// A missing fragment is copied from somebody who has it.
    fn recover(&mut self, acting: &BTreeSet<usize>, replica: usize) -> Result<(), String> {
        let Some(needed) = self.replicas[replica].copy.needed else {
            return Ok(());
        };
        let is_source = |at: &usize| {
            let source = &self.replicas[*at];
            let claims = if self.holds(Rule::Complete) {
                source.copy.is_source_of(needed)
            } else {
                *at != replica && source.copy.counted() == needed
            };
            source.up && claims
        };
        let mut everybody = acting.iter().copied().chain(0..self.replicas.len());
        let Some(source) = everybody.find(is_source) else {
            return Ok(());
        };
        self.replicas[replica].shows = self.replicas[source].shows.clone();
        self.replicas[replica].copy = Copy::complete(needed);
        self.check_bytes(replica)
    }

    /// Equal head, equal bytes (I5).
    fn check_bytes(&mut self, replica: usize) -> Result<(), String> {
        let Replica { copy, shows, .. } = &self.replicas[replica];
        if copy.needed.is_some() {
            return Ok(());
        }
        let known = self.bytes.entry(copy.head).or_insert_with(|| shows.clone());
        if known == shows {
            return Ok(());
        }
        Err(format!("replica {replica} shows {shows:?} at {}, others {known:?}", copy.head))
    }

    /// What an interval starts with shows everything that was acknowledged.
    fn check_acknowledged(&self, head: Version) -> Result<(), String> {
        let nothing = Vec::new();
        let shows = match self.bytes.get(&head) {
            Some(shows) => shows,
            None if head == Version::ZERO => &nothing,
            None => return Err(format!("nobody ever had {head}")),
        };
        match self.acknowledged.iter().find(|id| !shows.contains(id)) {
            None => Ok(()),
            Some(lost) => Err(format!("write {lost} was acknowledged; {head} shows {shows:?}")),
        }
    }
}
