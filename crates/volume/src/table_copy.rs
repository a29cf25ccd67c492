//! The copy of the VDI table that every store keeps: with it a disk's contents can be looked at
//! without a cluster, and a lost registry be made anew. It may be a moment behind the registry.

use crate::cluster::ClusterRecord;
use crate::persist;
use crate::table::{self, Table};
use bytes::Bytes;
use prost::Message;
use sheepdog_types::kv::{Entry, Revision};
use sheepdog_types::{Error, ErrorKind, Result};

/// The newest format this program reads, and the one it writes.
const FORMAT: u32 = 1;
const WHAT: &str = "the copy of the VDI table";

/// What the registry held at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableCopy {
    /// Of which registry.
    pub cluster: [u8; 16],
    /// The moment.
    pub revision: Revision,
    /// The cluster's record and settings, and the VDI table.
    pub entries: Vec<Entry>,
}

impl TableCopy {
    /// The bytes a store keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let stored = Stored {
            format: FORMAT,
            cluster: self.cluster.to_vec(),
            revision: self.revision.0,
            entries: self
                .entries
                .iter()
                .map(|entry| StoredEntry {
                    key: entry.key.clone(),
                    value: entry.value.clone(),
                    modified: entry.modified.0,
                })
                .collect(),
        };
        stored.encode_to_vec().into()
    }

    /// The copy those bytes hold.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] for what a newer version wrote, [`ErrorKind::Internal`] for
    /// what no version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored: Stored = persist::decode(WHAT, FORMAT, bytes)?;
        let cluster = stored.cluster.try_into();
        Ok(Self {
            cluster: cluster.map_err(|_| persist::damaged(WHAT, "it names no cluster"))?,
            revision: Revision(stored.revision),
            entries: stored
                .entries
                .into_iter()
                .map(|entry| Entry {
                    key: entry.key,
                    value: entry.value,
                    modified: Revision(entry.modified),
                })
                .collect(),
        })
    }

    /// The VDIs.
    ///
    /// # Errors
    /// As [`Table::from_entries`].
    pub fn table(&self) -> Result<Table> {
        Table::from_entries(self.entries.iter().filter(|e| e.key.starts_with(table::PREFIX)))
    }

    /// The cluster's record.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there was none yet, and as [`ClusterRecord::decode`].
    pub fn cluster_record(&self) -> Result<ClusterRecord> {
        let entry = self.entries.iter().find(|e| e.key == crate::cluster::CLUSTER_KEY);
        let entry = entry.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "the cluster was not formatted when it was written")
        })?;
        ClusterRecord::decode(&entry.value)
    }
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    cluster: Vec<u8>,
    #[prost(uint64, tag = "3")]
    revision: u64,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<StoredEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
    #[prost(uint64, tag = "3")]
    modified: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> TableCopy {
        TableCopy {
            cluster: [7; 16],
            revision: Revision(9),
            entries: vec![Entry {
                key: "vdi/next-lineage".to_owned(),
                value: Bytes::from_static(b"\x08\x01\x10\x05"),
                modified: Revision(3),
            }],
        }
    }

    #[test]
    fn bytes_on_users_disks_do_not_change() {
        let bytes = copy().encode();
        let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let sample = "0801121007070707070707070707070707070707180922\
                      1a0a107664692f6e6578742d6c696e6561676512040801100518\
                      03";
        assert_eq!(shown, sample.replace(' ', ""));
        assert_eq!(TableCopy::decode(&bytes).expect("read back"), copy());
    }

    #[test]
    fn what_is_newer_or_damaged_is_refused() {
        let newer = Stored { format: FORMAT + 1, ..Stored::default() }.encode_to_vec();
        let error = TableCopy::decode(&newer).expect_err("newer");
        assert_eq!(error.kind(), ErrorKind::VersionMismatch);
        let bytes = copy().encode();
        for bytes in [&bytes[..0], &bytes[..5], &bytes[..bytes.len() - 1], b"\xff\xff"] {
            TableCopy::decode(bytes).expect_err("damaged");
        }
        let nameless = Stored { format: FORMAT, ..Stored::default() }.encode_to_vec();
        assert_eq!(TableCopy::decode(&nameless).expect_err("no").kind(), ErrorKind::Internal);
    }
}
