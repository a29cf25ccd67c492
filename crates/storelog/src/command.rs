//! What the layers above ask of the store and what it answers.

use crate::io::{Completion, DiskOp, OpId};
use bytes::Bytes;
use sheepdog_types::{Error, FragmentId, Result, Version, Vid};
use std::sync::Arc;

pub use crate::format::batch::ZeroKind;

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
    },
    /// The vid owns nothing in the fragment any more. Answered [`Answer::Done`] when durable.
    DeleteVid {
        /// Which fragment.
        fragment: FragmentId,
        /// Whose blocks.
        vid: Vid,
        /// The fragment's head from then on.
        version: Version,
        /// Drop the fragment from the index if it holds nothing else.
        forget: bool,
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
            | Self::Map { fragment, .. } => Some(*fragment),
            Self::Checkpoint => None,
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
