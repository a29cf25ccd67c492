//! The fragments of a store in memory: a small entry for each, the whole bookkeeping for those in
//! use, and which slots and pages of the index on disk they belong to.

use crate::format::fragment_page::pages_max;
use crate::format::index::{Owners, PageRun, SLOTS_PER_PAGE, Slot};
use crate::fragment::{Fragment, FreedUnit, HostBlocks};
use bytes::Bytes;
use sheepdog_types::{FragmentId, Version, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

/// A block whose newest bytes are in the log only.
#[derive(Clone, Debug)]
pub struct LoggedBlock {
    /// Its bytes, while memory allows.
    pub bytes: Option<Bytes>,
    /// Where they are in the log (monotonic position).
    pub pos: u64,
    /// Batch that brought them.
    pub seq: u64,
    /// Disk operations begun before this ticket may still read the block's home.
    pub ticket: u64,
}

/// A fragment in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Its bookkeeping.
    pub fragment: Fragment,
    /// Blocks that are not home yet.
    pub logged: BTreeMap<(Vid, u32), LoggedBlock>,
    /// Disk operations begun before this ticket may still read blocks that are stale now.
    pub stale_ticket: u64,
    /// Punches of its stale blocks that have not ended.
    pub punching: u32,
    /// Used since the cache's hand last passed.
    touched: bool,
    /// What the cache was charged for it.
    charged: usize,
    /// What the index's sums hold of it.
    counted: HostBlocks,
    /// Pages that it needs on disk, at most.
    pages: u64,
}

/// What the store knows of a fragment at all times. A tebibyte has a quarter of a million of them.
#[derive(Debug)]
pub struct Entry {
    /// Which.
    pub id: FragmentId,
    /// Version of its newest durable write.
    pub head: Version,
    /// Its page on disk; 0 blocks before the first checkpoint.
    pub page: PageRun,
    /// Who holds what.
    pub owners: Owners,
    /// The rest.
    pub loaded: Option<Box<Loaded>>,
}

// A tebibyte of fragments and all else must fit 64 MiB (`cargo xtask long memory`).
const _: () = assert!(size_of::<Option<Entry>>() <= 88);

/// See the module.
#[derive(Default)]
pub struct Index {
    /// In the order of the entry pages on disk. Apart from `places`, as an array has no holes and a
    /// map has many.
    slots: Vec<Option<Entry>>,
    /// Where in `slots` a fragment is.
    places: BTreeMap<FragmentId, u32>,
    free_slots: BTreeSet<u32>,
    dirty_entry_pages: BTreeSet<u32>,
    /// Loaded fragments that differ from their page.
    dirty: BTreeSet<FragmentId>,
    /// Fragments whose page is on its way to the disk: until it is there they stay in memory.
    writing: BTreeSet<FragmentId>,
    /// Loaded fragments, and where the cache's hand stands among them.
    clock: BTreeSet<FragmentId>,
    hand: Option<FragmentId>,
    cached_bytes: usize,
    stored_blocks: u64,
    host_blocks: HostBlocks,
    /// Pages that the dirty fragments need on disk, at most.
    dirty_pages: u64,
    /// What is needed of missing fragments. Apart from the entries, as mostly there are none.
    missing: BTreeMap<FragmentId, Version>,
}

/// What a record does to the version of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing.
    Stay,
    /// It is the head, and the fragment not missing.
    Head(Version),
    /// It is what is needed of a missing fragment.
    Needed(Version),
}

impl Index {
    /// A fragment that was ever written.
    #[must_use]
    pub fn get(&self, id: FragmentId) -> Option<&Entry> {
        self.slots[self.place(id)?].as_ref()
    }

    fn place(&self, id: FragmentId) -> Option<usize> {
        self.places.get(&id).map(|slot| *slot as usize)
    }

