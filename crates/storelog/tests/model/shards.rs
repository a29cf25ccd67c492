//! What the store may hold of shards: the effect of everything answered, in the order of the answers,
//! which is that of the log; after a crash, of some of the rest too.

use bytes::Bytes;
use sheepdog_storelog::{Command, CommandId, RequestEntry, Store};
use sheepdog_types::{FragmentId, Process, RequestId, ShardId, Version};
use std::collections::{BTreeMap, BTreeSet};

type Table = BTreeMap<(Process, u8), RequestEntry>;

#[derive(Clone, Debug)]
enum Event {
    /// With the place of the write in the history of its fragment.
    Request {
        id: RequestId,
        version: Version,
        fragment: FragmentId,
        index: usize,
    },
    Set {
        state: Bytes,
        table: Option<Table>,
    },
    DropRequests(Process),
    Drop,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Shard {
    state: Bytes,
    table: Table,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Shards {
    known: BTreeMap<ShardId, Shard>,
    open: BTreeMap<CommandId, (ShardId, Event)>,
}

/// Of a fragment's changes, how many happened in any case, and at most.
pub type Happened = BTreeMap<FragmentId, (usize, usize)>;

impl Shards {
    /// A command that may change a shard is asked for.
    pub fn push(&mut self, id: CommandId, command: &Command, index: usize) {
        let event = match command {
            Command::Write { fragment, version, request: Some((shard, id)), .. }
            | Command::Zero { fragment, version, request: Some((shard, id)), .. }
            | Command::DeleteVid { fragment, version, request: Some((shard, id)), .. } => {
                let (id, version, fragment) = (*id, *version, *fragment);
                (*shard, Event::Request { id, version, fragment, index })
            }
            Command::Shard { shard, state, requests } => {
                let table = requests.as_ref().map(|requests| {
                    requests.iter().map(|(id, entry)| ((id.gateway, id.slot), *entry)).collect()
                });
                (*shard, Event::Set { state: state.clone(), table })
            }
            Command::DropRequests { shard, gateway } => (*shard, Event::DropRequests(*gateway)),
            Command::DropShard { shard } => (*shard, Event::Drop),
            _ => return,
        };
        self.open.insert(id, event);
    }

    /// It was answered. Whether it was one that concerns a shard.
    pub fn answered(&mut self, id: CommandId, done: bool) -> bool {
        let Some((shard, event)) = self.open.remove(&id) else {
            return false;
        };
        if !done {
            return true;
        }
        match event {
            Event::Request { id, version, fragment, .. } => {
                let entry = RequestEntry { seq: id.seq, version, fragment };
                let table = &mut self.known.entry(shard).or_default().table;
                let known = table.entry((id.gateway, id.slot)).or_insert(entry);
                if known.seq <= entry.seq {
                    *known = entry;
                }
            }
            Event::Set { state, table } => {
                let known = self.known.entry(shard).or_default();
                known.state = state;
                known.table = table.unwrap_or(std::mem::take(&mut known.table));
            }
            Event::DropRequests(gateway) => {
                if let Some(known) = self.known.get_mut(&shard) {
                    known.table.retain(|(other, _), _| {
                        other.node != gateway.node || other.incarnation >= gateway.incarnation
                    });
                }
            }
            Event::Drop => drop(self.known.remove(&shard)),
        }
        true
    }

    /// The store, which has answered, holds exactly what was answered. A part of a table that is on
    /// its way may have made a shard that there was not.
    pub fn check(&self, store: &Store) {
        let mut found = held(store);
        let staged: BTreeSet<ShardId> = self.open.values().map(|(shard, _)| *shard).collect();
        found.retain(|shard, is| {
            !(staged.contains(shard) && *is == Shard::default() && !self.known.contains_key(shard))
        });
        assert_eq!(found, self.known);
    }

    /// The store was opened after a crash, and so much of the fragments' changes had happened. What
    /// it holds is what counts from now on.
    pub fn check_after_crash(&mut self, store: &Store, happened: &Happened) {
        let found = held(store);
        let open: Vec<(ShardId, Event)> = std::mem::take(&mut self.open).into_values().collect();
        let shards: BTreeSet<ShardId> = found.keys().chain(self.known.keys()).copied().collect();
        for shard in shards {
            let open: Vec<&Event> =
                open.iter().filter(|(other, _)| *other == shard).map(|(_, event)| event).collect();
            self.check_shard(shard, found.get(&shard), &open, happened);
        }
        self.known = found;
    }

    fn check_shard(
        &self,
        shard: ShardId,
        found: Option<&Shard>,
        open: &[&Event],
        happened: &Happened,
    ) {
        let known = self.known.get(&shard);
        let may_go = open.iter().any(|event| matches!(event, Event::Drop));
        let Some(found) = found else {
            assert!(known.is_none() || may_go, "{shard} is gone");
            return;
        };
        let mut states: Vec<&[u8]> = known.iter().map(|known| &known.state[..]).collect();
        if known.is_none() || may_go {
            states.push(b"");
        }
        let mut changed = false;
        for event in open {
            match event {
                Event::Set { state, table } => {
                    states.push(state);
                    changed |= table.is_some();
                }
                Event::DropRequests(_) | Event::Drop => changed = true,
                Event::Request { .. } => {}
            }
        }
        assert!(states.contains(&&found.state[..]), "{shard} has a state nobody gave it");
        if known.is_none() && open.is_empty() {
            panic!("{shard} came back");
        }
        let nothing = Table::new();
        let table = known.map_or(&nothing, |known| &known.table);
        let slots: BTreeSet<_> = found.table.keys().chain(table.keys()).copied().collect();
        for slot in slots {
            let is = found.table.get(&slot).copied();
            let was = table.get(&slot).copied();
            // What an event that was not answered may have put there, and whether it must have.
            let mut legal = vec![was];
            let mut sure = Vec::new();
            for event in open {
                match event {
                    Event::Request { id, version, fragment, index }
                        if (id.gateway, id.slot) == slot =>
                    {
                        let entry =
                            RequestEntry { seq: id.seq, version: *version, fragment: *fragment };
                        let (least, most) = happened.get(fragment).copied().unwrap_or((0, 0));
                        if *index < most {
                            legal.push(Some(entry));
                        }
                        sure.push((*index < least).then_some(entry));
                    }
                    Event::Set { table: Some(table), .. } => legal.push(table.get(&slot).copied()),
                    Event::DropRequests(_) | Event::Drop => legal.push(None),
                    _ => {}
                }
            }
            assert!(legal.contains(&is), "{shard} {slot:?}: {is:?} is none of {legal:?}");
            // A write that happened took its entry with it.
            if let ([Some(entry)], false) = (&sure[..], changed)
                && was.is_none_or(|was| was.seq <= entry.seq)
            {
                assert_eq!(is, Some(*entry), "{shard} {slot:?}");
            }
        }
    }

    /// What was answered is forgotten, and what the store holds taken for it.
    pub fn adopt(&mut self, store: &Store) {
        self.open.clear();
        self.known = held(store);
    }
}

fn held(store: &Store) -> BTreeMap<ShardId, Shard> {
    let table = |shard| -> Table {
        let requests = store.requests(shard);
        requests.map(|(id, entry)| ((id.gateway, id.slot), entry)).collect()
    };
    let shards = store.shards();
    shards.map(|(id, state)| (id, Shard { state: state.clone(), table: table(id) })).collect()
}
