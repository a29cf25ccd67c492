//! What replication needs of a store beyond blocks: which fragments are missing, what shards and
//! their requests are, and what of it can be asked without waiting. The store keeps these things and
//! knows nothing of the protocol.

use crate::command::Piece;
use crate::store::Store;
use bytes::Bytes;
use sheepdog_types::{FragmentId, GATEWAY_SLOTS, LineageId, RequestId, ShardId, Version, Vid};

/// Bytes of the state of a shard.
pub const SHARD_STATE_MAX: usize = 64 << 10;
/// Requests in the table of a shard.
pub const REQUESTS_MAX: usize = GATEWAY_SLOTS * 1024;

/// What became of a request that was executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestEntry {
    /// [`RequestId::seq`].
    pub seq: u64,
    /// The version that it gave.
    pub version: Version,
    /// The fragment that got it.
    pub fragment: FragmentId,
}

/// All that a chunk holds, to be copied to another replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkCopy {
    /// Index in the fragment.
    pub chunk: u8,
    /// That last touched it.
    pub version: Version,
    /// Ascending; the pieces of each cover the whole chunk, in order. Vids that are not named own
    /// nothing in it.
    pub vids: Vec<(Vid, Vec<Piece>)>,
}

/// What is always known of a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Version of its newest durable write, or before it was missing.
    pub head: Version,
    /// What it must come to hold, if it is missing.
    pub needed: Option<Version>,
    /// No vid owns a block of it: it is a tombstone, or missing. Space of it may be on its way back
    /// to the host still.
    pub empty: bool,
}

impl Store {
    /// What a fragment is, if it is there.
    #[must_use]
    pub fn held(&self, fragment: FragmentId) -> Option<Held> {
        let entry = self.index.get(fragment)?;
        let needed = self.index.needed(fragment);
        Some(Held { head: entry.head, needed, empty: entry.owners.own_nothing() })
    }

    /// All fragments, ascending. Looks at every one: for opening.
    pub fn all_held(&self) -> impl Iterator<Item = (FragmentId, Held)> {
        let first = FragmentId { lineage: LineageId(0), number: 0 };
        let last = FragmentId { lineage: LineageId(u64::MAX), number: u64::MAX };
        self.index.range(first..=last).map(|(id, entry)| {
            let needed = self.index.needed(id);
            (id, Held { head: entry.head, needed, empty: entry.owners.own_nothing() })
        })
    }

    /// Shards and their states, ascending.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &Bytes)> {
        self.shards.states()
    }

    /// The requests of a shard, by gateway and slot.
    pub fn requests(&self, shard: ShardId) -> impl Iterator<Item = (RequestId, RequestEntry)> {
        self.shards.requests(shard)
    }

    /// Counts checkpoints, for ever: on a disk that went back in time it is lower than it was.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// Which log this is: another one if the disk was prepared anew.
    #[must_use]
    pub const fn log_id(&self) -> u64 {
        self.superblock.log_id
    }
}
