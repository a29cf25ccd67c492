use super::*;
use sheepdog_types::Interval;

const fn disk(id: u8) -> DiskId {
    DiskId([id; 16])
}

fn process(id: u8) -> Process {
    Process { node: NodeId([id; 16]), incarnation: 1 }
}

/// Disk, node and zone have the same number.
fn ground(ids: &[u8]) -> Ground {
    let place = |id: &u8| {
        let place = Place {
            process: process(*id),
            zone: u32::from(*id),
            leaving: false,
            damped: false,
            draining: false,
        };
        (disk(*id), place)
    };
    Ground { disks: ids.iter().map(place).collect(), ..Ground::default() }
}

fn started(ids: &[u8]) -> ShardRecord {
    let mut record = ShardRecord::default();
    step(&mut record, ids);
    record.activate();
    record
}

fn step(record: &mut ShardRecord, ids: &[u8]) {
    let seats: Vec<_> = ids.iter().map(|id| (disk(*id), process(*id))).collect();
    assert!(record.begin(Interval(0), &seats, disk(ids[0])));
}

fn clean(ids: &[u8]) -> ShardRecord {
    let mut record = started(ids);
    record.clean();
    record
}

/// The acting set, primary first.
fn chosen(
    ground: &Ground,
    record: &ShardRecord,
    target: &[u8],
    required: usize,
) -> Option<Vec<u8>> {
    let target: Vec<DiskId> = target.iter().map(|id| disk(*id)).collect();
    let substitutes = || vec![disk(9), disk(8)];
    let shard = Shard { record, target: &target, substitutes: &substitutes, required };
    let choice = choose(ground, &shard)?;
    let mut ids: Vec<u8> = choice.seats.iter().map(|(disk, _)| disk.0[0]).collect();
    ids.sort_by_key(|id| *id != choice.primary.0[0]);
    Some(ids)
}

#[test]
fn a_new_shard_acts_on_its_targets() {
    let all = ground(&[1, 2, 3, 4]);
    assert_eq!(chosen(&all, &ShardRecord::default(), &[3, 1, 2], 2), Some(vec![3, 1, 2]));
    assert_eq!(chosen(&ground(&[1, 4]), &ShardRecord::default(), &[3, 1], 1), Some(vec![1]));
    assert_eq!(chosen(&ground(&[]), &ShardRecord::default(), &[3, 1], 1), None);
}

#[test]
fn without_a_holder_nothing_changes() {
    assert_eq!(chosen(&ground(&[3, 4]), &clean(&[1, 2]), &[3, 4], 1), None);
    // One that acts, but was never activated, is none.
    let mut record = clean(&[1, 2]);
    step(&mut record, &[1, 3]);
    assert_eq!(chosen(&ground(&[3, 4]), &record, &[3, 4], 1), None);
    assert_eq!(chosen(&ground(&[2, 3]), &record, &[3, 4], 1), Some(vec![2, 3]));
}

#[test]
fn one_that_went_is_left_out_and_joins_again() {
    let record = clean(&[1, 2, 3]);
    assert_eq!(chosen(&ground(&[1, 2, 3]), &record, &[1, 2, 3], 2), Some(vec![1, 2, 3]));
    assert_eq!(chosen(&ground(&[2, 3]), &record, &[1, 2, 3], 2), Some(vec![2, 3]));
    let mut record = record;
    step(&mut record, &[2, 3]);
    record.activate();
    // It lacks what was written meanwhile, so it does not order.
    assert_eq!(chosen(&ground(&[1, 2, 3]), &record, &[1, 2, 3], 2), Some(vec![2, 1, 3]));
    step(&mut record, &[2, 1, 3]);
    record.activate();
    record.clean();
    assert_eq!(chosen(&ground(&[1, 2, 3]), &record, &[1, 2, 3], 2), Some(vec![1, 2, 3]));
}

#[test]
fn a_restarted_process_is_another_one() {
    let record = clean(&[1, 2]);
    let mut all = ground(&[1, 2]);
    all.disks.get_mut(&disk(2)).expect("place").process.incarnation = 2;
    let target = [disk(1), disk(2)];
    let shard = Shard { record: &record, target: &target, substitutes: &Vec::new, required: 1 };
    let choice = choose(&all, &shard).expect("choice");
    assert!(!choice.is_in(&record), "though it is no primary");
}

#[test]
fn a_move_keeps_the_old_until_the_new_is_complete() {
    let all = ground(&[1, 2, 3]);
    let mut record = clean(&[1, 2]);
    assert_eq!(chosen(&all, &record, &[3, 1], 1), Some(vec![1, 3, 2]));
    step(&mut record, &[1, 3, 2]);
    record.activate();
    assert_eq!(chosen(&all, &record, &[3, 1], 1), Some(vec![1, 3, 2]));
    record.clean();
    assert_eq!(chosen(&all, &record, &[3, 1], 1), Some(vec![3, 1]));
    // While one target is away, the old one stays in its place.
    assert_eq!(chosen(&ground(&[2, 3]), &record, &[3, 1], 1), Some(vec![3, 2]));
}

