//! What primaries and replicas, gateways and primaries say to each other about one shard. Streams
//! between two processes keep order; a connection that breaks loses an end of what was sent, and
//! what was sent on it may still arrive late, or twice: every receiver judges a message by its
//! interval, its version and its place in the chain, never by when it came.

use crate::authority::{Activation, Copy};
use bytes::Bytes;
use sheepdog_storelog::{ChunkCopy, Piece, RequestEntry, ZeroKind};
use sheepdog_types::{DiskId, FragmentId, Interval, RequestId, ShardId, Version, Vid};
use std::sync::Arc;

/// From the primary of an interval to the replica on one disk.
#[derive(Clone, Debug)]
pub struct ToReplica {
    /// Of which shard.
    pub shard: ShardId,
    /// To the copy on this disk.
    pub disk: DiskId,
    /// Whose primary speaks.
    pub interval: Interval,
    /// What.
    pub body: Order,
}

/// What a primary asks of a replica.
#[derive(Clone, Debug)]
pub enum Order {
    /// P0: take part in no older interval any more.
    Promise,
    /// What is above that version, and what is missing.
    List {
        /// Below it all that answered are equal.
        baseline: Version,
    },
    /// These fragments, whatever their heads.
    Ask {
        /// Which.
        fragments: Vec<FragmentId>,
    },
    /// P3: this is what the fragments hold from now on.
    Activate {
        /// The acting set.
        members: Vec<DiskId>,
        /// Fragments and the heads that were chosen; ZERO: nothing.
        heads: Vec<(FragmentId, Version)>,
        /// All requests that are known.
        requests: Arc<[(RequestId, RequestEntry)]>,
        /// Tombstones were dropped up to there by somebody.
        floor: Version,
    },
    /// A write of a fragment's chain.
    Replicate(Replicate),
    /// The versions of a fragment's chunks, once everything before is durable.
    Versions {
        /// Which fragment.
        fragment: FragmentId,
    },
    /// The chunks of a fragment that differ from these.
    Chunks {
        /// Which fragment.
        fragment: FragmentId,
        /// At exactly that head.
        head: Version,
        /// What the copy that is behind has.
        have: Vec<Version>,
    },
    /// What a missing fragment lacks, all of it.
    Fill {
        /// Which fragment.
        fragment: FragmentId,
        /// It is complete at that version then.
        at: Version,
        /// The chunks that differ.
        chunks: Vec<ChunkCopy>,
    },
    /// Read leases, please.
    Lease {
        /// Counts up; the answer names it.
        number: u64,
        /// What all members are known to hold.
        clean: Option<Version>,
        /// Tombstones at or below it may go.
        floor: Version,
    },
    /// The lease of an older interval is over: the answer to [`Report::Revoke`].
    Revoked,
}

/// One write on its way to all acting replicas.
#[derive(Clone, Debug)]
pub struct Replicate {
    /// Of which fragment.
    pub fragment: FragmentId,
    /// Its head afterwards.
    pub version: Version,
    /// Its head before.
    pub prev: Version,
    /// Tombstones up to there count as nothing.
    pub floor: Version,
    /// By which request; none for the primary's own.
    pub request: Option<RequestId>,
    /// What is written.
    pub change: Change,
}

/// What a write does to a fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// New bytes.
    Write {
        /// Who owns them.
        vid: Vid,
        /// First block.
        start: u32,
        /// Whole blocks.
        data: Vec<Bytes>,
    },
    /// Zeros.
    Zero {
        /// Whose blocks.
        vid: Vid,
        /// First block.
        start: u32,
        /// How many.
        count: u32,
        /// What becomes of their space.
        kind: ZeroKind,
    },
    /// The vid owns nothing any more. What holds nothing stays as a tombstone.
    Delete {
        /// Whose blocks.
        vid: Vid,
    },
}

/// From the replica on one disk to the primary of an interval.
#[derive(Clone, Debug)]
pub struct ToPrimary {
    /// Of which shard.
    pub shard: ShardId,
    /// From the copy on this disk.
    pub disk: DiskId,
    /// To whose primary.
    pub interval: Interval,
    /// What.
    pub body: Report,
}

/// What a replica tells a primary.
#[derive(Clone, Debug)]
pub enum Report {
    /// It has promised a later interval than the one that asks.
    Refused {
        /// Which.
        promised: Interval,
        /// The last it was activated in: a registry that went back in time is put right with it.
        les: Activation,
    },
    /// P0: it takes part in no older interval any more.
    Promised {
        /// The last interval it was activated in, with its members; nothing if it has no vote.
        les: Activation,
        /// It has all that was acknowledged up to there.
        clean: Version,
        /// Tombstones up to there may have been dropped.
        floor: Version,
        /// Nanoseconds until the last lease that it granted is over.
        lease_left: u64,
    },
    /// The lease that was still running at the promise is over before its time.
    LeaseOver,
    /// What is above the baseline, and what is missing.
    Listed {
        /// Copies.
        copies: Vec<(FragmentId, Copy)>,
        /// Every request it knows.
        requests: Vec<(RequestId, RequestEntry)>,
    },
    /// What was asked for; what it does not hold has version ZERO.
    Asked {
        /// Copies.
        copies: Vec<(FragmentId, Copy)>,
    },
    /// P3: durable.
    Activated {
        /// Bytes that clients may write in this interval.
        credit: u64,
    },
    /// A write is durable.
    Done {
        /// Of which fragment.
        fragment: FragmentId,
        /// Which.
        version: Version,
    },
    /// The versions of a fragment's chunks.
    Versions {
        /// Which fragment.
        fragment: FragmentId,
        /// Of its bytes, or what it must come to hold.
        copy: Copy,
        /// By chunk.
        chunks: Vec<Version>,
    },
    /// Chunks of a fragment.
    Chunks {
        /// Which fragment.
        fragment: FragmentId,
        /// At that head; another one than was asked for if it has that no more.
        head: Version,
        /// Those that differ from what was told.
        chunks: Vec<ChunkCopy>,
    },
    /// A missing fragment is complete.
    Filled {
        /// Which fragment.
        fragment: FragmentId,
        /// At that version.
        at: Version,
    },
    /// Read leases for a term from now.
    Granted {
        /// Of the request that it answers.
        number: u64,
        /// Bytes that clients may write in this interval.
        credit: u64,
        /// What it durably knows to be clean.
        clean: Version,
    },
    /// It is about to promise the shard away: no reads any more.
    Revoke,
    /// A copy from here or to here failed.
    Unreadable {
        /// Which fragment.
        fragment: FragmentId,
    },
}

