//! The commands of a replica: random ones, and what their answers must say.

use super::oracle::{Content, block_bytes, seen};
use super::run::{Run, VIDS};
use bytes::Bytes;
use sheepdog_storelog::{Answer, ChunkCopy, Command, Piece, RequestEntry};
use sheepdog_types::{
    FragmentId, Interval, NodeId, PageBuf, Process, RequestId, ShardId, Version, Vid,
};
use std::collections::BTreeMap;

const SHARDS: u32 = 3;

impl Run {
    fn random_shard(&mut self) -> ShardId {
        ShardId { set: 1, number: self.rng.below(u64::from(SHARDS)) as u32 }
    }

    fn random_gateway(&mut self) -> Process {
        let node = NodeId([self.rng.below(2) as u8; 16]);
        Process { node, incarnation: 1 + self.rng.below(3) }
    }

    pub fn random_request(&mut self) -> Option<(ShardId, RequestId)> {
        if !self.replica || self.rng.chance(50) {
            return None;
        }
        let (shard, gateway) = (self.random_shard(), self.random_gateway());
        self.seq += 1;
        Some((shard, RequestId { gateway, slot: self.rng.below(4) as u8, seq: self.seq }))
    }

    pub fn drop_shards(&mut self) {
        for number in 0..SHARDS {
            self.command(Command::DropShard { shard: ShardId { set: 1, number } });
        }
    }

    pub fn random_replica_command(&mut self) {
        let fragment = self.fragment();
        let command = match self.rng.below(100) {
            0..25 => {
                let latest = self.history(fragment).latest();
                let needed = match self.rng.below(6) {
                    0 => Version::ZERO,
                    1 => latest.needed.unwrap_or(latest.head),
                    2 => Version { interval: Interval(0), seq: 7 },
                    _ => self.version(),
                };
                Command::Miss { fragment, needed }
            }
            25..60 => self.random_fill(fragment),
            60..65 => {
                let head = self.history(fragment).latest().head;
                let other = self.rng.chance(10);
                let head = if other { self.version() } else { head };
                Command::Forget { fragment, head }
            }
            65..75 => Command::Versions { fragment },
            75..85 => {
                let latest = self.history(fragment).latest();
                let chunks = self.geometry().chunks_per_fragment() as u8;
                let have = (0..chunks).map(|chunk| match self.rng.below(4) {
                    0 => Version::UNKNOWN,
                    1 => Version::ZERO,
                    2 => Version { interval: Interval(0), seq: 7 },
                    _ => latest.version_of(chunk),
                });
                let have = have.collect();
                Command::Chunks { fragment, have }
            }
            85..93 => self.random_shard_state(),
            93..97 => {
                let (shard, gateway) = (self.random_shard(), self.random_gateway());
                Command::DropRequests { shard, gateway }
            }
            97..98 => Command::DropShard { shard: self.random_shard() },
            _ => Command::Checkpoint,
        };
        self.command(command);
    }

    fn random_shard_state(&mut self) -> Command {
        let shard = self.random_shard();
        let len = [0, 30, 30, 9000][self.rng.below(4) as usize];
        let mut state = self.next_command.to_le_bytes().to_vec();
        state.resize(8 + len, 7);
        let requests = self.rng.chance(60).then(|| {
            // Tables that do not fit one record are seldom.
            let most = if self.rng.chance(15) { 700 } else { 8 };
            let mut table = BTreeMap::new();
            for _ in 0..self.rng.below(most) {
                let node = NodeId([self.rng.below(5) as u8; 16]);
                let gateway = Process { node, incarnation: 1 + self.rng.below(3) };
                let slot = self.rng.below(256) as u8;
                let version = self.version();
                let seq = self.seq;
                let entry = RequestEntry { seq, version, fragment: self.fragment() };
                table.insert((gateway, slot), (RequestId { gateway, slot, seq }, entry));
            }
            table.into_values().collect()
        });
        Command::Shard { shard, state: state.into(), requests }
    }

    /// What empties every chunk.
    pub fn empty_chunks(&self) -> Vec<ChunkCopy> {
        let chunks = 0..self.geometry().chunks_per_fragment() as u8;
        chunks.map(|chunk| ChunkCopy { chunk, version: Version::ZERO, vids: Vec::new() }).collect()
    }

