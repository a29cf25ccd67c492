//! Drives a store with random commands, completions and crashes, and asks the oracle.

use super::disk::{Faults, Rng, SimDisk};
use super::oracle::{History, Status, block_bytes, seen};
use bytes::Bytes;
use sheepdog_storelog::io::DiskOp;
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, Limits, Opening, Store, Superblock, ZeroKind,
    prepare,
};
use sheepdog_types::{
    DiskId, Error, ErrorKind, FragmentId, Geometry, Interval, LineageId, PageBuf, Version, Vid,
};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What a reply will answer.
enum Asked {
    Write { fragment: FragmentId, index: usize },
    Read { fragment: FragmentId, path: Arc<[Vid]>, start: u32, from: usize },
    Discard { fragment: FragmentId, index: usize },
    Checkpoint,
}

/// Counts, so that a test can see that it tested something.
#[derive(Default, Debug)]
pub struct Counts {
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
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (mine, other) in [
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
    limits: Limits,
    /// How many there may be; with many, the index has several entry pages.
    pub fragments: u64,
    superblock: Superblock,
    histories: BTreeMap<FragmentId, History>,
    asked: BTreeMap<CommandId, Asked>,
    next_command: u64,
    interval: u64,
    seq: u64,
    now: u64,
    /// Somebody else took space of the host since it last reported.
    somebody_else: bool,
    /// All effects so far, condensed, if asked for.
    pub trace: Option<u64>,
}

/// The first two own most; more than fit an entry's slot may own something.
const VIDS: [Vid; 5] = [
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
        let geometry = Geometry::new(geometry.0, geometry.1).expect("legal");
        let superblock = Superblock {
            disk: DiskId([1; 16]),
            cluster: [2; 16],
            log_id: rng.next(),
            log_bytes: if geometry.blocks_per_chunk() == 16 { 1 << 20 } else { 512 << 10 },
            log_unit: [512, 4096][rng.below(2) as usize],
            geometry,
            log_fua: false,
            features: 0,
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
        let fragments = [6, 6, 6, 200][rng.below(4) as usize];
        let mut disk = SimDisk::default();
        disk.run_now(&prepare(&superblock).expect("large enough"));
        Self {
            rng,
            disk,
            store: None,
            counts: Counts::default(),
            limits,
            fragments,
            superblock,
            histories: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_command: 0,
            interval: 0,
            seq: 0,
            now: 0,
            somebody_else: false,
            trace: None,
        }
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
                Err(error) if self.disk.faults.read + self.disk.faults.write > 0 => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{}", error.full());
                    self.disk.kill();
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

    fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    fn fragment(&mut self) -> FragmentId {
        FragmentId { lineage: LineageId(7), number: self.rng.below(self.fragments) }
    }

    fn range(&mut self) -> (u32, u32) {
        let blocks = u64::from(self.geometry().blocks_per_fragment());
        let start = self.rng.below(blocks);
        let longest = if self.rng.chance(50) { 3 } else { blocks };
        let count = 1 + self.rng.below((blocks - start).min(longest));
        (start as u32, count as u32)
    }

    fn version(&mut self) -> Version {
        self.seq += 1;
        Version { interval: Interval(self.interval), seq: self.seq }
    }

    fn data(&mut self, fragment: FragmentId, start: u32, count: u32, stamp: u64) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut block = start;
        while block < start + count {
            let n = 1 + self.rng.below(u64::from(start + count - block)) as u32;
            let bytes: Vec<u8> =
                (block..block + n).flat_map(|b| block_bytes(fragment, b, stamp)).collect();
            pieces.push(PageBuf::copy_of(&bytes).freeze());
            block += n;
        }
        pieces
    }

    pub fn random_command(&mut self) {
        let fragment = self.fragment();
        let among = if self.rng.chance(85) { 2 } else { VIDS.len() as u64 };
        let vid = VIDS[self.rng.below(among) as usize];
        let (start, count) = self.range();
        let id = self.next_command;
        let command = match self.rng.below(100) {
            0..50 => {
                let version = self.version();
                let data = self.data(fragment, start, count, id);
                Command::Write { fragment, vid, version, start, data }
            }
            50..68 => {
                let kind = [ZeroKind::Remove, ZeroKind::Marker, ZeroKind::Reserve]
                    [self.rng.below(3) as usize];
                let version = self.version();
                Command::Zero { fragment, vid, version, start, count, kind }
            }
            68..71 => {
                let forget = self.rng.chance(70);
                let version = self.version();
                Command::DeleteVid { fragment, vid, version, forget }
            }
            71..98 => {
                let path: Arc<[Vid]> = match self.rng.below(3) {
                    0 => [VIDS[0]].into(),
                    1 => [VIDS[1]].into(),
                    _ => [VIDS[1], VIDS[0]].into(),
                };
                Command::Read { fragment, path, start, count }
            }
            _ => Command::Checkpoint,
        };
        self.command(command);
    }

    pub fn command(&mut self, command: Command) {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        let asked = match &command {
            Command::Read { fragment, path, start, .. } => {
                let from = self.histories.entry(*fragment).or_default().acked();
                Asked::Read { fragment: *fragment, path: path.clone(), start: *start, from }
            }
            Command::Checkpoint | Command::Map { .. } => Asked::Checkpoint,
            write => {
                let fragment = write.fragment().expect("writes name one");
                let history = self.histories.entry(fragment).or_default();
                let index = history.submitted();
                history.push(write, id.0);
                let needs_space = matches!(
                    write,
                    Command::Write { .. } | Command::Zero { kind: ZeroKind::Reserve, .. }
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

    /// At no moment does the store count on space that the host does not have.
    fn check_books(&mut self) {
        if self.failure().is_some() || self.limits.whole_units {
            return;
        }
        let usage = self.store.as_ref().expect("open").usage();
        let (held, free) = (self.disk.held_bytes(), self.disk.free_bytes());
        assert!(usage.held <= held, "the host holds {held} bytes: {usage:?}");
        assert!(
            self.somebody_else || usage.host_room <= free,
            "the host has {free} bytes left: {usage:?}"
        );
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
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
                    match answer {
                        Ok(answer) => self.check(asked, &answer),
                        Err(error) => self.check_error(&asked, &error),
                    }
                }
            }
        }
    }

    fn check(&mut self, asked: Asked, answer: &Answer) {
        match (asked, answer) {
            (
                Asked::Write { fragment, index } | Asked::Discard { fragment, index },
                Answer::Done,
            ) => {
                let history = self.histories.get_mut(&fragment).expect("known");
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
            (Asked::Checkpoint, Answer::Done) => {}
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
            Asked::Checkpoint if short => self.counts.abandoned += 1,
            Asked::Checkpoint if given_up => {}
            Asked::Write { fragment, index } | Asked::Discard { fragment, index } if unread => {
                if !given_up {
                    let history = self.histories.get_mut(fragment).expect("known");
                    history.answered(*index, Status::Refused);
                }
            }
            Asked::Read { fragment, .. } if unread => {
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

    /// All of a fragment, in one write or in several.
    pub fn write_all_of(&mut self, fragment: u64) {
        let fragment = FragmentId { lineage: LineageId(7), number: fragment };
        let blocks = self.geometry().blocks_per_fragment();
        let mut start = 0;
        while start < blocks {
            let count = 1 + self.rng.below(u64::from(blocks - start)) as u32;
            let (version, id) = (self.version(), self.next_command);
            let data = self.data(fragment, start, count, id);
            self.command(Command::Write { fragment, vid: VIDS[0], version, start, data });
            start += count;
        }
    }

    /// Space for all of a fragment.
    pub fn reserve_all_of(&mut self, number: u64) {
        let fragment = FragmentId { lineage: LineageId(7), number };
        let (version, count) = (self.version(), self.geometry().blocks_per_fragment());
        let kind = ZeroKind::Reserve;
        self.command(Command::Zero { fragment, vid: VIDS[0], version, start: 0, count, kind });
    }

    /// The host's free space, as it is.
    pub fn tell_free(&mut self) {
        self.somebody_else = false;
        self.feed(Input::HostFree(self.disk.free_bytes()));
    }

    /// One block.
    pub fn write_somewhere(&mut self) {
        let fragment = self.fragment();
        let (version, id) = (self.version(), self.next_command);
        let data = self.data(fragment, 0, 1, id);
        self.command(Command::Write { fragment, vid: VIDS[0], version, start: 0, data });
    }

    /// The whole of a fragment.
    pub fn zero_somewhere(&mut self, kind: ZeroKind) {
        let fragment = self.fragment();
        let version = self.version();
        self.command(Command::Zero {
            fragment,
            vid: VIDS[0],
            version,
            start: 0,
            count: self.geometry().blocks_per_fragment(),
            kind,
        });
    }

    /// Everything in the store.
    pub fn delete_all(&mut self) {
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        for fragment in fragments {
            for vid in VIDS {
                let version = self.version();
                self.command(Command::DeleteVid { fragment, vid, version, forget: true });
            }
        }
    }

    /// A quiet store is closed; gives its disk, and how many records opening it replays.
    pub fn close(&mut self) -> (SimDisk, u64) {
        assert!(self.asked.is_empty() && self.disk.in_flight() == 0);
        self.store = None;
        self.disk.kill();
        let disk = self.disk.clone();
        let (records, _) = self.open_copy(&mut disk.clone()).expect("nothing is wrong");
        (disk, records)
    }

    /// Opens and reads a copy of the disk that was damaged since the store was closed.
    pub fn look_at(&mut self, mut disk: SimDisk, expected: u64) -> Outcome {
        let mut effects = Vec::new();
        let Ok((records, mut store)) = self.open_copy(&mut disk) else {
            return Outcome::Refused;
        };
        if records != expected {
            // Rot in the last batch cannot be told from one that was cut short.
            return Outcome::Clean;
        }
        store.handle(Input::HostFree(1 << 40), &mut effects);
        let mut outcome = Outcome::Clean;
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        for _ in 0..2 {
            for fragment in &fragments {
                for block in 0..self.geometry().blocks_per_fragment() {
                    let command = Command::Read {
                        fragment: *fragment,
                        path: [VIDS[1], VIDS[0]].into(),
                        start: block,
                        count: 1,
                    };
                    match ask(&mut store, &mut disk, &mut self.rng, command) {
                        Ok(Answer::Data(pieces)) => {
                            let seen = seen(*fragment, block, &pieces);
                            let history = &self.histories[fragment];
                            assert!(
                                history.shows(0, &[VIDS[1], VIDS[0]], block, &seen),
                                "{fragment} block {block}: {seen:?}"
                            );
                        }
                        Ok(answer) => panic!("{answer:?}"),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Io);
                            let text = error.full().to_string();
                            assert!(text.contains(&format!("fragment {fragment}")), "{text}");
                            outcome = Outcome::Unread;
                        }
                    }
                }
            }
            // Again with everything home that can be brought there.
            let answer = ask(&mut store, &mut disk, &mut self.rng, Command::Checkpoint);
            assert_eq!(answer.ok(), Some(Answer::Done));
        }
        outcome
    }

    /// Opens a disk. Gives the number of records replayed.
    fn open_copy(&mut self, disk: &mut SimDisk) -> Result<(u64, Box<Store>), Error> {
        let mut effects = Vec::new();
        let mut opening = Opening::start(self.limits, &mut effects);
        loop {
            for effect in effects.drain(..) {
                if let Effect::Disk(id, op) = effect {
                    disk.submit(id, op);
                }
            }
            let done = disk.complete_any(&mut self.rng).expect("opening goes on");
            if let Some(opened) = opening.completed(done, &mut effects) {
                return opened.map(|(store, report)| (report.records, store));
            }
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
    }

    /// Power failure or kill -9, reopen, and everything acknowledged must be there.
    pub fn die(&mut self) {
        let stats = self.store.as_ref().expect("open").stats();
        self.counts.checkpoints += stats.checkpoints;
        self.counts.given_up += u64::from(self.failure().is_some());
        self.store = None;
        if self.rng.chance(80) {
            self.disk.crash(&mut self.rng);
            self.counts.crashes += 1;
        } else {
            self.disk.kill();
            self.counts.kills += 1;
        }
        self.asked.clear();
        self.open();
        self.verify_all();
    }

    /// Reads every fragment whole, through every path, and settles what the crash left open.
    pub fn verify_all(&mut self) {
        let faults = std::mem::take(&mut self.disk.faults);
        let blocks = self.geometry().blocks_per_fragment();
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        for fragment in fragments {
            let mut views = Vec::new();
            for path in VIDS.chunks(1) {
                let pieces = self.read_now(fragment, path, blocks);
                views.push((path, seen(fragment, 0, &pieces)));
            }
            let history = self.histories.get_mut(&fragment).expect("known");
            let prefix = (history.acked()..=history.submitted()).rev().find(|prefix| {
                views.iter().all(|(path, seen)| history.shows(*prefix, path, 0, seen))
            });
            let Some(prefix) = prefix else {
                panic!(
                    "{fragment}: no prefix of its writes from the {} acknowledged on shows {views:?}",
                    history.acked()
                )
            };
            history.settle(prefix);
        }
        self.disk.faults = faults;
    }

    fn read_now(
        &mut self,
        fragment: FragmentId,
        path: &[Vid],
        count: u32,
    ) -> Vec<sheepdog_storelog::Piece> {
        let id = CommandId(u64::MAX);
        let command = Command::Read { fragment, path: path.into(), start: 0, count };
        let mut effects = Vec::new();
        let store = self.store.as_mut().expect("open");
        store.handle(Input::Command(id, command), &mut effects);
        loop {
            let mut read = None;
            for effect in effects.drain(..) {
                match effect {
                    Effect::Disk(id, op) => self.disk.submit(id, op),
                    Effect::Reply(found, Ok(Answer::Data(pieces))) if found == id => {
                        read = Some(pieces);
                    }
                    Effect::Reply(_, answer) => panic!("{answer:?}"),
                }
            }
            if let Some(pieces) = read {
                return pieces;
            }
            let done = self.disk.complete_any(&mut self.rng).expect("a read goes on");
            store.handle(Input::Completed(done), &mut effects);
        }
    }

    /// Everything quiet and home: what the store says of its space must be exact.
    pub fn check_space(&mut self) {
        self.disk.faults = Faults::default();
        self.settle();
        for _ in 0..2 {
            // The second one gives back what the first one replaced.
            self.command(Command::Checkpoint);
            self.settle();
        }
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        for fragment in fragments {
            self.read_now(fragment, &[VIDS[0]], 1);
        }
        let store = self.store.as_mut().expect("open");
        store.self_check().expect("the books are in order");
    }
}

/// What became of a damaged store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was not opened.
    Refused,
    /// Some reads failed.
    Unread,
    /// All reads were right.
    Clean,
}

/// One command on an otherwise quiet store.
fn ask(
    store: &mut Store,
    disk: &mut SimDisk,
    rng: &mut Rng,
    command: Command,
) -> Result<Answer, Error> {
    let mut effects = Vec::new();
    let what = format!("{command:?}");
    store.handle(Input::Command(CommandId(u64::MAX), command), &mut effects);
    loop {
        store.pump(&mut effects);
        let mut found = None;
        for effect in effects.drain(..) {
            match effect {
                Effect::Disk(id, op) => disk.submit(id, op),
                Effect::Reply(_, answer) => found = Some(answer),
            }
        }
        if let Some(answer) = found {
            return answer;
        }
        let Some(done) = disk.complete_any(rng) else {
            panic!("no answer to {what}");
        };
        store.handle(Input::Completed(done), &mut effects);
    }
}
