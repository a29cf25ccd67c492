//! Reading for other replicas: the versions of chunks, and all that chunks hold.

use super::{PendingRead, Planned};
use crate::command::{Answer, ChunkCopy, CommandId, Effect, Piece};
use crate::store::{Purpose, Store};
use sheepdog_types::{FragmentId, Version, Vid};

/// What becomes of the pieces of a read.
pub(super) enum Shape {
    /// They are the answer.
    Blocks,
    /// Copies are made of them.
    Chunks {
        head: Version,
        needed: Option<Version>,
        versions: Vec<Version>,
        /// Vids, and how many pieces belong to each.
        copies: Vec<(u8, Vec<(Vid, usize)>)>,
    },
}

impl Shape {
    /// The answer to a read whose pieces are all there.
    pub(super) fn answer(self, pieces: Vec<Piece>) -> Answer {
        let (head, needed, versions, copies) = match self {
            Self::Blocks => return Answer::Data(pieces),
            Self::Chunks { head, needed, versions, copies } => (head, needed, versions, copies),
        };
        let mut pieces = pieces.into_iter();
        let copies = copies.into_iter().map(|(chunk, vids)| {
            let version = versions.get(usize::from(chunk)).copied().unwrap_or_default();
            let vids = vids
                .into_iter()
                .map(|(vid, count)| (vid, pieces.by_ref().take(count).collect()))
                .collect();
            ChunkCopy { chunk, version, vids }
        });
        let copies = copies.collect();
        Answer::Chunks { head, needed, versions, copies }
    }
}

impl Store {
    pub(crate) fn run_versions(&mut self, fragment: FragmentId) -> Answer {
        let (head, needed, chunks) = self.versions(fragment);
        Answer::Versions { head, needed, chunks }
    }

    fn versions(&mut self, fragment: FragmentId) -> (Version, Option<Version>, Vec<Version>) {
        let head = self.index.get(fragment).map_or(Version::ZERO, |entry| entry.head);
        let needed = self.index.needed(fragment);
        let count = self.geometry().chunks_per_fragment() as usize;
        let loaded = self.index.loaded(fragment);
        let chunks = loaded.map(|loaded| loaded.fragment.chunk_versions().to_vec());
        (head, needed, chunks.unwrap_or_else(|| vec![Version::ZERO; count]))
    }

    pub(crate) fn run_chunks(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        have: &[Version],
        out: &mut Vec<Effect>,
    ) {
        let per_chunk = self.geometry().blocks_per_chunk();
        let (head, needed, versions) = self.versions(fragment);
        let (mut copies, mut pieces) = (Vec::new(), Vec::new());
        for (chunk, version) in (0u8..).zip(&versions) {
            let theirs = have.get(usize::from(chunk)).copied().unwrap_or(Version::ZERO);
            if version.matches(theirs) {
                continue;
            }
            let first = u32::from(chunk) * per_chunk;
            let owners = self.index.loaded(fragment).map(|loaded| loaded.fragment.owners_of(chunk));
            let mut vids = Vec::new();
            for vid in owners.unwrap_or_default() {
                let planned = self.plan(fragment, &[vid], first, per_chunk);
                vids.push((vid, planned.len()));
                pieces.extend(planned);
            }
            copies.push((chunk, vids));
        }
        let shape = Shape::Chunks { head, needed, versions, copies };
        self.begin_read(command, fragment, pieces, shape, out);
    }

    /// Answers a read, once all its pieces are there.
    pub(super) fn begin_read(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        pieces: Vec<Planned>,
        shape: Shape,
        out: &mut Vec<Effect>,
    ) {
        let ops_left = pieces.iter().filter(|p| matches!(p, Planned::Fetch { .. })).count() as u32;
        if ops_left == 0 {
            return out.push(Effect::Reply(command, Ok(shape.answer(super::ready(pieces)))));
        }
        let read = self.next_read;
        self.next_read += 1;
        for (piece, planned) in pieces.iter().enumerate() {
            if let Planned::Fetch { crcs, area, offset, .. } = planned {
                let len = crcs.len() * sheepdog_types::BLOCK_SIZE;
                let op = crate::io::DiskOp::Read { area: *area, offset: *offset, len };
                self.disk(Purpose::Read { read, piece }, op, out);
            }
        }
        let ticket = self.tickets.begin();
        let pending =
            PendingRead { command, fragment, pieces, shape, ops_left, ticket, failed: None };
        self.reads.insert(read, pending);
    }
}
