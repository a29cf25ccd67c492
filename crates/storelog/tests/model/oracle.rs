//! What a fragment may hold: every write in order, and which of them must have happened. Slow and
//! obvious.

use sheepdog_storelog::{Command, Piece, ZeroKind};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Version, Vid};
use std::collections::BTreeMap;

/// One block of one vid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Block {
    Data(u64),
    Zero,
    Reserved,
}

/// What a reader sees of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    Data(u64),
    /// Owned zeros.
    Zero,
    /// Owned zeros with space.
    Reserved,
    /// Nobody's.
    Hole,
}

pub type State = BTreeMap<(Vid, u32), Block>;

#[derive(Clone, Debug)]
enum Change {
    Write { vid: Vid, start: u32, count: u32, stamp: u64 },
    Zero { vid: Vid, start: u32, count: u32, becomes: Option<Block> },
    Delete { vid: Vid },
}

/// A change as it was asked for.
#[derive(Clone, Debug)]
struct Asked {
    change: Change,
    version: Version,
    status: Status,
}

/// All that happened to a fragment since its state was last certain.
#[derive(Clone, Default)]
pub struct History {
    base: State,
    /// The version that it has then, unless its last change was a deletion.
    base_head: Option<Version>,
    changes: Vec<Asked>,
}

/// What the store said of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Nothing yet, or the disk was given up: it may have happened.
    Open,
    Acked,
    /// It never happened.
    Refused,
}

impl History {
    /// That many changes at the start are acknowledged or refused.
    pub fn acked(&self) -> usize {
        self.changes.iter().take_while(|asked| asked.status != Status::Open).count()
    }

    /// The store's answer to the `index`-th change.
    pub fn answered(&mut self, index: usize, status: Status) {
        self.changes[index].status = status;
    }

    pub fn submitted(&self) -> usize {
        self.changes.len()
    }

    pub fn push(&mut self, command: &Command, stamp: u64) {
        let (version, change) = match command {
            Command::Write { vid, start, data, version, .. } => {
                let bytes: usize = data.iter().map(bytes::Bytes::len).sum();
                let count = (bytes / BLOCK_SIZE) as u32;
                (version, Change::Write { vid: *vid, start: *start, count, stamp })
            }
            Command::Zero { vid, start, count, kind, version, .. } => {
                let becomes = match kind {
                    ZeroKind::Remove => None,
                    ZeroKind::Marker => Some(Block::Zero),
                    ZeroKind::Reserve => Some(Block::Reserved),
                };
                (version, Change::Zero { vid: *vid, start: *start, count: *count, becomes })
            }
            Command::DeleteVid { vid, version, .. } => (version, Change::Delete { vid: *vid }),
            _ => panic!("not a write"),
        };
        self.changes.push(Asked { change, version: *version, status: Status::Open });
    }

    /// The state after the first `prefix` changes.
    fn state(&self, prefix: usize) -> State {
        let mut state = self.base.clone();
        for asked in &self.changes[..prefix] {
            match &asked.change {
                _ if asked.status == Status::Refused => {}
                Change::Write { vid, start, count, stamp } => {
                    for block in *start..start + count {
                        state.insert((*vid, block), Block::Data(*stamp));
                    }
                }
                Change::Zero { vid, start, count, becomes } => {
                    for block in *start..start + count {
                        match becomes {
                            Some(becomes) => state.insert((*vid, block), *becomes),
                            None => state.remove(&(*vid, block)),
                        };
                    }
                }
                Change::Delete { vid } => state.retain(|(owner, _), _| owner != vid),
            }
        }
        state
    }

    /// Whether some prefix at or after `from` shows these blocks.
    pub fn shows_since(&self, from: usize, path: &[Vid], start: u32, seen: &[Seen]) -> bool {
        (from..=self.changes.len()).any(|prefix| self.shows(prefix, path, start, seen))
    }

    /// Whether exactly the first `prefix` changes show these blocks.
    pub fn shows(&self, prefix: usize, path: &[Vid], start: u32, seen: &[Seen]) -> bool {
        shows(&self.state(prefix), path, start, seen)
    }

    /// Whether a fragment that shows these blocks from its start on, and has this version, is what
    /// the first `prefix` changes make.
    pub fn is(&self, prefix: usize, views: &[(&[Vid], Vec<Seen>)], head: Option<Version>) -> bool {
        let state = self.state(prefix);
        // A deletion may leave an empty fragment or none, and is nothing to one that there is not.
        let version = match self.head(prefix) {
            None => state.is_empty(),
            last => head == last,
        };
        version && views.iter().all(|(path, seen)| shows(&state, path, 0, seen))
    }

    /// The version after the first `prefix` changes; `None` if the last one was a deletion, or
    /// there was none.
    fn head(&self, prefix: usize) -> Option<Version> {
        let done = |asked: &&Asked| asked.status != Status::Refused;
        match self.changes[..prefix].iter().rev().find(done) {
            Some(Asked { change: Change::Delete { .. }, version, .. }) => {
                (!self.state(prefix).is_empty()).then_some(*version)
            }
            Some(asked) => Some(asked.version),
            None => self.base_head,
        }
    }

    /// After a crash: the first `prefix` changes happened, the others never did.
    pub fn settle(&mut self, prefix: usize) {
        self.base_head = self.head(prefix);
        self.base = self.state(prefix);
        self.changes.clear();
    }
}

fn shows(state: &State, path: &[Vid], start: u32, seen: &[Seen]) -> bool {
    seen.iter().zip(start..).all(|(seen, block)| {
        let expected = path.iter().find_map(|vid| state.get(&(*vid, block)));
        *seen
            == match expected {
                Some(Block::Data(stamp)) => Seen::Data(*stamp),
                Some(Block::Zero) => Seen::Zero,
                Some(Block::Reserved) => Seen::Reserved,
                None => Seen::Hole,
            }
    })
}

/// The bytes of a block: its stamp and place all over, so that any mix shows.
pub fn block_bytes(fragment: FragmentId, block: u32, stamp: u64) -> Vec<u8> {
    pattern(fragment, block, stamp).repeat(BLOCK_SIZE / 16)
}

fn pattern(fragment: FragmentId, block: u32, stamp: u64) -> [u8; 16] {
    let place = fragment.number << 32 | u64::from(block);
    (u128::from(place) << 64 | u128::from(stamp)).to_le_bytes()
}

/// What the pieces of a read show, block by block; panics on bytes that nobody wrote.
pub fn seen(fragment: FragmentId, start: u32, pieces: &[Piece]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(bytes) => {
                for bytes in bytes.chunks(BLOCK_SIZE) {
                    let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                    let block = start + seen.len() as u32;
                    assert!(
                        // Equal to itself one pattern further on.
                        bytes[..16] == pattern(fragment, block, stamp)
                            && bytes[16..] == bytes[..BLOCK_SIZE - 16],
                        "{fragment} block {block} holds bytes nobody wrote (stamp {stamp:#x})"
                    );
                    seen.push(Seen::Data(stamp));
                }
            }
            Piece::Reserved(n) => seen.extend(std::iter::repeat_n(Seen::Reserved, *n as usize)),
            Piece::Zero(n) => seen.extend(std::iter::repeat_n(Seen::Zero, *n as usize)),
            Piece::Hole(n) => seen.extend(std::iter::repeat_n(Seen::Hole, *n as usize)),
        }
    }
    seen
}
