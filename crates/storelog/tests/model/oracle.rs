//! What a fragment may hold: every write in order, and which of them must have happened. Slow and
//! obvious.

use sheepdog_storelog::{ChunkCopy, Command, Held, Piece, ZeroKind};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Version, Vid};
use std::collections::{BTreeMap, BTreeSet};

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

/// All that a fragment is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// It is in the index.
    pub exists: bool,
    pub blocks: State,
    pub head: Version,
    pub needed: Option<Version>,
    /// Those that are not zero.
    pub versions: BTreeMap<u8, Version>,
}

/// All of a chunk, as a fill brings it.
#[derive(Clone, Debug)]
pub struct FilledChunk {
    pub chunk: u8,
    pub version: Version,
    pub blocks: Vec<(Vid, u32, Block)>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { vid: Vid, start: u32, count: u32, stamp: u64 },
    Zero { vid: Vid, start: u32, count: u32, becomes: Option<Block> },
    Delete { vid: Vid, forget: bool },
    Miss,
    Fill { chunks: Vec<FilledChunk>, last: bool },
    Forget,
}

impl Content {
    /// Whether a fill or a forgetting is one that must be refused.
    fn conflicts(&self, change: &Change, version: Version, per_chunk: u32) -> bool {
        match change {
            Change::Fill { .. } if self.needed != Some(version) => true,
            Change::Fill { chunks, last: true } => {
                let mut after = self.clone();
                after.fill(chunks, per_chunk);
                if version == Version::ZERO {
                    !after.blocks.is_empty()
                } else {
                    after.versions.values().any(|version| *version == Version::UNKNOWN)
                }
            }
            Change::Forget => {
                !self.exists
                    || self.needed.is_some()
                    || self.head != version
                    || !self.blocks.is_empty()
            }
            _ => false,
        }
    }

    fn fill(&mut self, chunks: &[FilledChunk], per_chunk: u32) {
        for filled in chunks {
            let first = u32::from(filled.chunk) * per_chunk;
            self.blocks.retain(|(_, block), _| !(first..first + per_chunk).contains(block));
            self.blocks.extend(filled.blocks.iter().map(|(vid, block, is)| ((*vid, *block), *is)));
            self.set_version(filled.chunk, filled.version);
        }
    }

    fn set_version(&mut self, chunk: u8, version: Version) {
        if version == Version::ZERO {
            self.versions.remove(&chunk);
        } else {
            self.versions.insert(chunk, version);
        }
    }

    fn apply(&mut self, change: &Change, version: Version, per_chunk: u32) {
        if self.conflicts(change, version, per_chunk) {
            return;
        }
        let missing = self.needed.is_some();
        let mut touched = BTreeSet::new();
        match change {
            Change::Write { vid, start, count, stamp } => {
                for block in *start..start + count {
                    self.blocks.insert((*vid, block), Block::Data(*stamp));
                    touched.insert(block / per_chunk);
                }
            }
            Change::Zero { vid, start, count, becomes } => {
                for block in *start..start + count {
                    match becomes {
                        Some(becomes) => self.blocks.insert((*vid, block), *becomes),
                        None => self.blocks.remove(&(*vid, block)),
                    };
                    touched.insert(block / per_chunk);
                }
            }
            Change::Delete { vid, forget } => {
                self.blocks.retain(|(owner, block), _| {
                    if owner == vid {
                        touched.insert(*block / per_chunk);
                    }
                    owner != vid
                });
                if *forget && !missing && self.blocks.is_empty() {
                    *self = Self::default();
                    return;
                }
            }
            Change::Miss => {
                self.exists = true;
                self.needed = Some(version);
                return;
            }
            Change::Fill { chunks, last } => {
                self.fill(chunks, per_chunk);
                if *last && version == Version::ZERO {
                    *self = Self::default();
                } else if *last {
                    (self.head, self.needed) = (version, None);
                }
                return;
            }
            Change::Forget => {
                *self = Self::default();
                return;
            }
        }
        self.exists = true;
        for chunk in touched {
            self.set_version(chunk as u8, if missing { Version::UNKNOWN } else { version });
        }
        if missing {
            self.needed = Some(version);
        } else {
            self.head = version;
        }
    }

    pub fn version_of(&self, chunk: u8) -> Version {
        self.versions.get(&chunk).copied().unwrap_or(Version::ZERO)
    }

    /// What vids own in a chunk.
    pub fn owned_in(&self, chunk: u8, per_chunk: u32) -> BTreeMap<Vid, Vec<Seen>> {
        let first = u32::from(chunk) * per_chunk;
        let mut owned: BTreeMap<Vid, Vec<Seen>> = BTreeMap::new();
        for ((vid, block), is) in &self.blocks {
            if (first..first + per_chunk).contains(block) {
                let holes = || vec![Seen::Hole; per_chunk as usize];
                owned.entry(*vid).or_insert_with(holes)[(block - first) as usize] = (*is).into();
            }
        }
        owned
    }

