//! What a run is like: sizes and chances, drawn from its seed.

use crate::net::Settings;
use crate::{MS, Rng, SECOND};
use sheepdog_shard::Rules;
use sheepdog_types::{Geometry, ShardId};
use std::collections::BTreeSet;

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of everything that is left to chance.
    pub seed: u64,
    /// Rules that are left out.
    pub rules: Rules,
    /// A broken rule is a finding; otherwise only what the other oracles see.
    pub asserts: bool,
    /// Prints what happens, messages too.
    pub trace: bool,
    /// Faults that do not happen, by their number in the run: what a shrunk run leaves out.
    pub without_faults: BTreeSet<u64>,
    /// With the product's own membership and a registry, in place of the stand-in for both.
    pub membership: bool,
    /// In some of such runs the registry is put back from a backup. Never by itself: a finding is open
    /// (seed 1091, the coordinator forgets that it was put back when it dies).
    pub restores: bool,
    /// Machines.
    pub nodes: u16,
    /// Each has so many disks.
    pub disks_per_node: u16,
    /// There are 2^bits shards.
    pub shard_bits: u8,
    /// Wanted.
    pub copies: u8,
    /// Without which nothing is written.
    pub required: u8,
    /// Of fragments.
    pub geometry: Geometry,
    /// Of each disk.
    pub log_bytes: u64,
    /// Of data that a disk holds, if bounded.
    pub disk_blocks: Option<usize>,
    /// VDIs.
    pub vdis: u32,
    /// Their size.
    pub blocks_per_vdi: u32,
    /// Clients.
    pub clients: u16,
    /// Operations that a client has open at once, at most.
    pub depth: usize,
    /// Between two operations of a client.
    pub think: u64,
    /// How long faults and clients go on, in nanoseconds.
    pub length: u64,
    /// Between two faults.
    pub fault_pause: u64,
    /// Disks may fail by the faults of this run.
    pub disks_fail: bool,
    /// Of the net.
    pub net: Settings,
}

impl Plan {
    /// All shards.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardId> {
        (0..1 << self.shard_bits).map(|number| ShardId { set: 0, number }).collect()
    }

    /// The run of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork("plan");
        let geometries = [(1, 4), (2, 2), (2, 4), (4, 2), (4, 4), (1, 8)];
        let (blocks, chunks) = *rng.pick(&geometries);
        let geometry = Geometry::new(blocks, chunks).expect("legal");
        let copies = *rng.pick(&[2, 3, 3, 3]);
        let nodes = match rng.below(10) {
            0..7 => rng.between(u64::from(copies), 5),
            7..9 => rng.between(4, 9),
            _ => rng.between(6, 30),
        };
        Self {
            seed,
            rules: Rules::default(),
            asserts: true,
            trace: false,
            without_faults: BTreeSet::new(),
            membership: rng.chance(30),
            restores: false,
            nodes: nodes as u16,
            disks_per_node: 1,
            shard_bits: if rng.chance(5) { 6 } else { *rng.pick(&[0, 0, 0, 1, 1, 2, 3]) },
            copies,
            required: if copies > 2 { 2 } else { 1 },
            geometry,
            log_bytes: 512 << 10,
            disk_blocks: None,
            vdis: rng.between(1, 2) as u32,
            blocks_per_vdi: rng.between(8, 40) as u32,
            clients: rng.between(2, 5) as u16,
            depth: rng.between(1, 6) as usize,
            think: rng.between(MS / 2, 30 * MS),
            length: rng.between(2 * SECOND, 8 * SECOND),
            fault_pause: *rng.pick(&[40 * MS, 150 * MS, 400 * MS, 1000 * MS]),
            disks_fail: false,
            net: Settings { late: *rng.pick(&[0, 0, 5, 50]), ..Settings::default() },
        }
    }
}
