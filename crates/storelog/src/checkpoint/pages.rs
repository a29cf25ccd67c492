//! The pages of a checkpoint: those of fragments, then entry pages, allocation pages and the root,
//! all to fresh places.

use super::{Checkpoint, CheckpointOp};
use crate::command::Effect;
use crate::format::fragment_page;
use crate::format::index::{PageRun, Root, UNITS_PER_PAGE, encode_entries, encode_space};
use crate::format::shards::encode_missing;
use crate::io::{Area, DiskOp};
use crate::store::Store;
use crate::write::PendingWrite;
use sheepdog_types::{BLOCK_SIZE, FragmentId, PageBuf};
use std::collections::BTreeSet;

impl Store {
    pub(super) fn write_page(&mut self, id: FragmentId, out: &mut Vec<Effect>) {
        let geometry = self.geometry();
        // Batches are applied whole, so this is where the fragment stands.
        let batch = self.log.durable;
        let Some(head) = self.index.get(id).map(|entry| entry.head) else {
            return;
        };
        let Some(loaded) = self.index.loaded(id) else {
            return;
        };
        let bytes = fragment_page::encode(id, head, batch, &loaded.fragment, geometry);
        let Some(run) = self.space.claim_pages(bytes.len().div_ceil(BLOCK_SIZE) as u32) else {
            if let Some(checkpoint) = &mut self.checkpoint {
                checkpoint.no_space = true;
            }
            return;
        };
        // From here on every change makes it dirty again.
        self.index.mark_clean(id);
        self.write_run(CheckpointOp::Page { fragment: id, run }, run, &bytes, out);
    }

    pub(super) fn write_run(
        &mut self,
        what: CheckpointOp,
        run: PageRun,
        bytes: &[u8],
        out: &mut Vec<Effect>,
    ) {
        let op = DiskOp::Write {
            area: Area::Data,
            offset: run.offset(),
            data: vec![PageBuf::copy_of(bytes).freeze()],
            durable: false,
        };
        self.checkpoint_op(what, op, out);
    }

    pub(super) fn page_written(&mut self, id: FragmentId, run: PageRun) {
        self.space.pages_written(run);
        let replaced = match self.index.set_page(id, run) {
            Some(old) => old,
            // The fragment was forgotten meanwhile; nothing will ever read this page.
            None => run,
        };
        if replaced.count > 0
            && let Some(checkpoint) = &mut self.checkpoint
        {
            checkpoint.replaced.push(replaced);
        }
    }

    /// Entry pages, allocation pages and root, all decided in this one instant.
    pub(super) fn write_index(&mut self, out: &mut Vec<Effect>) {
        let Some(mut checkpoint) = self.checkpoint.take() else {
            return;
        };
        // Pages of fragments forgotten since it began are not named by this index either.
        checkpoint.replaced.append(&mut self.replaced_pages);
        let claimed = self.claim_index_pages(&mut checkpoint);
        let planned = if claimed { self.lay_out_index(&mut checkpoint) } else { Vec::new() };
        checkpoint.no_space |= !claimed;
        self.checkpoint = Some(checkpoint);
        for (run, bytes) in planned {
            self.write_run(CheckpointOp::IndexPage(run), run, &bytes, out);
        }
    }

    /// Claims all pages the new index needs. Claiming changes allocation pages, and so does the
    /// emptying of units by the pages replaced, so it goes on until none is left without a page.
    pub(super) fn claim_index_pages(&mut self, checkpoint: &mut Checkpoint) -> bool {
        let mut dirty = self.index.take_dirty_entry_pages();
        while let Some(page) = dirty.first().copied() {
            let Some(run) = self.space.claim_pages(1) else {
                self.index.mark_entry_pages_dirty(dirty);
                return false;
            };
            dirty.remove(&page);
            checkpoint.entry_pages.push((page, run));
            checkpoint.replaced.extend(installed_page(&self.entry_pages, page));
        }
        if !self.claim_missing_pages(checkpoint) || !self.claim_shard_pages(checkpoint) {
            return false;
        }
        if self.root.count > 0 {
            checkpoint.replaced.push(self.root);
        }
        // Generous: the bitmap may grow by a page, and each page replaced may empty its units.
        let per_unit = self.geometry().blocks_per_chunk() as usize;
        let emptied: usize =
            checkpoint.replaced.iter().map(|run| usize::from(run.count).div_ceil(per_unit)).sum();
        let bytes = Root::encoded_bytes(
            self.index.entry_pages(),
            self.space.allocation_pages() + 1,
            self.space.recycled_units()
                + self.space.whole_units(&[]).len()
                + self.writes.values().flat_map(PendingWrite::units).count()
                + emptied
                + 64,
            lists_after(self, checkpoint),
        );
        match self.space.claim_pages(bytes.div_ceil(BLOCK_SIZE) as u32) {
            Some(run) => checkpoint.root = run,
            None => return false,
        }
        let mut known = BTreeSet::new();
        loop {
            let emptied = self.space.units_emptied_by(&checkpoint.replaced);
            self.space.mark_dirty(emptied.into_iter().map(|unit| unit / UNITS_PER_PAGE));
            let next = self.space.dirty_pages().iter().find(|page| !known.contains(*page)).copied();
            let Some(page) = next else { break };
            known.insert(page);
            match self.space.claim_pages(1) {
                Some(run) => checkpoint.space_pages.push((page, run)),
                None => return false,
            }
            checkpoint.replaced.extend(installed_page(&self.space_pages, page));
        }
        self.space.take_dirty_pages();
        true
    }

