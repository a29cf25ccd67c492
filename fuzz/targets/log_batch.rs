//! Batches of the log with their records.
#![no_main]

use sheepdog_fuzz::input::u64_at;
use sheepdog_fuzz::meter::bounded;
use sheepdog_fuzz::store::{AS_IT_IS, geometry, resealed_batch, sample, seed};
use sheepdog_storelog::format::batch::{
    self, BATCH_BYTES_MAX, BatchHeader, Body, HEADER_BYTES, LogRecord, LogRecordRef,
    RECORDS_BYTES_MAX,
};
use sheepdog_types::{BLOCK_SIZE, Geometry};

sheepdog_fuzz::target!(seeds, run);

fn seeds() -> Vec<Vec<u8>> {
    let batch = sample(include_str!("../../crates/storelog/tests/samples/batch.txt"));
    let second = sample(include_str!("../../crates/storelog/tests/samples/batch_2.txt"));
    // The sample's geometry; the product's, to which its extents do not fit; as it is.
    let choices = [1, 0, 2, 1 | AS_IT_IS];
    [batch, second].iter().flat_map(|batch| choices.map(|choice| seed(choice, batch))).collect()
}

/// The first byte chooses geometry (low bits), log unit (the next) and whether the batch is sealed
/// anew.
fn run(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let log_unit = 512 << (choice >> 3 & 3);
    let geometry = geometry(choice & 7);
    let bytes = match choice & AS_IT_IS {
        0 => resealed_batch(bytes.to_vec(), log_unit),
        _ => bytes.to_vec(),
    };
    // A record of 31 bytes on disk takes 200 in memory, in a list that doubles.
    bounded((16 << 10) + 32 * bytes.len(), || read(&bytes, log_unit, geometry));
}

fn read(bytes: &[u8], log_unit: u32, geometry: Geometry) {
    let log_id = u64_at(bytes, 8);
    assert!(BatchHeader::peek(bytes, !log_id, log_unit).is_err(), "another log's");
    let Ok(header) = BatchHeader::peek(bytes, log_id, log_unit) else {
        return;
    };
    let header_bytes = header.header_bytes as usize;
    assert!((HEADER_BYTES..=RECORDS_BYTES_MAX).contains(&header_bytes));
    assert!(header.total_bytes() <= BATCH_BYTES_MAX as u64);
    let Ok(records) = batch::decode(&header, bytes, geometry) else {
        return;
    };
    assert_eq!(records.len(), header.records as usize);
    for record in &records {
        check(record, geometry);
    }
    let payload: usize = records.iter().map(|record| record.payload_blocks(geometry)).sum();
    assert_eq!(payload * BLOCK_SIZE, header.payload_bytes as usize);
    let encoded = records.iter().map(|record| LogRecordRef::from(record).encoded_bytes());
    let encoded: usize = encoded.sum();
    let (again, written) = batch::encode(header, records.iter(), log_unit);
    let len = (HEADER_BYTES + encoded).next_multiple_of(log_unit as usize);
    assert_eq!(written.len(), len, "the size that was foretold");
    assert!(again.header_bytes <= header.header_bytes);
    let peeked = BatchHeader::peek(&written, log_id, log_unit).expect("it was just written");
    assert_eq!(peeked, again);
    let back = batch::decode(&peeked, &written, geometry).expect("it was just written");
    assert_eq!(back, records);
}

/// Everything a record says lies inside its fragment.
fn check(record: &LogRecord, geometry: Geometry) {
    let LogRecord::Fragment(record) = record else {
        return;
    };
    let (start, count, placed) = match &record.body {
        Body::Write { start, crcs, extents, .. } => (*start, crcs.len() as u32, extents.as_slice()),
        Body::Zero { start, count, units, .. } => (*start, *count, units.as_slice()),
        Body::Fill { chunks, .. } => {
            assert!(chunks.is_sorted_by(|a, b| a.chunk < b.chunk));
            let inside = |chunk: u8| u32::from(chunk) < geometry.chunks_per_fragment();
            assert!(chunks.iter().all(|filled| inside(filled.chunk)));
            let vids = chunks.iter().flat_map(|filled| &filled.vids);
            for filled in vids {
                assert_eq!(filled.crcs.len(), filled.data.count_ones() as usize);
                assert_eq!(filled.unit.is_some(), filled.data | filled.reserved != 0);
            }
            return;
        }
        Body::DeleteVid { .. } | Body::Miss | Body::Forget => return,
    };
    assert!(count > 0 && start + count <= geometry.blocks_per_fragment());
    assert!(placed.iter().all(|p| u32::from(p.chunk) < geometry.chunks_per_fragment()));
    assert!(placed.is_sorted_by(|a, b| a.chunk < b.chunk));
}
