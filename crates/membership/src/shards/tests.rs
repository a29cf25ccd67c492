use super::*;
use sheepdog_types::{ErrorKind, NodeId};

const fn disk(id: u8) -> DiskId {
    DiskId([id; 16])
}

const fn seat(id: u8) -> (DiskId, Process) {
    (disk(id), Process { node: NodeId([id.wrapping_add(100); 16]), incarnation: 1 })
}

fn set(ids: &[u8]) -> BTreeSet<DiskId> {
    ids.iter().map(|id| disk(*id)).collect()
}

fn started(ids: &[u8]) -> ShardRecord {
    let mut record = ShardRecord::default();
    step(&mut record, ids);
    record
}

fn step(record: &mut ShardRecord, ids: &[u8]) {
    let seats: Vec<_> = ids.iter().map(|id| seat(*id)).collect();
    assert!(record.begin(Interval(0), &seats, disk(ids[0])));
}

#[test]
fn packs_are_read_as_they_were_written() {
    let mut one = started(&[2, 1]);
    one.activate();
    one.clean();
    step(&mut one, &[2, 3]);
    one.activate();
    step(&mut one, &[3]);
    let pack = ShardPack { shards: BTreeMap::from([(0, ShardRecord::default()), (63, one)]) };
    assert_eq!(ShardPack::decode(&pack.encode()).expect("decode"), pack);
}

#[test]
fn old_bytes_keep_their_meaning() {
    let mut record = started(&[2]);
    record.activate();
    record.clean();
    let pack = ShardPack { shards: BTreeMap::from([(5, record)]) };
    let mut old = b"\x08\x01\x12\x10".to_vec();
    old.extend([2; 16]);
    old.extend(b"\x1a\x14\x0a\x10");
    old.extend([102; 16]);
    old.extend(b"\x10\x01\x22\x15\x08\x05\x10\x01\x1a\x01\0\x22\x01\0\x28\x01\x30\x01\x3a\x05\x08\x01\x12\x01\0");
    assert_eq!(&pack.encode()[..], &old);
    assert_eq!(ShardPack::decode(&old).expect("decode"), pack);
}

#[test]
fn newer_and_damaged_packs_are_told_apart() {
    let kind = |bytes: &[u8]| ShardPack::decode(bytes).expect_err("bad").kind();
    assert_eq!(kind(b"\x08\x02"), ErrorKind::VersionMismatch);
    for bytes in [&b""[..], b"\xff", b"\x08\x01\x12\x01x", b"\x08\x01\x22\x02\x1a\0"] {
        assert_eq!(kind(bytes), ErrorKind::Internal, "{bytes:?}");
    }
    let mut record = started(&[1, 2]);
    record.primary = Some(2);
    let pack = ShardPack { shards: BTreeMap::from([(0, record)]) };
    assert_eq!(kind(&pack.encode()), ErrorKind::Internal, "nobody in the primary's seat");
    let mut record = started(&[1]);
    record.last.interval = Interval(9);
    let pack = ShardPack { shards: BTreeMap::from([(0, record)]) };
    assert_eq!(kind(&pack.encode()), ErrorKind::Internal, "activated before it began");
}

#[test]
fn who_is_complete_stays_so_only_while_acting() {
    let mut record = started(&[1, 2, 3]);
    record.activate();
    assert!(!record.is_clean());
    record.clean();
    assert!(record.is_clean());
    step(&mut record, &[1, 2]);
    step(&mut record, &[1, 2, 3]);
    let complete: Vec<bool> = record.acting.iter().map(|seat| seat.complete).collect();
    assert_eq!(complete, [true, true, false]);
    assert_eq!(record.primary().map(|p| p.node), Some(NodeId([101; 16])));
}

#[test]
fn intervals_come_after_all_that_is_known_and_end() {
    let mut record = started(&[1]);
    assert!(record.begin(Interval(40), &[seat(1)], disk(1)));
    assert_eq!(record.cur, Interval(41));
    let before = record.clone();
    assert!(!record.begin(Interval(u64::MAX), &[seat(2)], disk(2)));
    assert_eq!(record, before);
}

#[test]
fn activations_are_remembered_until_clean() {
    let mut record = started(&[1, 2]);
    record.activate();
    record.activate();
    assert!(record.older.is_empty(), "one's own change is there already");
    step(&mut record, &[1]);
    step(&mut record, &[1, 3]);
    record.activate();
    assert_eq!(record.last, Activation { interval: Interval(3), members: set(&[1, 3]) });
    assert_eq!(record.older, [Activation { interval: Interval(1), members: set(&[1, 2]) }]);
    step(&mut record, &[1, 2]);
    record.clean();
    assert_eq!(record.older.len(), 1, "an interval that does not serve is not clean");
    record.activate();
    step(&mut record, &[1]);
    record.activate();
    // {1, 2} was renewed by interval 4.
    let older: Vec<u64> = record.older.iter().map(|old| old.interval.0).collect();
    assert_eq!(older, [3, 4]);
    record.clean();
    assert!(record.older.is_empty() && record.is_clean());
}

#[test]
fn no_member_is_forgotten_however_many_there_were() {
    let mut record = started(&[200]);
    record.activate();
    for id in 1..=100 {
        step(&mut record, &[id, 200]);
        record.activate();
    }
    assert_eq!(record.older.len(), OLDER_MAX);
    let members: BTreeSet<DiskId> = record.older.iter().flat_map(|o| o.members.clone()).collect();
    assert!((1..=99).all(|id| members.contains(&disk(id))));
    // Those of each interval are in one that is as late or later.
    assert!(record.older[0].interval >= Interval(80));
    assert!(record.older.is_sorted_by_key(|old| old.interval));
}