    /// Fragments of a range of ids.
    pub fn range(
        &self,
        ids: std::ops::RangeInclusive<FragmentId>,
    ) -> impl Iterator<Item = (FragmentId, &Entry)> {
        self.places
            .range(ids)
            .filter_map(|(id, slot)| Some((*id, self.slots[*slot as usize].as_ref()?)))
    }

    /// How many fragments there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// What is needed of a missing fragment.
    #[must_use]
    pub fn needed(&self, id: FragmentId) -> Option<Version> {
        self.missing.get(&id).copied()
    }

    /// The version that the next write of a fragment follows.
    #[must_use]
    pub fn newest(&self, id: FragmentId) -> Version {
        let head = || self.get(id).map_or(Version::ZERO, |entry| entry.head);
        self.needed(id).unwrap_or_else(head)
    }

    /// Whether any fragment is missing.
    #[must_use]
    pub fn any_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// The newest version of all. Looks at every fragment: for opening.
    #[must_use]
    pub fn newest_of_all(&self) -> Version {
        let heads = self.slots.iter().flatten().map(|entry| entry.head);
        let heads = heads.chain(self.missing.values().copied());
        heads.max().unwrap_or(Version::ZERO)
    }

    /// Blocks that hold space, or will once they are home.
    #[must_use]
    pub const fn stored_blocks(&self) -> u64 {
        self.stored_blocks
    }

    /// Fragments that differ from their page.
    #[must_use]
    pub const fn dirty(&self) -> &BTreeSet<FragmentId> {
        &self.dirty
    }

    /// What the host knows of the blocks of loaded fragments. All others are home, with nothing
    /// stale.
    #[must_use]
    pub const fn host_blocks(&self) -> HostBlocks {
        self.host_blocks
    }

    /// Pages that a checkpoint needs for fragments, entries included, if it begins now.
    #[must_use]
    pub fn pages_needed(&self) -> u64 {
        let entries = self.dirty_entry_pages.len() as u64;
        self.dirty_pages + entries * if self.any_missing() { 2 } else { 1 }
    }

    /// The entry page of a fragment, unless it has none or will be written anyway.
    #[must_use]
    pub fn clean_entry_page(&self, id: FragmentId) -> Option<u32> {
        let page = *self.places.get(&id)? / SLOTS_PER_PAGE;
        (!self.dirty_entry_pages.contains(&page)).then_some(page)
    }

    /// Entry pages that will be written.
    #[must_use]
    pub fn dirty_entry_pages(&self) -> usize {
        self.dirty_entry_pages.len()
    }

    /// Memory of loaded fragments.
    #[must_use]
    pub const fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// Whether the whole bookkeeping of a fragment can be had without I/O (it is loaded, or new).
    #[must_use]
    pub fn is_ready(&self, id: FragmentId) -> bool {
        self.get(id).is_none_or(|entry| entry.loaded.is_some())
    }

    /// The bookkeeping of a loaded fragment, for reading.
    pub fn loaded(&mut self, id: FragmentId) -> Option<&mut Loaded> {
        let place = self.place(id)?;
        let loaded = self.slots[place].as_mut()?.loaded.as_deref_mut()?;
        loaded.touched = true;
        Some(loaded)
    }

    /// Units that are homes of chunks of loaded fragments.
    pub fn units_of_loaded(&self) -> impl Iterator<Item = u32> {
        self.slots
            .iter()
            .flatten()
            .filter_map(|entry| entry.loaded.as_deref())
            .flat_map(|loaded| loaded.fragment.chunks())
            .filter_map(|(_, _, chunk)| chunk.unit)
    }

    /// While opening: a fragment as its slot tells.
    pub fn adopt(&mut self, slot: u32, found: Slot) {
        self.stored_blocks += found.owners.stored_blocks();
        if self.slots.len() <= slot as usize {
            self.slots.resize_with(slot as usize + 1, || None);
        }
        let Slot { id, head, page, owners } = found;
        self.slots[slot as usize] = Some(Entry { id, head, page, owners, loaded: None });
        self.places.insert(id, slot);
    }

