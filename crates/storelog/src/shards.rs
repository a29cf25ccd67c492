//! Shards in memory: an opaque state and a request table each, as the durable records of the log made
//! them. A checkpoint writes those that changed, each to pages of its own.

use crate::format::shard_record::{RequestPart, ShardChange, ShardRecord};
use crate::format::shards::ShardPage;
use crate::replica::{REQUESTS_MAX, RequestEntry};
use bytes::Bytes;
use sheepdog_types::{FragmentId, NodeId, Process, RequestId, ShardId, Version};
use std::collections::{BTreeMap, BTreeSet};

/// A place in a request table.
type Slot = (Process, u8);

#[derive(Default)]
struct Shard {
    state: Bytes,
    requests: BTreeMap<Slot, RequestEntry>,
    /// The first parts of a table that the next state brings.
    staged: Vec<(RequestId, RequestEntry)>,
    /// Pages it has in the sums.
    counted: u64,
}

impl Shard {
    fn parts(&self, per_unit: u32) -> Vec<u32> {
        ShardPage::parts(self.state.len(), self.requests.len() + self.staged.len(), per_unit)
    }

    fn note(&mut self, id: RequestId, entry: RequestEntry) {
        let known = self.requests.entry((id.gateway, id.slot)).or_insert(entry);
        // A slot is used again only when it was answered, so the newer one has the higher number.
        if known.seq <= entry.seq {
            *known = entry;
        }
    }

    fn adopt_table(&mut self, part: RequestPart) {
        if part.first {
            self.staged.clear();
        }
        let staged = std::mem::take(&mut self.staged);
        self.requests = staged
            .into_iter()
            .chain(part.requests)
            .map(|(id, entry)| ((id.gateway, id.slot), entry))
            .collect();
    }
}

/// See the module.
pub struct Shards {
    /// Pages of a part, at most.
    per_unit: u32,
    shards: BTreeMap<ShardId, Shard>,
    /// Those that differ from their pages, with the pages they need now; dropped ones need none.
    dirty: BTreeMap<ShardId, u64>,
    dirty_pages: u64,
    /// Pages that all shards need.
    pages: u64,
}

impl Shards {
    /// None yet.
    #[must_use]
    pub const fn new(per_unit: u32) -> Self {
        Self { per_unit, shards: BTreeMap::new(), dirty: BTreeMap::new(), dirty_pages: 0, pages: 0 }
    }

    /// Shards and their states.
    pub fn states(&self) -> impl Iterator<Item = (ShardId, &Bytes)> {
        self.shards.iter().map(|(id, shard)| (*id, &shard.state))
    }

    /// The table of one.
    pub fn requests(&self, shard: ShardId) -> impl Iterator<Item = (RequestId, RequestEntry)> {
        let requests = self.shards.get(&shard).into_iter().flat_map(|shard| &shard.requests);
        requests.map(|((gateway, slot), entry)| {
            (RequestId { gateway: *gateway, slot: *slot, seq: entry.seq }, *entry)
        })
    }

    /// Whether the table takes this request, with so many others on their way.
    #[must_use]
    pub fn has_slot(&self, shard: ShardId, id: &RequestId, others: usize) -> bool {
        self.shards.get(&shard).is_none_or(|shard| {
            shard.requests.len() + others < REQUESTS_MAX
                || shard.requests.contains_key(&(id.gateway, id.slot))
        })
    }

    /// A durable write was this request.
    pub fn note(&mut self, shard: ShardId, id: RequestId, version: Version, fragment: FragmentId) {
        let entry = RequestEntry { seq: id.seq, version, fragment };
        self.shards.entry(shard).or_default().note(id, entry);
        self.mark_dirty(shard);
    }

    /// A durable record.
    pub fn apply(&mut self, record: ShardRecord) {
        let shard = record.shard;
        match record.change {
            ShardChange::Drop => {
                self.pages -= self.shards.remove(&shard).map_or(0, |gone| gone.counted);
            }
            ShardChange::State { state, requests } => {
                let found = self.shards.entry(shard).or_default();
                found.state = state;
                if let Some(part) = requests {
                    found.adopt_table(part);
                }
                // Of a table that was never finished.
                found.staged = Vec::new();
            }
            ShardChange::Stage(part) => {
                let found = self.shards.entry(shard).or_default();
                if part.first {
                    found.staged.clear();
                }
                // A log that makes no sense is not to take more memory than one that does.
                let room = REQUESTS_MAX - found.staged.len();
                found.staged.extend(part.requests.into_iter().take(room));
            }
            ShardChange::DropRequests(gateway) => {
                if let Some(found) = self.shards.get_mut(&shard) {
                    found.requests.retain(|(other, _), _| {
                        other.node != gateway.node || other.incarnation >= gateway.incarnation
                    });
                }
            }
        }
        self.mark_dirty(shard);
    }

