//! Superblock, checkpoint slots and the log's owner block, the first bytes that are read of a disk.
#![no_main]

use sheepdog_fuzz::input::u64_at;
use sheepdog_fuzz::meter::bounded;
use sheepdog_fuzz::store::{AS_IT_IS, reframed, sample, seed};
use sheepdog_storelog::format::codec::FRAME_BYTES;
use sheepdog_storelog::format::superblock::{CheckpointSlot, LogOwner};
use sheepdog_storelog::{LOG_ELSEWHERE, LOG_HAS_OWNER, OWNER_BYTES, Superblock};
use sheepdog_types::BLOCK_SIZE;

sheepdog_fuzz::target!(seeds, run);

fn seeds() -> Vec<Vec<u8>> {
    let superblock = sample(include_str!("../../crates/storelog/tests/samples/superblock.txt"));
    let slot = sample(include_str!("../../crates/storelog/tests/samples/slot.txt"));
    let owner = sample(include_str!("../../crates/storelog/tests/samples/log_owner.txt"));
    let slot_1 = sample(include_str!("../../crates/storelog/tests/samples/slot_1.txt"));
    let owner_1 = sample(include_str!("../../crates/storelog/tests/samples/log_owner_1.txt"));
    vec![
        seed(0, &superblock),
        seed(1, &slot),
        seed(2, &owner),
        seed(1, &slot_1),
        seed(2, &owner_1),
        seed(AS_IT_IS, &superblock),
    ]
}

fn run(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let bytes = if choice & AS_IT_IS == 0 { reframed(bytes) } else { bytes.to_vec() };
    bounded(4096 + 4 * bytes.len(), || match choice & 3 {
        0 => superblock(&bytes),
        2 => owner(&bytes),
        _ => slot(&bytes),
    });
}

fn superblock(bytes: &[u8]) {
    let Ok(found) = Superblock::decode(bytes) else {
        return;
    };
    assert!((512..=4096).contains(&found.log_unit) && found.log_unit.is_power_of_two());
    assert!(found.log_bytes >= 64 * BLOCK_SIZE as u64);
    assert_eq!(found.log_bytes % u64::from(found.log_unit), 0);
    assert_eq!(found.features & !(LOG_ELSEWHERE | LOG_HAS_OWNER), 0);
    assert!(found.log_area_bytes() <= found.log_bytes + OWNER_BYTES);
    let again = found.encode();
    assert!(again.len() <= BLOCK_SIZE, "it is one block");
    assert_eq!(Superblock::decode(&again), Ok(found));
}

fn owner(bytes: &[u8]) {
    let Ok(found) = LogOwner::decode(bytes) else {
        return;
    };
    let again = found.encode();
    assert!(again.len() as u64 <= OWNER_BYTES, "it is one block");
    assert_eq!(LogOwner::decode(&again), Ok(found));
    let sample = sample(include_str!("../../crates/storelog/tests/samples/superblock.txt"));
    let sample = Superblock::decode(&sample).expect("a sample");
    let ours = Superblock { log_id: found.log_id, disk: found.disk, ..sample };
    assert_eq!(found.check(&ours), Ok(()));
    let other = Superblock { log_id: !found.log_id, ..ours };
    assert!(found.check(&other).is_err(), "another log's");
}

fn slot(bytes: &[u8]) {
    let log_id = u64_at(bytes, FRAME_BYTES);
    let Ok(found) = CheckpointSlot::decode(log_id, bytes) else {
        return;
    };
    let again = found.encode(log_id);
    assert!(again.len() <= BLOCK_SIZE, "it is one block");
    assert_eq!(CheckpointSlot::decode(log_id, &again), Ok(found));
    assert!(CheckpointSlot::decode(!log_id, bytes).is_err(), "another log's");
}