/// From a gateway to the primary of a shard.
#[derive(Clone, Debug)]
pub struct Request {
    /// Of which shard.
    pub shard: ShardId,
    /// Whose primary is meant.
    pub interval: Interval,
    /// Reads have one too, which nobody remembers.
    pub id: RequestId,
    /// The gateway has seen the lineage's record of this revision.
    pub revision: u64,
    /// The holder's number of the VDI's lock; lower ones than the record's are fenced.
    pub fence: u64,
    /// Whose view.
    pub vid: Vid,
    /// Which fragment.
    pub fragment: FragmentId,
    /// What.
    pub work: Work,
}

/// What a request wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// Change blocks.
    Change(Change),
    /// The bytes of blocks.
    Read {
        /// First block.
        start: u32,
        /// How many.
        count: u32,
    },
}

impl Work {
    /// First block and count; all blocks for a deletion.
    #[must_use]
    pub fn range(&self) -> (u32, u32) {
        match self {
            Self::Read { start, count } => (*start, *count),
            Self::Change(change) => change.range(),
        }
    }
}

impl Change {
    /// First block and count; all blocks for a deletion.
    #[must_use]
    pub fn range(&self) -> (u32, u32) {
        match self {
            Self::Write { start, data, .. } => {
                let bytes: usize = data.iter().map(Bytes::len).sum();
                (*start, (bytes / sheepdog_types::BLOCK_SIZE) as u32)
            }
            Self::Zero { start, count, .. } => (*start, *count),
            Self::Delete { .. } => (0, u32::MAX),
        }
    }

    /// Bytes that a store may come to hold more.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Write { data, .. } => data.iter().map(|piece| piece.len() as u64).sum(),
            Self::Zero { count, kind: ZeroKind::Reserve, .. } => {
                u64::from(*count) * sheepdog_types::BLOCK_SIZE as u64
            }
            Self::Zero { .. } | Self::Delete { .. } => 0,
        }
    }
}

/// From the primary of a shard to a gateway.
#[derive(Clone, Debug)]
pub struct Response {
    /// Of which shard.
    pub shard: ShardId,
    /// Of the request that it answers: a refusal of another one than was sent last is late.
    pub interval: Interval,
    /// The request's.
    pub id: RequestId,
    /// How it ended.
    pub result: Result<Done, Refusal>,
}

/// A request that was executed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// Durable on every acting replica.
    Changed,
    /// The blocks asked for, in order.
    Read(Vec<Piece>),
}

/// Why a request was not executed, and what the gateway must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// This is not the primary of that interval, or not any more: ask the registry, send again with
    /// the same id. A write may have been executed; then its id says so.
    Moved {
        /// The newest interval that is known here.
        interval: Interval,
    },
    /// A later request of the same slot was executed: this one is a late copy, nobody waits for it.
    Late,
    /// The gateway's incarnation, the lock or the vid was fenced. Not executed.
    Fenced,
    /// The vid is not a working one. Not executed.
    ReadOnly,
    /// There is no such vid. Not executed.
    Unknown,
    /// Not executed: a disk is full.
    NoSpace,
    /// The bytes cannot be read.
    Io(String),
}

/// The processes and what they say, for whoever carries messages.
#[derive(Clone, Debug)]
pub enum Message {
    /// To a replica.
    Order(ToReplica),
    /// To a primary.
    Report(ToPrimary),
    /// To a primary.
    Request(Request),
    /// To a gateway.
    Response(Response),
}

impl Message {
    /// Of which shard.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        match self {
            Self::Order(order) => order.shard,
            Self::Report(report) => report.shard,
            Self::Request(request) => request.shard,
            Self::Response(response) => response.shard,
        }
    }

    /// Whether it must not wait behind bulk data: promises, leases and what ends them.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        match self {
            Self::Order(order) => {
                matches!(order.body, Order::Promise | Order::Lease { .. } | Order::Revoked)
            }
            Self::Report(report) => matches!(
                report.body,
                Report::Refused { .. }
                    | Report::Promised { .. }
                    | Report::LeaseOver
                    | Report::Granted { .. }
                    | Report::Revoke
            ),
            Self::Request(_) | Self::Response(_) => false,
        }
    }
}
