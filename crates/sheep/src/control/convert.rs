//! Between the table's words and the messages'.

use crate::node::usage::Occupied;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::Redundancy;
use sheepdog_volume::record::{State, VdiRecord};
use sheepdog_volume::table::Selector;
use sheepdog_wire::{RedundancyInfo, Time, VdiEntry, VdiSelector};

const NANOS: u64 = 1_000_000_000;

/// Nanoseconds since 1970 as a message has them.
pub const fn time(nanos: u64) -> Time {
    Time { seconds: nanos / NANOS, nanos: (nanos % NANOS) as u32 }
}

/// A policy as a message has it.
pub fn redundancy(policy: Redundancy) -> RedundancyInfo {
    RedundancyInfo { data: policy.data().into(), parity: policy.parity().into() }
}

/// The policy a message asks for; `default` if it does not ask.
///
/// # Errors
/// [`ErrorKind::Invalid`] for what is no policy, [`ErrorKind::Unsupported`] for erasure coding.
pub fn asked_redundancy(asked: Option<RedundancyInfo>, default: Redundancy) -> Result<Redundancy> {
    let Some(asked) = asked.filter(|r| r.data != 0) else {
        return Ok(default);
    };
    let part = |value: u32| {
        u8::try_from(value)
            .map_err(|_| Error::new(ErrorKind::Invalid, format!("redundancy of {value}")))
    };
    let (data, parity) = (part(asked.data)?, part(asked.parity)?);
    if parity == 0 {
        return Redundancy::copies(data);
    }
    Redundancy::erasure(data, parity)?;
    Err(Error::new(ErrorKind::Unsupported, "erasure coding is not supported by this version"))
}

/// The object size a message asks for, as a power of two; `default` if it does not ask.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub fn asked_shift(asked: u32, default: u8) -> Result<u8> {
    if asked == 0 {
        return Ok(default);
    }
    let shift = u8::try_from(asked).unwrap_or(u8::MAX);
    sheepdog_volume::size::check_object_shift(shift)?;
    Ok(shift)
}

/// A selector, taken apart: the name and what of it.
///
/// # Errors
/// [`ErrorKind::Invalid`] when there is none, or with both tag and snapshot id.
pub fn selector(selector: Option<&VdiSelector>) -> Result<(&str, Selector<'_>)> {
    let invalid = |why| Err(Error::new(ErrorKind::Invalid, why));
    let Some(selector) = selector else {
        return invalid("no VDI was named");
    };
    let of = match (selector.tag.as_str(), selector.snapshot_id) {
        ("", 0) => Selector::Working,
        ("", id) => Selector::SnapId(id),
        (tag, 0) => Selector::Tag(tag),
        _ => return invalid("both a tag and a snapshot id"),
    };
    Ok((&selector.name, of))
}

/// A record as a message has it, without counters.
pub fn entry(record: &VdiRecord) -> VdiEntry {
    VdiEntry {
        vid: record.vid.get(),
        name: record.name.clone(),
        tag: record.tag.clone(),
        snapshot_id: record.snap_id,
        snapshot: record.state == State::Snapshot,
        size: record.size,
        object_shift: record.object_shift.into(),
        redundancy: Some(redundancy(record.redundancy)),
        parent: record.parent.map_or(0, |vid| vid.get()),
        lineage: record.lineage.0,
        created: Some(time(record.created)),
        snapshotted: record.snapshotted.map(time),
        hyper: record.hyper,
        incomplete: record.state == State::Incomplete,
        preallocated: record.preallocated,
        ..VdiEntry::default()
    }
}

/// The same with its counters.
pub fn counted(record: &VdiRecord, occupied: Occupied, open: usize) -> VdiEntry {
    VdiEntry {
        used: occupied.used,
        shared: occupied.shared,
        stored: occupied.stored,
        // One node holds one copy of everything.
        stored_total: occupied.stored,
        open: u32::try_from(open).unwrap_or(u32::MAX),
        ..entry(record)
    }
}