    fn shows(&self, path: &[Vid], start: u32, seen: &[Seen]) -> bool {
        seen.iter().zip(start..).all(|(seen, block)| {
            let expected = path.iter().find_map(|vid| self.blocks.get(&(*vid, block)));
            *seen == expected.map_or(Seen::Hole, |is| (*is).into())
        })
    }
}

impl From<Block> for Seen {
    fn from(block: Block) -> Self {
        match block {
            Block::Data(stamp) => Self::Data(stamp),
            Block::Zero => Self::Zero,
            Block::Reserved => Self::Reserved,
        }
    }
}

/// A change as it was asked for.
#[derive(Clone, Debug)]
struct Asked {
    change: Change,
    version: Version,
    status: Status,
}

/// All that happened to a fragment since its state was last certain.
#[derive(Clone)]
pub struct History {
    base: Content,
    per_chunk: u32,
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
    pub fn new(per_chunk: u32) -> Self {
        Self { base: Content::default(), per_chunk, changes: Vec::new() }
    }

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

    /// Whether the `index`-th change had to be refused as one that does not fit. It was answered
    /// when all before it were.
    pub fn had_to_conflict(&self, index: usize) -> bool {
        assert!(self.acked() >= index, "answered before those it depends on");
        let Asked { change, version, .. } = &self.changes[index];
        self.content(index).conflicts(change, *version, self.per_chunk)
    }

    /// Whether the `index`-th change, which is no write, may be refused for want of space.
    pub fn may_lack_space(&self, index: usize) -> bool {
        matches!(self.changes[index].change, Change::Miss) && !self.content(index).exists
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
            Command::DeleteVid { vid, version, forget, .. } => {
                (version, Change::Delete { vid: *vid, forget: *forget })
            }
            Command::Miss { needed, .. } => (needed, Change::Miss),
            Command::Fill { fragment, at, chunks, last } => {
                let chunks = chunks.iter().map(|copy| self.filled(*fragment, copy)).collect();
                (at, Change::Fill { chunks, last: *last })
            }
            Command::Forget { head, .. } => (head, Change::Forget),
            _ => panic!("not a change"),
        };
        self.changes.push(Asked { change, version: *version, status: Status::Open });
    }

    fn filled(&self, fragment: FragmentId, copy: &ChunkCopy) -> FilledChunk {
        let first = u32::from(copy.chunk) * self.per_chunk;
        let mut blocks = Vec::new();
        for (vid, pieces) in &copy.vids {
            for (seen, block) in seen(fragment, first, pieces).into_iter().zip(first..) {
                let is = match seen {
                    Seen::Data(stamp) => Block::Data(stamp),
                    Seen::Zero => Block::Zero,
                    Seen::Reserved => Block::Reserved,
                    Seen::Hole => continue,
                };
                blocks.push((*vid, block, is));
            }
        }
        FilledChunk { chunk: copy.chunk, version: copy.version, blocks }
    }

    /// What the fragment is after the first `prefix` changes.
    pub fn content(&self, prefix: usize) -> Content {
        let mut content = self.base.clone();
        for asked in &self.changes[..prefix] {
            if asked.status != Status::Refused {
                content.apply(&asked.change, asked.version, self.per_chunk);
            }
        }
        content
    }

    /// What it will be, if nothing is refused.
    pub fn latest(&self) -> Content {
        self.content(self.changes.len())
    }

    /// Whether some prefix at or after `from` shows these blocks.
    pub fn shows_since(&self, from: usize, path: &[Vid], start: u32, seen: &[Seen]) -> bool {
        (from..=self.changes.len()).any(|prefix| self.shows(prefix, path, start, seen))
    }

    /// Whether exactly the first `prefix` changes show these blocks.
    pub fn shows(&self, prefix: usize, path: &[Vid], start: u32, seen: &[Seen]) -> bool {
        self.content(prefix).shows(path, start, seen)
    }

    /// Whether some prefix at or after `from` makes this true.
    pub fn is_since(&self, from: usize, is: impl Fn(&Content) -> bool) -> bool {
        (from..=self.changes.len()).any(|prefix| is(&self.content(prefix)))
    }

    /// Whether a fragment that shows these blocks from its start on, and is this, is what the first
    /// `prefix` changes make.
    pub fn is(
        &self,
        prefix: usize,
        views: &[(&[Vid], Vec<Seen>)],
        held: Option<Held>,
        versions: &[Version],
    ) -> bool {
        let content = self.content(prefix);
        let expected = content.exists.then_some(Held {
            head: content.head,
            needed: content.needed,
            empty: content.blocks.is_empty(),
        });
        held == expected
            && (0..).zip(versions).all(|(chunk, version)| content.version_of(chunk) == *version)
            && views.iter().all(|(path, seen)| content.shows(path, 0, seen))
    }

    /// After a crash: the first `prefix` changes happened, the others never did.
    pub fn settle(&mut self, prefix: usize) {
        self.base = self.content(prefix);
        self.changes.clear();
    }
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
