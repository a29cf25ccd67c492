//! The record of one VDI or snapshot, as the registry keeps it.

use crate::redundancy::Redundancy;
use crate::{name, persist, size};
use bytes::Bytes;
use prost::Message;
use sheepdog_types::limits::VDI_BYTES_MAX;
use sheepdog_types::{Error, ErrorKind, LineageId, Result, Vid};

/// The newest format this program reads, and the one it writes.
const FORMAT: u32 = 1;

/// What may be done with a VDI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Writable, the one its name finds.
    Working,
    /// Frozen; found by tag or snapshot id.
    Snapshot,
    /// An import is running or was interrupted: its name is taken, doors refuse it.
    Incomplete,
    /// Deleted: its name is free, a sweep frees its blocks, then the record goes.
    Hidden,
}

/// A frozen vid of another lineage, seen wherever a clone's own lineage owns nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    /// Whose address space.
    pub lineage: LineageId,
    /// Which of its vids.
    pub vid: Vid,
}

/// Everything that is known of a VDI or snapshot without touching its data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VdiRecord {
    /// 1 to 255 bytes; a snapshot has that of its VDI.
    pub name: String,
    /// Of a snapshot that has one, else empty.
    pub tag: String,
    /// 1, 2, 3… within a name; the working VDI has the highest.
    pub snap_id: u32,
    /// Its id, and the owner of the blocks written under it.
    pub vid: Vid,
    /// Whose fragments hold its blocks.
    pub lineage: LineageId,
    /// The snapshot it was made from, as family trees show it.
    pub parent: Option<Vid>,
    /// What shows through where the lineage owns nothing.
    pub base: Option<Base>,
    /// Bytes of the disk.
    pub size: u64,
    /// How its data is kept.
    pub redundancy: Redundancy,
    /// Object size as a power of two.
    pub object_shift: u8,
    /// Whether it may have more than 2^20 objects.
    pub hyper: bool,
    /// Whether it was created with its space reserved.
    pub preallocated: bool,
    /// Nanoseconds since 1970, UTC.
    pub created: u64,
    /// When it became a snapshot; `None` for all others.
    pub snapshotted: Option<u64>,
    /// What may be done with it.
    pub state: State,
}

impl VdiRecord {
    /// Whether names, tags and lists show it.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        self.state != State::Hidden
    }

    /// Whether it is what its name finds, finished or not.
    #[must_use]
    pub fn holds_name(&self) -> bool {
        matches!(self.state, State::Working | State::Incomplete)
    }

    /// Whether lists mark it as a clone: made from a snapshot and never snapshotted since.
    #[must_use]
    pub fn is_clone(&self) -> bool {
        self.state != State::Snapshot && self.snap_id == 1 && self.parent.is_some()
    }

    /// Number of its objects, a partial last one included.
    #[must_use]
    pub const fn objects(&self) -> u64 {
        self.size.div_ceil(1 << self.object_shift)
    }

    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Stored {
            format: FORMAT,
            name: self.name.clone(),
            tag: self.tag.clone(),
            snap_id: self.snap_id,
            vid: self.vid.get(),
            lineage: self.lineage.0,
            parent: self.parent.map_or(0, Vid::get),
            base_lineage: self.base.map_or(0, |b| b.lineage.0),
            base_vid: self.base.map_or(0, |b| b.vid.get()),
            size: self.size,
            redundancy_data: self.redundancy.data().into(),
            redundancy_parity: self.redundancy.parity().into(),
            object_shift: self.object_shift.into(),
            hyper: self.hyper,
            preallocated: self.preallocated,
            created: self.created,
            snapshotted: self.snapshotted,
            state: match self.state {
                State::Working => 1,
                State::Snapshot => 2,
                State::Incomplete => 3,
                State::Hidden => 4,
            },
        }
        .encode_to_vec()
        .into()
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] for what a newer version wrote, [`ErrorKind::Internal`] for
    /// what no version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the VDI record";
        let stored: Stored = persist::decode(what, FORMAT, bytes)?;
        stored.check().map_err(|e| match e.kind() {
            ErrorKind::VersionMismatch => persist::newer(what, e.context()),
            _ => persist::damaged_by(what, &e),
        })
    }
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    tag: String,
    #[prost(uint32, tag = "4")]
    snap_id: u32,
    #[prost(uint32, tag = "5")]
    vid: u32,
    #[prost(uint64, tag = "6")]
    lineage: u64,
    #[prost(uint32, tag = "7")]
    parent: u32,
    #[prost(uint64, tag = "8")]
    base_lineage: u64,
    #[prost(uint32, tag = "9")]
    base_vid: u32,
    #[prost(uint64, tag = "10")]
    size: u64,
    #[prost(uint32, tag = "11")]
    redundancy_data: u32,
    #[prost(uint32, tag = "12")]
    redundancy_parity: u32,
    #[prost(uint32, tag = "13")]
    object_shift: u32,
    #[prost(bool, tag = "14")]
    hyper: bool,
    #[prost(bool, tag = "15")]
    preallocated: bool,
    #[prost(uint64, tag = "16")]
    created: u64,
    #[prost(uint64, optional, tag = "17")]
    snapshotted: Option<u64>,
    #[prost(uint32, tag = "18")]
    state: u32,
}