    /// A page for each entry page that is written and has missing fragments.
    fn claim_missing_pages(&mut self, checkpoint: &mut Checkpoint) -> bool {
        for at in 0..checkpoint.entry_pages.len() {
            let (page, _) = checkpoint.entry_pages[at];
            let installed = self.missing_pages.get(&page).copied();
            let run = if self.index.missing_of_page(page).is_empty() {
                None
            } else {
                match self.space.claim_pages(1) {
                    None => return false,
                    run => run,
                }
            };
            if run.is_some() || installed.is_some() {
                checkpoint.missing_pages.push((page, run));
            }
            checkpoint.replaced.extend(installed.map(|page| PageRun { page, count: 1 }));
        }
        true
    }

    /// Pages for each shard that changed, if it is still there.
    fn claim_shard_pages(&mut self, checkpoint: &mut Checkpoint) -> bool {
        let mut dirty = self.shards.take_dirty();
        while let Some(shard) = dirty.first().copied() {
            let mut parts = Vec::new();
            for pages in self.shards.parts_of(shard) {
                let Some(run) = self.space.claim_pages(pages) else {
                    checkpoint.shard_pages.push((shard, parts));
                    dirty.into_iter().for_each(|shard| self.shards.mark_dirty(shard));
                    return false;
                };
                parts.push(run);
            }
            dirty.remove(&shard);
            checkpoint.shard_pages.push((shard, parts));
            checkpoint.replaced.extend(self.shard_pages.get(&shard).into_iter().flatten());
        }
        true
    }

    pub(super) fn lay_out_index(&mut self, checkpoint: &mut Checkpoint) -> Vec<(PageRun, Vec<u8>)> {
        let mut entry_pages = self.entry_pages.clone();
        entry_pages.resize(self.index.entry_pages(), 0);
        let mut space_pages = self.space_pages.clone();
        space_pages.resize(self.space.allocation_pages(), 0);
        let mut written = Vec::new();
        for (page, run) in &checkpoint.entry_pages {
            entry_pages[*page as usize] = run.page;
            written.push((*run, encode_entries(&self.index.slots_of_page(*page))));
        }
        for (page, run) in &checkpoint.space_pages {
            space_pages[*page as usize] = run.page;
        }
        let mut missing_pages = self.missing_pages.clone();
        for (page, run) in &checkpoint.missing_pages {
            match run {
                Some(run) => {
                    missing_pages.insert(*page, run.page);
                    written.push((*run, encode_missing(*page, &self.index.missing_of_page(*page))));
                }
                None => drop(missing_pages.remove(page)),
            }
        }
        let mut shards = self.shard_pages.clone();
        let per_unit = self.geometry().blocks_per_chunk();
        for (shard, parts) in &checkpoint.shard_pages {
            let bytes = self.shards.page(*shard).encode(*shard, per_unit);
            written.extend(parts.iter().copied().zip(bytes));
            if parts.is_empty() {
                shards.remove(shard);
            } else {
                shards.insert(*shard, parts.clone());
            }
        }
        // On disk, recycled units and those emptied of pages are free already. Units of writes that
        // are not durable yet are free still: if they become durable, replay claims them.
        let emptied = self.space.units_emptied_by(&checkpoint.replaced);
        let mut also_free: BTreeSet<u32> =
            self.space.recycled().chain(self.space.spares()).collect();
        also_free.extend(self.writes.values().flat_map(PendingWrite::units));
        also_free.extend(&emptied);
        let whole = self.space.whole_units(&checkpoint.replaced);
        let mut unpunched: Vec<u32> = also_free.difference(&whole).copied().collect();
        let mut whole: Vec<u32> = whole.into_iter().collect();
        for (page, run) in &checkpoint.space_pages {
            let words = self.space.page_words(*page, &also_free);
            written.push((*run, encode_space(page * UNITS_PER_PAGE, &words)));
        }
        let units = (checkpoint.root.bytes()
            - Root::encoded_bytes(
                entry_pages.len(),
                space_pages.len(),
                0,
                (missing_pages.len(), shards.len(), shards.values().map(Vec::len).sum()),
            ))
            / 4;
        whole.truncate(units);
        unpunched.truncate(units - whole.len());
        let (serial, durable) = (self.serial + 1, self.log.durable);
        let root = Root {
            serial,
            entry_pages,
            space_pages,
            unpunched,
            durable,
            whole,
            missing_pages: missing_pages.into_iter().collect(),
            shards: shards.into_iter().collect(),
        };
        let mut bytes = root.encode();
        // All that was claimed, used or not: opening must find the same pages in use, and that
        // they have their space.
        bytes.resize(checkpoint.root.bytes(), 0);
        checkpoint.root_bytes = checkpoint.root.bytes() as u64;
        written.push((checkpoint.root, bytes));
        written
    }
}

/// Missing pages, shards and parts of shards that the root will name, at most.
fn lists_after(store: &Store, checkpoint: &Checkpoint) -> (usize, usize, usize) {
    let installed = store.shard_pages.values().map(Vec::len);
    let parts = installed.chain(checkpoint.shard_pages.iter().map(|(_, parts)| parts.len()));
    (
        store.missing_pages.len() + checkpoint.missing_pages.len(),
        store.shard_pages.len() + checkpoint.shard_pages.len(),
        parts.sum(),
    )
}

/// The page of the installed index that a new one replaces.
fn installed_page(pages: &[u64], number: u32) -> Option<PageRun> {
    let page = pages.get(number as usize).copied().filter(|page| *page != 0)?;
    Some(PageRun { page, count: 1 })
}
