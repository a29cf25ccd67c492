use super::*;
use crate::hex::{hex, unhex};
use proptest::prelude::*;

/// Records as format 1 wrote them, byte for byte, with what they mean. Never change one: add.
fn samples() -> Vec<(&'static str, VdiRecord)> {
    let working = VdiRecord {
        name: "test".to_owned(),
        tag: String::new(),
        snap_id: 1,
        vid: Vid::new(0x7c_2b25).expect("vid"),
        lineage: LineageId(1),
        parent: None,
        base: None,
        size: 1 << 30,
        redundancy: Redundancy::DEFAULT,
        object_shift: 22,
        hyper: false,
        preallocated: false,
        created: 1_546_300_800_000_000_000,
        snapshotted: None,
        state: State::Working,
    };
    let snapshot = VdiRecord {
        name: "日本 a\\b".to_owned(),
        tag: "v1".to_owned(),
        snap_id: 7,
        vid: Vid::new(0xff_ffff).expect("vid"),
        lineage: LineageId(u64::MAX),
        parent: Vid::new(1),
        base: Some(Base { lineage: LineageId(300), vid: Vid::new(0x54_c278).expect("vid") }),
        size: 16 << 50,
        redundancy: Redundancy::erasure(4, 2).expect("4:2"),
        object_shift: 31,
        hyper: true,
        preallocated: true,
        created: 1,
        snapshotted: Some(u64::MAX),
        state: State::Snapshot,
    };
    let incomplete = VdiRecord {
        size: 0,
        object_shift: 20,
        redundancy: Redundancy::copies(31).expect("31"),
        state: State::Incomplete,
        ..working.clone()
    };
    let hidden = VdiRecord { state: State::Hidden, snapshotted: Some(0), ..working.clone() };
    vec![
        (
            "0801120474657374200128a5d6f003300150808080800458036816800180809cdfa88ce4ba15900101",
            working,
        ),
        (
            "0801120ae697a5e69cac20615c621a027631200728ffffff0730ffffffffffffffffff01380140ac0248f884d30250808080808080802058046002681f700178018001018801ffffffffffffffffff01900102",
            snapshot,
        ),
        ("0801120474657374200128a5d6f0033001581f6814800180809cdfa88ce4ba15900103", incomplete),
        (
            "0801120474657374200128a5d6f003300150808080800458036816800180809cdfa88ce4ba15880100900104",
            hidden,
        ),
    ]
}

#[test]
fn old_bytes_keep_their_meaning() {
    for (bytes, record) in samples() {
        assert_eq!(hex(&record.encode()), bytes, "{record:?}");
        assert_eq!(VdiRecord::decode(&unhex(bytes)).expect(bytes), record);
    }
}

#[test]
fn fields_of_a_later_version_are_skipped() {
    for (bytes, record) in samples() {
        // Field 200, a string; field 201, a number; field 202, eight fixed bytes.
        for more in ["c20c026162", "c80c2a", "d10c0102030405060708"] {
            let bytes = unhex(&format!("{bytes}{more}"));
            assert_eq!(VdiRecord::decode(&bytes).expect("newer field"), record);
        }
    }
}

/// Encodes a changed sample without checking it.
fn changed(change: impl FnOnce(&mut Stored)) -> Vec<u8> {
    let mut stored = Stored::decode(&samples()[1].1.encode()[..]).expect("sample");
    change(&mut stored);
    stored.encode_to_vec()
}

#[test]
fn newer_records_ask_for_an_upgrade() {
    // The format decides even where no other field can be read: field 2 is a number here.
    for bytes in [changed(|s| s.format = 2), changed(|s| s.state = 5), unhex("08021005")] {
        let error = VdiRecord::decode(&bytes).expect_err("newer");
        assert_eq!(error.kind(), ErrorKind::VersionMismatch);
        assert!(error.context().contains("upgrade"), "{error}");
    }
}

