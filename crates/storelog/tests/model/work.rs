//! The commands of a run: random ones, and those that a test is about.

use super::oracle::block_bytes;
use super::run::{Run, VIDS};
use bytes::Bytes;
use sheepdog_storelog::{Command, ZeroKind};
use sheepdog_types::{FragmentId, Interval, LineageId, PageBuf, Version, Vid};
use std::sync::Arc;

impl Run {
    pub fn fragment(&mut self) -> FragmentId {
        FragmentId { lineage: LineageId(7), number: self.rng.below(self.fragments) }
    }

    pub fn range(&mut self) -> (u32, u32) {
        let blocks = u64::from(self.geometry().blocks_per_fragment());
        let start = self.rng.below(blocks);
        let longest = if self.rng.chance(50) { 3 } else { blocks };
        let count = 1 + self.rng.below((blocks - start).min(longest));
        (start as u32, count as u32)
    }

    pub fn version(&mut self) -> Version {
        self.seq += 1;
        Version { interval: Interval(self.interval), seq: self.seq }
    }

    pub fn data(&mut self, fragment: FragmentId, start: u32, count: u32, stamp: u64) -> Vec<Bytes> {
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
        if self.replica && self.rng.chance(30) {
            return self.random_replica_command();
        }
        let request = self.random_request();
        let fragment = self.fragment();
        let among = if self.rng.chance(85) { 2 } else { VIDS.len() as u64 };
        let vid = VIDS[self.rng.below(among) as usize];
        let (start, count) = self.range();
        let id = self.next_command;
        let command = match self.rng.below(100) {
            0..50 => {
                let version = self.version();
                let data = self.data(fragment, start, count, id);
                Command::Write { fragment, vid, version, start, data, request }
            }
            50..68 => {
                let kind = [ZeroKind::Remove, ZeroKind::Marker, ZeroKind::Reserve]
                    [self.rng.below(3) as usize];
                let version = self.version();
                Command::Zero { fragment, vid, version, start, count, kind, request }
            }
            68..71 => {
                let forget = self.rng.chance(70);
                let version = self.version();
                Command::DeleteVid { fragment, vid, version, forget, request }
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

    /// All of a fragment, in one write or in several.
    pub fn write_all_of(&mut self, fragment: u64) {
        let fragment = FragmentId { lineage: LineageId(7), number: fragment };
        let blocks = self.geometry().blocks_per_fragment();
        let mut start = 0;
        while start < blocks {
            let count = 1 + self.rng.below(u64::from(blocks - start)) as u32;
            let (version, id) = (self.version(), self.next_command);
            let data = self.data(fragment, start, count, id);
            self.command(Command::Write {
                fragment,
                vid: VIDS[0],
                version,
                start,
                data,
                request: None,
            });
            start += count;
        }
    }

    /// Space for all of a fragment.
    pub fn reserve_all_of(&mut self, number: u64) {
        let fragment = FragmentId { lineage: LineageId(7), number };
        let (version, count) = (self.version(), self.geometry().blocks_per_fragment());
        let kind = ZeroKind::Reserve;
        self.command(Command::Zero {
            fragment,
            vid: VIDS[0],
            version,
            start: 0,
            count,
            kind,
            request: None,
        });
    }

    /// One block of a fragment reads as zeros.
    pub fn zero(&mut self, number: u64, start: u32, kind: ZeroKind) {
        let fragment = FragmentId { lineage: LineageId(7), number };
        let version = self.version();
        self.command(Command::Zero {
            fragment,
            vid: VIDS[0],
            version,
            start,
            count: 1,
            kind,
            request: None,
        });
    }

    /// One block.
    pub fn write_somewhere(&mut self) {
        let fragment = self.fragment();
        let (version, id) = (self.version(), self.next_command);
        let data = self.data(fragment, 0, 1, id);
        self.command(Command::Write {
            fragment,
            vid: VIDS[0],
            version,
            start: 0,
            data,
            request: None,
        });
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
            request: None,
        });
    }

    /// Everything in the store.
    pub fn delete_all(&mut self) {
        let fragments: Vec<FragmentId> = self.histories.keys().copied().collect();
        for fragment in fragments {
            if self.history(fragment).latest().needed.is_some() {
                let (at, chunks) = (Version::ZERO, self.empty_chunks());
                self.command(Command::Miss { fragment, needed: at });
                self.command(Command::Fill { fragment, at, chunks, last: true });
            }
            for vid in VIDS {
                let version = self.version();
                self.command(Command::DeleteVid {
                    fragment,
                    vid,
                    version,
                    forget: true,
                    request: None,
                });
            }
        }
        self.drop_shards();
    }
}
