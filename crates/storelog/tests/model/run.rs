//! Drives a store with random commands, completions and crashes, and asks the oracle.

use super::disk::{Rng, SimDisk};
use super::oracle::{History, Status, seen};
use super::shards::Shards;
use sheepdog_storelog::io::DiskOp;
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, LOG_HAS_OWNER, Limits, Opening, Store, Superblock,
    ZeroKind, prepare,
};
use sheepdog_types::{DiskId, Error, ErrorKind, FragmentId, Geometry, Version, Vid};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What a reply will answer.
enum Asked {
    Write { fragment: FragmentId, index: usize },
    Read { fragment: FragmentId, path: Arc<[Vid]>, start: u32, from: usize },
    Discard { fragment: FragmentId, index: usize },
    Versions { fragment: FragmentId, from: usize },
    Chunks { fragment: FragmentId, from: usize, have: Vec<Version> },
    Shard,
    Checkpoint,
}

/// Counts, so that a test can see that it tested something.
#[derive(Default, Debug)]
pub struct Counts {
    /// Instants at which the power failed for all disks of a test that looks at each of them.
    pub cuts: u64,
    pub crashes: u64,
    pub kills: u64,
    pub acked: u64,
    pub reads: u64,
    pub checkpoints: u64,
    pub torn: u64,
    pub replayed: u64,
    /// Writes that found no space.
    pub refused: u64,
    /// Checkpoints that found none.
    pub abandoned: u64,
    /// Reads that failed.
    pub unread: u64,
    /// Stores given up after a disk error.
    pub given_up: u64,
    /// Starts that a disk error ended.
    pub opened_again: u64,
    /// Planned faults, one a run.
    pub faults: u64,
    /// Fragments that were missing and are not any more, and fills and forgettings that did not fit.
    pub completed: u64,
    pub conflicts: u64,
    /// Chunks that were copied out of the store.
    pub copied: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (mine, other) in [
            (&mut self.cuts, other.cuts),
            (&mut self.crashes, other.crashes),
            (&mut self.kills, other.kills),
            (&mut self.acked, other.acked),
            (&mut self.reads, other.reads),
            (&mut self.checkpoints, other.checkpoints),
            (&mut self.torn, other.torn),
            (&mut self.replayed, other.replayed),
            (&mut self.refused, other.refused),
            (&mut self.abandoned, other.abandoned),
            (&mut self.unread, other.unread),
            (&mut self.given_up, other.given_up),
            (&mut self.opened_again, other.opened_again),
            (&mut self.faults, other.faults),
            (&mut self.completed, other.completed),
            (&mut self.conflicts, other.conflicts),
            (&mut self.copied, other.copied),
        ] {
            *mine += other;
        }
    }
}

pub struct Run {
    pub rng: Rng,
    pub disk: SimDisk,
    pub store: Option<Box<Store>>,
    pub counts: Counts,
    pub limits: Limits,
    /// How many there may be; with many, the index has several entry pages.
    pub fragments: u64,
    pub superblock: Superblock,
    pub histories: BTreeMap<FragmentId, History>,
    pub shards: Shards,
    /// Whether the work is that of a replica: missing fragments, requests, shards.
    pub replica: bool,
    asked: BTreeMap<CommandId, Asked>,
    pub next_command: u64,
    pub interval: u64,
    pub seq: u64,
    now: u64,
    /// Blocks were given up, as what is bad in the log is: reading them is an error.
    pub lost: bool,
    /// The store had given the disk up before the present event.
    given_up: bool,
    /// Somebody else took space of the host since it last reported.
    pub somebody_else: bool,
    /// All effects so far, condensed, if asked for.
    pub trace: Option<u64>,
}

