//! Recovery: what acting members lack of fragments, chunk by chunk (DESIGN 6.4). Three steps for each
//! copy: the member that lacks it tells the versions of its chunks, a member that has it gives those
//! that differ, the first one takes them. The fragment takes no writes meanwhile, so that what is
//! given is the whole difference at one place in its chain.

use super::{Context, Phase, Primary};
use crate::authority::Copy;
use crate::message::Order;
use crate::rules::Rule;
use sheepdog_storelog::ChunkCopy;
use sheepdog_types::{DiskId, FragmentId, Version};
use std::collections::BTreeSet;

/// Fragments that are copied at the same time without anybody asking for them.
const COPIES_MAX: usize = 4;

/// One copy on its way.
pub struct Copying {
    to: DiskId,
    from: DiskId,
    step: Step,
}

enum Step {
    /// Writes that were on their way end first.
    Quiet,
    Versions,
    Chunks {
        at: Version,
        have: Vec<Version>,
    },
    Fill {
        at: Version,
        chunks: Vec<ChunkCopy>,
    },
}

impl Primary {
    /// Begins with more fragments, those first of which there are fewest copies.
    pub(super) fn recover_more(&mut self, cx: &mut Context<'_>) {
        if self.phase != Phase::Serving {
            return;
        }
        let mut waiting: Vec<(usize, FragmentId)> = self
            .missing
            .iter()
            .filter(|(fragment, _)| !self.copying.contains_key(*fragment))
            .map(|(fragment, lacking)| (usize::MAX - lacking.len(), *fragment))
            .collect();
        waiting.sort_unstable();
        for (_, fragment) in waiting {
            if self.copying.len() >= COPIES_MAX {
                return;
            }
            self.recover(fragment, cx);
        }
    }

    /// Begins with a fragment: the primary's own copy first.
    pub(super) fn recover(&mut self, fragment: FragmentId, cx: &mut Context<'_>) {
        if self.copying.contains_key(&fragment) || self.phase != Phase::Serving {
            return;
        }
        let Some(lacking) = self.missing.get(&fragment) else {
            return;
        };
        let here = lacking.contains(&self.local);
        let Some(to) = (if here { Some(self.local) } else { lacking.first().copied() }) else {
            return;
        };
        let from = if here {
            let there = |disk: &&DiskId| self.members.contains_key(*disk);
            self.sources.get(&fragment).and_then(|sources| sources.iter().find(there).copied())
        } else {
            Some(self.local)
        };
        // Nobody is left that has it: it waits for one of those that had.
        let Some(from) = from else {
            return;
        };
        self.copying.insert(fragment, Copying { to, from, step: Step::Quiet });
        self.copy_when_quiet(fragment, cx);
    }

    /// Once no write of the fragment is on its way.
    pub(super) fn copy_when_quiet(&mut self, fragment: FragmentId, cx: &mut Context<'_>) {
        let quiet = self.fragments.get(&fragment).is_none_or(|ordered| ordered.writes.is_empty());
        let Some(copying) = self.copying.get_mut(&fragment) else {
            return;
        };
        if matches!(copying.step, Step::Quiet) && (quiet || !self.rules.on(Rule::CopyFreezes)) {
            copying.step = Step::Versions;
            let to = copying.to;
            self.order(to, Order::Versions { fragment }, cx);
        }
    }

    pub(super) fn copy_versions(
        &mut self,
        disk: DiskId,
        fragment: FragmentId,
        copy: Copy,
        chunks: Vec<Version>,
        cx: &mut Context<'_>,
    ) {
        let Some(copying) = self.copying.get_mut(&fragment) else {
            return;
        };
        if copying.to != disk || !matches!(copying.step, Step::Versions) {
            return;
        }
        let Some(at) = copy.needed else {
            self.copied(disk, fragment, cx);
            return;
        };
        let from = copying.from;
        copying.step = Step::Chunks { at, have: chunks.clone() };
        self.order(from, Order::Chunks { fragment, head: at, have: chunks }, cx);
    }

    pub(super) fn copy_chunks(
        &mut self,
        disk: DiskId,
        fragment: FragmentId,
        head: Version,
        chunks: Vec<ChunkCopy>,
        cx: &mut Context<'_>,
    ) {
        let Some(copying) = self.copying.get_mut(&fragment) else {
            return;
        };
        let Step::Chunks { at, .. } = copying.step else {
            return;
        };
        if copying.from != disk {
            return;
        }
        if head != at {
            self.copying.remove(&fragment);
            return;
        }
        let to = copying.to;
        copying.step = Step::Fill { at, chunks: chunks.clone() };
        self.order(to, Order::Fill { fragment, at, chunks }, cx);
    }

