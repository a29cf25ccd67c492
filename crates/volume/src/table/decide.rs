//! What may happen to VDIs, as transactions. A conflict at the commit means: read the table again
//! and decide anew.

use super::keys::{LINEAGE_KEY, id_key, name_key};
use super::name_record::{NameRecord, encode_counter};
use super::{Row, Selector, Table};
use crate::record::{State, VdiRecord};
use crate::redundancy::Redundancy;
use crate::{name, size, vid};
use sheepdog_types::kv::{Change, Compare, Txn};
use sheepdog_types::{Error, ErrorKind, LineageId, Result, Vid};

/// Records a rename may move at once: a transaction's 128 changes less the two names.
const RENAME_MAX: usize = 126;

/// What a new VDI shall be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewVdi {
    /// Not checked yet.
    pub name: String,
    /// Bytes, not checked yet.
    pub size: u64,
    /// How its data is kept.
    pub redundancy: Redundancy,
    /// Object size as a power of two, not checked yet.
    pub object_shift: u8,
    /// Whether it may have more than 2^20 objects.
    pub hyper: bool,
    /// Whether its space is reserved when it is created. The caller does that, after the commit.
    pub preallocated: bool,
    /// Now, in nanoseconds since 1970, UTC.
    pub created: u64,
}

/// A transaction, and the record it leaves behind if it commits.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "nothing happens before the transaction is committed"]
pub struct Decision {
    /// The VDI afterwards.
    pub record: VdiRecord,
    /// To commit.
    pub txn: Txn,
}

impl Table {
    /// A new working VDI, all holes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for its name or size, [`ErrorKind::Exists`] if the name is taken,
    /// [`ErrorKind::TooManyVdis`].
    pub fn create(&self, new: &NewVdi) -> Result<Decision> {
        self.create_as(new, State::Working, None)
    }

    /// A new VDI that doors refuse until [`Table::finish_import`]. An unfinished import of that
    /// name is deleted by the same transaction, so that nothing of it is left and its importer, if
    /// it still runs, cannot finish.
    ///
    /// # Errors
    /// As [`Table::create`].
    pub fn begin_import(&self, new: &NewVdi) -> Result<Decision> {
        let unfinished = self.of_name(&new.name).find(|r| r.state == State::Incomplete);
        self.create_as(new, State::Incomplete, unfinished)
    }

