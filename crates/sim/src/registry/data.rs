//! What the registry holds: one history of commits, the keys that it leads to, the sessions.

use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Change, Compare, Entry, Outcome, Revision, Txn};
use std::collections::{BTreeMap, BTreeSet};

/// Changes that one transaction may make.
const CHANGES: usize = 128;

/// A session as the registry knows it.
#[derive(Clone, Copy)]
pub(super) struct Lease {
    pub(super) ttl: u64,
    /// It ends then, if nobody renews it.
    pub(super) until: u64,
}

struct Commit {
    revision: u64,
    changes: Vec<Change>,
}

#[derive(Clone)]
struct Held {
    entry: Entry,
    session: Option<u64>,
}

/// Everything that a backup holds, too.
#[derive(Clone, Default)]
pub(super) struct Data {
    pub(super) revision: u64,
    keys: BTreeMap<String, Held>,
    history: Vec<std::rc::Rc<Commit>>,
    /// The history up to here is forgotten.
    compacted: u64,
    pub(super) leases: BTreeMap<u64, Lease>,
}

impl Data {
    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.keys.get(key).map(|held| held.entry.clone())
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<Entry> {
        let from = self.keys.range(prefix.to_owned()..);
        let below = from.take_while(|(key, _)| key.starts_with(prefix));
        below.map(|(_, held)| held.entry.clone()).collect()
    }

    pub(super) fn commit(
        &mut self,
        txn: &Txn,
        session: Option<u64>,
    ) -> Result<(Outcome, Option<Vec<Change>>), ErrorKind> {
        let keys: BTreeSet<&str> = txn.changes.iter().map(key_of).collect();
        if keys.len() < txn.changes.len() || keys.len() > CHANGES {
            return Err(ErrorKind::Invalid);
        }
        if session.is_some_and(|session| !self.leases.contains_key(&session)) {
            return Err(ErrorKind::Conflict);
        }
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !self.keys.contains_key(key),
            Compare::Unchanged(key, at) => {
                self.keys.get(key).is_some_and(|held| held.entry.modified == *at)
            }
        };
        if !txn.compares.iter().all(holds) {
            return Ok((Outcome::Conflict, None));
        }
        let changes = self.apply(&txn.changes, session);
        Ok((Outcome::Committed(Revision(self.revision)), changes))
    }

    /// Makes the changes; returns those that changed something, if any did.
    fn apply(&mut self, changes: &[Change], session: Option<u64>) -> Option<Vec<Change>> {
        let real = |change: &&Change| match change {
            Change::Put(..) => true,
            Change::Delete(key) => self.keys.contains_key(key),
        };
        let changes: Vec<Change> = changes.iter().filter(real).cloned().collect();
        if changes.is_empty() {
            return None;
        }
        self.revision += 1;
        for change in &changes {
            match change {
                Change::Put(key, value) => {
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        modified: Revision(self.revision),
                    };
                    self.keys.insert(key.clone(), Held { entry, session });
                }
                Change::Delete(key) => drop(self.keys.remove(key)),
            }
        }
        let commit = Commit { revision: self.revision, changes: changes.clone() };
        self.history.push(std::rc::Rc::new(commit));
        Some(changes)
    }

    /// Ends a session: its keys go, all in one commit.
    pub(super) fn end(&mut self, session: u64) -> Option<Vec<Change>> {
        self.leases.remove(&session)?;
        let of_it = self.keys.iter().filter(|(_, held)| held.session == Some(session));
        let deletes: Vec<Change> = of_it.map(|(key, _)| Change::Delete(key.clone())).collect();
        self.apply(&deletes, None)
    }

    /// Forgets all but the last so many commits.
    pub(super) fn compact(&mut self, keep: usize) {
        let gone = self.history.len().saturating_sub(keep);
        for commit in self.history.drain(..gone) {
            self.compacted = commit.revision;
        }
    }

    /// The commits after that revision; `None` if they are forgotten.
    pub(super) fn since(&self, from: u64) -> Option<Vec<(u64, Vec<Change>)>> {
        let first = self.history.partition_point(|commit| commit.revision <= from);
        let later = self.history[first..].iter();
        (from >= self.compacted)
            .then(|| later.map(|commit| (commit.revision, commit.changes.clone())).collect())
    }
}

pub(super) fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(key, _) | Change::Delete(key) => key,
    }
}
