//! Frames from hostile and slow streams.

use super::*;
use crate::message::{Done, Write};
use proptest::prelude::*;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
}

fn write_frame(align: u16, bulk: Vec<Bytes>) -> Vec<u8> {
    let envelope = Envelope {
        version: 1,
        op: 0x42,
        reply: false,
        status: 0,
        request_id: 7,
        bulk_align: align,
    };
    let message = Write { handle: 3, offset: u64::from(align) };
    let frame = OutFrame::new(envelope, &message, bulk).expect("fits");
    let mut out = Vec::new();
    block_on(frame.write(&mut out)).expect("memory");
    out
}

async fn read_all(mut stream: &[u8]) -> Result<Option<Frame>> {
    match read_header(&mut stream).await? {
        Some(header) => read_payload(&mut stream, header).await.map(Some),
        None => Ok(None),
    }
}

#[test]
fn bulk_data_lands_where_the_disk_wants_it() {
    let bytes = write_frame(1536, vec![Bytes::from_static(b"abc"), Bytes::from(vec![9; 5000])]);
    let frame = block_on(read_all(&bytes)).expect("good").expect("one");
    assert_eq!(frame.bulk.as_ptr() as usize % 4096, 1536);
    assert_eq!(&frame.bulk[..4], b"abc\x09");
    assert_eq!(frame.bulk.len(), 5003);
}

#[test]
fn every_cut_is_an_error_and_every_damage_is_seen() {
    let bytes = write_frame(0, vec![Bytes::from_static(b"0123456789")]);
    assert!(block_on(read_all(&[])).expect("end").is_none());
    for cut in 1..bytes.len() {
        let error = block_on(read_all(&bytes[..cut])).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::Unreachable, "cut at {cut}");
    }
    for at in HEADER_BYTES..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let error = block_on(read_all(&bad)).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Io, "damage at {at}");
    }
}

#[test]
fn what_is_too_large_is_not_sent() {
    let envelope =
        Envelope { version: 1, op: 0x42, reply: false, status: 0, request_id: 7, bulk_align: 0 };
    let full = vec![Bytes::from(vec![0; BULK_MAX])];
    assert!(OutFrame::new(envelope, &Done {}, full.clone()).is_ok());
    let over = [full, vec![Bytes::from_static(b"x")]].concat();
    assert!(OutFrame::new(envelope, &Done {}, over).is_err());
}

#[test]
fn thousands_of_pieces_leave_whole() {
    let pieces: Vec<Bytes> =
        (0..3000u32).map(|i| Bytes::copy_from_slice(&i.to_le_bytes())).collect();
    let bytes = write_frame(0, pieces.clone());
    let frame = block_on(read_all(&bytes)).expect("good").expect("one");
    assert_eq!(frame.bulk, pieces.concat());
}

proptest! {
    #[test]
    fn random_streams_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = block_on(read_all(&bytes));
    }

    #[test]
    fn mutated_frames_are_refused(at: proptest::sample::Index, value: u8) {
        let mut bytes = write_frame(0, vec![Bytes::from_static(b"0123456789abcdef")]);
        let at = at.index(bytes.len());
        let same = bytes[at] == value;
        bytes[at] = value;
        prop_assert_eq!(block_on(read_all(&bytes)).is_ok(), same);
    }
}
