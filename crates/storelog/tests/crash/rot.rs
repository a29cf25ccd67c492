//! Bits that change at rest, in every sector that a store ever wrote: right bytes or an error that
//! names what is bad, never wrong bytes, and never a log that is cut short where a later batch
//! proves that it went on.
//!
//! One thing cannot be told: whether the *last* batch of the log is rotten or was cut short by a
//! power failure. Nothing behind it says that it was ever durable. It is dropped, as a torn one must
//! be, together with what was acknowledged in it; the tests hold the store to exactly that.

use crate::model::disk::SimDisk;
use crate::model::run::Run;
use crate::model::verify::{Looked, Outcome};
use crate::seeds;
use sheepdog_storelog::Command;
use sheepdog_storelog::format::batch::{self, BatchHeader, Body, LogRecord};
use sheepdog_storelog::format::index::Root;
use sheepdog_storelog::format::superblock::{CheckpointSlot, SLOT_OFFSETS};
use sheepdog_storelog::io::Area;
use sheepdog_types::{BLOCK_SIZE, FragmentId};
use std::collections::BTreeMap;
use std::ops::Range;

const SECTOR: u64 = 512;

/// One batch that the next start replays.
struct Batch {
    header: BatchHeader,
    offset: u64,
    records: Vec<LogRecord>,
}

impl Batch {
    fn head(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.header.header_bytes)
    }

    fn payload(&self) -> Range<u64> {
        self.head().end..self.offset + self.header.total_bytes()
    }
}

/// A store at rest, with something in its log that no checkpoint covers.
struct Rest {
    run: Run,
    disk: SimDisk,
    records: u64,
    batches: Vec<Batch>,
    by_index: u64,
    /// Bad places in batches that later ones prove, and in the last one.
    proved: u32,
    unproved: u32,
    /// Bad owner blocks of the log.
    disowned: u32,
}

impl Rest {
    fn new(mut run: Run, steps: u64) -> Self {
        run.open();
        for _ in 0..steps {
            run.step();
        }
        run.settle();
        if run.rng.chance(70) {
            run.command(Command::Checkpoint);
            run.settle();
        }
        // The last batch holds nothing but these.
        for _ in 0..1 + run.rng.below(4) {
            let fragment = run.rng.below(run.fragments);
            run.write_all_of(fragment);
            run.rest();
        }
        // A checkpoint may be between its two slots.
        while run.disk.in_flight() > 0 || !slots_agree(&run) {
            run.step_to_rest();
        }
        let (disk, records) = run.close();
        let batches = batches(&run, &disk);
        assert_eq!(batches.iter().map(|batch| batch.records.len() as u64).sum::<u64>(), records);
        let by_index = proved_by_index(&run, &disk);
        Self { run, disk, records, batches, by_index, proved: 0, unproved: 0, disowned: 0 }
    }

    /// The last batch, unless the index proves that it was durable; none if a checkpoint came last.
    fn last(&self) -> Option<&Batch> {
        self.batches.last().filter(|last| last.header.seq > self.by_index)
    }

    /// What is lost of each fragment if the last batch is taken for a torn one.
    fn in_last(&self) -> BTreeMap<FragmentId, usize> {
        let mut counts = BTreeMap::new();
        let records = self.last().into_iter().flat_map(|last| &last.records);
        for record in records.filter_map(LogRecord::fragment) {
            *counts.entry(record.fragment).or_default() += 1;
        }
        counts
    }

    /// Whether the last batch is one that was cut short, if this place is bad.
    fn may_look_torn(&self, area: Area, byte: u64) -> bool {
        let Some(last) = self.last() else {
            return false;
        };
        let chunk_bytes = self.run.superblock.geometry.chunk_bytes();
        match area {
            Area::Log => last.head().contains(&byte) || last.payload().contains(&byte),
            Area::Data => last.records.iter().filter_map(LogRecord::fragment).any(|record| {
                let is_here = |unit: u32| u64::from(unit) == byte / chunk_bytes;
                !matches!(record.body, Body::Zero { .. })
                    && record.homes().iter().any(|(_, placed)| is_here(placed.unit))
            }),
        }
    }

