//! What the registry says of vids and who may use them, as far as the primary of a shard must know:
//! which vids take writes, what shows through in them, and who is fenced.

use sheepdog_types::{LineageId, NodeId, Vid};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One VDI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VidRecord {
    /// Its lineage.
    pub lineage: LineageId,
    /// It takes writes.
    pub working: bool,
    /// Lower numbers of a lock's holder are fenced.
    pub fence: u64,
    /// The vids whose blocks are seen, newest first: itself, then what it is based on.
    pub path: Arc<[Vid]>,
}

/// All of it at one revision of the registry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lineages {
    /// Of the registry.
    pub revision: u64,
    /// VDIs, snapshots.
    pub vids: BTreeMap<Vid, VidRecord>,
    /// Incarnations of gateways below that are fenced.
    pub gateways: BTreeMap<NodeId, u64>,
}
