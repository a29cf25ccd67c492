//! The shapes of `--json`. Stable: fields are added, never renamed, retyped or taken away. One
//! document and a newline on stdout; sizes in bytes, times in seconds since 1970, ids in hex
//! strings where the tables show hex. When a command fails, nothing is on stdout and the lines are
//! on stderr as ever.

use super::time::unix;
use serde::Serialize;
use sheepdog_wire::{
    ClusterState, DiskInfo, EpochNode, NodeEntry, NodeSpace, RedundancyInfo, VdiEntry,
};

/// `"redundancy"` of a VDI or cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Redundancy {
    /// `{"type":"copies","copies":3}`
    Copies {
        /// How many.
        copies: u32,
    },
    /// `{"type":"erasure","data":4,"parity":2}`
    Erasure {
        /// Data strips.
        data: u32,
        /// Parity strips.
        parity: u32,
    },
}

impl From<Option<RedundancyInfo>> for Redundancy {
    fn from(info: Option<RedundancyInfo>) -> Self {
        let RedundancyInfo { data, parity } = info.unwrap_or_default();
        if parity == 0 { Self::Copies { copies: data } } else { Self::Erasure { data, parity } }
    }
}

/// A VDI or snapshot: an element of `vdi list`, the whole of `vdi info`, `"vdi"` of what changed
/// one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Vdi {
    /// Its name.
    pub name: String,
    /// Tag of a snapshot; may be empty.
    pub tag: String,
    /// Id of a snapshot; 0 for a working VDI.
    pub snapshot_id: u32,
    /// `working`, `snapshot` or `incomplete`.
    pub state: &'static str,
    /// Made from a snapshot of another VDI and without snapshots of its own.
    pub clone: bool,
    /// Its id in hex.
    pub vid: String,
    /// Id of what it was made from, in hex.
    pub parent: Option<String>,
    /// Its lineage in hex.
    pub lineage: String,
    /// Bytes as its users see it.
    pub size: u64,
    /// Object size times objects it owns anything of.
    pub used: u64,
    /// Object size times objects that show through.
    pub shared: u64,
    /// Bytes of one copy really stored.
    pub stored: u64,
    /// Bytes of all copies really stored.
    pub stored_total: u64,
    /// Bytes of an object.
    pub object_size: u64,
    /// Its redundancy.
    pub redundancy: Redundancy,
    /// It may have more than 2^20 objects.
    pub hyper: bool,
    /// It was made with its space reserved.
    pub preallocated: bool,
    /// When it was made.
    pub created: u64,
    /// When it became a snapshot.
    pub snapshotted: Option<u64>,
    /// Connections that have it open.
    pub open: u32,
}

impl From<&VdiEntry> for Vdi {
    fn from(vdi: &VdiEntry) -> Self {
        Self {
            name: vdi.name.clone(),
            tag: vdi.tag.clone(),
            snapshot_id: super::vdi::shown_snapshot_id(vdi),
            state: super::vdi::state(vdi),
            clone: super::vdi::is_clone(vdi),
            vid: format!("{:x}", vdi.vid),
            parent: (vdi.parent != 0).then(|| format!("{:x}", vdi.parent)),
            lineage: format!("{:x}", vdi.lineage),
            size: vdi.size,
            used: vdi.used,
            shared: vdi.shared,
            stored: vdi.stored,
            stored_total: vdi.stored_total,
            object_size: 1 << vdi.object_shift.min(63),
            redundancy: vdi.redundancy.into(),
            hyper: vdi.hyper,
            preallocated: vdi.preallocated,
            created: unix(vdi.created),
            snapshotted: vdi.snapshotted.map(|t| t.seconds),
            open: vdi.open,
        }
    }
}

/// `vdi list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VdiList {
    /// By ascending id.
    pub vdis: Vec<Vdi>,
}

/// `vdi create`, `resize`, `rename`: the table's line without the counters of the data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VdiChanged {
    /// As it is now.
    pub vdi: VdiRecord,
}

/// What `vdi import` and `export` did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VdiMoved {
    /// The VDI.
    pub vdi: VdiRecord,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes written; the rest is zeros.
    pub written: u64,
}

