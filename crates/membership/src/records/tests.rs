use super::*;
use sheepdog_types::ErrorKind;

const fn disk(id: u8) -> DiskId {
    DiskId([id; 16])
}

#[test]
fn records_are_read_as_they_were_written() {
    let node = NodeRecord {
        incarnation: 4,
        address: "10.0.0.1:7000".into(),
        zone: 2,
        vnodes: 128,
        leaving: true,
        disks: BTreeMap::from([(disk(1), 1 << 40), (disk(2), 5)]),
    };
    assert_eq!(NodeRecord::decode(&node.encode()).expect("node"), node);
    let stamp = Stamp { generation: 3, serial: 900 };
    assert_eq!(Stamp::decode(&stamp.encode()).expect("stamp"), stamp);
    let exceptions = vec![Exception { shard: 5, wanted: disk(1), instead: disk(2) }];
    for policy in [Policy::Copies(3), Policy::Erasure { data: 4, parity: 2 }] {
        let set = SetRecord { policy, bits: 12, exceptions: exceptions.clone() };
        assert_eq!(SetRecord::decode(&set.encode()).expect("set"), set);
    }
    let settings = Settings { grace: 0, min_copies: Some(2), strict: true };
    assert_eq!(Settings::decode(&settings.encode()).expect("settings"), settings);
    let fences = Fences {
        processes: BTreeMap::from([(NodeId([1; 16]), 7)]),
        disks: BTreeSet::from([disk(3)]),
    };
    assert_eq!(Fences::decode(&fences.encode()).expect("fences"), fences);
    let process = Process { node: NodeId([9; 16]), incarnation: 8 };
    assert_eq!(decode_process(&encode_process(process)).expect("process"), process);
}

#[test]
fn old_bytes_keep_their_meaning() {
    let stamp = Stamp { generation: 3, serial: 900 };
    assert_eq!(&stamp.encode()[..], b"\x08\x01\x10\x03\x18\x84\x07");
    let settings = Settings { grace: 5, min_copies: Some(2), strict: true };
    assert_eq!(&settings.encode()[..], b"\x08\x01\x10\x05\x18\x02\x20\x01");
    let set = SetRecord { policy: Policy::Copies(3), bits: 12, exceptions: Vec::new() };
    assert_eq!(&set.encode()[..], b"\x08\x01\x18\x03\x28\x0c");
    let fences = Fences { processes: BTreeMap::new(), disks: BTreeSet::from([disk(3)]) };
    let mut old = b"\x08\x01\x1a\x10".to_vec();
    old.extend([3; 16]);
    assert_eq!(&fences.encode()[..], &old);
    let process = Process { node: NodeId([9; 16]), incarnation: 8 };
    let mut old = b"\x08\x01\x12\x14\x0a\x10".to_vec();
    old.extend([9; 16]);
    old.extend(b"\x10\x08");
    assert_eq!(&encode_process(process)[..], &old);
    let node = NodeRecord {
        incarnation: 4,
        address: "a".into(),
        zone: 2,
        vnodes: 3,
        leaving: true,
        disks: BTreeMap::from([(disk(1), 5)]),
    };
    let mut old = b"\x08\x01\x10\x04\x1a\x01a\x20\x02\x28\x03\x30\x01\x3a\x10".to_vec();
    old.extend([1; 16]);
    old.extend(b"\x42\x01\x05");
    assert_eq!(&node.encode()[..], &old);
}

#[test]
fn newer_and_damaged_records_are_told_apart() {
    let newer = b"\x08\x02";
    let kinds = [
        NodeRecord::decode(newer).expect_err("newer").kind(),
        Stamp::decode(newer).expect_err("newer").kind(),
        SetRecord::decode(newer).expect_err("newer").kind(),
        Settings::decode(newer).expect_err("newer").kind(),
        Fences::decode(newer).expect_err("newer").kind(),
        decode_process(newer).expect_err("newer").kind(),
    ];
    assert_eq!(kinds, [ErrorKind::VersionMismatch; 6]);
    let kinds = [
        NodeRecord::decode(b"\x08\x01\x3a\x01x").expect_err("bad").kind(),
        Stamp::decode(b"").expect_err("bad").kind(),
        SetRecord::decode(b"\x08\x01").expect_err("bad").kind(),
        Settings::decode(b"\x08\x01\x18\x80\x02").expect_err("bad").kind(),
        Fences::decode(b"\x08\x01\x1a\x01x").expect_err("bad").kind(),
        decode_process(b"\x08\x01").expect_err("bad").kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Internal; 6]);
}

#[test]
fn required_copies_follow_policy_settings_and_zones() {
    let usual = Settings::default();
    assert_eq!(usual.required(Policy::Copies(1), 9), 1);
    assert_eq!(usual.required(Policy::Copies(2), 9), 1);
    assert_eq!(usual.required(Policy::Copies(3), 9), 2);
    assert_eq!(usual.required(Policy::Copies(3), 1), 1);
    assert_eq!(usual.required(Policy::Copies(3), 0), 1);
    assert_eq!(usual.required(Policy::Erasure { data: 4, parity: 2 }, 9), 5);
    let all = Settings { min_copies: Some(3), ..usual };
    assert_eq!(all.required(Policy::Copies(2), 9), 2);
    assert_eq!(all.required(Policy::Copies(3), 9), 3);
}

#[test]
fn a_fence_holds_for_all_older_processes() {
    let fences = Fences { processes: BTreeMap::from([(NodeId([1; 16]), 7)]), ..Fences::default() };
    let process = |node, incarnation| Process { node: NodeId([node; 16]), incarnation };
    assert!(fences.process(process(1, 7)) && fences.process(process(1, 1)));
    assert!(!fences.process(process(1, 8)) && !fences.process(process(2, 1)));
}
