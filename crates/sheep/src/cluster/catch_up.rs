//! What the disks know and the registry may not: a registry that went back in time, or lost what it
//! held, must not give anything out a second time. And the other way round: the registry remembers
//! how often each disk was opened (`disk/UUID`), so that one that was put back from a copy is told.

use super::{ShardPack, raise_interval, too_many};
use bytes::Bytes;
use prost::Message;
use sheepdog_registry::Registry;
use sheepdog_storelog::OpenReport;
use sheepdog_types::kv::{Change, Compare, Outcome, Txn};
use sheepdog_types::{DiskId, Error, ErrorKind, Interval, LineageId, Result};
use sheepdog_volume::cluster::CLUSTER_KEY;
use sheepdog_volume::table::{LINEAGE_KEY, raised_counter};
use std::collections::BTreeMap;
use std::path::Path;

/// What the keys of all stamps begin with.
const STAMP_PREFIX: &str = "disk/";
/// The newest format of a stamp that this program reads, and the one it writes.
const STAMP_FORMAT: u32 = 1;

/// What was found on the disks that were opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OnDisks {
    /// The newest interval that one has versions of.
    pub newest: Interval,
    /// The highest lineage of which one holds anything.
    pub lineage: Option<LineageId>,
    /// Of all of them.
    pub fragments: usize,
    /// How often each was opened, if it counts that; see the store's format.
    pub marks: BTreeMap<DiskId, u64>,
}

impl OnDisks {
    /// One that was opened, with its highest lineage.
    pub fn add(&mut self, disk: DiskId, report: &OpenReport, lineage: Option<LineageId>) {
        self.newest = self.newest.max(report.newest);
        self.lineage = self.lineage.max(lineage);
        self.fragments += report.fragments;
        if report.mark > 0 {
            self.marks.insert(disk, report.mark);
        }
    }
}

/// A stamp as it is stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    mark: u64,
}

fn stamp_key(disk: DiskId) -> String {
    format!("{STAMP_PREFIX}{disk}")
}

fn encode(mark: u64) -> Bytes {
    Stored { format: STAMP_FORMAT, mark }.encode_to_vec().into()
}

fn decode(key: &str, bytes: &[u8]) -> Result<u64> {
    let damaged = || Error::new(ErrorKind::Internal, format!("the stamp {key} is damaged"));
    let stored = Stored::decode(bytes).map_err(|_| damaged())?;
    match stored.format {
        0 => Err(damaged()),
        1..=STAMP_FORMAT => Ok(stored.mark),
        _ => Err(Error::new(
            ErrorKind::VersionMismatch,
            format!("the stamp {key} was written by a newer version: upgrade"),
        )),
    }
}

/// The mark that each disk reached, as far as the registry knows. It may be behind, after a crash
/// between the two, but never ahead.
///
/// # Errors
/// Damaged or newer stamps, and those of the registry.
pub async fn stamps(registry: &dyn Registry) -> Result<BTreeMap<DiskId, u64>> {
    let mut stamps = BTreeMap::new();
    for entry in registry.list(STAMP_PREFIX).await?.entries {
        let mark = decode(&entry.key, &entry.value)?;
        let id = entry.key.strip_prefix(STAMP_PREFIX).and_then(|id| uuid::Uuid::parse_str(id).ok());
        // What else may be there is not of this version.
        if let Some(id) = id {
            stamps.insert(DiskId(id.into_bytes()), mark);
        }
    }
    Ok(stamps)
}

/// Brings the registry up to what was found on the disks; before anything is served, and after the
/// disks' marks are durable. Gives the interval that the run is in.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the registry was never formatted although there is data, and those of
/// the registry.
pub async fn catch_up(
    registry: &dyn Registry,
    file: &Path,
    shards: ShardPack,
    found: OnDisks,
) -> Result<ShardPack> {
    if found.fragments > 0 && registry.get(CLUSTER_KEY).await?.is_none() {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "registry {0} knows of no formatted cluster, but the disks hold data: it lost its \
                 contents, or was copied without {0}-wal. Put the whole registry back; what the \
                 disks hold can be read with 'sheep store export'",
                file.display()
            ),
        ));
    }
    let mut shards = shards;
    if found.newest >= shards.interval {
        tracing::warn!(
            "the registry began interval {}, but the disks know interval {}: the registry \
             went back in time; going on above that",
            shards.interval.0,
            found.newest.0
        );
        shards = raise_interval(registry, shards, found.newest).await?;
    }
    if let Some(held) = found.lineage {
        raise_lineages(registry, held).await?;
    }
    stamp(registry, &found.marks).await?;
    Ok(shards)
}

/// No VDI gets a lineage again of which a disk holds something: it would show that.
async fn raise_lineages(registry: &dyn Registry, held: LineageId) -> Result<()> {
    for _ in 0..super::TRIES {
        let entry = registry.get(LINEAGE_KEY).await?;
        let there = entry.as_ref().map(|entry| &entry.value[..]);
        let Some(raised) = raised_counter(there, held)? else {
            return Ok(());
        };
        let unchanged = match &entry {
            Some(entry) => Compare::Unchanged(LINEAGE_KEY.to_owned(), entry.modified),
            None => Compare::Absent(LINEAGE_KEY.to_owned()),
        };
        let changes = vec![Change::Put(LINEAGE_KEY.to_owned(), raised)];
        let txn = Txn { compares: vec![unchanged], changes };
        if let Outcome::Committed(_) = registry.commit(txn).await? {
            tracing::warn!(
                "the disks hold lineage {}, which the registry would give out again: it went back \
                 in time; going on above that",
                held.0
            );
            return Ok(());
        }
    }
    Err(too_many("the lineages"))
}

/// Notes how often each disk was opened.
async fn stamp(registry: &dyn Registry, marks: &BTreeMap<DiskId, u64>) -> Result<()> {
    if marks.is_empty() {
        return Ok(());
    }
    let put = |(disk, mark): (&DiskId, &u64)| Change::Put(stamp_key(*disk), encode(*mark));
    let txn = Txn { compares: Vec::new(), changes: marks.iter().map(put).collect() };
    match registry.commit(txn).await {
        // A start goes on when others have filled the registry's disk. The first stamp of a disk waits
        // for the next one.
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            tracing::warn!("cannot note that the disks were opened: {}", error.full());
            Ok(())
        }
        committed => committed.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_keep_their_meaning() {
        assert_eq!(&encode(5)[..], b"\x08\x01\x10\x05");
        assert_eq!(decode("k", b"\x08\x01\x10\x05").ok(), Some(5));
        let kind = |bytes: &[u8]| decode("k", bytes).expect_err("bad").kind();
        assert_eq!(kind(b"\x08\x02\x10\x05"), ErrorKind::VersionMismatch);
        assert_eq!(kind(b""), ErrorKind::Internal);
        assert_eq!(kind(b"\xff"), ErrorKind::Internal);
        let id = DiskId([0xab; 16]);
        let uuid = uuid::Uuid::from_bytes(id.0);
        assert_eq!(stamp_key(id), format!("disk/{uuid}"), "read back as a uuid");
    }
}