/// A VDI without what only its data knows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VdiRecord {
    /// Its name.
    pub name: String,
    /// Tag of a snapshot; may be empty.
    pub tag: String,
    /// Id of a snapshot; 0 for a working VDI.
    pub snapshot_id: u32,
    /// `working`, `snapshot` or `incomplete`.
    pub state: &'static str,
    /// Its id in hex.
    pub vid: String,
    /// Bytes as its users see it.
    pub size: u64,
    /// Bytes of an object.
    pub object_size: u64,
    /// Its redundancy.
    pub redundancy: Redundancy,
    /// When it was made.
    pub created: u64,
}

impl From<&VdiEntry> for VdiRecord {
    fn from(vdi: &VdiEntry) -> Self {
        let vdi = Vdi::from(vdi);
        Self {
            name: vdi.name,
            tag: vdi.tag,
            snapshot_id: vdi.snapshot_id,
            state: vdi.state,
            vid: vdi.vid,
            size: vdi.size,
            object_size: vdi.object_size,
            redundancy: vdi.redundancy,
            created: vdi.created,
        }
    }
}

/// `vdi delete`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Deleted {
    /// False when it was not there, or was only emptied (`-m`).
    pub deleted: bool,
}

/// `vdi write`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Written {
    /// Where.
    pub offset: u64,
    /// Bytes from stdin.
    pub length: u64,
    /// Zeros behind them.
    pub padded: u64,
}

/// `node list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeList {
    /// In order of address and port.
    pub nodes: Vec<Node>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Node {
    /// Its place in the list.
    pub id: usize,
    /// Address.
    pub address: String,
    /// Port.
    pub port: u32,
    /// Weight.
    pub vnodes: u32,
    /// Failure domain.
    pub zone: u32,
    /// Uuids of its disks, in hex.
    pub disks: Vec<String>,
    /// Version of its program.
    pub version: String,
}

impl From<(usize, &NodeEntry)> for Node {
    fn from((id, node): (usize, &NodeEntry)) -> Self {
        Self {
            id,
            address: node.address.clone(),
            port: node.port,
            vnodes: node.vnodes,
            zone: node.zone,
            disks: node.disks.iter().map(|uuid| hex(uuid)).collect(),
            version: node.version.clone(),
        }
    }
}

/// `node info`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeInfo {
    /// In the order of `node list`.
    pub nodes: Vec<Space>,
    /// Bytes of all nodes that answered.
    pub size: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes left.
    pub available: u64,
    /// Sum of the sizes of all VDIs.
    pub virtual_size: u64,
}

/// Space of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Space {
    /// Address.
    pub address: String,
    /// Port.
    pub port: u32,
    /// Whether it answered; the numbers are 0 if not.
    pub reachable: bool,
    /// Used and available together.
    pub size: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes left.
    pub available: u64,
    /// Its disks, lost ones too.
    pub disks: Vec<Disk>,
}

/// `node md info`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeDisks {
    /// In the order of `node list`.
    pub nodes: Vec<Disks>,
}

/// The disks of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Disks {
    /// Address.
    pub address: String,
    /// Port.
    pub port: u32,
    /// Whether it answered.
    pub reachable: bool,
    /// Its disks, lost ones too.
    pub disks: Vec<Disk>,
}

/// A disk. Counters are since its sheep was started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Disk {
    /// Uuid.
    pub id: String,
    /// Where it is on its node.
    pub path: String,
    /// Why it cannot be used; null if it can.
    pub lost: Option<String>,
    /// Used and available together.
    pub size: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes left.
    pub available: u64,
    /// Blocks and pages whose checksum was wrong when they were read.
    pub checksum_errors: u64,
    /// Whether writes are durable when they are acknowledged.
    pub durable: bool,
    /// Progress of the scrub.
    pub scrub: Scrub,
}

