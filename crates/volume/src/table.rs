//! The VDI table: every VDI and snapshot there is, read from the registry, and what may happen to
//! them, decided as registry transactions.
//!
//! | key | value | changes when |
//! |---|---|---|
//! | `vdi/id/<6 hex>` | [`VdiRecord`] of that vid; present while the vid is taken | anything of it does |
//! | `vdi/name/=<name>` or `vdi/name/~<base64url>` | which vid a name finds | any visible VDI or snapshot of that name comes or goes |
//! | `vdi/next-lineage` | the lineage id to give out next | each VDI that gets one |
//!
//! The name stands as it is if it has only letters, digits and `-._`, else in base64url, so that
//! 255 bytes of anything fit a key. Other keys below `vdi/` are left alone: later versions may add
//! some.
//!
//! Two deciders with the same or with old tables can never both win: each decision compares every
//! key it read and would contradict if that had changed. Whoever makes a child of a vid must put
//! that vid's record anew, unchanged, on the condition that it was not hidden: deleting relies on
//! it.

mod decide;
mod keys;
mod name_record;

pub use decide::{Decision, NewVdi};
pub use keys::{ID_PREFIX, LINEAGE_KEY, NAME_PREFIX, PREFIX, id_key, name_key};
pub use name_record::raised_counter;

use crate::persist;
use crate::record::{State, VdiRecord};
use keys::Key;
use name_record::NameRecord;
use sheepdog_types::kv::{Change, Entry, Revision, Txn};
use sheepdog_types::{Error, ErrorKind, Result, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// Which of the VDIs of a name is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selector<'a> {
    /// The working one.
    Working,
    /// The newest snapshot with that tag.
    Tag(&'a str),
    /// The snapshot with that id.
    SnapId(u32),
}

impl<'a> Selector<'a> {
    /// As people write it: a decimal number is a snapshot id, all else a tag.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for 0, for numbers beyond 32 bits and for what cannot be a tag.
    pub fn parse(text: &'a str) -> Result<Self> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return crate::name::check_tag(text.as_bytes()).map(Self::Tag);
        }
        let invalid = |why| Err(Error::new(ErrorKind::Invalid, why));
        match text.parse() {
            Ok(0) => invalid("The snapshot id must be larger than zero"),
            Ok(id) => Ok(Self::SnapId(id)),
            Err(_) => invalid("The snapshot id is too large"),
        }
    }
}

/// A value with the revision that last changed it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row<T> {
    value: T,
    modified: Revision,
}

/// Every VDI and snapshot, as of some moment of the registry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    records: BTreeMap<Vid, Row<VdiRecord>>,
    /// What names find, by key.
    names: BTreeMap<String, Row<NameRecord>>,
    /// The visible vids of each name, from `records`.
    by_name: BTreeMap<String, BTreeSet<Vid>>,
    /// The lineage counter; `None` before the first VDI.
    next_lineage: Option<Row<u64>>,
}

impl Table {
    /// The table of a consistent listing of [`PREFIX`].
    ///
    /// # Errors
    /// The first entry that cannot be read, with its key, or [`ErrorKind::Internal`] where entries
    /// contradict each other.
    pub fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self> {
        let mut table = Self::default();
        for entry in entries {
            table.put(entry)?;
        }
        table.check()?;
        Ok(table)
    }

    /// Takes in one changed entry. One that is older than what is known is ignored, so changes of
    /// a watch that the listing had already do no harm; keys that are not the table's are ignored
    /// too. Look at the table only between whole transactions.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] or [`ErrorKind::Internal`], with the key; the table is then
    /// as before.
    pub fn put(&mut self, entry: &Entry) -> Result<()> {
        let modified = entry.modified;
        let named = |e: Error| Error::with_source(e.kind(), format!("key {}", entry.key), e);
        match Key::parse(&entry.key) {
            Key::Id(vid) => {
                let value = VdiRecord::decode(&entry.value).map_err(named)?;
                if value.vid != vid {
                    return Err(named(persist::damaged("the VDI record", "it is another VDI's")));
                }
                if self.records.get(&vid).is_none_or(|row| row.modified < modified) {
                    self.forget(vid);
                    if value.is_visible() {
                        self.by_name.entry(value.name.clone()).or_default().insert(vid);
                    }
                    self.records.insert(vid, Row { value, modified });
                }
            }
            Key::Name => {
                let value = NameRecord::decode(&entry.value).map_err(named)?;
                if name_key(&value.name) != entry.key {
                    return Err(named(persist::damaged("the name record", "it is another name's")));
                }
                if self.names.get(&entry.key).is_none_or(|row| row.modified < modified) {
                    self.names.insert(entry.key.clone(), Row { value, modified });
                }
            }
            Key::NextLineage => {
                let value = name_record::decode_counter(&entry.value).map_err(named)?;
                if self.next_lineage.as_ref().is_none_or(|row| row.modified < modified) {
                    self.next_lineage = Some(Row { value, modified });
                }
            }
            Key::Other => {}
        }
        Ok(())
    }

    /// Takes in that a key was deleted at a revision; ignored if the key was put again since.
    pub fn delete(&mut self, key: &str, at: Revision) {
        match Key::parse(key) {
            Key::Id(vid) => {
                if self.records.get(&vid).is_some_and(|row| row.modified < at) {
                    self.forget(vid);
                }
            }
            Key::Name => {
                if self.names.get(key).is_some_and(|row| row.modified < at) {
                    self.names.remove(key);
                }
            }
            Key::NextLineage => {
                if self.next_lineage.as_ref().is_some_and(|row| row.modified < at) {
                    self.next_lineage = None;
                }
            }
            Key::Other => {}
        }
    }

