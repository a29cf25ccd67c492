//! Where membership keeps what in the registry, and the limits of those records.

use sheepdog_types::{DiskId, NodeId};

/// Everything of membership is below this.
pub const PREFIX: &str = "m/";
/// The cluster map; written by the coordinator.
pub const MAP: &str = "m/map";
/// What the operator set; written by the coordinator.
pub const SETTINGS: &str = "m/settings";
/// Processes and disks that never count again; written by the coordinator.
pub const FENCES: &str = "m/fences";
/// Who is coordinator; ephemeral. Its revision is compared by every change the coordinator makes.
pub const COORDINATOR: &str = "m/coordinator";

/// Shards in one pack. A pack of 64 shards of 3 copies is about 5 KiB, the 4096 shards of a policy
/// are 64 packs, and a map with all of them fits one transaction.
pub const PACK_SHARDS: u32 = 64;
/// Sets of shards, one for each policy in use. With the map they fit one transaction.
pub const SETS_MAX: usize = 60;
/// Nodes of a map.
pub const NODES_MAX: usize = 4096;
/// Disks of a node, as of old.
pub const DISKS_MAX: usize = 64;
/// Disks of an acting set: the widest policy, and as many that are being replaced.
pub const SEATS_MAX: usize = 62;
/// Activations kept since the last clean one, see [`crate::ShardRecord::activate`].
pub const OLDER_MAX: usize = 16;
/// Changes of a transaction.
pub const CHANGES_MAX: usize = 128;
/// Bytes of an address.
pub const ADDRESS_BYTES_MAX: usize = 256;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let number = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())??;
    Some(number.to_be_bytes())
}

/// What a node says of itself; written by that node.
#[must_use]
pub fn node(node: NodeId) -> String {
    format!("m/node/{}", hex(&node.0))
}

/// A sign of life of a node's process; ephemeral.
#[must_use]
pub fn session(node: NodeId) -> String {
    format!("m/session/{}", hex(&node.0))
}

/// The stamp of a disk; written by the node that has it.
#[must_use]
pub fn stamp(disk: DiskId) -> String {
    format!("m/stamp/{}", hex(&disk.0))
}

/// Policy and exceptions of a set of shards; written by the coordinator.
#[must_use]
pub fn set(set: u16) -> String {
    format!("m/set/{set:04x}")
}

/// One pack of shard records; written by the coordinator.
#[must_use]
pub fn pack(set: u16, pack: u32) -> String {
    format!("m/shard/{set:04x}/{pack:06x}")
}

/// What a key below [`PREFIX`] names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// [`MAP`].
    Map,
    /// [`SETTINGS`].
    Settings,
    /// [`FENCES`].
    Fences,
    /// [`COORDINATOR`].
    Coordinator,
    /// [`node`].
    Node(NodeId),
    /// [`session`].
    Session(NodeId),
    /// [`stamp`].
    Stamp(DiskId),
    /// [`set`].
    Set(u16),
    /// [`pack`].
    Pack(u16, u32),
}

impl Key {
    /// `None` for keys that this version does not know.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        match key {
            MAP => return Some(Self::Map),
            SETTINGS => return Some(Self::Settings),
            FENCES => return Some(Self::Fences),
            COORDINATOR => return Some(Self::Coordinator),
            _ => {}
        }
        let (kind, rest) = key.strip_prefix(PREFIX)?.split_once('/')?;
        match kind {
            "node" => unhex(rest).map(|id| Self::Node(NodeId(id))),
            "session" => unhex(rest).map(|id| Self::Session(NodeId(id))),
            "stamp" => unhex(rest).map(|id| Self::Stamp(DiskId(id))),
            "set" => u16::from_str_radix(rest, 16).ok().map(Self::Set),
            "shard" => {
                let (set, pack) = rest.split_once('/')?;
                let set = u16::from_str_radix(set, 16).ok()?;
                Some(Self::Pack(set, u32::from_str_radix(pack, 16).ok()?))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again() {
        let id = [0xab; 16];
        let all = [
            (node(NodeId(id)), Key::Node(NodeId(id))),
            (session(NodeId(id)), Key::Session(NodeId(id))),
            (stamp(DiskId(id)), Key::Stamp(DiskId(id))),
            (set(0x12), Key::Set(0x12)),
            (pack(0x12, 0x345), Key::Pack(0x12, 0x345)),
            (MAP.to_owned(), Key::Map),
        ];
        for (text, key) in all {
            assert_eq!(Key::parse(&text), Some(key), "{text}");
        }
        for text in ["m/node/12", "m/other/1", "x/map", "m/shard/0001"] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }
}
