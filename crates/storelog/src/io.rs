//! What the store asks of a disk and what the disk answers. The only way in or out of the store's
//! state machine besides commands and replies; production rings, blocking threads, the simulator
//! and crash tests all speak it.

use bytes::Bytes;

/// Names one operation in flight; never reused within a run of the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// The two address spaces of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Area {
    /// Superblock, extents, pages: a sparse file or a raw device.
    Data,
    /// The write-ahead log: fixed size, written once with zeros when the disk is prepared.
    Log,
}

/// One disk operation. Offsets and lengths are multiples of the disk's alignment, buffers are
/// page-aligned or (inside one batch) aligned to the log unit. Operations in flight together may
/// be executed in any order; the store waits where order matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Completes with exactly `len` bytes; what lies behind the end of the file reads as zeros.
    Read {
        /// Where.
        area: Area,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Writes the buffers one behind the other, completely: a short write is continued by the
    /// driver or reported as an error.
    Write {
        /// Where.
        area: Area,
        /// Byte offset of the first buffer.
        offset: u64,
        /// What, without copies.
        data: Vec<Bytes>,
        /// Complete only when these bytes are on stable storage. Says nothing of earlier writes.
        durable: bool,
    },
    /// Complete when everything in this area that completed before is on stable storage, the file
    /// system's own metadata included. Never retried after an error.
    Sync {
        /// Which.
        area: Area,
    },
    /// Gives the host back the space behind a range of the data area, which the store then does not
    /// read before it writes it. A raw device may do nothing.
    Punch {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes the host reserve space for a range of the data area; what was not written reads as
    /// zeros.
    Allocate {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes the data area at least this long (sparse). Nothing to do on a raw device.
    Extend {
        /// Bytes.
        len: u64,
    },
}

/// Why an operation failed, as far as the store must tell the difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskErrorKind {
    /// The host has no space: the operation may work later.
    NoSpace,
    /// Anything else.
    Io,
}

/// A failed operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskError {
    /// What the store must do.
    pub kind: DiskErrorKind,
    /// The operating system's words, for people.
    pub text: String,
}

/// The answer to one [`DiskOp`]: the bytes of a read, nothing for the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Of which operation.
    pub op: OpId,
    /// How it ended.
    pub result: Result<Bytes, DiskError>,
}
