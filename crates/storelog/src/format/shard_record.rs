//! Records of shards, and how requests and versions are written, in records and in pages.

use super::codec::{Malformed, Reader, Writer};
use super::record::UNKNOWN_KIND;
use crate::replica::{REQUESTS_MAX, RequestEntry, SHARD_STATE_MAX};
use bytes::Bytes;
use sheepdog_types::{
    FragmentId, Interval, LineageId, NodeId, Process, RequestId, ShardId, Version,
};

const STATE: u8 = 7;
const STAGE: u8 = 8;
const DROP_REQUESTS: u8 = 9;
pub(super) const DROP_SHARD: u8 = 10;

/// Requests of a table, a part at a time: a table may be larger than a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestPart {
    /// It is the first: whatever came before it belongs to a table that was never finished.
    pub first: bool,
    /// One of each slot.
    pub requests: Vec<(RequestId, RequestEntry)>,
}

/// One step of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardRecord {
    /// Of which shard.
    pub shard: ShardId,
    /// What it does.
    pub change: ShardChange,
}

/// See [`ShardRecord`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShardChange {
    /// State, and the last part of the table if that is replaced too.
    State {
        /// Opaque.
        state: Bytes,
        /// What was staged, and this, is the table from now on.
        requests: Option<RequestPart>,
    },
    /// A part of the table that the next state brings.
    Stage(RequestPart),
    /// Requests of lower incarnations are dropped.
    DropRequests(Process),
    /// All of it is gone.
    Drop,
}

impl ShardRecord {
    /// Bytes in the header.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let part = |part: &RequestPart| 1 + requests_bytes(part.requests.len());
        1 + SHARD_BYTES
            + PROCESS_BYTES
            + match &self.change {
                ShardChange::State { state, requests } => {
                    4 + state.len() + 1 + requests.as_ref().map_or(0, part)
                }
                ShardChange::Stage(requests) => part(requests),
                ShardChange::DropRequests(_) | ShardChange::Drop => 0,
            }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        w.u8(match self.change {
            ShardChange::State { .. } => STATE,
            ShardChange::Stage(_) => STAGE,
            ShardChange::DropRequests(_) => DROP_REQUESTS,
            ShardChange::Drop => DROP_SHARD,
        });
        encode_shard(w, self.shard);
        let gateway = match self.change {
            ShardChange::DropRequests(gateway) => gateway,
            _ => Process::default(),
        };
        encode_process(w, gateway);
        let encode_part = |w: &mut Writer, part: &RequestPart| {
            w.u8(u8::from(part.first));
            encode_requests(w, &part.requests);
        };
        match &self.change {
            ShardChange::State { state, requests } => {
                w.u32(state.len() as u32);
                w.raw(state);
                w.u8(u8::from(requests.is_some()));
                if let Some(part) = requests {
                    encode_part(w, part);
                }
            }
            ShardChange::Stage(part) => encode_part(w, part),
            ShardChange::DropRequests(_) | ShardChange::Drop => {}
        }
    }

    pub(super) fn decode(kind: u8, r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (shard, gateway) = (decode_shard(r)?, decode_process(r)?);
        let decode_part = |r: &mut Reader<'_>| {
            let first = r.u8()? != 0;
            Ok(RequestPart { first, requests: decode_requests(r)? })
        };
        let change = match kind {
            STATE => {
                let state = decode_state(r)?;
                let requests = if r.u8()? != 0 { Some(decode_part(r)?) } else { None };
                ShardChange::State { state, requests }
            }
            STAGE => ShardChange::Stage(decode_part(r)?),
            DROP_REQUESTS => ShardChange::DropRequests(gateway),
            DROP_SHARD => ShardChange::Drop,
            _ => return Err(r.bad(UNKNOWN_KIND)),
        };
        Ok(Self { shard, change })
    }
}

pub(super) const SHARD_BYTES: usize = 2 + 4;
const PROCESS_BYTES: usize = 16 + 8;
pub(super) const REQUEST_BYTES: usize = PROCESS_BYTES + 1 + 8;
const ENTRY_BYTES: usize = REQUEST_BYTES + 16 + 16;

/// Bytes of a list of requests.
#[must_use]
pub const fn requests_bytes(count: usize) -> usize {
    4 + count * ENTRY_BYTES
}

pub(super) fn encode_requests(w: &mut Writer, requests: &[(RequestId, RequestEntry)]) {
    w.u32(requests.len() as u32);
    for (id, entry) in requests {
        encode_request(w, id);
        encode_version(w, entry.version);
        w.u64(entry.fragment.lineage.0);
        w.u64(entry.fragment.number);
    }
}

pub(super) fn decode_requests(
    r: &mut Reader<'_>,
) -> Result<Vec<(RequestId, RequestEntry)>, Malformed> {
    let count = r.u32()?;
    if count as usize > REQUESTS_MAX {
        return Err(r.bad("too many requests"));
    }
    (0..count)
        .map(|_| {
            let id = decode_request(r)?;
            let version = decode_version(r)?;
            let fragment = FragmentId { lineage: LineageId(r.u64()?), number: r.u64()? };
            Ok((id, RequestEntry { seq: id.seq, version, fragment }))
        })
        .collect()
}

pub(super) fn decode_state(r: &mut Reader<'_>) -> Result<Bytes, Malformed> {
    let len = r.u32()? as usize;
    if len > SHARD_STATE_MAX {
        return Err(r.bad("impossible length"));
    }
    Ok(Bytes::copy_from_slice(r.take(len)?))
}

pub(super) fn encode_request(w: &mut Writer, id: &RequestId) {
    encode_process(w, id.gateway);
    w.u8(id.slot);
    w.u64(id.seq);
}

pub(super) fn decode_request(r: &mut Reader<'_>) -> Result<RequestId, Malformed> {
    Ok(RequestId { gateway: decode_process(r)?, slot: r.u8()?, seq: r.u64()? })
}

fn encode_process(w: &mut Writer, process: Process) {
    w.raw(&process.node.0);
    w.u64(process.incarnation);
}

fn decode_process(r: &mut Reader<'_>) -> Result<Process, Malformed> {
    Ok(Process { node: NodeId(r.bytes16()?), incarnation: r.u64()? })
}

pub(super) fn encode_shard(w: &mut Writer, shard: ShardId) {
    w.u16(shard.set);
    w.u32(shard.number);
}

pub(super) fn decode_shard(r: &mut Reader<'_>) -> Result<ShardId, Malformed> {
    Ok(ShardId { set: r.u16()?, number: r.u32()? })
}

pub(super) fn encode_version(w: &mut Writer, version: Version) {
    w.u64(version.interval.0);
    w.u64(version.seq);
}

pub(super) fn decode_version(r: &mut Reader<'_>) -> Result<Version, Malformed> {
    Ok(Version { interval: Interval(r.u64()?), seq: r.u64()? })
}