    /// Makes an imported VDI a working one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it was deleted or imported anew since, [`ErrorKind::Conflict`] if
    /// it is no unfinished import.
    pub fn finish_import(&self, vid: Vid) -> Result<Decision> {
        let row = self.visible_row(vid)?;
        if row.value.state != State::Incomplete {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("VDI {vid} is not being imported"),
            ));
        }
        let record = VdiRecord { state: State::Working, ..row.value.clone() };
        let mut txn = Txn::default();
        replace(&mut txn, row, &record);
        Ok(Decision { record, txn })
    }

    /// Gives a working VDI another name. The snapshots it has under its name go with it; those an
    /// earlier VDI left behind stay.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Exists`] if the other name is taken, or has snapshots
    /// and the VDI has some too; [`ErrorKind::Invalid`] for the name; [`ErrorKind::Unsupported`]
    /// with more snapshots than one transaction can move.
    pub fn rename(&self, from: &str, to: &str) -> Result<Decision> {
        let working = self.lookup(from, Selector::Working)?;
        name::check(to.as_bytes())?;
        if self.lookup(to, Selector::Working).is_ok() {
            return Err(ErrorKind::Exists.into());
        }
        let (moving, staying): (Vec<_>, Vec<_>) =
            self.of_name(from).partition(|r| r.lineage == working.lineage);
        let there = self.highest_snap_id(to);
        if moving.len() > 1 && there.is_some() {
            return Err(Error::new(ErrorKind::Exists, "both names have snapshots"));
        }
        if moving.len() > RENAME_MAX {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("a VDI with more than {} snapshots cannot be renamed", RENAME_MAX - 1),
            ));
        }
        let mut txn = Txn::default();
        let mut renamed = working.clone();
        for record in moving {
            let mut record = record.clone();
            record.name = to.to_owned();
            if let Some(there) = there {
                record.snap_id = after(there)?;
            }
            replace(&mut txn, self.visible_row(record.vid)?, &record);
            if record.vid == renamed.vid {
                renamed = record;
            }
        }
        self.set_name(&mut txn, from, None, !staying.is_empty());
        self.set_name(&mut txn, to, Some(renamed.vid), true);
        Ok(Decision { record: renamed, txn })
    }

    /// Makes a working VDI larger; the new bytes are holes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::ReadOnly`] for a snapshot, [`ErrorKind::Incomplete`]
    /// for an unfinished import, [`ErrorKind::Invalid`] for a smaller or too large size.
    pub fn resize(&self, vid: Vid, size: u64) -> Result<Decision> {
        let row = self.visible_row(vid)?;
        let old = &row.value;
        match old.state {
            State::Working => {}
            State::Incomplete => return Err(ErrorKind::Incomplete.into()),
            State::Snapshot | State::Hidden => return Err(ErrorKind::ReadOnly.into()),
        }
        if size < old.size {
            return Err(Error::new(ErrorKind::Invalid, "Shrinking VDIs is not implemented"));
        }
        let max = size::max_bytes(old.object_shift, old.hyper);
        if size > max {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("New VDI size is too large. This volume's max size is {max}"),
            ));
        }
        let record = VdiRecord { size, ..old.clone() };
        let mut txn = Txn::default();
        replace(&mut txn, row, &record);
        Ok(Decision { record, txn })
    }

    /// First step of a deletion: the VDI or snapshot is hidden and its name or tag free. A sweep
    /// must follow.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], also if it is hidden already.
    pub fn hide(&self, vid: Vid) -> Result<Decision> {
        let row = self.visible_row(vid)?;
        let mut txn = Txn::default();
        let record = hide_row(&mut txn, row);
        let others = self.of_name(&record.name).any(|r| r.vid != vid);
        let working =
            self.of_name(&record.name).find(|r| r.holds_name() && r.vid != vid).map(|r| r.vid);
        self.set_name(&mut txn, &record.name, working, others);
        Ok(Decision { record, txn })
    }

    /// Second step of a deletion, when the sweep found that a hidden vid owns nothing any more: the
    /// record goes and the vid is free.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it is gone already, [`ErrorKind::Conflict`] if it is not hidden,
    /// [`ErrorKind::Locked`] while another VDI names it as its parent or base.
    pub fn remove_swept(&self, vid: Vid) -> Result<Txn> {
        let row = self.records.get(&vid).ok_or(ErrorKind::NotFound)?;
        if row.value.is_visible() {
            return Err(Error::new(ErrorKind::Conflict, format!("VDI {vid} is not deleted")));
        }
        // No child is missing in this table: making one puts its parent anew, on the condition that
        // it is not hidden, and here it is hidden and as this table knows it.
        let child = self.all().find(|r| {
            r.vid != vid && (r.parent == Some(vid) || r.base.is_some_and(|b| b.vid == vid))
        });
        if let Some(child) = child {
            return Err(Error::new(
                ErrorKind::Locked,
                format!("VDI {vid} is still the base of {}", child.vid),
            ));
        }
        Ok(Txn {
            compares: vec![Compare::Unchanged(id_key(vid), row.modified)],
            changes: vec![Change::Delete(id_key(vid))],
        })
    }

    fn create_as(
        &self,
        new: &NewVdi,
        state: State,
        replaces: Option<&VdiRecord>,
    ) -> Result<Decision> {
        name::check(new.name.as_bytes())?;
        size::check(new.size, new.object_shift, new.hyper)?;
        let mut txn = Txn::default();
        if let Some(old) = replaces {
            let _hidden = hide_row(&mut txn, self.visible_row(old.vid)?);
        } else if self.lookup(&new.name, Selector::Working).is_ok() {
            return Err(ErrorKind::Exists.into());
        }
        let vid =
            vid::first_free(vid::home(&new.name), &self.records).ok_or(ErrorKind::TooManyVdis)?;
        let snapshots = self.of_name(&new.name).filter(|r| !r.holds_name()).map(|r| r.snap_id);
        let record = VdiRecord {
            name: new.name.clone(),
            tag: String::new(),
            snap_id: snapshots.max().map_or(Ok(1), after)?,
            vid,
            lineage: self.take_lineage(&mut txn)?,
            parent: None,
            base: None,
            size: new.size,
            redundancy: new.redundancy,
            object_shift: new.object_shift,
            hyper: new.hyper,
            preallocated: new.preallocated,
            created: new.created,
            snapshotted: None,
            state,
        };
        txn.compares.push(Compare::Absent(id_key(vid)));
        txn.changes.push(Change::Put(id_key(vid), record.encode()));
        self.set_name(&mut txn, &new.name, Some(vid), true);
        Ok(Decision { record, txn })
    }

    /// The next lineage id, which the transaction takes out of the counter.
    fn take_lineage(&self, txn: &mut Txn) -> Result<LineageId> {
        let next = self.next_lineage.as_ref().map_or(1, |row| row.value);
        let after = next
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "all lineage ids were given out"))?;
        txn.compares.push(unchanged(LINEAGE_KEY.to_owned(), self.next_lineage.as_ref()));
        txn.changes.push(Change::Put(LINEAGE_KEY.to_owned(), encode_counter(after)));
        Ok(LineageId(next))
    }

    /// Sets what a name finds, or frees it if no visible VDI or snapshot will have it.
    fn set_name(&self, txn: &mut Txn, name: &str, working: Option<Vid>, remains: bool) {
        let key = name_key(name);
        let row = self.names.get(&key);
        txn.compares.push(unchanged(key.clone(), row));
        txn.changes.push(if remains {
            let record = NameRecord { name: name.to_owned(), working };
            Change::Put(key, record.encode())
        } else {
            Change::Delete(key)
        });
    }

    fn visible_row(&self, vid: Vid) -> Result<&Row<VdiRecord>> {
        self.records
            .get(&vid)
            .filter(|row| row.value.is_visible())
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn highest_snap_id(&self, name: &str) -> Option<u32> {
        self.of_name(name).map(|r| r.snap_id).max()
    }
}

/// The snapshot id that follows.
fn after(snap_id: u32) -> Result<u32> {
    snap_id
        .checked_add(1)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "all snapshot ids of the name are used"))
}

/// Compares that a key still is as this table has it.
fn unchanged<T>(key: String, row: Option<&Row<T>>) -> Compare {
    match row {
        Some(row) => Compare::Unchanged(key, row.modified),
        None => Compare::Absent(key),
    }
}

/// Puts a changed record in place of the one the decision was made on.
fn replace(txn: &mut Txn, old: &Row<VdiRecord>, record: &VdiRecord) {
    let key = id_key(record.vid);
    txn.compares.push(Compare::Unchanged(key.clone(), old.modified));
    txn.changes.push(Change::Put(key, record.encode()));
}

/// Hides a record; its name is the caller's to free.
fn hide_row(txn: &mut Txn, row: &Row<VdiRecord>) -> VdiRecord {
    let record = VdiRecord { state: State::Hidden, ..row.value.clone() };
    replace(txn, row, &record);
    record
}