    /// While opening, behind all slots: fragments of an entry page that are missing. A slot that is
    /// empty is passed over: whoever was in it could not be read.
    pub fn adopt_missing(&mut self, page: u32, missing: &[(u8, Version)]) {
        for (slot, needed) in missing {
            let at = page as usize * SLOTS_PER_PAGE as usize + usize::from(*slot);
            if let Some(Some(entry)) = self.slots.get(at) {
                self.missing.insert(entry.id, *needed);
            }
        }
    }

    /// The missing page of an entry page, as the disk is to have it.
    #[must_use]
    pub fn missing_of_page(&self, page: u32) -> Vec<(u8, Version)> {
        if self.missing.is_empty() {
            return Vec::new();
        }
        let slots = self.slots.iter().skip((page * SLOTS_PER_PAGE) as usize);
        (0..SLOTS_PER_PAGE as u8)
            .zip(slots)
            .filter_map(|(slot, entry)| {
                // As in the entry page: without a page of its own it is in the log.
                let entry = entry.as_ref().filter(|entry| entry.page.count > 0)?;
                Some((slot, self.needed(entry.id)?))
            })
            .collect()
    }

    /// A fragment is missing from now on. Only what its slot says changes, so its page need not be
    /// in memory.
    pub fn miss(&mut self, id: FragmentId, new: impl FnOnce() -> Fragment, needed: Version) {
        match self.places.get(&id) {
            Some(slot) => {
                self.dirty_entry_pages.insert(slot / SLOTS_PER_PAGE);
                self.missing.insert(id, needed);
            }
            None => {
                self.update(id, new, Step::Needed(needed), |_| Vec::new());
            }
        }
    }

    /// While opening: slots not adopted are free, those of all `pages` on disk, so that a page
    /// without fragments stays known.
    pub fn finish_adopting(&mut self, pages: usize) {
        let slots = pages * SLOTS_PER_PAGE as usize;
        self.slots.resize_with(self.slots.len().max(slots), || None);
        self.free_slots = (0..self.slots.len() as u32)
            .filter(|slot| self.slots[*slot as usize].is_none())
            .collect();
    }

    /// Its page was read.
    pub fn load(&mut self, id: FragmentId, fragment: Fragment) {
        let Some(place) = self.place(id) else {
            return;
        };
        let Some(entry) = &mut self.slots[place] else {
            return;
        };
        assert!(entry.loaded.is_none(), "fragment {id} was loaded twice");
        let charged = fragment.memory_bytes();
        self.cached_bytes += charged;
        let (counted, pages) = (fragment.host_blocks(), pages_max(&fragment));
        add(&mut self.host_blocks, counted);
        entry.loaded = Some(Box::new(Loaded {
            fragment,
            counted,
            pages,
            logged: BTreeMap::new(),
            stale_ticket: 0,
            punching: 0,
            touched: true,
            charged,
        }));
        self.clock.insert(id);
    }

    /// Drops clean bookkeeping until the rest fits `budget`; `pinned` ones stay. Looks at no more
    /// than `steps`: before a checkpoint most may be dirty, and looking at all would cost more
    /// than it gives.
    pub fn shrink(&mut self, budget: usize, steps: usize, pinned: impl Fn(FragmentId) -> bool) {
        for _ in 0..self.clock.len().min(steps) {
            if self.cached_bytes <= budget {
                break;
            }
            let next = match self.hand {
                Some(hand) => self.clock.range((Excluded(hand), Unbounded)).next(),
                None => None,
            };
            let Some(id) = next.or(self.clock.first()).copied() else {
                break;
            };
            self.hand = Some(id);
            let pinned = self.dirty.contains(&id) || self.writing.contains(&id) || pinned(id);
            let Some(place) = self.place(id) else {
                self.clock.remove(&id);
                continue;
            };
            let entry = self.slots[place].as_mut();
            let Some(loaded) = entry.and_then(|entry| entry.loaded.as_deref_mut()) else {
                self.clock.remove(&id);
                continue;
            };
            // A block whose copy in the log was rotten has no space at home and never will: what is
            // not in memory counts as home.
            if loaded.touched || pinned || loaded.counted.unbacked > 0 {
                loaded.touched = false;
            } else {
                self.cached_bytes -= loaded.charged;
                subtract(&mut self.host_blocks, loaded.counted);
                self.clock.remove(&id);
                if let Some(entry) = &mut self.slots[place] {
                    entry.loaded = None;
                }
            }
        }
    }