/// How far a scrub is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Scrub {
    /// Bytes a second it may read; 0 is never.
    pub rate: u64,
    /// Fragments read in this pass.
    pub done: u64,
    /// Fragments there were when it began.
    pub total: u64,
    /// Passes that ended.
    pub passes: u64,
    /// Bad places.
    pub bad: u64,
    /// The first of them, a line each.
    pub findings: Vec<String>,
}

impl From<&DiskInfo> for Disk {
    fn from(disk: &DiskInfo) -> Self {
        Self {
            id: hex(&disk.id),
            path: disk.path.clone(),
            lost: Some(disk.lost.clone()).filter(|why| !why.is_empty()),
            size: disk.used.saturating_add(disk.available),
            used: disk.used,
            available: disk.available,
            checksum_errors: disk.checksum_errors,
            durable: !disk.nosync,
            scrub: Scrub {
                rate: disk.scrub_rate,
                done: disk.scrub_done,
                total: disk.scrub_total,
                passes: disk.scrub_passes,
                bad: disk.bad,
                findings: disk.findings.clone(),
            },
        }
    }
}

impl From<&NodeSpace> for Disks {
    fn from(node: &NodeSpace) -> Self {
        Self {
            address: node.address.clone(),
            port: node.port,
            reachable: node.reachable,
            disks: node.disks.iter().map(Disk::from).collect(),
        }
    }
}

impl From<&NodeSpace> for Space {
    fn from(node: &NodeSpace) -> Self {
        Self {
            address: node.address.clone(),
            port: node.port,
            reachable: node.reachable,
            size: node.used.saturating_add(node.available),
            used: node.used,
            available: node.available,
            disks: node.disks.iter().map(Disk::from).collect(),
        }
    }
}

/// `cluster info`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ClusterInfo {
    /// `running`, `wait_for_format`, `wait_for_join` or `shutting_down`.
    pub state: &'static str,
    /// What it waits for.
    pub waiting_for: Vec<String>,
    /// Names the cluster; null when unformatted.
    pub id: Option<String>,
    /// When it was formatted.
    pub created: Option<u64>,
    /// Redundancy unless a VDI asks for another; null when unformatted.
    pub redundancy: Option<Redundancy>,
    /// Object size unless a VDI asks for another; null when unformatted.
    pub object_size: Option<u64>,
    /// Name of the store.
    pub store: String,
    /// `auto` or `fixed`.
    pub vnodes: &'static str,
    /// Whether lost copies are made anew.
    pub recovery: bool,
    /// Driver string of the registry.
    pub registry: String,
    /// VDIs, snapshots included.
    pub vdis: u64,
    /// Newest first.
    pub epochs: Vec<Epoch>,
}

/// A version of the cluster map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Epoch {
    /// Its number.
    pub epoch: u64,
    /// When it began.
    pub time: u64,
    /// Its nodes.
    pub nodes: Vec<EpochMember>,
}

/// A node of an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EpochMember {
    /// Address.
    pub address: String,
    /// Port.
    pub port: u32,
    /// Weight.
    pub vnodes: u32,
}

impl From<&EpochNode> for EpochMember {
    fn from(node: &EpochNode) -> Self {
        Self { address: node.address.clone(), port: node.port, vnodes: node.vnodes }
    }
}

/// `cluster format`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Formatted {
    /// Names the new cluster.
    pub id: String,
    /// Redundancy unless a VDI asks for another.
    pub redundancy: Redundancy,
    /// Object size unless a VDI asks for another.
    pub object_size: u64,
}

/// `cluster shutdown`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ShutDown {
    /// True.
    pub shutdown: bool,
}

/// The word of a state.
#[must_use]
pub const fn state(state: ClusterState) -> &'static str {
    match state {
        ClusterState::Unknown => "unknown",
        ClusterState::Running => "running",
        ClusterState::WaitForFormat => "wait_for_format",
        ClusterState::WaitForJoin => "wait_for_join",
        ClusterState::ShuttingDown => "shutting_down",
    }
}

/// Bytes as lower-case hex; a uuid with its dashes.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    match <[u8; 16]>::try_from(bytes) {
        Ok(uuid) => sheepdog_types::DiskId(uuid).to_string(),
        Err(_) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    }
}
