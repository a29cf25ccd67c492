//! What the registry keeps about the cluster as a whole: the choices of `cluster format` and one
//! record for each epoch.
//!
//! | key | value |
//! |---|---|
//! | `cluster` | [`ClusterRecord`]; absent while unformatted |
//! | `epoch/<8 hex>` | [`EpochRecord`] |

use crate::redundancy::Redundancy;
use crate::{name, persist, size};
use bytes::Bytes;
use prost::Message;
use sheepdog_types::{Error, ErrorKind, Result};

/// The newest format of both records that this program reads, and the one it writes.
const FORMAT: u32 = 1;

/// Key of the [`ClusterRecord`].
pub const CLUSTER_KEY: &str = "cluster";

/// What the keys of all [`EpochRecord`]s begin with; they list in order, oldest first.
pub const EPOCH_PREFIX: &str = "epoch/";

/// Key of an epoch's record.
#[must_use]
pub fn epoch_key(epoch: u32) -> String {
    format!("{EPOCH_PREFIX}{epoch:08x}")
}

/// What `cluster format` decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterRecord {
    /// Told apart from all other clusters, and from this one before it was formatted again.
    pub uuid: [u8; 16],
    /// Nanoseconds since 1970, UTC.
    pub created: u64,
    /// The store it was formatted with, as `cluster info` names it: `plain` or `tree`.
    pub store: String,
    /// Of VDIs that are created without one.
    pub redundancy: Redundancy,
    /// Of VDIs that are created without one.
    pub object_shift: u8,
    /// What else was asked for.
    pub options: ClusterOptions,
}

/// The switches of `cluster format`, and what is switched later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterOptions {
    /// `-l`: VDIs are locked while open.
    pub lock: bool,
    /// `-t`: writes stop while there are fewer zones than copies.
    pub strict: bool,
    /// `-R`. Vids are always used again once a deleted VDI is swept; kept because it was asked for.
    pub recycle_vids: bool,
    /// `-V`: weights are given, not measured.
    pub fixed_vnodes: bool,
    /// `-F`: no recovery that could fill disks.
    pub avoid_disk_full: bool,
    /// `cluster recover disable`.
    pub recovery_disabled: bool,
}

/// A version of the cluster map, for the history that `cluster info` prints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochRecord {
    /// 1, 2, 3…
    pub epoch: u32,
    /// When it began, in nanoseconds since 1970, UTC.
    pub began: u64,
    /// In the order they are printed.
    pub nodes: Vec<EpochNode>,
}

/// A node as the history shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochNode {
    /// Address or name.
    pub host: String,
    /// Of the sheepdog protocol.
    pub port: u16,
    /// Weight; 0 for a gateway.
    pub vnodes: u32,
}

/// `host:port:vnodes`, an IPv6 address in brackets.
impl std::fmt::Display for EpochNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, vnodes } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}:{vnodes}")
        } else {
            write!(f, "{host}:{port}:{vnodes}")
        }
    }
}

impl ClusterRecord {
    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let o = &self.options;
        StoredCluster {
            format: FORMAT,
            uuid: self.uuid.to_vec(),
            created: self.created,
            store: self.store.clone(),
            redundancy_data: self.redundancy.data().into(),
            redundancy_parity: self.redundancy.parity().into(),
            object_shift: self.object_shift.into(),
            lock: o.lock,
            strict: o.strict,
            recycle_vids: o.recycle_vids,
            fixed_vnodes: o.fixed_vnodes,
            avoid_disk_full: o.avoid_disk_full,
            recovery_disabled: o.recovery_disabled,
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
        let what = "the cluster record";
        persist::decode::<StoredCluster>(what, FORMAT, bytes)?
            .check()
            .map_err(|e| persist::damaged_by(what, &e))
    }
}

impl EpochRecord {
    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        StoredEpoch {
            format: FORMAT,
            epoch: self.epoch,
            began: self.began,
            nodes: self
                .nodes
                .iter()
                .map(|node| StoredNode {
                    host: node.host.clone(),
                    port: node.port.into(),
                    vnodes: node.vnodes,
                })
                .collect(),
        }
        .encode_to_vec()
        .into()
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// As [`ClusterRecord::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let what = "the epoch record";
        persist::decode::<StoredEpoch>(what, FORMAT, bytes)?
            .check()
            .map_err(|e| persist::damaged_by(what, &e))
    }
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct StoredCluster {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "vec", tag = "2")]
    uuid: Vec<u8>,
    #[prost(uint64, tag = "3")]
    created: u64,
    #[prost(string, tag = "4")]
    store: String,
    #[prost(uint32, tag = "5")]
    redundancy_data: u32,
    #[prost(uint32, tag = "6")]
    redundancy_parity: u32,
    #[prost(uint32, tag = "7")]
    object_shift: u32,
    #[prost(bool, tag = "8")]
    lock: bool,
    #[prost(bool, tag = "9")]
    strict: bool,
    #[prost(bool, tag = "10")]
    recycle_vids: bool,
    #[prost(bool, tag = "11")]
    fixed_vnodes: bool,
    #[prost(bool, tag = "12")]
    avoid_disk_full: bool,
    #[prost(bool, tag = "13")]
    recovery_disabled: bool,
}

impl StoredCluster {
    fn check(self) -> Result<ClusterRecord> {
        let damaged = |why: &str| Error::new(ErrorKind::Internal, why);
        let object_shift = u8::try_from(self.object_shift).map_err(|_| damaged("object size"))?;
        size::check_object_shift(object_shift)?;
        name::check(self.store.as_bytes()).map_err(|_| damaged("name of the store"))?;
        Ok(ClusterRecord {
            uuid: self.uuid.try_into().map_err(|_| damaged("length of the uuid"))?,
            created: self.created,
            store: self.store,
            redundancy: Redundancy::from_parts(self.redundancy_data, self.redundancy_parity)?,
            object_shift,
            options: ClusterOptions {
                lock: self.lock,
                strict: self.strict,
                recycle_vids: self.recycle_vids,
                fixed_vnodes: self.fixed_vnodes,
                avoid_disk_full: self.avoid_disk_full,
                recovery_disabled: self.recovery_disabled,
            },
        })
    }
}

/// As [`StoredCluster`].
#[derive(Clone, PartialEq, Message)]
struct StoredEpoch {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint32, tag = "2")]
    epoch: u32,
    #[prost(uint64, tag = "3")]
    began: u64,
    #[prost(message, repeated, tag = "4")]
    nodes: Vec<StoredNode>,
}

/// As [`StoredCluster`].
#[derive(Clone, PartialEq, Message)]
struct StoredNode {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(uint32, tag = "3")]
    vnodes: u32,
}

impl StoredEpoch {
    fn check(self) -> Result<EpochRecord> {
        let damaged = |why: &str| Error::new(ErrorKind::Internal, why);
        if self.epoch == 0 {
            return Err(damaged("no epoch"));
        }
        let node = |node: StoredNode| {
            name::check(node.host.as_bytes()).map_err(|_| damaged("address of a node"))?;
            Ok(EpochNode {
                host: node.host,
                port: u16::try_from(node.port).map_err(|_| damaged("port of a node"))?,
                vnodes: node.vnodes,
            })
        };
        Ok(EpochRecord {
            epoch: self.epoch,
            began: self.began,
            nodes: self.nodes.into_iter().map(node).collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests;