    /// Changes a loaded or new fragment by a durable record; counters, owners and dirtiness
    /// follow. Gives the units it left.
    pub fn update(
        &mut self,
        id: FragmentId,
        new: impl FnOnce() -> Fragment,
        step: Step,
        change: impl FnOnce(&mut Loaded) -> Vec<FreedUnit>,
    ) -> Vec<FreedUnit> {
        let slot = match self.places.get(&id) {
            Some(slot) => *slot,
            None => {
                let slot = self.free_slots.pop_first().unwrap_or_else(|| {
                    self.slots.push(None);
                    self.slots.len() as u32 - 1
                });
                self.slots[slot as usize] = Some(Entry {
                    id,
                    head: Version::ZERO,
                    page: PageRun::default(),
                    owners: Owners::NONE,
                    loaded: None,
                });
                self.places.insert(id, slot);
                self.load(id, new());
                slot
            }
        };
        let entry = self.slots[slot as usize].as_mut().expect("found or made above");
        match step {
            Step::Stay => {}
            Step::Head(version) => {
                entry.head = version;
                self.missing.remove(&id);
            }
            Step::Needed(version) => {
                self.missing.insert(id, version);
            }
        }
        self.dirty_entry_pages.insert(slot / SLOTS_PER_PAGE);
        let loaded = entry.loaded.as_deref_mut().expect("a fragment is loaded before it changes");
        loaded.touched = true;
        if !self.dirty.insert(id) {
            self.dirty_pages -= loaded.pages;
        }
        let left = change(loaded);
        loaded.pages = pages_max(&loaded.fragment);
        self.dirty_pages += loaded.pages;
        recount(&mut self.host_blocks, loaded);
        let charged = loaded.fragment.memory_bytes() + loaded.logged.len() * 96;
        self.cached_bytes = self.cached_bytes + charged - loaded.charged;
        loaded.charged = charged;
        self.stored_blocks -= entry.owners.stored_blocks();
        entry.owners = Owners::of(loaded.fragment.owners());
        self.stored_blocks += entry.owners.stored_blocks();
        left
    }

    /// Changes what a loaded fragment knows of its space on the host, not what it owns.
    pub fn change_space(&mut self, id: FragmentId, change: impl FnOnce(&mut Loaded)) {
        if let Some(place) = self.place(id)
            && let Some(loaded) = self.slots[place].as_mut().and_then(|e| e.loaded.as_deref_mut())
        {
            change(loaded);
            recount(&mut self.host_blocks, loaded);
        }
    }

    /// Forgets a fragment that holds nothing. Gives its page.
    pub fn remove(&mut self, id: FragmentId) -> PageRun {
        let Some(slot) = self.places.remove(&id) else {
            return PageRun::default();
        };
        let Some(entry) = self.slots[slot as usize].take() else {
            return PageRun::default();
        };
        self.clock.remove(&id);
        self.missing.remove(&id);
        let dirty = self.dirty.remove(&id);
        if let Some(loaded) = entry.loaded {
            self.cached_bytes -= loaded.charged;
            subtract(&mut self.host_blocks, loaded.counted);
            self.dirty_pages -= if dirty { loaded.pages } else { 0 };
            assert!(loaded.logged.is_empty(), "a fragment with bytes in the log was forgotten");
        }
        self.stored_blocks -= entry.owners.stored_blocks();
        self.free_slots.insert(slot);
        self.dirty_entry_pages.insert(slot / SLOTS_PER_PAGE);
        entry.page
    }

