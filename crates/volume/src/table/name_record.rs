//! The small values of the table: what a name finds, and the lineage counter.

use crate::{name, persist};
use bytes::Bytes;
use prost::Message;
use sheepdog_types::{Error, ErrorKind, LineageId, Result, Vid};

/// The newest format of both values that this program reads, and the one it writes.
const FORMAT: u32 = 1;

/// What a name finds. Written anew, even if it stays the same, whenever a visible VDI or snapshot
/// of that name comes or goes: that is what makes racing decisions about one name meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NameRecord {
    pub(super) name: String,
    /// The VDI that holds the name; `None` while there are only snapshots.
    pub(super) working: Option<Vid>,
}

impl NameRecord {
    pub(super) fn encode(&self) -> Bytes {
        Stored {
            format: FORMAT,
            name: self.name.clone(),
            working: self.working.map_or(0, Vid::get),
        }
        .encode_to_vec()
        .into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the name record";
        let stored: Stored = persist::decode(what, FORMAT, bytes)?;
        name::check(stored.name.as_bytes()).map_err(|e| persist::damaged_by(what, &e))?;
        let working = Vid::new(stored.working);
        if working.is_none() && stored.working != 0 {
            return Err(persist::damaged(what, &format!("vid {:x}", stored.working)));
        }
        Ok(Self { name: stored.name, working })
    }
}

/// The counter's value for this lineage id to be given out next.
pub(super) fn encode_counter(next: u64) -> Bytes {
    StoredCounter { format: FORMAT, next }.encode_to_vec().into()
}

/// The lineage id to give out next.
pub(super) fn decode_counter(bytes: &[u8]) -> Result<u64> {
    let what = "the lineage counter";
    match persist::decode::<StoredCounter>(what, FORMAT, bytes)?.next {
        0 => Err(persist::damaged(what, "it is 0")),
        next => Ok(next),
    }
}

/// The value of [`super::LINEAGE_KEY`] with which no lineage up to `held` is given out again; `None`
/// if what is there does for that.
///
/// # Errors
/// When what is there is damaged or newer, and when there is no higher one.
pub fn raised_counter(there: Option<&[u8]>, held: LineageId) -> Result<Option<Bytes>> {
    let next = there.map_or(Ok(1), decode_counter)?;
    if next > held.0 {
        return Ok(None);
    }
    let after = held.0.checked_add(1);
    let after =
        after.ok_or_else(|| Error::new(ErrorKind::Internal, "all lineage ids were given out"))?;
    Ok(Some(encode_counter(after)))
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    working: u32,
}

/// As [`Stored`].
#[derive(Clone, PartialEq, Message)]
struct StoredCounter {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    next: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::{hex, unhex};
    use sheepdog_types::ErrorKind;

    #[test]
    fn old_bytes_keep_their_meaning() {
        let record = |working| NameRecord { name: "test".to_owned(), working };
        for (bytes, record) in [
            ("080112047465737418a5d6f003", record(Vid::new(0x7c_2b25))),
            ("0801120474657374", record(None)),
        ] {
            assert_eq!(hex(&record.encode()), bytes);
            let newer = unhex(&format!("{bytes}c20c026162"));
            assert_eq!(NameRecord::decode(&newer).expect(bytes), record);
        }
        for (bytes, next) in [("08011001", 1), ("080110ffffffffffffffffff01", u64::MAX)] {
            assert_eq!(hex(&encode_counter(next)), bytes);
            assert_eq!(decode_counter(&unhex(bytes)).expect(bytes), next);
        }
    }

    #[test]
    fn newer_and_damaged_values_are_told_apart() {
        for (bytes, kind) in [
            ("", ErrorKind::Internal),
            ("0802", ErrorKind::VersionMismatch),
            ("0801", ErrorKind::Internal),
            ("08011201ff", ErrorKind::Internal),
            ("080112010a", ErrorKind::Internal),
            ("080112016118808080800f", ErrorKind::Internal),
        ] {
            let error = NameRecord::decode(&unhex(bytes)).expect_err(bytes);
            assert_eq!(error.kind(), kind, "{bytes}: {error}");
        }
        for (bytes, kind) in [
            ("", ErrorKind::Internal),
            ("08021001", ErrorKind::VersionMismatch),
            ("0801", ErrorKind::Internal),
            ("0801120161", ErrorKind::Internal),
        ] {
            let error = decode_counter(&unhex(bytes)).expect_err(bytes);
            assert_eq!(error.kind(), kind, "{bytes}: {error}");
        }
    }
}
