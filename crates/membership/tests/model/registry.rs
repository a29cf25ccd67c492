//! A small registry: one linearizable map with revisions, sessions, and a history for watches.

use bytes::Bytes;
use sheepdog_types::kv::{Change, Compare, Entry, Outcome, Revision, Txn};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Registry {
    pub revision: u64,
    pub keys: BTreeMap<String, (Bytes, Revision, Option<u64>)>,
    pub history: Vec<(Revision, Vec<Change>)>,
    next_session: u64,
}

impl Registry {
    pub fn begin(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }

    pub fn end(&mut self, session: u64) {
        let owned = self.keys.iter().filter(|(_, (_, _, owner))| *owner == Some(session));
        let changes: Vec<Change> = owned.map(|(key, _)| Change::Delete(key.clone())).collect();
        if !changes.is_empty() {
            self.apply(changes, None);
        }
    }

    pub fn list(&self) -> (Revision, Vec<Entry>) {
        let entries = self.keys.iter().map(|(key, (value, modified, _))| Entry {
            key: key.clone(),
            value: value.clone(),
            modified: *modified,
        });
        (Revision(self.revision), entries.collect())
    }

    pub fn commit(&mut self, txn: &Txn, session: Option<u64>) -> Outcome {
        assert!(txn.changes.len() <= 128, "a transaction too large");
        let holds = txn.compares.iter().all(|compare| match compare {
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::Unchanged(key, at) => self.keys.get(key).is_some_and(|found| found.1 == *at),
        });
        if !holds {
            return Outcome::Conflict;
        }
        Outcome::Committed(self.apply(txn.changes.clone(), session))
    }

    fn apply(&mut self, changes: Vec<Change>, session: Option<u64>) -> Revision {
        self.revision += 1;
        let at = Revision(self.revision);
        for change in &changes {
            match change {
                Change::Put(key, value) => {
                    self.keys.insert(key.clone(), (value.clone(), at, session));
                }
                Change::Delete(key) => drop(self.keys.remove(key)),
            }
        }
        self.history.push((at, changes));
        at
    }

    pub fn value(&self, key: &str) -> Option<&Bytes> {
        self.keys.get(key).map(|(value, ..)| value)
    }
}
