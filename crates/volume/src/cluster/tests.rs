use super::*;
use crate::hex::{hex, unhex};
use proptest::prelude::*;

fn cluster() -> ClusterRecord {
    ClusterRecord {
        uuid: std::array::from_fn(|i| i as u8 * 17),
        created: 1_546_300_800_000_000_000,
        store: "plain".to_owned(),
        redundancy: Redundancy::DEFAULT,
        object_shift: 22,
        options: ClusterOptions::default(),
    }
}

fn epoch() -> EpochRecord {
    let node = |host: &str, port, vnodes| EpochNode { host: host.to_owned(), port, vnodes };
    EpochRecord {
        epoch: 2,
        began: 1_546_300_800_000_000_001,
        nodes: vec![node("127.0.0.1", 7000, 128), node("::1", 65535, 0)],
    }
}

/// As format 1 wrote them. Never change one: add.
const CLUSTERS: [&str; 2] = [
    "0801121000112233445566778899aabbccddeeff1880809cdfa88ce4ba152205706c61696e28033816",
    "0801121000112233445566778899aabbccddeeff1880809cdfa88ce4ba152204747265652810300f381f400148015001580160016801",
];
const EPOCH: &str =
    "080110021881809cdfa88ce4ba1522110a093132372e302e302e3110d83618800122090a033a3a3110ffff03";

fn all_options() -> ClusterRecord {
    ClusterRecord {
        store: "tree".to_owned(),
        redundancy: Redundancy::erasure(16, 15).expect("16:15"),
        object_shift: 31,
        options: ClusterOptions {
            lock: true,
            strict: true,
            recycle_vids: true,
            fixed_vnodes: true,
            avoid_disk_full: true,
            recovery_disabled: true,
        },
        ..cluster()
    }
}

#[test]
fn old_bytes_keep_their_meaning() {
    for (bytes, record) in CLUSTERS.into_iter().zip([cluster(), all_options()]) {
        assert_eq!(hex(&record.encode()), bytes);
        let newer = unhex(&format!("{bytes}c20c026162"));
        assert_eq!(ClusterRecord::decode(&newer).expect("cluster"), record);
    }
    assert_eq!(hex(&epoch().encode()), EPOCH);
    let newer = unhex(&format!("{EPOCH}c80c2a"));
    assert_eq!(EpochRecord::decode(&newer).expect("epoch"), epoch());
}

#[test]
fn each_switch_has_its_own_field() {
    let set: [fn(&mut ClusterOptions); 6] = [
        |o| o.lock = true,
        |o| o.strict = true,
        |o| o.recycle_vids = true,
        |o| o.fixed_vnodes = true,
        |o| o.avoid_disk_full = true,
        |o| o.recovery_disabled = true,
    ];
    for set in set {
        let mut record = cluster();
        set(&mut record.options);
        assert_ne!(record.options, ClusterOptions::default());
        assert_eq!(ClusterRecord::decode(&record.encode()).expect("own"), record);
    }
}

#[test]
fn newer_and_damaged_records_are_told_apart() {
    let stored = || StoredCluster::decode(&cluster().encode()[..]).expect("sample");
    let bad = |change: fn(&mut StoredCluster)| {
        let mut stored = stored();
        change(&mut stored);
        ClusterRecord::decode(&stored.encode_to_vec()).expect_err("changed").kind()
    };
    assert_eq!(bad(|s| s.format = 2), ErrorKind::VersionMismatch);
    for change in [
        (|s| s.format = 0) as fn(&mut StoredCluster),
        |s| s.uuid.truncate(15),
        |s| s.store.clear(),
        |s| s.redundancy_data = 0,
        |s| s.object_shift = 32,
        |s| s.object_shift = 256 + 22,
    ] {
        assert_eq!(bad(change), ErrorKind::Internal);
    }

    let stored = || StoredEpoch::decode(&epoch().encode()[..]).expect("sample");
    let bad = |change: fn(&mut StoredEpoch)| {
        let mut stored = stored();
        change(&mut stored);
        EpochRecord::decode(&stored.encode_to_vec()).expect_err("changed").kind()
    };
    assert_eq!(bad(|s| s.format = 9), ErrorKind::VersionMismatch);
    for change in [
        (|s| s.epoch = 0) as fn(&mut StoredEpoch),
        |s| s.nodes[1].port = 65536,
        |s| s.nodes[0].host.clear(),
        |s| s.nodes[0].host.push('\n'),
    ] {
        assert_eq!(bad(change), ErrorKind::Internal);
    }
}

#[test]
fn nodes_and_keys_as_printed() {
    assert_eq!(epoch().nodes[0].to_string(), "127.0.0.1:7000:128");
    assert_eq!(epoch().nodes[1].to_string(), "[::1]:65535:0");
    assert_eq!(epoch_key(1), "epoch/00000001");
    assert!(epoch_key(9) < epoch_key(10) && epoch_key(0xffff) < epoch_key(u32::MAX));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ClusterRecord::decode(&bytes);
        let _ = EpochRecord::decode(&bytes);
    }

    #[test]
    fn damage_never_panics(at in any::<proptest::sample::Index>(), value in any::<u8>()) {
        for text in CLUSTERS {
            let mut bytes = unhex(text);
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = ClusterRecord::decode(&bytes);
        }
        let mut bytes = unhex(EPOCH);
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = EpochRecord::decode(&bytes);
    }
}
