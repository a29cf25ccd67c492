//! Frozen results. A difference means that this version places data elsewhere than earlier ones:
//! it must not be released. When a failure is meant all the same (before the first release), the
//! test's output is the new file.

use sheepdog_placement::{ClusterMap, Disk, Exception, Node, Placement, Policy, State, shard_of};
use sheepdog_types::{DiskId, FragmentId, LineageId, NodeId};
use std::fmt::Write;

fn compare(name: &str, frozen: &str, now: &str) {
    if frozen != now {
        println!("{now}");
        let first = frozen.lines().zip(now.lines()).find(|(a, b)| a != b);
        panic!("tests/vectors/{name}: first different line {first:?}");
    }
}

fn disk_id(n: u32) -> DiskId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    id[15] = 0x5d;
    DiskId(id)
}

fn number(id: DiskId) -> u32 {
    u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]])
}

/// (zone, vnodes, weights of the disks); disks are numbered 10 * node + position.
fn map(nodes: &[(u32, u32, &[u64])]) -> ClusterMap {
    let nodes = (1u32..).zip(nodes).map(|(n, (zone, vnodes, disks))| Node {
        id: NodeId(disk_id(1000 + n).0),
        zone: *zone,
        vnodes: *vnodes,
        state: State::Up,
        disks: (0..)
            .zip(*disks)
            .map(|(d, weight)| Disk { id: disk_id(10 * n + d), weight: *weight, state: State::Up })
            .collect(),
    });
    ClusterMap { nodes: nodes.collect() }
}

#[test]
fn fragments_belong_to_the_same_shards_for_ever() {
    let mut text = String::from("# lineage number bits shard\n");
    let fragments = [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 0),
        (0x1234_5678_9abc_def0, 42),
        (7, 1 << 32),
        (u64::MAX, u64::MAX),
    ];
    for (lineage, number) in fragments {
        for bits in [0, 1, 8, 12, 20] {
            let fragment = FragmentId { lineage: LineageId(lineage), number };
            let shard = shard_of(fragment, bits);
            writeln!(text, "{lineage} {number} {bits} {shard}").expect("string");
        }
    }
    compare("shards.txt", include_str!("vectors/shards.txt"), &text);
}

/// Two maps, every acting set, in order.
#[test]
fn small_placements_are_the_same_for_ever() {
    let first = map(&[
        (1, 128, &[4, 4]),
        (1, 64, &[1]),
        (2, 200, &[3, 1, 2]),
        (3, 128, &[8]),
        (4, 96, &[5, 5]),
        (5, 32, &[1]),
    ]);
    let mut second = first.clone();
    second.nodes[3].state = State::Out;
    second.nodes[4].vnodes = 128;
    second.nodes[2].disks[1].state = State::Out;
    let mut text = String::new();
    for policy in [Policy::Copies(1), Policy::Copies(3), Policy::Erasure { data: 4, parity: 2 }] {
        let wanted = Placement::with_exceptions(&first, policy, 5, &[]).expect("valid");
        let fresh = Placement::fresh(&first, policy, 5).expect("valid");
        let after = fresh.after(&second).expect("valid");
        writeln!(text, "# {policy:?}: shard, wanted, fresh, after the change").expect("string");
        for shard in 0..fresh.shards() {
            let set = |p: &Placement| -> Vec<String> {
                let set = p.acting_set(shard).iter();
                set.map(|d| number(*d).to_string()).collect()
            };
            let columns = [&wanted, &fresh, &after].map(|p| set(p).join(","));
            writeln!(text, "{shard} {}", columns.join(" ")).expect("string");
        }
    }
    compare("small.txt", include_str!("vectors/small.txt"), &text);
}

/// Digests (FNV-1a) of all acting sets through a history of 60 nodes.
#[test]
fn large_placements_are_the_same_for_ever() {
    let weights: [&[u64]; 4] = [&[1 << 40], &[2 << 40, 1 << 40], &[3, 1, 2], &[7, 7]];
    let node = |n: u32| (n % 13, 64 + n * 37 % 190, weights[(n % 4) as usize]);
    let mut nodes: Vec<_> = (0..60).map(node).collect();
    let mut text = String::from("# step, exceptions, digest of acting sets, of exceptions\n");
    let mut log = |step: &str, p: &Placement| {
        let mut sets = Fnv::default();
        for shard in 0..p.shards() {
            for disk in p.acting_set(shard) {
                sets.bytes(&disk.0);
            }
        }
        let mut table = Fnv::default();
        for Exception { shard, wanted, instead } in p.exceptions() {
            table.bytes(&shard.to_le_bytes());
            table.bytes(&wanted.0);
            table.bytes(&instead.0);
        }
        let count = p.exceptions().len();
        writeln!(text, "{step} {count} {:016x} {:016x}", sets.0, table.0).expect("string");
    };
    let wanted = Placement::with_exceptions(&map(&nodes), Policy::Copies(3), 12, &[]);
    log("wanted", &wanted.expect("valid"));
    let mut now = Placement::fresh(&map(&nodes), Policy::Copies(3), 12).expect("valid");
    log("fresh", &now);
    for n in 60..64 {
        nodes.push(node(n));
        now = now.after(&map(&nodes)).expect("valid");
        log("join", &now);
    }
    for n in [3, 20, 41] {
        nodes[n].1 = 0;
        now = now.after(&map(&nodes)).expect("valid");
        log("leave", &now);
    }
    for n in [5, 6, 7] {
        nodes[n].1 *= 2;
        now = now.after(&map(&nodes)).expect("valid");
        log("reweight", &now);
    }
    log("tidied", &now.tidied(100));
    compare("large.txt", include_str!("vectors/large.txt"), &text);
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