    /// Takes in a transaction that was committed at a revision, without waiting for the watch to
    /// tell. What others committed before it may be missing still; comparisons catch that.
    ///
    /// # Errors
    /// As [`Table::put`].
    pub fn committed(&mut self, txn: &Txn, at: Revision) -> Result<()> {
        for change in &txn.changes {
            match change {
                Change::Put(key, value) => {
                    self.put(&Entry { key: key.clone(), value: value.clone(), modified: at })?;
                }
                Change::Delete(key) => self.delete(key, at),
            }
        }
        Ok(())
    }

    /// Whether records and names agree, as they do after each whole transaction.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] with the first contradiction.
    pub fn check(&self) -> Result<()> {
        let broken =
            |why: String| Err(Error::new(ErrorKind::Internal, format!("VDI table: {why}")));
        for row in self.names.values() {
            let name = &row.value.name;
            let Some(vids) = self.by_name.get(name) else {
                return broken(format!("name '{name}' names nothing"));
            };
            let holder = vids.iter().find(|vid| self.records[vid].value.holds_name());
            if holder.copied() != row.value.working {
                return broken(format!("name '{name}' does not name its working VDI"));
            }
        }
        for (name, vids) in &self.by_name {
            if !self.names.contains_key(&name_key(name)) {
                return broken(format!("name '{name}' has no key"));
            }
            let holders = vids.iter().filter(|vid| self.records[vid].value.holds_name());
            if holders.count() > 1 {
                return broken(format!("name '{name}' has two working VDIs"));
            }
            let ids: BTreeSet<u32> =
                vids.iter().map(|vid| self.records[vid].value.snap_id).collect();
            if ids.len() != vids.len() {
                return broken(format!("name '{name}' has a snapshot id twice"));
            }
        }
        let next = self.next_lineage.as_ref().map_or(1, |row| row.value);
        match self.records.values().find(|row| row.value.lineage.0 >= next) {
            Some(row) => broken(format!("lineage {} was never given out", row.value.lineage)),
            None => Ok(()),
        }
    }

    /// What a name and a selector find, finished or not; [`Table::open`] is for using it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::NoTag`] when a snapshot is asked for and the name has
    /// others or a working VDI only.
    pub fn lookup(&self, name: &str, selector: Selector<'_>) -> Result<&VdiRecord> {
        let snapshot = |is_it: &dyn Fn(&VdiRecord) -> bool| {
            let found = self
                .of_name(name)
                .filter(|r| r.state == State::Snapshot && is_it(r))
                .max_by_key(|r| r.snap_id);
            match found {
                None if self.by_name.contains_key(name) => Err(ErrorKind::NoTag.into()),
                None => Err(ErrorKind::NotFound.into()),
                Some(record) => Ok(record),
            }
        };
        match selector {
            Selector::Working => self
                .of_name(name)
                .find(|r| r.holds_name())
                .ok_or_else(|| ErrorKind::NotFound.into()),
            Selector::Tag(tag) => snapshot(&|r| !tag.is_empty() && r.tag == tag),
            Selector::SnapId(id) => snapshot(&|r| r.snap_id == id),
        }
    }

    /// As [`Table::lookup`], for reading or writing its data.
    ///
    /// # Errors
    /// As [`Table::lookup`], and [`ErrorKind::Incomplete`] for an unfinished import.
    pub fn open(&self, name: &str, selector: Selector<'_>) -> Result<&VdiRecord> {
        let record = self.lookup(name, selector)?;
        if record.state == State::Incomplete {
            return Err(ErrorKind::Incomplete.into());
        }
        Ok(record)
    }

    /// The record of a vid, hidden or not.
    #[must_use]
    pub fn get(&self, vid: Vid) -> Option<&VdiRecord> {
        self.records.get(&vid).map(|row| &row.value)
    }

    /// When a vid's record last changed.
    #[must_use]
    pub fn modified(&self, vid: Vid) -> Option<Revision> {
        self.records.get(&vid).map(|row| row.modified)
    }

    /// All that lists show, by ascending vid.
    pub fn visible(&self) -> impl Iterator<Item = &VdiRecord> {
        self.all().filter(|r| r.is_visible())
    }

    /// All that wait for their sweep, by ascending vid.
    pub fn hidden(&self) -> impl Iterator<Item = &VdiRecord> {
        self.all().filter(|r| !r.is_visible())
    }

    /// All visible ones of a name, by ascending vid.
    pub fn of_name(&self, name: &str) -> impl Iterator<Item = &VdiRecord> {
        let vids = self.by_name.get(name).into_iter().flatten();
        vids.filter_map(|vid| self.get(*vid))
    }

    /// Number of taken vids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no vid is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &VdiRecord> {
        self.records.values().map(|row| &row.value)
    }

    /// Drops a vid from both maps.
    fn forget(&mut self, vid: Vid) {
        let Some(row) = self.records.remove(&vid) else {
            return;
        };
        if let Some(vids) = self.by_name.get_mut(&row.value.name) {
            vids.remove(&vid);
            if vids.is_empty() {
                self.by_name.remove(&row.value.name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
