//! Shard records on their way to the log. They take no part in the order of any fragment; in the log
//! they stand behind all that was answered before they came.

use super::no_space;
use crate::command::{Answer, CommandId, Effect};
use crate::format::batch::{RequestPart, ShardChange, ShardRecord};
use crate::format::shard_record::requests_bytes;
use crate::replica::{REQUESTS_MAX, RequestEntry, SHARD_STATE_MAX};
use crate::store::Store;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, Process, RequestId, ShardId};
use std::collections::BTreeSet;

/// Bytes of a part of a request table: a table of any length travels through a log of any size, and
/// no record is too large for a batch.
const PART_BYTES: usize = 256 << 10;

/// A shard record until its batch is durable.
pub(crate) struct PendingShard {
    /// Who is answered then; nobody waits for a part of a table.
    pub command: Option<CommandId>,
    pub record: ShardRecord,
}

impl Store {
    pub(crate) fn run_shard(
        &mut self,
        command: CommandId,
        shard: ShardId,
        state: Bytes,
        requests: Option<Vec<(RequestId, RequestEntry)>>,
        out: &mut Vec<Effect>,
    ) {
        if let Err(why) = check(&state, requests.as_deref()) {
            let error = Error::new(ErrorKind::Invalid, why);
            return out.push(Effect::Reply(command, Err(error)));
        }
        // Pages of the index are not asked for one by one, so what makes them more is refused in time.
        let asked = requests.as_ref().map(Vec::len);
        let table = asked.unwrap_or_else(|| self.shards.requests(shard).count());
        let pages = self.shards.pages_for(state.len(), table);
        let adds = pages.saturating_sub(self.shards.pages_of(shard)) * BLOCK_SIZE as u64;
        if adds > 0 && !self.has_room_for_recovery(2 * adds) {
            return out.push(Effect::Reply(command, Err(no_space())));
        }
        let room = PART_BYTES.min(self.superblock.log_bytes as usize / 16);
        let each = requests_bytes(1) - requests_bytes(0);
        let mut first = true;
        let mut requests = requests.map(|requests| {
            let mut parts: Vec<RequestPart> = Vec::new();
            for part in requests.chunks((room / each).max(1)) {
                parts.push(RequestPart { first, requests: part.to_vec() });
                first = false;
            }
            parts
        });
        let last = requests
            .as_mut()
            .map(|parts| parts.pop().unwrap_or(RequestPart { first: true, requests: Vec::new() }));
        for part in requests.into_iter().flatten() {
            self.queue_shard(None, shard, ShardChange::Stage(part));
        }
        self.queue_shard(Some(command), shard, ShardChange::State { state, requests: last });
    }

    pub(crate) fn run_drop_requests(
        &mut self,
        command: CommandId,
        shard: ShardId,
        gateway: Process,
        out: &mut Vec<Effect>,
    ) {
        if self.is_shard_quiet(shard) && !self.shards.has_older(shard, gateway) {
            return out.push(Effect::Reply(command, Ok(Answer::Done)));
        }
        self.queue_shard(Some(command), shard, ShardChange::DropRequests(gateway));
    }

    pub(crate) fn run_drop_shard(
        &mut self,
        command: CommandId,
        shard: ShardId,
        out: &mut Vec<Effect>,
    ) {
        if self.is_shard_quiet(shard) && !self.shards.contains(shard) {
            return out.push(Effect::Reply(command, Ok(Answer::Done)));
        }
        self.queue_shard(Some(command), shard, ShardChange::Drop);
    }

    /// Whether nothing is on its way that could change the shard.
    fn is_shard_quiet(&self, shard: ShardId) -> bool {
        self.shard_writes.values().all(|pending| pending.record.shard != shard)
            && self
                .writes
                .values()
                .all(|write| write.record.request.is_none_or(|(other, _)| other != shard))
    }

    fn queue_shard(&mut self, command: Option<CommandId>, shard: ShardId, change: ShardChange) {
        let id = self.next_write;
        self.next_write += 1;
        let record = ShardRecord { shard, change };
        self.shard_writes.insert(id, PendingShard { command, record });
        self.log.queue.push_back(id);
    }
}

fn check(state: &[u8], requests: Option<&[(RequestId, RequestEntry)]>) -> Result<(), &'static str> {
    let requests = requests.unwrap_or_default();
    if state.len() > SHARD_STATE_MAX {
        return Err("the state of a shard is too long");
    }
    if requests.len() > REQUESTS_MAX {
        return Err("too many requests in a table");
    }
    let mut slots = BTreeSet::new();
    if requests
        .iter()
        .any(|(id, entry)| id.seq != entry.seq || !slots.insert((id.gateway, id.slot)))
    {
        return Err("a request table that makes no sense");
    }
    Ok(())
}
