//! The data of a registry transaction: what volume and membership decide and a registry engine
//! commits. All changes are compare-and-swap on revisions.

use bytes::Bytes;

/// Position in the registry's one history. 0 is before everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

/// A key with its value and the revision that last changed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Slash-separated, ASCII, at most 512 bytes.
    pub key: String,
    /// At most 1 MiB.
    pub value: Bytes,
    /// When it last changed.
    pub modified: Revision,
}

/// What must hold for a transaction to commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compare {
    /// There is no such key.
    Absent(String),
    /// The key was last changed exactly then.
    Unchanged(String, Revision),
}

/// One change of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Creates or replaces.
    Put(String, Bytes),
    /// Deletes; nothing happens if it is not there.
    Delete(String),
}

/// All or nothing: the changes happen if every comparison holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// At most 128, each key once.
    pub changes: Vec<Change>,
}

/// How a commit ended when the registry could decide it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It happened, at this revision.
    Committed(Revision),
    /// A comparison did not hold; nothing changed. Read again and decide anew.
    Conflict,
}
