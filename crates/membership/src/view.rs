//! What a member knows of the registry: the listing it began with, the commits its watch has seen,
//! and its own commits as soon as they are answered.

use crate::keys::{Key, PACK_SHARDS};
use crate::map::MapRecord;
use crate::records::{Fences, NodeRecord, SetRecord, Settings, Stamp, decode_process};
use crate::shards::{ShardPack, ShardRecord};
use sheepdog_types::kv::{Change, Compare, Entry, Revision};
use sheepdog_types::{DiskId, NodeId, Process, Result, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// A value with the revision that last changed it.
type Versioned<T> = (T, Revision);

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The latest revision of which anything was heard.
    pub revision: Revision,
    pub map: Option<Versioned<MapRecord>>,
    pub settings: Option<Versioned<Settings>>,
    pub fences: Option<Versioned<Fences>>,
    pub coordinator: Option<Versioned<Process>>,
    pub nodes: BTreeMap<NodeId, Versioned<NodeRecord>>,
    pub sessions: BTreeMap<NodeId, Versioned<Process>>,
    pub stamps: BTreeMap<DiskId, Versioned<Stamp>>,
    pub sets: BTreeMap<u16, Versioned<SetRecord>>,
    pub packs: BTreeMap<(u16, u32), Versioned<ShardPack>>,
    /// Keys that cannot be read, with the reason. While there are any no change is made.
    pub broken: BTreeMap<String, String>,
    /// What changed since it was last taken.
    pub news: News,
}

/// What changed.
#[derive(Clone, Debug, Default)]
pub struct News {
    pub map: bool,
    pub fences: bool,
    pub broken: bool,
    pub shards: BTreeSet<ShardId>,
    /// Anything at all.
    pub any: bool,
}

impl View {
    /// Takes a listing of everything.
    pub fn list(&mut self, revision: Revision, entries: &[Entry]) {
        let mut old = std::mem::take(self);
        self.news = std::mem::take(&mut old.news);
        for entry in entries {
            self.put(&entry.key, &entry.value, entry.modified);
        }
        self.revision = revision;
        self.news.map |= old.map != self.map;
        self.news.fences |= old.fences != self.fences;
        self.news.any = true;
        self.news.shards.clear();
        let packs: BTreeSet<_> = old.packs.keys().chain(self.packs.keys()).copied().collect();
        for (set, pack) in packs {
            let before = old.packs.get(&(set, pack)).map(|(pack, _)| pack);
            self.news_of_pack(set, pack, before);
        }
    }

    /// Takes a commit. Commits may come twice, and one's own before those in front of them.
    pub fn commit(&mut self, revision: Revision, changes: &[Change]) {
        self.revision = self.revision.max(revision);
        for change in changes {
            match change {
                Change::Put(key, value) => self.put(key, value, revision),
                Change::Delete(key) => self.delete(key, revision),
            }
        }
    }

    fn put(&mut self, key: &str, value: &[u8], at: Revision) {
        let Some(parsed) = Key::parse(key) else {
            return;
        };
        if self.modified(parsed).is_some_and(|modified| modified >= at) {
            return;
        }
        self.news.any = true;
        self.broken.remove(key);
        if let Err(error) = self.set(parsed, value, at) {
            self.broken.insert(key.to_owned(), error.to_string());
            self.news.broken = true;
        }
    }