#[test]
fn damaged_records_are_refused() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("no format", changed(|s| s.format = 0)),
        ("no name", changed(|s| s.name.clear())),
        ("long name", changed(|s| s.name = "x".repeat(256))),
        ("control character", changed(|s| s.name.push('\n'))),
        ("long tag", changed(|s| s.tag = "x".repeat(256))),
        ("snap_id", changed(|s| s.snap_id = 0)),
        ("vid 0", changed(|s| s.vid = 0)),
        ("vid", changed(|s| s.vid = 1 << 24)),
        ("lineage", changed(|s| s.lineage = 0)),
        ("parent", changed(|s| s.parent = u32::MAX)),
        ("base vid", changed(|s| s.base_vid = 0)),
        ("base lineage", changed(|s| s.base_lineage = 0)),
        ("size", changed(|s| s.size = (16 << 50) + 1)),
        ("copies", changed(|s| (s.redundancy_data, s.redundancy_parity) = (0, 0))),
        ("strips", changed(|s| s.redundancy_data = 5)),
        ("parity", changed(|s| s.redundancy_parity = 256)),
        ("shift", changed(|s| s.object_shift = 19)),
        ("wide shift", changed(|s| s.object_shift = 256 + 22)),
        ("state", changed(|s| s.state = 0)),
        ("snapshot without time", changed(|s| s.snapshotted = None)),
        ("working with time", changed(|s| s.state = 1)),
        ("not UTF-8", unhex("08011201ff")),
        ("text", b"hello".to_vec()),
    ];
    for (why, bytes) in cases {
        let error = VdiRecord::decode(&bytes).expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Internal, "{why}: {error}");
        assert!(error.context().starts_with("the VDI record is damaged"));
        assert!(!error.full().contains('\n'));
    }
}

#[test]
fn clones_and_objects() {
    let mut record = samples().swap_remove(0).1;
    assert!(!record.is_clone());
    record.parent = Vid::new(5);
    assert!(record.is_clone());
    record.snap_id = 2;
    assert!(!record.is_clone());
    for (size, objects) in [(0, 0), (1, 1), (4 << 20, 1), ((4 << 20) + 1, 2)] {
        record.size = size;
        assert_eq!(record.objects(), objects);
    }
    record.size = 16 << 50;
    record.object_shift = 20;
    assert_eq!(record.objects(), 1 << 34);
}

fn any_vid() -> impl Strategy<Value = Vid> {
    (1..Vid::COUNT).prop_map(|v| Vid::new(v).expect("vid"))
}

prop_compose! {
    fn any_record()(
        name in "[^\\p{Cc}]{1,60}",
        tag in "[^\\p{Cc}]{0,60}",
        (snap_id, vid, lineage) in (1..=u32::MAX, any_vid(), 1..=u64::MAX),
        parent in proptest::option::of(any_vid()),
        base in proptest::option::of((1..=u64::MAX, any_vid())),
        size in 0..=VDI_BYTES_MAX,
        (copies, object_shift, hyper, preallocated) in (1..=31u8, 20..=31u8, any::<bool>(), any::<bool>()),
        (created, time, state) in (any::<u64>(), any::<u64>(), 0..4usize),
    ) -> VdiRecord {
        let state = [State::Working, State::Snapshot, State::Incomplete, State::Hidden][state];
        VdiRecord {
            name, tag, snap_id, vid, lineage: LineageId(lineage), parent,
            base: base.map(|(lineage, vid)| Base { lineage: LineageId(lineage), vid }),
            size, redundancy: Redundancy::copies(copies).expect("copies"), object_shift, hyper, preallocated,
            created, snapshotted: (state == State::Snapshot).then_some(time), state,
        }
    }
}

proptest! {
    #[test]
    fn records_survive(record in any_record()) {
        prop_assert_eq!(VdiRecord::decode(&record.encode()).expect("own bytes"), record);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        sample in 0..4usize,
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let _ = VdiRecord::decode(&bytes);
        let mut bytes = unhex(samples()[sample].0);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(record) = VdiRecord::decode(&bytes) {
            prop_assert_eq!(VdiRecord::decode(&record.encode()).expect("own bytes"), record);
        }
        bytes.truncate(cut.index(bytes.len()));
        let _ = VdiRecord::decode(&bytes);
    }
}