    /// Whether anything of that gateway's node would be dropped.
    #[must_use]
    pub fn has_older(&self, shard: ShardId, gateway: Process) -> bool {
        let node: NodeId = gateway.node;
        let from = (Process { node, incarnation: 0 }, 0);
        let to = (gateway, 0);
        self.shards.get(&shard).is_some_and(|shard| shard.requests.range(from..to).next().is_some())
    }

    /// Whether there is such a shard.
    #[must_use]
    pub fn contains(&self, shard: ShardId) -> bool {
        self.shards.contains_key(&shard)
    }

    /// While opening: one as its page tells.
    pub fn adopt(&mut self, shard: ShardId, page: ShardPage) {
        let requests = page.requests.into_iter();
        let requests = requests.map(|(id, entry)| ((id.gateway, id.slot), entry)).collect();
        let mut found = Shard { state: page.state, requests, staged: page.staged, counted: 0 };
        found.counted = sum(&found.parts(self.per_unit));
        self.pages += found.counted;
        self.shards.insert(shard, found);
    }

    // ---- checkpoints --------------------------------------------------------------------------

    /// Pages that each part of a shard needs now.
    #[must_use]
    pub fn parts_of(&self, shard: ShardId) -> Vec<u32> {
        self.shards.get(&shard).map_or(Vec::new(), |found| found.parts(self.per_unit))
    }

    /// Pages that a shard needs now.
    #[must_use]
    pub fn pages_of(&self, shard: ShardId) -> u64 {
        sum(&self.parts_of(shard))
    }

    /// Pages that one with so much state and so many requests would need.
    #[must_use]
    pub fn pages_for(&self, state: usize, requests: usize) -> u64 {
        sum(&ShardPage::parts(state, requests, self.per_unit))
    }

    /// Whether its page must be written.
    #[must_use]
    pub fn is_dirty(&self, shard: ShardId) -> bool {
        self.dirty.contains_key(&shard)
    }

    /// Whether any must be.
    #[must_use]
    pub fn are_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Pages that a checkpoint needs for those that changed.
    #[must_use]
    pub const fn dirty_pages(&self) -> u64 {
        self.dirty_pages
    }

    /// Pages that a checkpoint would need if all of them had changed.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// It must be written, or is to be named no more.
    pub fn mark_dirty(&mut self, shard: ShardId) {
        let pages = self.pages_of(shard);
        if let Some(found) = self.shards.get_mut(&shard) {
            self.pages = self.pages + pages - std::mem::replace(&mut found.counted, pages);
        }
        let before = self.dirty.insert(shard, pages).unwrap_or(0);
        self.dirty_pages = self.dirty_pages + pages - before;
    }

    /// Those that changed, now on their way to the disk.
    pub fn take_dirty(&mut self) -> BTreeSet<ShardId> {
        self.dirty_pages = 0;
        std::mem::take(&mut self.dirty).into_keys().collect()
    }

    /// A shard as the disk is to have it.
    #[must_use]
    pub fn page(&self, shard: ShardId) -> ShardPage {
        let Some(found) = self.shards.get(&shard) else {
            return ShardPage::default();
        };
        ShardPage {
            state: found.state.clone(),
            requests: self.requests(shard).collect(),
            staged: found.staged.clone(),
        }
    }
}