impl Stored {
    /// The context of an error is the reason alone; the caller says what was being read.
    fn check(self) -> Result<VdiRecord> {
        let damaged = |why: String| Error::new(ErrorKind::Internal, why);
        let vid_or_none = |value: u32| match value {
            0 => Ok(None),
            _ => Vid::new(value).map(Some).ok_or_else(|| damaged(format!("vid {value:x}"))),
        };
        name::check(self.name.as_bytes())?;
        if !self.tag.is_empty() {
            name::check_tag(self.tag.as_bytes())?;
        }
        let vid = vid_or_none(self.vid)?.ok_or_else(|| damaged("no vid".to_owned()))?;
        let parent = vid_or_none(self.parent)?;
        let base = match (self.base_lineage, vid_or_none(self.base_vid)?) {
            (0, None) => None,
            (1.., Some(vid)) => Some(Base { lineage: LineageId(self.base_lineage), vid }),
            _ => return Err(damaged("half a base".to_owned())),
        };
        if self.lineage == 0 || self.snap_id == 0 {
            return Err(damaged("no lineage or snapshot id".to_owned()));
        }
        if self.size > VDI_BYTES_MAX {
            return Err(damaged(format!("size {}", self.size)));
        }
        let object_shift = u8::try_from(self.object_shift)
            .map_err(|_| damaged(format!("object size 2^{}", self.object_shift)))?;
        size::check_object_shift(object_shift)?;
        let state = match self.state {
            0 => return Err(damaged("no state".to_owned())),
            1 => State::Working,
            2 => State::Snapshot,
            3 => State::Incomplete,
            4 => State::Hidden,
            other => {
                return Err(Error::new(ErrorKind::VersionMismatch, format!("state {other}")));
            }
        };
        let frozen = self.snapshotted.is_some();
        if frozen != (state == State::Snapshot) && state != State::Hidden {
            return Err(damaged("state and snapshot time disagree".to_owned()));
        }
        Ok(VdiRecord {
            name: self.name,
            tag: self.tag,
            snap_id: self.snap_id,
            vid,
            lineage: LineageId(self.lineage),
            parent,
            base,
            size: self.size,
            redundancy: Redundancy::from_parts(self.redundancy_data, self.redundancy_parity)?,
            object_shift,
            hyper: self.hyper,
            preallocated: self.preallocated,
            created: self.created,
            snapshotted: self.snapshotted,
            state,
        })
    }
}

#[cfg(test)]
mod tests;