    /// The source does not have it any more, or cannot read it.
    pub(super) fn copy_failed(&mut self, disk: DiskId, fragment: FragmentId, cx: &mut Context<'_>) {
        let Some(copying) = self.copying.get(&fragment) else {
            return;
        };
        let (to, from) = (copying.to, copying.from);
        if disk != to && disk != from {
            return;
        }
        self.copying.remove(&fragment);
        // Who cannot take it now, or be read here, is tried again after a while.
        if disk == to || disk == self.local {
            self.run_fragment(fragment, cx);
            return;
        }
        if let Some(sources) = self.sources.get_mut(&fragment) {
            sources.remove(&disk);
        }
        self.recover(fragment, cx);
        self.run_fragment(fragment, cx);
    }

    /// Copies from disks that are not there any more: others may have the same.
    pub(super) fn drop_lost_sources(&mut self, cx: &mut Context<'_>) {
        let hosts = &self.assignment.hosts;
        let lost = |disk: &DiskId| {
            self.members.get(disk).map(|member| member.process) != hosts.get(disk).copied()
        };
        let failed: Vec<(FragmentId, DiskId)> = self
            .copying
            .iter()
            .filter(|(_, copying)| lost(&copying.from))
            .map(|(fragment, copying)| (*fragment, copying.from))
            .collect();
        for (fragment, disk) in failed {
            self.copy_failed(disk, fragment, cx);
        }
    }

    pub(super) fn copy_filled(
        &mut self,
        disk: DiskId,
        fragment: FragmentId,
        filled: Version,
        cx: &mut Context<'_>,
    ) {
        let of_it = |copying: &Copying| {
            copying.to == disk && matches!(copying.step, Step::Fill { at, .. } if at == filled)
        };
        if self.copying.get(&fragment).is_some_and(of_it) {
            self.copied(disk, fragment, cx);
        }
    }

    /// The member has the whole fragment.
    fn copied(&mut self, disk: DiskId, fragment: FragmentId, cx: &mut Context<'_>) {
        self.copying.remove(&fragment);
        if let Some(lacking) = self.missing.get_mut(&fragment) {
            lacking.remove(&disk);
            if lacking.is_empty() {
                self.missing.remove(&fragment);
                self.sources.remove(&fragment);
            }
        }
        self.run_fragment(fragment, cx);
        // Whoever waits for it goes first.
        let wanted = self.fragments.get(&fragment).is_some_and(|o| !o.waiting.is_empty());
        if wanted && self.missing.contains_key(&fragment) {
            self.recover(fragment, cx);
        }
        self.recover_more(cx);
        self.tell_clean(cx);
    }

    /// To a process that may not have got it.
    pub(super) fn copy_again(&mut self, disk: DiskId, cx: &mut Context<'_>) {
        let mut orders: Vec<(DiskId, Order)> = Vec::new();
        for (fragment, copying) in &self.copying {
            let fragment = *fragment;
            match &copying.step {
                Step::Versions if copying.to == disk => {
                    orders.push((disk, Order::Versions { fragment }));
                }
                Step::Chunks { at, have } if copying.from == disk => {
                    let have = have.clone();
                    orders.push((disk, Order::Chunks { fragment, head: *at, have }));
                }
                Step::Fill { at, chunks } if copying.to == disk => {
                    let chunks = chunks.clone();
                    orders.push((disk, Order::Fill { fragment, at: *at, chunks }));
                }
                _ => {}
            }
        }
        for (disk, order) in orders {
            self.order(disk, order, cx);
        }
    }

    /// Copies on their way: of what, from and to which disk, and what is waited for.
    pub fn copies(&self) -> impl Iterator<Item = (FragmentId, DiskId, DiskId, &'static str)> {
        self.copying.iter().map(|(fragment, copying)| {
            let waits_for = match copying.step {
                Step::Quiet => "the end of writes",
                Step::Versions => "the versions of its chunks",
                Step::Chunks { .. } => "chunks",
                Step::Fill { .. } => "the end of the copy",
            };
            (*fragment, copying.from, copying.to, waits_for)
        })
    }

    /// Fragments of which no whole copy can be had, and who had one.
    #[must_use]
    pub fn stuck(&self) -> BTreeSet<FragmentId> {
        let lost = |(fragment, lacking): &(&FragmentId, &BTreeSet<DiskId>)| {
            lacking.contains(&self.local)
                && self.sources.get(*fragment).is_none_or(BTreeSet::is_empty)
        };
        self.missing.iter().filter(lost).map(|(fragment, _)| *fragment).collect()
    }
}