/// The first two own most; more than fit an entry's slot may own something.
pub const VIDS: [Vid; 5] = [
    Vid::new(1).expect("in range"),
    Vid::new(2).expect("in range"),
    Vid::new(3).expect("in range"),
    Vid::new(4).expect("in range"),
    Vid::new(5).expect("in range"),
];

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let geometry = [(4, 4), (1, 8), (2, 4), (16, 2)][rng.below(4) as usize];
        let log_bytes = if geometry.0 == 16 { 1 << 20 } else { 512 << 10 };
        let fragments = [6, 6, 6, 200];
        Self { replica: seed.is_multiple_of(2), ..Self::of(rng, geometry, log_bytes, &fragments) }
    }

    /// One that is looked at often: little in it, and a log that soon wraps.
    pub fn small(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let (geometry, log_bytes) =
            [((1, 8), 256 << 10), ((2, 4), 256 << 10), ((4, 4), 320 << 10)][rng.below(3) as usize];
        Self { replica: seed.is_multiple_of(2), ..Self::of(rng, geometry, log_bytes, &[3]) }
    }

    fn of(mut rng: Rng, geometry: (u16, u16), log_bytes: u64, fragments: &[u64]) -> Self {
        let geometry = Geometry::new(geometry.0, geometry.1).expect("legal");
        let superblock = Superblock {
            disk: DiskId([1; 16]),
            cluster: [2; 16],
            log_id: rng.next(),
            log_bytes,
            log_unit: [512, 4096][rng.below(2) as usize],
            geometry,
            log_fua: false,
            features: LOG_HAS_OWNER,
        };
        let limits = Limits {
            cache_bytes: [0, 4000, 1 << 20][rng.below(3) as usize],
            logged_bytes: [0, 30_000, 1 << 20][rng.below(3) as usize],
            units_max: 4000,
            whole_units: false,
            recycled_units: rng.below(8) as usize,
            spare_pages: [0, 5, 60][rng.below(3) as usize],
            give_back_units: 6,
            nosync: false,
            extent_blocks_min: geometry.blocks_per_chunk() * [1, 2][rng.below(2) as usize],
        };
        let fragments = fragments[rng.below(fragments.len() as u64) as usize];
        let mut disk = SimDisk::default();
        for op in prepare(&superblock).expect("large enough") {
            disk.run_now(&op);
        }
        Self {
            rng,
            disk,
            store: None,
            counts: Counts::default(),
            limits,
            fragments,
            superblock,
            histories: BTreeMap::new(),
            shards: Shards::default(),
            replica: false,
            asked: BTreeMap::new(),
            next_command: 0,
            interval: 0,
            seq: 0,
            now: 0,
            lost: false,
            given_up: false,
            somebody_else: false,
            trace: None,
        }
    }

    /// An empty disk, as the superblock says.
    pub fn prepare_anew(&mut self) {
        self.disk = SimDisk::default();
        for op in prepare(&self.superblock).expect("large enough") {
            self.disk.run_now(&op);
        }
    }

    /// What would be left if the power failed now: the disk as it is, with what it was not asked to
    /// flush still open, and what is known of its contents. The store is not part of it.
    pub fn fork(&self, seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            disk: self.disk.clone(),
            store: None,
            counts: Counts::default(),
            superblock: self.superblock.clone(),
            histories: self.histories.clone(),
            shards: self.shards.clone(),
            asked: BTreeMap::new(),
            now: 0,
            trace: None,
            ..*self
        }
    }

    /// Whether every command was answered and every disk operation has ended.
    pub fn is_quiet(&self) -> bool {
        self.asked.is_empty() && self.disk.in_flight() == 0
    }

    /// Opens the store; dies on the way now and then.
    pub fn open(&mut self) {
        loop {
            let mut effects = Vec::new();
            let mut opening = Opening::start(self.limits, &mut effects);
            let mut opened = None;
            while opened.is_none() {
                for effect in effects.drain(..) {
                    let Effect::Disk(id, op) = effect else { panic!("a reply while opening") };
                    self.disk.submit(id, op);
                }
                if self.rng.below(400) == 0 {
                    break;
                }
                let done = self.disk.complete_any(&mut self.rng).expect("opening goes on");
                opened = opening.completed(done, &mut effects);
            }
            let Some(opened) = opened else {
                self.disk.crash(&mut self.rng);
                continue;
            };
            let (mut store, report) = match opened {
                Ok(opened) => opened,
                Err(error) if self.disk.failed > 0 => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.full());
                    self.disk.kill();
                    self.counts.opened_again += 1;
                    // Somebody replaced the cable.
                    self.disk.faults.planned = None;
                    continue;
                }
                Err(error) => panic!("{}", error.full()),
            };
            assert_eq!(self.disk.in_flight(), 0);
            store.handle(Input::HostFree(self.disk.free_bytes()), &mut effects);
            self.somebody_else = false;
            self.counts.torn += u64::from(report.torn_tail);
            self.counts.replayed += report.records;
            self.store = Some(store);
            self.interval += 1;
            return;
        }
    }

    pub fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    pub fn command(&mut self, command: Command) {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        let asked = match &command {
            Command::Read { fragment, path, start, .. } => {
                let from = self.history(*fragment).acked();
                Asked::Read { fragment: *fragment, path: path.clone(), start: *start, from }
            }
            Command::Versions { fragment } => {
                let from = self.history(*fragment).acked();
                Asked::Versions { fragment: *fragment, from }
            }
            Command::Chunks { fragment, have } => {
                let from = self.history(*fragment).acked();
                Asked::Chunks { fragment: *fragment, from, have: have.clone() }
            }
            Command::Checkpoint | Command::Map { .. } => Asked::Checkpoint,
            Command::Shard { .. } | Command::DropRequests { .. } | Command::DropShard { .. } => {
                self.shards.push(id, &command, 0);
                Asked::Shard
            }
            write => {
                let fragment = write.fragment().expect("writes name one");
                let history = self.history(fragment);
                let index = history.submitted();
                history.push(write, id.0);
                self.shards.push(id, write, index);
                let needs_space = matches!(
                    write,
                    Command::Write { .. }
                        | Command::Zero { kind: ZeroKind::Reserve, .. }
                        | Command::Fill { .. }
                );
                if needs_space {
                    Asked::Write { fragment, index }
                } else {
                    Asked::Discard { fragment, index }
                }
            }
        };
        self.asked.insert(id, asked);
        self.feed(Input::Command(id, command));
    }

    pub fn history(&mut self, fragment: FragmentId) -> &mut History {
        let per_chunk = self.geometry().blocks_per_chunk();
        self.histories.entry(fragment).or_insert_with(|| History::new(per_chunk))
    }

    fn feed(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.store.as_mut().expect("open").handle(input, &mut effects);
        self.take(effects);
        self.check_books();
    }

    pub fn pump(&mut self) {
        let mut effects = Vec::new();
        self.store.as_mut().expect("open").pump(&mut effects);
        self.take(effects);
        self.check_books();
    }

    fn take(&mut self, effects: Vec<Effect>) {
        let failed = self.failure().is_some();
        let given_up = std::mem::replace(&mut self.given_up, failed);
        let mut shards_changed = false;
        for effect in effects {
            let asks = matches!(effect, Effect::Disk(..));
            assert!(!(given_up && asks), "a disk that was given up is left alone: {effect:?}");
            if let Some(trace) = &mut self.trace {
                let mut hasher = DefaultHasher::new();
                (*trace, format!("{effect:?}")).hash(&mut hasher);
                *trace = hasher.finish();
            }
            match effect {
                Effect::Disk(id, op) => {
                    if let DiskOp::Read { len, .. } = &op {
                        assert!(*len > 0, "an empty read");
                    }
                    self.disk.submit(id, op);
                }
                Effect::Reply(id, answer) => {
                    let asked = self.asked.remove(&id).expect("one reply to each command");
                    // What a disk that was given up has not answered may have happened.
                    if answer.is_ok() || !failed {
                        shards_changed |= self.shards.answered(id, answer.is_ok());
                    }
                    match answer {
                        Ok(answer) => self.check(asked, &answer),
                        Err(error) => self.check_error(&asked, &error),
                    }
                }
            }
        }
        if shards_changed {
            self.shards.check(self.store.as_ref().expect("open"));
        }
    }

    fn check(&mut self, asked: Asked, answer: &Answer) {
        match (asked, answer) {
            (
                Asked::Write { fragment, index } | Asked::Discard { fragment, index },
                Answer::Done,
            ) => {
                let history = self.histories.get_mut(&fragment).expect("known");
                assert!(!history.had_to_conflict(index), "it had to be refused");
                let needed = |prefix| history.content(prefix).needed;
                let completed = needed(index).is_some() && needed(index + 1).is_none();
                self.counts.completed += u64::from(completed);
                history.answered(index, Status::Acked);
                assert!(history.acked() > index, "acknowledged out of order");
                self.counts.acked += 1;
            }
            (Asked::Read { fragment, path, start, from }, Answer::Data(pieces)) => {
                let seen = seen(fragment, start, pieces);
                let history = &self.histories[&fragment];
                assert!(
                    history.shows_since(from, &path, start, &seen),
                    "{fragment} from block {start}: {seen:?} is no state since the read began"
                );
                self.counts.reads += 1;
            }
            (Asked::Versions { fragment, from }, answer) => {
                self.check_chunks(fragment, from, None, answer);
            }
            (Asked::Chunks { fragment, from, have }, answer) => {
                self.check_chunks(fragment, from, Some(&have), answer);
            }
            (Asked::Checkpoint | Asked::Shard, Answer::Done) => {}
            (_, answer) => panic!("the wrong kind of answer: {answer:?}"),
        }
    }

    /// An error must be one that the disk's faults explain.
    fn check_error(&mut self, asked: &Asked, error: &Error) {
        let given_up = self.failure().is_some();
        let bounded = self.disk.capacity.is_some() || self.limits.whole_units;
        let may_be_short = self.disk.found_no_space > 0 || bounded;
        let short = error.kind() == ErrorKind::NoSpace && may_be_short;
        // A page that cannot be read fails what asked for the fragment.
        let unread = error.kind() == ErrorKind::Io && self.disk.failed > 0;
        match asked {
            Asked::Write { fragment, index } if short => {
                self.counts.refused += 1;
                let history = self.histories.get_mut(fragment).expect("known");
                history.answered(*index, Status::Refused);
            }
            Asked::Discard { fragment, index } if short && self.replica => {
                // A fragment that comes to be as a missing one.
                self.counts.refused += 1;
                let history = self.histories.get_mut(fragment).expect("known");
                assert!(history.may_lack_space(*index), "{}", error.full());
                history.answered(*index, Status::Refused);
            }
            Asked::Shard if short => self.counts.refused += 1,
            Asked::Checkpoint if short => self.counts.abandoned += 1,
            Asked::Checkpoint | Asked::Shard if given_up => {}
            Asked::Write { fragment, index } | Asked::Discard { fragment, index }
                if error.kind() == ErrorKind::Conflict =>
            {
                let history = self.histories.get_mut(fragment).expect("known");
                assert!(history.had_to_conflict(*index), "{}", error.full());
                history.answered(*index, Status::Refused);
                self.counts.conflicts += 1;
            }
            Asked::Write { fragment, index } | Asked::Discard { fragment, index } if unread => {
                if !given_up {
                    let history = self.histories.get_mut(fragment).expect("known");
                    history.answered(*index, Status::Refused);
                }
            }
            Asked::Read { fragment, .. }
            | Asked::Versions { fragment, .. }
            | Asked::Chunks { fragment, .. }
                if unread =>
            {
                let text = error.full().to_string();
                assert!(given_up || text.contains(&format!("fragment {fragment}")), "{text}");
                self.counts.unread += 1;
            }
            _ => panic!("{}", error.full()),
        }
    }

    pub fn failure(&self) -> Option<&str> {
        self.store.as_ref().and_then(|store| store.failure())
    }

    /// One random event.
    pub fn step(&mut self) {
        match self.rng.below(100) {
            0..35 => {
                if self.asked.len() < 40 {
                    self.random_command();
                }
            }
            35..75 => {
                if let Some(done) = self.disk.complete_any(&mut self.rng) {
                    self.feed(Input::Completed(done));
                }
            }
            75..98 => self.pump(),
            _ => {
                self.now += [1, 500, 40_000][self.rng.below(3) as usize];
                self.feed(Input::Tick(self.now));
                self.tell_free();
            }
        }
    }

    /// One event that adds nothing new.
    pub fn step_to_rest(&mut self) {
        self.pump();
        if let Some(done) = self.disk.complete_any(&mut self.rng) {
            self.feed(Input::Completed(done));
        } else if !self.asked.is_empty() {
            self.now += 100;
            self.feed(Input::Tick(self.now));
        }
    }

    /// Somebody else takes all space that the host has left; the store may not know yet.
    pub fn fill_host(&mut self) {
        self.disk.fill();
        self.somebody_else = true;
    }

    /// The disk is a raw device of so many units.
    pub fn on_device(&mut self, units: u32) {
        (self.limits.units_max, self.limits.whole_units) = (units, true);
    }

    /// Pages whose space is kept.
    pub fn keep_spare(&mut self, pages: u32) {
        self.limits.spare_pages = pages;
    }

    /// The host's free space, as it is.
    pub fn tell_free(&mut self) {
        self.somebody_else = false;
        self.feed(Input::HostFree(self.disk.free_bytes()));
    }

    /// Runs until every command is answered, the disk given up, or no more answers come: a few
    /// checkpoints have been tried then.
    pub fn rest(&mut self) {
        let mut waited = 0;
        while !self.is_quiet() && self.failure().is_none() && waited < 300 {
            let unanswered = self.asked.len();
            self.step_to_rest();
            waited = if self.asked.len() == unanswered { waited + 1 } else { 0 };
        }
    }

    /// Runs until every command is answered.
    pub fn settle(&mut self) {
        let mut left = 100_000;
        while !self.asked.is_empty() || self.disk.in_flight() > 0 {
            self.pump();
            if let Some(done) = self.disk.complete_any(&mut self.rng) {
                self.feed(Input::Completed(done));
            }
            left -= 1;
            if self.failure().is_some() {
                break;
            }
            if left % 16 == 0 {
                self.now += 100;
                self.feed(Input::Tick(self.now));
            }
            assert!(left > 0, "the store does not come to rest: {} unanswered", self.asked.len());
        }
        if self.failure().is_some() {
            return;
        }
        for history in self.histories.values_mut() {
            assert_eq!(history.acked(), history.submitted());
            history.settle(history.acked());
        }
        self.shards.check(self.store.as_ref().expect("open"));
    }

    /// Power failure or kill -9, reopen, and everything acknowledged must be there.
    pub fn die(&mut self) {
        let stats = self.store.as_ref().expect("open").stats();
        self.counts.checkpoints += stats.checkpoints;
        self.counts.given_up += u64::from(self.failure().is_some());
        if self.rng.chance(80) {
            self.lose_power();
        } else {
            self.disk.kill();
            self.counts.kills += 1;
            self.come_back();
        }
    }

    /// Power failure.
    pub fn lose_power(&mut self) {
        self.disk.crash(&mut self.rng);
        self.counts.crashes += 1;
        self.come_back();
    }

    fn come_back(&mut self) {
        self.store = None;
        self.given_up = false;
        self.asked.clear();
        self.open();
        if self.lost {
            self.verify_each();
        } else {
            self.verify_all();
        }
    }
}