#[test]
fn while_nobody_is_complete_all_holders_act() {
    let record = started(&[1, 2]);
    assert_eq!(chosen(&ground(&[1, 2, 3, 4]), &record, &[3, 4], 1), Some(vec![1, 3, 4, 2]));
}

#[test]
fn substitutes_join_where_fewer_than_required_act() {
    let record = clean(&[1, 2, 3]);
    assert_eq!(chosen(&ground(&[1, 2, 8, 9]), &record, &[1, 2, 3], 2), Some(vec![1, 2]));
    assert_eq!(chosen(&ground(&[1, 8, 9]), &record, &[1, 2, 3], 2), Some(vec![1, 9]));
    // One that is there stays; any zone will do if the named ones are not there.
    let mut record = record;
    step(&mut record, &[1, 8]);
    assert_eq!(chosen(&ground(&[1, 8, 9]), &record, &[1, 2, 3], 2), Some(vec![1, 8]));
    assert_eq!(chosen(&ground(&[1, 7]), &record, &[1, 2, 3], 2), Some(vec![1, 7]));
    // One from which data is moved away is no substitute, nor one of a zone that is in.
    let mut few = ground(&[1, 7]);
    few.disks.get_mut(&disk(7)).expect("place").draining = true;
    assert_eq!(chosen(&few, &record, &[1, 2, 3], 2), Some(vec![1]));
    let mut few = ground(&[1, 7]);
    few.disks.get_mut(&disk(7)).expect("place").zone = 1;
    assert_eq!(chosen(&few, &record, &[1, 2, 3], 2), Some(vec![1]));
}

#[test]
fn of_two_that_do_not_reach_each_other_one_goes() {
    let cut = |a: u8, b: u8| BTreeSet::from([(NodeId([a; 16]), NodeId([b; 16]))]);
    let reach = |all: &[(u8, usize)]| all.iter().map(|(n, r)| (NodeId([*n; 16]), *r)).collect();
    let record = clean(&[1, 2, 3]);
    let mut all = ground(&[1, 2, 3]);
    all.cut = cut(1, 2);
    // The one that fewer nodes reach.
    all.reach = reach(&[(1, 2), (2, 4), (3, 4)]);
    assert_eq!(chosen(&all, &record, &[1, 2, 3], 2), Some(vec![2, 3]));
    // Else the higher id, unless it is the coordinator.
    all.reach = reach(&[(1, 3), (2, 3), (3, 4)]);
    assert_eq!(chosen(&all, &record, &[1, 2, 3], 2), Some(vec![1, 3]));
    all.coordinator = NodeId([2; 16]);
    assert_eq!(chosen(&all, &record, &[1, 2, 3], 2), Some(vec![2, 3]));
    // A joiner never drives out a holder.
    let mut record = clean(&[1]);
    step(&mut record, &[1, 2]);
    assert_eq!(chosen(&all, &record, &[1, 2], 1), Some(vec![1]));
    // A shard that they do not share does not care.
    assert_eq!(chosen(&all, &clean(&[1, 3]), &[1, 3], 2), Some(vec![1, 3]));
}

#[test]
fn one_that_leaves_does_not_order_if_another_holder_can() {
    let mut all = ground(&[1, 2]);
    all.disks.get_mut(&disk(1)).expect("place").leaving = true;
    assert_eq!(chosen(&all, &clean(&[1, 2]), &[1, 2], 1), Some(vec![2, 1]));
    // A joiner could only order what it does not have.
    assert_eq!(chosen(&all, &clean(&[1]), &[1, 2], 1), Some(vec![1, 2]));
}

#[test]
fn the_damped_join_only_where_they_are_needed() {
    let mut record = clean(&[1, 2, 3]);
    step(&mut record, &[1, 2]);
    record.activate();
    let mut all = ground(&[1, 2, 3]);
    all.disks.get_mut(&disk(3)).expect("place").damped = true;
    assert_eq!(chosen(&all, &record, &[1, 2, 3], 2), Some(vec![1, 2]));
    assert_eq!(chosen(&all, &record, &[1, 2, 3], 3), Some(vec![1, 2, 3]));
    // One that acts is not driven out, and the only holder is needed.
    all.disks.get_mut(&disk(2)).expect("place").damped = true;
    assert_eq!(chosen(&all, &record, &[1, 2, 3], 1), Some(vec![1, 2]));
    let mut back = ground(&[1, 3]);
    back.disks.get_mut(&disk(1)).expect("place").damped = true;
    back.disks.get_mut(&disk(1)).expect("place").process.incarnation = 2;
    assert_eq!(chosen(&back, &record, &[1, 2, 3], 1), Some(vec![1, 3]));
}

#[test]
fn an_acting_set_has_a_limit() {
    let ids: Vec<u8> = (1..=120).collect();
    let mut record = ShardRecord::default();
    step(&mut record, &ids);
    record.activate();
    let target: Vec<u8> = (121..=152).collect();
    let all: Vec<u8> = (1..=152).collect();
    assert_eq!(chosen(&ground(&all), &record, &target, 1).map(|ids| ids.len()), Some(SEATS_MAX));
}
