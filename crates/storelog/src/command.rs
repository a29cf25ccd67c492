//! What the layers above ask of the store and what it answers.

use crate::io::{Completion, DiskOp, OpId};
use bytes::Bytes;
use sheepdog_types::{Error, FragmentId, Process, RequestId, Result, ShardId, Version, Vid};
use std::sync::Arc;

pub use crate::format::batch::ZeroKind;
pub use crate::replica::{ChunkCopy, RequestEntry};

/// Names a command until its reply; chosen by the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CommandId(pub u64);

/// A request about one fragment, or about the store. Writes of one fragment are applied in the
/// order in which they are given; their versions must grow.
#[derive(Clone, Debug)]
pub enum Command {
    /// New bytes for whole blocks. Answered [`Answer::Done`] when durable.
    Write {
        /// Which fragment.
        fragment: FragmentId,
        /// Who owns the blocks from then on.
        vid: Vid,
        /// The fragment's head from then on.
        version: Version,
        /// First block.
        start: u32,
        /// Whole blocks, in pieces of whole blocks.
        data: Vec<Bytes>,
        /// Whose request it is: its entry in the table of the shard becomes durable with it.
        request: Option<(ShardId, RequestId)>,
    },
    /// Blocks read as zeros. Answered [`Answer::Done`] when durable.
    Zero {
        /// Which fragment.
        fragment: FragmentId,
        /// Whose blocks.
        vid: Vid,
        /// The fragment's head from then on.
        version: Version,
        /// First block.
        start: u32,
        /// How many.
        count: u32,
        /// What becomes of their space.
        kind: ZeroKind,
        /// Whose request it is: its entry in the table of the shard becomes durable with it.
        request: Option<(ShardId, RequestId)>,
    },
    /// The vid owns nothing in the fragment any more. Answered [`Answer::Done`] when durable.
    DeleteVid {
        /// Which fragment.
        fragment: FragmentId,
        /// Whose blocks.
        vid: Vid,
        /// The fragment's head from then on.
        version: Version,
        /// Drop the fragment from the index if it holds nothing else and is not missing.
        forget: bool,
        /// Whose request it is: its entry in the table of the shard becomes durable with it.
        request: Option<(ShardId, RequestId)>,
    },
    /// From now on the fragment is *missing*: it must come to hold what it holds nowhere here at
    /// version `needed`, or nothing if that is [`Version::ZERO`]. It may be missing already, and not
    /// be there at all. Until [`Command::Fill`] completes it, its head stays what it is; writes are
    /// applied as they come, raise `needed` instead, and leave [`Version::UNKNOWN`] in the chunks that
    /// they touch. Answered [`Answer::Done`] when durable.
    Miss {
        /// Which fragment.
        fragment: FragmentId,
        /// What it must come to hold.
        needed: Version,
    },
    /// Contents of chunks of a missing fragment, as another replica holds them at version `at`. Only
    /// if that is what is needed; otherwise, and if `last` would leave something that is not known, it
    /// is refused with [`sheepdog_types::ErrorKind::Conflict`] and nothing is changed. May use the
    /// space that client data may not. Answered [`Answer::Done`] when durable, all of it at once.
    Fill {
        /// Which fragment.
        fragment: FragmentId,
        /// Of the copies.
        at: Version,
        /// In any order, each chunk once.
        chunks: Vec<ChunkCopy>,
        /// The fragment is complete: its head is `at`, or it is gone if that is [`Version::ZERO`].
        last: bool,
    },
    /// Drops a fragment that holds nothing, is not missing, and has exactly that head; anything else
    /// is refused with [`sheepdog_types::ErrorKind::Conflict`]. Answered [`Answer::Done`] when durable.
    Forget {
        /// Which fragment.
        fragment: FragmentId,
        /// Of the deletion that left it empty.
        head: Version,
    },
    /// Replaces the state of a shard, of which the store knows nothing, and if given its whole request
    /// table. It follows in the log all that was answered before. Answered [`Answer::Done`] when durable.
    Shard {
        /// Which shard.
        shard: ShardId,
        /// At most [`crate::SHARD_STATE_MAX`] bytes.
        state: Bytes,
        /// At most [`crate::REQUESTS_MAX`], one of each slot.
        requests: Option<Vec<(RequestId, RequestEntry)>>,
    },
    /// Drops the requests of all incarnations of a node below this one. Answered [`Answer::Done`] when
    /// durable.
    DropRequests {
        /// From which table.
        shard: ShardId,
        /// Whose requests stay.
        gateway: Process,
    },
    /// Drops state and requests of a shard. Answered [`Answer::Done`] when durable.
    DropShard {
        /// Which shard.
        shard: ShardId,
    },
    /// What is known of a fragment without reading its blocks. Answered [`Answer::Versions`].
    Versions {
        /// Which fragment.
        fragment: FragmentId,
    },
    /// The chunks of a fragment whose version is not the one that the caller has. Answered
    /// [`Answer::Chunks`]. Who wants less at once says that it has the others.
    Chunks {
        /// Which fragment.
        fragment: FragmentId,
        /// A version for each chunk; what is not there counts as [`Version::ZERO`].
        have: Vec<Version>,
    },
    /// The durable bytes. Answered [`Answer::Data`].
    Read {
        /// Which fragment.
        fragment: FragmentId,
        /// The vids whose blocks are seen, newest first.
        path: Arc<[Vid]>,
        /// First block.
        start: u32,
        /// How many.
        count: u32,
    },
    /// As [`Command::Read`] without the bytes. Answered [`Answer::Map`].
    Map {
        /// Which fragment.
        fragment: FragmentId,
        /// The vids whose blocks are seen, newest first.
        path: Arc<[Vid]>,
        /// First block.
        start: u32,
        /// How many.
        count: u32,
    },
    /// Brings everything durable home, writes the index and frees the log. Answered
    /// [`Answer::Done`].
    Checkpoint,
}