fn sum(parts: &[u32]) -> u64 {
    parts.iter().map(|pages| u64::from(*pages)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_types::{Interval, LineageId};

    const SHARD: ShardId = ShardId { set: 1, number: 2 };
    const FRAGMENT: FragmentId = FragmentId { lineage: LineageId(1), number: 2 };

    fn id(node: u8, incarnation: u64, slot: u8, seq: u64) -> RequestId {
        RequestId { gateway: Process { node: NodeId([node; 16]), incarnation }, slot, seq }
    }

    fn version(seq: u64) -> Version {
        Version { interval: Interval(1), seq }
    }

    fn entry(seq: u64) -> RequestEntry {
        RequestEntry { seq, version: version(seq), fragment: FRAGMENT }
    }

    fn table(shards: &Shards) -> Vec<RequestId> {
        shards.requests(SHARD).map(|(id, _)| id).collect()
    }

    fn change(shards: &mut Shards, change: ShardChange) {
        shards.apply(ShardRecord { shard: SHARD, change });
    }

    #[test]
    fn a_slot_keeps_its_last_request() {
        let mut shards = Shards::new(16);
        for (id, at) in [(id(1, 1, 0, 5), 1), (id(1, 1, 0, 6), 2), (id(1, 2, 0, 1), 3)] {
            shards.note(SHARD, id, version(at), FRAGMENT);
        }
        shards.note(SHARD, id(1, 1, 0, 4), version(4), FRAGMENT);
        shards.note(SHARD, id(2, 1, 0, 1), version(5), FRAGMENT);
        assert_eq!(table(&shards), [id(1, 1, 0, 6), id(1, 2, 0, 1), id(2, 1, 0, 1)]);
        let gateway = id(1, 2, 9, 9).gateway;
        assert!(shards.has_older(SHARD, gateway));
        change(&mut shards, ShardChange::DropRequests(gateway));
        assert_eq!(table(&shards), [id(1, 2, 0, 1), id(2, 1, 0, 1)]);
        assert!(!shards.has_older(SHARD, gateway));
    }

    #[test]
    fn a_table_in_parts_counts_when_its_state_is_there() {
        let mut shards = Shards::new(16);
        shards.note(SHARD, id(1, 1, 0, 5), version(1), FRAGMENT);
        let part =
            |first, slot| RequestPart { first, requests: vec![(id(9, 1, slot, 7), entry(7))] };
        // One that was never finished.
        change(&mut shards, ShardChange::Stage(part(true, 1)));
        change(&mut shards, ShardChange::Stage(part(true, 2)));
        change(&mut shards, ShardChange::Stage(part(false, 3)));
        assert_eq!(table(&shards), [id(1, 1, 0, 5)]);
        let page = shards.page(SHARD);
        let parts = page.encode(SHARD, 16);
        let parts = parts.iter().map(Vec::as_slice);
        assert_eq!(ShardPage::decode(SHARD, parts), Ok(page.clone()));
        shards.adopt(SHARD, page);
        let state = Bytes::from_static(b"state");
        change(&mut shards, ShardChange::State { state, requests: Some(part(false, 4)) });
        assert_eq!(table(&shards), [2, 3, 4].map(|slot| id(9, 1, slot, 7)));
        let state = Bytes::from_static(b"other");
        change(&mut shards, ShardChange::Stage(part(true, 5)));
        change(&mut shards, ShardChange::State { state, requests: None });
        assert_eq!(table(&shards), [2, 3, 4].map(|slot| id(9, 1, slot, 7)));
        assert_eq!(shards.page(SHARD).staged, []);
        assert_eq!(shards.states().map(|(_, state)| &state[..]).collect::<Vec<_>>(), [b"other"]);
    }

    #[test]
    fn pages_of_what_changed_are_counted() {
        let mut shards = Shards::new(16);
        shards.note(SHARD, id(1, 1, 0, 5), version(1), FRAGMENT);
        shards.note(SHARD, id(1, 1, 1, 5), version(2), FRAGMENT);
        assert_eq!((shards.dirty_pages(), shards.pages_of(SHARD)), (1, 1));
        let state = Bytes::from(vec![7; 9000]);
        change(&mut shards, ShardChange::State { state, requests: None });
        assert_eq!((shards.dirty_pages(), shards.pages()), (3, 3));
        assert_eq!(shards.take_dirty().into_iter().collect::<Vec<_>>(), [SHARD]);
        assert_eq!((shards.dirty_pages(), shards.are_dirty(), shards.pages()), (0, false, 3));
        change(&mut shards, ShardChange::Drop);
        assert!(shards.is_dirty(SHARD) && !shards.contains(SHARD));
        assert_eq!((shards.dirty_pages(), shards.pages()), (0, 0));
    }
}