    /// Damages a sector and looks at what becomes of the store.
    fn damage(&mut self, area: Area, sector: u64) -> Outcome {
        let byte = sector * SECTOR;
        let mut disk = self.disk.clone();
        disk.rot(area, sector, &mut self.run.rng);
        let Looked { outcome, records, why } =
            self.run.look_at(disk, self.records, &self.in_last());
        let place = format!("{area:?} sector {sector}: {outcome:?}, {records} records, {why}");
        let last = self.last().map(|last| last.header.seq);
        let proved = self.batches.iter().any(|batch| {
            area == Area::Log && Some(batch.header.seq) != last && batch.head().contains(&byte)
        });
        self.proved += u32::from(proved);
        if proved {
            // A later batch or the index says so.
            assert!(outcome == Outcome::Refused && why.contains("the log is damaged"), "{place}");
        }
        if area == Area::Log && self.last().is_some_and(|last| last.head().contains(&byte)) {
            // Rot, and nobody can know.
            self.unproved += 1;
            assert!(outcome == Outcome::Clean && records < self.records, "{place}");
        }
        let owner = area == Area::Log && byte >= self.run.superblock.log_bytes;
        if owner && outcome == Outcome::Refused {
            assert!(why.contains("the log is not this store's"), "{place}");
            self.disowned += 1;
        } else if area == Area::Log && !proved {
            assert_ne!(outcome, Outcome::Refused, "{place}");
        }
        if area == Area::Data
            && SLOT_OFFSETS.contains(&(byte / BLOCK_SIZE as u64 * BLOCK_SIZE as u64))
        {
            assert_eq!(outcome, Outcome::Clean, "the other slot says the same: {place}");
        }
        let whole = outcome == Outcome::Refused || records == self.records;
        assert!(whole || self.may_look_torn(area, byte), "{place}");
        outcome
    }
}

fn slot(run: &Run, disk: &SimDisk, which: usize) -> CheckpointSlot {
    let bytes = disk.peek(Area::Data, SLOT_OFFSETS[which], BLOCK_SIZE);
    CheckpointSlot::decode(run.superblock.log_id, &bytes).expect("a good slot")
}

fn slots_agree(run: &Run) -> bool {
    slot(run, &run.disk, 0) == slot(run, &run.disk, 1)
}

/// The last batch that the index proves to have been durable.
fn proved_by_index(run: &Run, disk: &SimDisk) -> u64 {
    let slot = slot(run, disk, 0);
    let offset = slot.root_page * BLOCK_SIZE as u64;
    let len = (slot.root_bytes as usize).next_multiple_of(BLOCK_SIZE);
    Root::decode(slot.serial, &disk.peek(Area::Data, offset, len)).map_or(0, |root| root.durable)
}

/// The batches behind the replay position, in order.
fn batches(run: &Run, disk: &SimDisk) -> Vec<Batch> {
    let superblock = &run.superblock;
    let slot = slot(run, disk, 0);
    let log = disk.peek(Area::Log, 0, superblock.log_bytes as usize);
    let mut found = Vec::new();
    for offset in (0..log.len()).step_by(superblock.log_unit as usize) {
        let rest = &log[offset..];
        let Ok(header) = BatchHeader::peek(rest, superblock.log_id, superblock.log_unit) else {
            continue;
        };
        if header.seq >= slot.replay.seq
            && let Ok(records) = batch::decode(&header, rest, superblock.geometry)
        {
            found.push(Batch { header, offset: offset as u64, records });
        }
    }
    found.sort_by_key(|batch| batch.header.seq);
    found
}

#[test]
fn rot_in_each_sector_of_a_store_is_told() {
    let (mut outcomes, mut proved, mut unproved, mut disowned) = ([0; 3], 0, 0, 0);
    for seed in seeds(3) {
        println!("seed {seed}");
        let mut rest = Rest::new(Run::small(seed), 250);
        for area in [Area::Data, Area::Log] {
            for sector in rest.disk.sectors(area) {
                outcomes[rest.damage(area, sector) as usize] += 1;
            }
        }
        proved += rest.proved;
        unproved += rest.unproved;
        // Where nothing is written but zeros, nothing can be told.
        for _ in 0..20 {
            let sector = rest.run.superblock.log_bytes / SECTOR;
            outcomes[rest.damage(Area::Log, sector) as usize] += 1;
        }
        disowned += rest.disowned;
    }
    println!("refused to open, read with errors, read without: {outcomes:?}");
    println!("in batches that later ones prove: {proved}; in the last one: {unproved}");
    assert!(proved > 5 && unproved > 2 && disowned > 5);
    assert!(outcomes.iter().all(|count| *count > 10), "{outcomes:?}");
}

#[test]
fn rot_anywhere_is_told_and_never_read_as_something_else() {
    let mut outcomes = [0; 3];
    for seed in seeds(12) {
        println!("seed {seed}");
        let mut rest = Rest::new(Run::new(seed), 200 + seed * 37 % 600);
        for _ in 0..40 {
            let area = [Area::Data, Area::Data, Area::Log][rest.run.rng.below(3) as usize];
            let sectors = rest.disk.sectors(area);
            // The superblock and the two slots have their own share.
            let sector = if area == Area::Data && rest.run.rng.chance(20) {
                [0, 8, 16][rest.run.rng.below(3) as usize]
            } else {
                sectors[rest.run.rng.below(sectors.len() as u64) as usize]
            };
            outcomes[rest.damage(area, sector) as usize] += 1;
        }
    }
    println!("refused to open, read with errors, read without: {outcomes:?}");
    assert!(outcomes.iter().all(|count| *count > 3), "{outcomes:?}");
}
