use super::*;
use sheepdog_types::ErrorKind;

fn map() -> MapRecord {
    let entry = |state, disk: u8| NodeEntry {
        incarnation: 3,
        address: "h".into(),
        zone: 7,
        vnodes: 128,
        vnodes_fixed: false,
        state,
        draining: false,
        disks: BTreeMap::from([(
            DiskId([disk; 16]),
            DiskEntry { weight: 9, state: DiskState::In },
        )]),
    };
    let nodes = BTreeMap::from([
        (NodeId([1; 16]), entry(NodeState::Up, 11)),
        (NodeId([2; 16]), entry(NodeState::Down { grace: 600 }, 12)),
        (NodeId([3; 16]), entry(NodeState::Left { grace: 5 }, 13)),
        (NodeId([4; 16]), entry(NodeState::Out { clean: true }, 14)),
        (NodeId([5; 16]), entry(NodeState::Out { clean: false }, 15)),
    ]);
    MapRecord { epoch: 12, nodes, halted: BTreeSet::from([1]) }
}

#[test]
fn old_bytes_keep_their_meaning() {
    let mut one = map();
    one.nodes.retain(|node, _| node.0[0] == 2);
    let old = b"\x08\x01\x10\x0c\x1a\x39\x0a\x10\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\
        \x10\x03\x1a\x01h\x20\x07\x28\x80\x01\x38\x02\x40\xd8\x04\
        \x52\x16\x0a\x10\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x0c\x10\x09\x18\x01\
        \x22\x01\x01";
    assert_eq!(MapRecord::decode(old).expect("decode"), one);
    assert_eq!(&one.encode()[..], old);
}

#[test]
fn a_map_is_read_as_it_was_written() {
    let map = map();
    assert_eq!(MapRecord::decode(&map.encode()).expect("decode"), map);
    assert_eq!(map.up().map(|p| p.node.0[0]).collect::<Vec<_>>(), [1]);
    assert_eq!(map.owner(DiskId([13; 16])), Some(NodeId([3; 16])));
}

#[test]
fn newer_and_damaged_maps_are_told_apart() {
    let kind = |bytes: &[u8]| MapRecord::decode(bytes).expect_err("bad").kind();
    assert_eq!(kind(b"\x08\x02"), ErrorKind::VersionMismatch);
    // A newer version may have given another type to any field but the first.
    assert_eq!(kind(b"\x08\x02\x1a\x01\xff"), ErrorKind::VersionMismatch);
    for bytes in [&b""[..], b"\xff", b"\x08\x00", b"\x08\x01\x1a\x02\x0a\x00"] {
        assert_eq!(kind(bytes), ErrorKind::Internal, "{bytes:?}");
    }
    let mut twice = map();
    let disks = twice.nodes[&NodeId([1; 16])].disks.clone();
    twice.nodes.get_mut(&NodeId([2; 16])).expect("node").disks = disks;
    assert_eq!(kind(&twice.encode()), ErrorKind::Internal, "a disk in two places");
}

#[test]
fn data_is_placed_on_what_may_come_back_and_not_on_what_is_out() {
    let mut map = map();
    let holds = |map: &MapRecord| -> Vec<u8> {
        let nodes = map.placement().nodes;
        let all = nodes.iter().filter(|n| n.state.holds());
        all.filter(|n| n.disks[0].state.holds()).map(|n| n.id.0[0]).collect()
    };
    assert_eq!(holds(&map), [1, 2, 3]);
    map.nodes.get_mut(&NodeId([1; 16])).expect("node").draining = true;
    let disk = map.nodes.get_mut(&NodeId([2; 16])).expect("node").disks.values_mut().next();
    disk.expect("disk").state = DiskState::Lost;
    assert_eq!(holds(&map), [3]);
}