    fn set(&mut self, key: Key, value: &[u8], at: Revision) -> Result<()> {
        match key {
            Key::Map => {
                self.map = Some((MapRecord::decode(value)?, at));
                self.news.map = true;
            }
            Key::Settings => self.settings = Some((Settings::decode(value)?, at)),
            Key::Fences => {
                self.fences = Some((Fences::decode(value)?, at));
                self.news.fences = true;
            }
            Key::Coordinator => self.coordinator = Some((decode_process(value)?, at)),
            Key::Node(node) => {
                self.nodes.insert(node, (NodeRecord::decode(value)?, at));
            }
            Key::Session(node) => {
                self.sessions.insert(node, (decode_process(value)?, at));
            }
            Key::Stamp(disk) => {
                self.stamps.insert(disk, (Stamp::decode(value)?, at));
            }
            Key::Set(set) => {
                self.sets.insert(set, (SetRecord::decode(value)?, at));
            }
            Key::Pack(set, pack) => {
                let new = ShardPack::decode(value)?;
                let old = self.packs.insert((set, pack), (new, at));
                self.news_of_pack(set, pack, old.as_ref().map(|(pack, _)| pack));
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: &str, at: Revision) {
        let Some(parsed) = Key::parse(key) else {
            return;
        };
        self.broken.remove(key);
        if self.modified(parsed).is_none_or(|modified| modified >= at) {
            return;
        }
        self.news.any = true;
        match parsed {
            Key::Map => self.map = None,
            Key::Settings => self.settings = None,
            Key::Fences => self.fences = None,
            Key::Coordinator => self.coordinator = None,
            Key::Node(node) => drop(self.nodes.remove(&node)),
            Key::Session(node) => drop(self.sessions.remove(&node)),
            Key::Stamp(disk) => drop(self.stamps.remove(&disk)),
            Key::Set(set) => drop(self.sets.remove(&set)),
            Key::Pack(set, pack) => drop(self.packs.remove(&(set, pack))),
        }
    }

    fn news_of_pack(&mut self, set: u16, pack: u32, before: Option<&ShardPack>) {
        let now = self.packs.get(&(set, pack)).map(|(pack, _)| pack);
        for low in 0..PACK_SHARDS {
            let [old, new] = [before, now].map(|pack| pack.and_then(|p| p.shards.get(&low)));
            if old != new {
                let number = pack.saturating_mul(PACK_SHARDS).saturating_add(low);
                self.news.shards.insert(ShardId { set, number });
            }
        }
    }

    fn modified(&self, key: Key) -> Option<Revision> {
        fn at<T>(value: Option<&Versioned<T>>) -> Option<Revision> {
            value.map(|(_, at)| *at)
        }
        match key {
            Key::Map => at(self.map.as_ref()),
            Key::Settings => at(self.settings.as_ref()),
            Key::Fences => at(self.fences.as_ref()),
            Key::Coordinator => at(self.coordinator.as_ref()),
            Key::Node(node) => at(self.nodes.get(&node)),
            Key::Session(node) => at(self.sessions.get(&node)),
            Key::Stamp(disk) => at(self.stamps.get(&disk)),
            Key::Set(set) => at(self.sets.get(&set)),
            Key::Pack(set, pack) => at(self.packs.get(&(set, pack))),
        }
    }

    /// What holds if a key is as this view has it.
    pub fn compare(&self, key: String) -> Compare {
        match Key::parse(&key).and_then(|parsed| self.modified(parsed)) {
            Some(at) => Compare::Unchanged(key, at),
            None => Compare::Absent(key),
        }
    }

    /// The record of a shard.
    pub fn shard(&self, shard: ShardId) -> Option<(&ShardRecord, Revision)> {
        let (pack, at) = self.packs.get(&(shard.set, shard.number / PACK_SHARDS))?;
        Some((pack.shards.get(&(shard.number % PACK_SHARDS))?, *at))
    }

    /// All shard records.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &ShardRecord)> {
        self.packs.iter().flat_map(|((set, pack), (records, _))| {
            let first = pack.saturating_mul(PACK_SHARDS);
            let id = move |low: u32| ShardId { set: *set, number: first.saturating_add(low) };
            records.shards.iter().map(move |(low, record)| (id(*low), record))
        })
    }

    /// The map, if there is one.
    pub fn map(&self) -> Option<&MapRecord> {
        self.map.as_ref().map(|(map, _)| map)
    }

    /// The incarnation whose sign of life is there.
    pub fn alive(&self, node: NodeId) -> Option<u64> {
        self.sessions.get(&node).map(|(process, _)| process.incarnation)
    }
}
