//! What must hold of a store at rest: its contents, its books, and what becomes of damage.

use super::disk::{Rng, SimDisk};
use super::faults::Faults;
use super::oracle::seen;
use super::run::{Run, VIDS};
use sheepdog_storelog::{Answer, Command, CommandId, Effect, Input, Opening, Store};
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, FragmentId, Version, Vid};
use std::collections::BTreeMap;

/// Blocks that the host may hold for a store at rest without its knowing: the fixed ones, and what
/// was written just before a crash that left no record of it. After twelve crashes up to 14 in most
/// runs, 77 in the worst of 12000; a store that forgot the homes that were used before a crash had 120
/// within 24.
const UNKNOWN_MAX: u64 = 72;
/// For each fragment: free pages in units with others. A checkpoint may have replaced all at once.
const UNKNOWN_PAGES_MAX: u64 = 2;
/// As that, for the pages of shards.
const UNKNOWN_OF_SHARDS_MAX: u64 = 3 * 16;

impl Run {
    /// At no moment does the store count on space that the host does not have.
    pub fn check_books(&mut self) {
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

    /// A quiet store is closed; gives its disk, and how many records opening it replays.
    pub fn close(&mut self) -> (SimDisk, u64) {
        assert!(self.is_quiet());
        self.store = None;
        self.disk.kill();
        let disk = self.disk.clone();
        let (records, _) = self.open_copy(&mut disk.clone()).expect("nothing is wrong");
        (disk, records)
    }

    /// Opens and reads a copy of the disk that was damaged since the store was closed.
    /// Either all records are replayed, or all but those of the last batch: so many of each
    /// fragment.
    pub fn look_at(
        &mut self,
        mut disk: SimDisk,
        expected: u64,
        in_last: &BTreeMap<FragmentId, usize>,
    ) -> Looked {
        let mut effects = Vec::new();
        let (records, mut store) = match self.open_copy(&mut disk) {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io, "{}", error.full());
                let why = error.full().to_string();
                return Looked { outcome: Outcome::Refused, records: 0, why };
            }
        };
        let dropped = records != expected;
        let of_last: usize = in_last.values().sum();
        assert!(
            !dropped || records + of_last as u64 == expected,
            "{records} of {expected} records, {of_last} in the last batch"
        );
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
                            let lost = in_last.get(fragment).filter(|_| dropped);
                            let prefix = history.submitted() - lost.copied().unwrap_or(0);
                            assert!(
                                history.shows(prefix, &[VIDS[1], VIDS[0]], block, &seen),
                                "{fragment} block {block}: {seen:?}"
                            );
                        }
                        Ok(answer) => panic!("{answer:?}"),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Io);
                            let text = error.full().to_string();
                            let block = format!("fragment {fragment} block {block}:");
                            let page = format!("page of fragment {fragment}:");
                            assert!(text.contains(&block) || text.contains(&page), "{text}");
                            outcome = Outcome::Unread;
                        }
                    }
                }
            }
            // Again with everything home that can be brought there.
            let answer = ask(&mut store, &mut disk, &mut self.rng, Command::Checkpoint);
            assert_eq!(answer.ok(), Some(Answer::Done));
        }
        Looked { outcome, records, why: String::new() }
    }

    /// Opens a disk. Gives the number of records replayed.
    pub fn open_copy(&mut self, disk: &mut SimDisk) -> Result<(u64, Box<Store>), Error> {
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

    /// Reads every fragment whole, through every path, and settles what the crash left open.
    pub fn verify_all(&mut self) {
        let faults = std::mem::take(&mut self.disk.faults);
        let blocks = self.geometry().blocks_per_fragment();
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        let mut happened = BTreeMap::new();
        for fragment in fragments {
            let mut views = Vec::new();
            for path in VIDS.chunks(1) {
                let pieces = self.read_now(fragment, path, blocks);
                views.push((path, seen(fragment, 0, &pieces)));
            }
            let versions = self.versions_now(fragment);
            let held = self.store.as_ref().expect("open").held(fragment);
            let history = self.histories.get_mut(&fragment).expect("known");
            let fits = |prefix: &usize| history.is(*prefix, &views, held, &versions);
            let prefixes: Vec<usize> =
                (history.acked()..=history.submitted()).filter(fits).collect();
            let (Some(least), Some(most)) = (prefixes.first(), prefixes.last()) else {
                panic!(
                    "{fragment}: no prefix of its changes from the {} answered on shows {views:?}, \
                     {held:?} and {versions:?}; the answered ones make {:?}",
                    history.acked(),
                    history.content(history.acked())
                )
            };
            happened.insert(fragment, (*least, *most));
            history.settle(*most);
        }
        let store = self.store.as_ref().expect("open");
        self.shards.check_after_crash(store, &happened);
        for (fragment, held) in store.all_held() {
            assert_eq!(store.held(fragment), Some(held));
            assert!(self.histories.contains_key(&fragment), "{fragment} was never written");
        }
        self.disk.faults = faults;
    }

    /// Reads every block for itself: its right bytes, or an error that names it.
    pub fn verify_each(&mut self) {
        let mut store = self.store.take().expect("open");
        let blocks = self.geometry().blocks_per_fragment();
        for (fragment, history) in &self.histories {
            let reads = VIDS.chunks(1).flat_map(|path| (0..blocks).map(move |b| (path, b)));
            for (path, start) in reads {
                let command =
                    Command::Read { fragment: *fragment, path: path.into(), start, count: 1 };
                match ask(&mut store, &mut self.disk, &mut self.rng, command) {
                    Ok(Answer::Data(pieces)) => {
                        let seen = seen(*fragment, start, &pieces);
                        assert!(
                            history.shows_since(history.acked(), path, start, &seen),
                            "{fragment} block {start}: {seen:?}"
                        );
                    }
                    Ok(answer) => panic!("{answer:?}"),
                    Err(error) => {
                        let text = error.full().to_string();
                        let named = text.contains(&format!("fragment {fragment} block {start}"));
                        assert!(error.kind() == ErrorKind::Io && named, "{text}");
                        self.counts.unread += 1;
                    }
                }
            }
        }
        self.shards.adopt(&store);
        self.store = Some(store);
    }

    /// One command that is answered at once; nobody remembers what it did.
    pub fn ask(&mut self, command: Command) -> Result<Answer, Error> {
        let mut store = self.store.take().expect("open");
        let answer = ask(&mut store, &mut self.disk, &mut self.rng, command);
        self.store = Some(store);
        answer
    }

    fn versions_now(&mut self, fragment: FragmentId) -> Vec<Version> {
        let mut store = self.store.take().expect("open");
        let command = Command::Versions { fragment };
        let answer = ask(&mut store, &mut self.disk, &mut self.rng, command);
        self.store = Some(store);
        match answer {
            Ok(Answer::Versions { chunks, .. }) => chunks,
            answer => panic!("{answer:?}"),
        }
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
        let usage = store.usage();
        if !self.limits.whole_units {
            let unknown = (self.disk.held_bytes() - usage.held) / BLOCK_SIZE as u64;
            let shards = if self.replica { UNKNOWN_OF_SHARDS_MAX } else { 0 };
            let legal = UNKNOWN_MAX + self.fragments * UNKNOWN_PAGES_MAX + shards;
            assert!(unknown <= legal, "{unknown} blocks of the host: {usage:?}");
        }
    }
}

/// A damaged store as it was found.
pub struct Looked {
    pub outcome: Outcome,
    /// Replayed.
    pub records: u64,
    /// The reason for not opening it.
    pub why: String,
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