    fn random_fill(&mut self, fragment: FragmentId) -> Command {
        let latest = self.history(fragment).latest();
        let at = match latest.needed {
            Some(needed) if self.rng.chance(95) => needed,
            _ => self.version(),
        };
        let last = self.rng.chance(50);
        if last && at == Version::ZERO && self.rng.chance(80) {
            let chunks = self.empty_chunks();
            return Command::Fill { fragment, at, chunks, last };
        }
        let chunks = self.geometry().chunks_per_fragment() as u8;
        let mut copies = Vec::new();
        for chunk in 0..chunks {
            let unknown = last && latest.version_of(chunk) == Version::UNKNOWN;
            if self.rng.chance(if unknown { 97 } else { 30 }) {
                copies.push(self.random_copy(fragment, chunk));
            }
        }
        if self.rng.chance(50) {
            copies.reverse();
        }
        Command::Fill { fragment, at, chunks: copies, last }
    }

    fn random_copy(&mut self, fragment: FragmentId, chunk: u8) -> ChunkCopy {
        let version = if self.rng.chance(10) { Version::ZERO } else { self.version() };
        let stamp = self.next_command;
        let mut vids: Vec<(Vid, Vec<Piece>)> = Vec::new();
        for vid in VIDS {
            let owns = if vid == VIDS[0] { 70 } else { 15 };
            if self.rng.chance(owns) {
                vids.push((vid, self.random_pieces(fragment, chunk, stamp)));
            }
        }
        ChunkCopy { chunk, version, vids }
    }

    fn random_pieces(&mut self, fragment: FragmentId, chunk: u8, stamp: u64) -> Vec<Piece> {
        let per_chunk = self.geometry().blocks_per_chunk();
        let (first, mut at) = (u32::from(chunk) * per_chunk, 0);
        let mut pieces = Vec::new();
        while at < per_chunk {
            let whole = self.rng.chance(40);
            let left = u64::from(per_chunk - at);
            let count = if whole { left as u32 } else { 1 + self.rng.below(left) as u32 };
            pieces.push(match self.rng.below(8) {
                0 => Piece::Reserved(count),
                1 => Piece::Zero(count),
                2 => Piece::Hole(count),
                _ => {
                    let blocks = first + at..first + at + count;
                    let bytes: Vec<u8> =
                        blocks.flat_map(|block| block_bytes(fragment, block, stamp)).collect();
                    // Not all of it comes aligned.
                    let aligned = self.rng.chance(80);
                    let bytes = if aligned {
                        PageBuf::copy_of(&bytes).freeze()
                    } else {
                        Bytes::from(bytes)
                    };
                    Piece::Data(bytes)
                }
            });
            at += count;
        }
        pieces
    }

    /// What was said of versions, and copies if asked for, was so at one instant since `from`.
    pub fn check_chunks(
        &mut self,
        fragment: FragmentId,
        from: usize,
        have: Option<&[Version]>,
        answer: &Answer,
    ) {
        let per_chunk = self.geometry().blocks_per_chunk();
        let (head, needed, versions, copies) = match (answer, have) {
            (Answer::Versions { head, needed, chunks }, None) => (head, needed, chunks, &[][..]),
            (Answer::Chunks { head, needed, versions, copies }, Some(_)) => {
                (head, needed, versions, &copies[..])
            }
            _ => panic!("the wrong kind of answer: {answer:?}"),
        };
        assert_eq!(versions.len(), self.geometry().chunks_per_fragment() as usize);
        let differ = (0u8..).zip(versions).filter(|(chunk, version)| {
            have.is_some_and(|have| !version.matches(have[usize::from(*chunk)]))
        });
        let differ: Vec<(u8, Version)> = differ.map(|(chunk, version)| (chunk, *version)).collect();
        let copied: Vec<(u8, Version)> =
            copies.iter().map(|copy| (copy.chunk, copy.version)).collect();
        assert_eq!(copied, differ, "{fragment}");
        self.counts.copied += copies.len() as u64;
        let owned: Vec<_> = copies
            .iter()
            .map(|copy| {
                let first = u32::from(copy.chunk) * per_chunk;
                let vids = copy.vids.iter();
                vids.map(|(vid, pieces)| (*vid, seen(fragment, first, pieces))).collect()
            })
            .collect();
        let is = |content: &Content| {
            content.head == *head
                && content.needed == *needed
                && (0..).zip(versions).all(|(chunk, is)| content.version_of(chunk) == *is)
                && copies
                    .iter()
                    .zip(&owned)
                    .all(|(copy, owned)| content.owned_in(copy.chunk, per_chunk) == *owned)
        };
        let history = &self.histories[&fragment];
        assert!(history.is_since(from, is), "{fragment} was never {answer:?}");
    }
}
