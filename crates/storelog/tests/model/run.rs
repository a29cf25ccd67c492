//! Drives a store with random commands, completions and crashes, and asks the oracle.

use super::disk::{Rng, SimDisk};
use super::oracle::{History, block_bytes, seen};
use bytes::Bytes;
use sheepdog_storelog::io::DiskOp;
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, Limits, Opening, Store, Superblock, ZeroKind,
    prepare,
};
use sheepdog_types::{DiskId, FragmentId, Geometry, Interval, LineageId, PageBuf, Version, Vid};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a reply will answer.
enum Asked {
    Write {
        fragment: FragmentId,
        index: usize,
    },
    Read {
        fragment: FragmentId,
        path: Arc<[Vid]>,
        start: u32,
        from: usize,
    },
    Other,
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
}

pub struct Run {
    pub rng: Rng,
    pub disk: SimDisk,
    pub store: Option<Box<Store>>,
    pub counts: Counts,
    limits: Limits,
    superblock: Superblock,
    histories: BTreeMap<FragmentId, History>,
    asked: BTreeMap<CommandId, Asked>,
    next_command: u64,
    interval: u64,
    seq: u64,
    now: u64,
}

const VIDS: [Vid; 2] = [
    Vid::new(1).expect("in range"),
    Vid::new(2).expect("in range"),
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
            log_bytes: if geometry.blocks_per_chunk() == 16 {
                1 << 20
            } else {
                256 << 10
            },
            log_unit: [512, 4096][rng.below(2) as usize],
            geometry,
            log_fua: false,
            features: 0,
        };
        let limits = Limits {
            cache_bytes: [0, 4000, 1 << 20][rng.below(3) as usize],
            logged_bytes: [0, 30_000, 1 << 20][rng.below(3) as usize],
            units_max: 4000,
            recycled_units: rng.below(8) as usize,
            extent_blocks_min: geometry.blocks_per_chunk() * [1, 2][rng.below(2) as usize],
        };
        let mut disk = SimDisk::default();
        disk.run_now(&prepare(&superblock).expect("large enough"));
        Self {
            rng,
            disk,
            store: None,
            counts: Counts::default(),
            limits,
            superblock,
            histories: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_command: 0,
            interval: 0,
            seq: 0,
            now: 0,
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
                    let Effect::Disk(id, op) = effect else {
                        panic!("a reply while opening")
                    };
                    self.disk.submit(id, op);
                }
                if self.rng.below(400) == 0 {
                    break;
                }
                let done = self
                    .disk
                    .complete_any(&mut self.rng)
                    .expect("opening goes on");
                opened = opening.completed(done, &mut effects);
            }
            let Some(opened) = opened else {
                self.disk.crash(&mut self.rng);
                continue;
            };
            let (mut store, report) = opened.expect("the store opens");
            assert_eq!(self.disk.in_flight(), 0);
            store.handle(Input::HostFree(1 << 40), &mut effects);

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
        FragmentId {
            lineage: LineageId(7),
            number: self.rng.below(6),
        }
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
        Version {
            interval: Interval(self.interval),
            seq: self.seq,
        }
    }

    fn data(&mut self, fragment: FragmentId, start: u32, count: u32, stamp: u64) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut block = start;
        while block < start + count {
            let n = 1 + self.rng.below(u64::from(start + count - block)) as u32;
            let bytes: Vec<u8> = (block..block + n)
                .flat_map(|b| block_bytes(fragment, b, stamp))
                .collect();
            pieces.push(PageBuf::copy_of(&bytes).freeze());
            block += n;
        }
        pieces
    }

    pub fn random_command(&mut self) {
        let fragment = self.fragment();
        let vid = VIDS[self.rng.below(2) as usize];
        let (start, count) = self.range();
        let id = self.next_command;
        let command = match self.rng.below(100) {
            0..50 => {
                let version = self.version();
                let data = self.data(fragment, start, count, id);
                Command::Write {
                    fragment,
                    vid,
                    version,
                    start,
                    data,
                }
            }
            50..68 => {
                let kind = [ZeroKind::Remove, ZeroKind::Marker, ZeroKind::Reserve]
                    [self.rng.below(3) as usize];
                let version = self.version();
                Command::Zero {
                    fragment,
                    vid,
                    version,
                    start,
                    count,
                    kind,
                }
            }
            68..71 => {
                let forget = self.rng.chance(70);
                let version = self.version();
                Command::DeleteVid {
                    fragment,
                    vid,
                    version,
                    forget,
                }
            }
            71..98 => {
                let path: Arc<[Vid]> = match self.rng.below(3) {
                    0 => [VIDS[0]].into(),
                    1 => [VIDS[1]].into(),
                    _ => [VIDS[1], VIDS[0]].into(),
                };
                Command::Read {
                    fragment,
                    path,
                    start,
                    count,
                }
            }
            _ => Command::Checkpoint,
        };
        self.command(command);
    }

    pub fn command(&mut self, command: Command) {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        let asked = match &command {
            Command::Read {
                fragment,
                path,
                start,
                ..
            } => {
                let from = self.histories.entry(*fragment).or_default().acked;
                Asked::Read {
                    fragment: *fragment,
                    path: path.clone(),
                    start: *start,
                    from,
                }
            }
            Command::Checkpoint | Command::Map { .. } => Asked::Other,
            write => {
                let fragment = write.fragment().expect("writes name one");
                let history = self.histories.entry(fragment).or_default();
                history.push(write, id.0);
                Asked::Write {
                    fragment,
                    index: history.submitted(),
                }
            }
        };
        self.asked.insert(id, asked);
        self.feed(Input::Command(id, command));
    }

    fn feed(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.store
            .as_mut()
            .expect("open")
            .handle(input, &mut effects);
        self.take(effects);
    }

    pub fn pump(&mut self) {
        let mut effects = Vec::new();
        self.store.as_mut().expect("open").pump(&mut effects);
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Disk(id, op) => {
                    if let DiskOp::Read { len, .. } = &op {
                        assert!(*len > 0, "an empty read");
                    }
                    self.disk.submit(id, op);
                }
                Effect::Reply(id, answer) => {
                    let asked = self.asked.remove(&id).expect("one reply to each command");
                    let answer = answer.unwrap_or_else(|error| panic!("{}", error.full()));
                    self.check(asked, &answer);
                }
            }
        }
    }

    fn check(&mut self, asked: Asked, answer: &Answer) {
        match (asked, answer) {
            (Asked::Write { fragment, index }, Answer::Done) => {
                let history = self.histories.get_mut(&fragment).expect("known");
                assert_eq!(index, history.acked + 1, "acknowledged out of order");
                history.acked = index;
                self.counts.acked += 1;
            }
            (
                Asked::Read {
                    fragment,
                    path,
                    start,
                    from,
                },
                Answer::Data(pieces),
            ) => {
                let seen = seen(fragment, start, pieces);
                let history = &self.histories[&fragment];
                assert!(
                    history.shows_since(from, &path, start, &seen),
                    "{fragment} from block {start}: {seen:?} is no state since the read began"
                );
                self.counts.reads += 1;
            }
            (Asked::Other, _) => {}
            (_, answer) => panic!("the wrong kind of answer: {answer:?}"),
        }
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
            assert!(
                left > 0,
                "the store does not come to rest: {} unanswered",
                self.asked.len()
            );
        }
        for history in self.histories.values_mut() {
            assert_eq!(history.acked, history.submitted());
            history.compact();
        }
    }

    /// Power failure or kill -9, reopen, and everything acknowledged must be there.
    pub fn die(&mut self) {
        let stats = self.store.as_ref().expect("open").stats();
        self.counts.checkpoints += stats.checkpoints;
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
        let blocks = self.geometry().blocks_per_fragment();
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        for fragment in fragments {
            let mut views = Vec::new();
            for path in [&[VIDS[0]] as &[Vid], &[VIDS[1]]] {
                let pieces = self.read_now(fragment, path, blocks);
                views.push((path, seen(fragment, 0, &pieces)));
            }
            let history = self.histories.get_mut(&fragment).expect("known");
            let prefix = (history.acked..=history.submitted()).rev().find(|prefix| {
                views
                    .iter()
                    .all(|(path, seen)| history.shows(*prefix, path, 0, seen))
            });
            let Some(prefix) = prefix else {
                panic!(
                    "{fragment}: no prefix of its writes from the {} acknowledged on shows {views:?}",
                    history.acked
                )
            };
            history.settle(prefix);
        }
    }

    fn read_now(
        &mut self,
        fragment: FragmentId,
        path: &[Vid],
        count: u32,
    ) -> Vec<sheepdog_storelog::Piece> {
        let id = CommandId(u64::MAX);
        let command = Command::Read {
            fragment,
            path: path.into(),
            start: 0,
            count,
        };
        let mut effects = Vec::new();
        let store = self.store.as_mut().expect("open");
        store.handle(Input::Command(id, command), &mut effects);
        loop {
            for effect in effects.drain(..) {
                match effect {
                    Effect::Disk(id, op) => self.disk.submit(id, op),
                    Effect::Reply(found, Ok(Answer::Data(pieces))) if found == id => return pieces,
                    Effect::Reply(_, answer) => panic!("{answer:?}"),
                }
            }
            let done = self
                .disk
                .complete_any(&mut self.rng)
                .expect("a read goes on");
            store.handle(Input::Completed(done), &mut effects);
        }
    }

    /// Everything quiet and home: what the store says of its space must be exact.
    pub fn check_space(&mut self) {
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
