//! The end of a run: everything is healed, everybody waits, and what is there is looked at.

use super::{BLOCK, Ev, World, host_of_disk};
use crate::node::host_of;
use crate::{Host, SECOND};
use sheepdog_storelog::checksum::crc32c;
use sheepdog_storelog::{Answer, Command, Piece};
use sheepdog_types::{DiskId, FragmentId, Version, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// Within so much time after healing everything must be clean.
const BOUND: u64 = 60 * SECOND;
/// Who came and went too often joins nothing for up to a minute, and a shard whose record lacks
/// something waits as long for nodes that are away.
const BOUND_MEMBERSHIP: u64 = 180 * SECOND;

impl World {
    /// Faults end, clients ask for nothing new; everything that is open must be answered and every
    /// shard must be clean in time.
    pub(super) fn settle(&mut self) {
        self.quiet = true;
        self.heal();
        for number in 0..self.plan.nodes {
            self.queue.after(0, Ev::Start(Host(number)));
        }
        let bound = if self.plan.membership { BOUND_MEMBERSHIP } else { BOUND };
        let end = self.queue.now() + bound;
        while self.findings.is_empty() {
            if self.is_settled() {
                self.counts.one("runs settled");
                self.compare();
                return;
            }
            if self.queue.now() > end || !self.step() {
                let what = self.unsettled();
                self.find("liveness", what);
                return;
            }
        }
    }

    fn is_settled(&self) -> bool {
        // Not at every event: this looks at everything.
        self.queue.delivered().is_multiple_of(64) && self.clients_are_idle() && self.all_clean()
    }

    /// Whether every target of every shard has everything, and the registry knows the processes that
    /// run.
    pub(super) fn all_clean(&self) -> bool {
        let known = |(host, machine): (&Host, &super::Machine)| {
            let process = machine.node.as_ref().map(|node| node.me);
            process.is_some() && process == self.known_process(*host)
        };
        self.machines.iter().all(known)
            && self.plan.shards().iter().all(|shard| self.is_clean(*shard))
    }

    fn unsettled(&self) -> String {
        let mut lines = Vec::new();
        for shard in self.plan.shards() {
            if self.is_clean(shard) {
                continue;
            }
            let host = host_of(self.record_primary(shard));
            let primary = self
                .node(host)
                .and_then(|node| node.shards().get(&shard))
                .and_then(|shard| shard.primary());
            let copies: Vec<_> = primary.into_iter().flat_map(|p| p.copies()).collect();
            let stuck = primary.map(|p| p.stuck());
            lines.push(format!("copies {copies:?} stuck {stuck:?}"));
            let phase = primary.map(|p| (p.interval(), p.phase(), p.missing(), p.waits_for()));
            let record = self.record_shown(shard);
            lines.push(format!("{shard}: {record} primary {} {phase:?}", self.shown(host)));
        }
        lines.extend(self.waiting_clients());
        lines.join("\n")
    }

    /// Every target of a shard holds the same bytes at the same heads.
    fn compare(&mut self) {
        for shard in self.plan.shards() {
            let targets: Vec<DiskId> = self.targets(shard);
            let mut fragments: BTreeSet<FragmentId> = BTreeSet::new();
            for disk in &targets {
                let replica = self
                    .node(host_of_disk(*disk))
                    .and_then(|node| node.shards().get(&shard))
                    .and_then(|shard| shard.replica(*disk));
                fragments.extend(replica.into_iter().flat_map(|replica| replica.fragments()));
            }
            for fragment in fragments {
                self.counts.one("fragments compared");
                let held: Vec<Option<Contents>> =
                    targets.iter().map(|disk| self.contents(*disk, fragment)).collect();
                // A tombstone may be gone here and not there.
                let bytes: BTreeSet<_> =
                    held.iter().flatten().filter(|held| !held.1.is_empty()).collect();
                let heads: BTreeSet<Version> = held
                    .iter()
                    .flatten()
                    .map(|held| held.0)
                    .filter(|h| *h > Version::ZERO)
                    .collect();
                let missing = held.iter().any(Option::is_none);
                let none = bytes.is_empty();
                let some_empty = held.iter().flatten().any(|held| held.1.is_empty());
                if missing || bytes.len() > 1 || heads.len() > 1 || (!none && some_empty) {
                    self.find("replicas", format!("{shard} {fragment}: {held:?}"));
                }
            }
        }
    }

    /// What a disk holds of a fragment: its head, and for each chunk and vid a sum of what it reads.
    /// None if it is missing, or cannot be read.
    fn contents(&mut self, disk: DiskId, fragment: FragmentId) -> Option<Contents> {
        let host = host_of_disk(disk);
        let chunks = self.plan.geometry.chunks_per_fragment() as usize;
        let have = vec![Version::UNKNOWN; chunks];
        let mut asked = None;
        self.on_host(host, |node, _, wishes| {
            asked = node.ask(disk, Command::Chunks { fragment, have }, wishes);
        });
        let asked = asked?;
        let end = self.queue.now() + 5 * SECOND;
        loop {
            let machine = self.machines.get_mut(&host)?;
            match machine.node.as_mut()?.answer(asked) {
                Some(Ok(Answer::Chunks { head, needed: None, copies, .. })) => {
                    let mut found = BTreeMap::new();
                    for copy in copies {
                        for (vid, pieces) in copy.vids {
                            let owned = pieces.iter().any(|p| !matches!(p, Piece::Hole(_)));
                            if owned {
                                found.insert((copy.chunk, vid), blocks_of(&pieces));
                            }
                        }
                    }
                    return Some((head, found));
                }
                Some(_) => return None,
                None => {}
            }
            if self.queue.now() > end || !self.step() {
                return None;
            }
        }
    }
}

/// See [`World::contents`].
type Contents = (Version, BTreeMap<(u8, Vid), Vec<Block>>);

/// What a block is, however it is cut into pieces: bytes by their sum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Block {
    Data(u32),
    Reserved,
    Zero,
    Hole,
}

fn blocks_of(pieces: &[Piece]) -> Vec<Block> {
    let mut blocks = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(bytes) => {
                blocks.extend(bytes.chunks(BLOCK).map(|block| Block::Data(crc32c(block))));
            }
            Piece::Reserved(count) => {
                blocks.extend(std::iter::repeat_n(Block::Reserved, *count as usize));
            }
            Piece::Zero(count) => blocks.extend(std::iter::repeat_n(Block::Zero, *count as usize)),
            Piece::Hole(count) => blocks.extend(std::iter::repeat_n(Block::Hole, *count as usize)),
        }
    }
    blocks
}