impl Command {
    /// Which fragment it is about.
    #[must_use]
    pub const fn fragment(&self) -> Option<FragmentId> {
        match self {
            Self::Write { fragment, .. }
            | Self::Zero { fragment, .. }
            | Self::DeleteVid { fragment, .. }
            | Self::Read { fragment, .. }
            | Self::Map { fragment, .. }
            | Self::Miss { fragment, .. }
            | Self::Fill { fragment, .. }
            | Self::Forget { fragment, .. }
            | Self::Versions { fragment }
            | Self::Chunks { fragment, .. } => Some(*fragment),
            Self::Checkpoint
            | Self::Shard { .. }
            | Self::DropRequests { .. }
            | Self::DropShard { .. } => None,
        }
    }
}

/// A run of blocks as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes of whole blocks.
    Data(Bytes),
    /// That many blocks that read as zeros with space reserved for them.
    Reserved(u32),
    /// That many blocks of owned zeros without space.
    Zero(u32),
    /// That many blocks that nobody on the path owns.
    Hole(u32),
}

/// What a run of blocks is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Bytes.
    Data,
    /// Zeros with space reserved.
    Reserved,
    /// Owned zeros without space.
    Zero,
    /// Nobody on the path owns them.
    Hole,
}

/// A successful reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is durable.
    Done,
    /// The blocks asked for, in order.
    Data(Vec<Piece>),
    /// Runs of blocks, in order.
    Map(Vec<(BlockKind, u32)>),
    /// What a fragment is; of one that is not there all is [`Version::ZERO`].
    Versions {
        /// Of its newest durable write, or before it was missing.
        head: Version,
        /// What it must come to hold, if it is missing.
        needed: Option<Version>,
        /// Of each chunk.
        chunks: Vec<Version>,
    },
    /// Chunks of a fragment, of one instant.
    Chunks {
        /// As in [`Answer::Versions`].
        head: Version,
        /// As there.
        needed: Option<Version>,
        /// Of all chunks.
        versions: Vec<Version>,
        /// Those that differ, ascending.
        copies: Vec<ChunkCopy>,
    },
}

/// What goes into the state machine.
#[derive(Debug)]
pub enum Input {
    /// A request.
    Command(CommandId, Command),
    /// A disk operation ended.
    Completed(Completion),
    /// Time passes: milliseconds of any clock that does not go back.
    Tick(u64),
    /// What the host has free for the data area, in bytes.
    HostFree(u64),
    /// The disk can no longer be used, for this reason: every request is answered with an error.
    GiveUp(String),
    /// Operations up to this one began so long ago that a disk which has not completed them does
    /// not work.
    Overdue(OpId),
}

/// What comes out.
#[derive(Debug)]
pub enum Effect {
    /// Do this on the disk.
    Disk(OpId, DiskOp),
    /// Tell the caller.
    Reply(CommandId, Result<Answer, Error>),
}