    /// A page with the fragment's present state is being written; bytes that came to the log
    /// since keep it dirty, and so does space that is still to be given back.
    pub fn mark_clean(&mut self, id: FragmentId) {
        let loaded = self.get(id).and_then(|entry| entry.loaded.as_deref());
        if let Some(loaded) = loaded
            && loaded.logged.is_empty()
            && loaded.counted.stale + loaded.counted.doubtful == 0
            && self.dirty.contains(&id)
        {
            self.dirty_pages -= loaded.pages;
            self.dirty.remove(&id);
        }
        self.writing.insert(id);
    }

    /// Its page must be written again. One that was dropped from memory meanwhile has its page.
    pub fn mark_dirty(&mut self, id: FragmentId) {
        self.writing.remove(&id);
        if let Some(place) = self.place(id)
            && let Some(entry) = &self.slots[place]
        {
            self.dirty_entry_pages.insert(place as u32 / SLOTS_PER_PAGE);
            if let Some(loaded) = &entry.loaded
                && self.dirty.insert(id)
            {
                self.dirty_pages += loaded.pages;
            }
        }
    }

    /// Its page was written to `page`. Gives the page it replaces; `None` if the fragment is gone.
    pub fn set_page(&mut self, id: FragmentId, page: PageRun) -> Option<PageRun> {
        self.writing.remove(&id);
        let place = self.place(id)?;
        self.dirty_entry_pages.insert(place as u32 / SLOTS_PER_PAGE);
        let entry = self.slots[place].as_mut()?;
        Some(std::mem::replace(&mut entry.page, page))
    }

    /// Entry pages there are.
    #[must_use]
    pub fn entry_pages(&self) -> usize {
        self.slots.len().div_ceil(SLOTS_PER_PAGE as usize)
    }

    /// Entry pages that differ from those on disk, now on their way there.
    pub fn take_dirty_entry_pages(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.dirty_entry_pages)
    }

    /// They did not get there.
    pub fn mark_entry_pages_dirty(&mut self, pages: impl IntoIterator<Item = u32>) {
        self.dirty_entry_pages.extend(pages);
    }

    /// Whether any entry page differs from the disk.
    #[must_use]
    pub fn has_dirty_entry_pages(&self) -> bool {
        !self.dirty_entry_pages.is_empty()
    }

    /// The slots of an entry page, as the disk is to have them.
    #[must_use]
    pub fn slots_of_page(&self, page: u32) -> Vec<Option<Slot>> {
        let first = (page * SLOTS_PER_PAGE) as usize;
        let last = (first + SLOTS_PER_PAGE as usize).min(self.slots.len());
        self.slots[first..last]
            .iter()
            .map(|entry| {
                let entry = entry.as_ref()?;
                // Without a page everything about it is in the log that will be replayed.
                (entry.page.count > 0).then(|| Slot {
                    id: entry.id,
                    head: entry.head,
                    page: entry.page,
                    owners: entry.owners.clone(),
                })
            })
            .collect()
    }
}

/// The sums follow what became of a fragment.
fn recount(sums: &mut HostBlocks, loaded: &mut Loaded) {
    let now = loaded.fragment.host_blocks();
    let was = std::mem::replace(&mut loaded.counted, now);
    add(sums, now);
    subtract(sums, was);
}

const fn add(sums: &mut HostBlocks, more: HostBlocks) {
    sums.unbacked += more.unbacked;
    sums.stale += more.stale;
    sums.doubtful += more.doubtful;
    sums.homeless += more.homeless;
}

const fn subtract(sums: &mut HostBlocks, less: HostBlocks) {
    sums.unbacked -= less.unbacked;
    sums.stale -= less.stale;
    sums.doubtful -= less.doubtful;
    sums.homeless -= less.homeless;
}
