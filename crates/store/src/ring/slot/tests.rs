//! The calls of an operation and what their results lead to, with made-up results.

use super::*;
use DurableMethod::{Dsync, Flush};
use std::fs::File;

fn areas(data_bytes: u64) -> Areas {
    let data = tempfile::tempfile().unwrap();
    data.set_len(data_bytes).unwrap();
    Areas::new(data, tempfile::tempfile().unwrap()).unwrap()
}

fn slot(what: DiskOp, method: DurableMethod, areas: &Areas) -> Slot {
    Slot::new(OpId(1), what, method, Ok(()), areas)
}

fn write(data: Vec<Bytes>, durable: bool) -> DiskOp {
    DiskOp::Write { area: Area::Data, offset: 1000, data, durable }
}

/// The bytes a write call would write.
fn written(call: &Call) -> (u64, Vec<u8>, bool) {
    match call {
        Call::Write { offset, buf, len, dsync, .. } => {
            // SAFETY: the call points into buffers that the caller's slot holds.
            let bytes = unsafe { std::slice::from_raw_parts(*buf, *len as usize) };
            (*offset, bytes.to_vec(), *dsync)
        }
        Call::Writev { offset, segments, count, dsync, .. } => {
            assert!((2..=1024).contains(count));
            // SAFETY: as above, for the array of segments and for what each of them names.
            let bytes = unsafe {
                std::slice::from_raw_parts(*segments, *count as usize)
                    .iter()
                    .flat_map(|s| std::slice::from_raw_parts(s.iov_base.cast::<u8>(), s.iov_len))
                    .copied()
                    .collect()
            };
            (*offset, bytes, *dsync)
        }
        _ => panic!("no write"),
    }
}

fn done(next: Next) -> Result<Bytes, DiskError> {
    match next {
        Next::Done(result) => result,
        Next::Again => panic!("not done"),
    }
}

fn again(next: &Next) {
    assert!(matches!(next, Next::Again));
}

#[test]
fn a_short_write_goes_on_where_it_stopped() {
    let areas = areas(0);
    let data: Vec<u8> = (0..100).collect();
    let pieces = vec![
        Bytes::copy_from_slice(&data[..40]),
        Bytes::new(),
        Bytes::copy_from_slice(&data[40..70]),
        Bytes::copy_from_slice(&data[70..]),
    ];
    let mut slot = slot(write(pieces, true), Dsync, &areas);
    assert_eq!(written(&slot.call()), (1000, data.clone(), true));
    again(&slot.landed(55, &areas));
    assert_eq!(written(&slot.call()), (1055, data[55..].to_vec(), true));
    again(&slot.landed(20, &areas));
    assert_eq!(written(&slot.call()), (1075, data[75..].to_vec(), true));
    assert_eq!(done(slot.landed(25, &areas)), Ok(Bytes::new()));
}

#[test]
fn segments_beyond_one_call_follow_in_the_next() {
    let areas = areas(0);
    let pieces: Vec<_> = (0..2500).map(|i| Bytes::from(vec![i as u8; 3])).collect();
    let whole = pieces.concat();
    let mut slot = slot(write(pieces, false), Dsync, &areas);
    assert_eq!(written(&slot.call()), (1000, whole[..3072].to_vec(), false));
    again(&slot.landed(3072, &areas));
    assert_eq!(written(&slot.call()), (4072, whole[3072..6144].to_vec(), false));
    again(&slot.landed(3072, &areas));
    assert_eq!(written(&slot.call()), (7144, whole[6144..].to_vec(), false));
    assert!(done(slot.landed(7500 - 6144, &areas)).is_ok());
}

#[test]
fn a_write_with_flush_syncs_behind_the_last_byte_only() {
    let areas = areas(0);
    let mut slot = slot(write(vec![Bytes::from_static(b"abcd")], true), Flush, &areas);
    assert_eq!(written(&slot.call()), (1000, b"abcd".to_vec(), false));
    again(&slot.landed(3, &areas));
    assert_eq!(written(&slot.call()), (1003, b"d".to_vec(), false));
    again(&slot.landed(1, &areas));
    assert!(matches!(slot.call(), Call::Sync { area: Area::Data }));
    assert!(done(slot.landed(0, &areas)).is_ok());
}

#[test]
fn put_off_calls_are_made_again_but_not_for_ever() {
    let areas = areas(0);
    let mut write = slot(write(vec![Bytes::from_static(b"ab")], false), Dsync, &areas);
    for _ in 0..RETRIES_MAX {
        write.call();
        again(&write.landed(-libc::EAGAIN, &areas));
    }
    again(&write.landed(1, &areas));
    for _ in 0..RETRIES_MAX {
        again(&write.landed(-libc::EINTR, &areas));
    }
    let error = done(write.landed(-libc::EINTR, &areas)).unwrap_err();
    assert_eq!(error.kind, DiskErrorKind::Io);
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    let areas = areas(0);
    for errno in [libc::EINTR, libc::EAGAIN, libc::EIO, libc::ENOSPC] {
        let mut slot = slot(DiskOp::Sync { area: Area::Log }, Dsync, &areas);
        assert!(matches!(slot.call(), Call::Sync { area: Area::Log }));
        let error = done(slot.landed(-errno, &areas)).unwrap_err();
        assert!(error.text.starts_with("sync log: "), "{}", error.text);
    }
}

#[test]
fn a_write_of_nothing_is_an_error() {
    let areas = areas(0);
    let mut slot = slot(write(vec![Bytes::from_static(b"ab")], false), Dsync, &areas);
    slot.call();
    assert!(done(slot.landed(0, &areas)).is_err());
}

#[test]
fn a_short_read_is_continued_up_to_the_end_of_the_file() {
    let areas = areas(5000);
    let mut slot = slot(DiskOp::Read { area: Area::Data, offset: 0, len: 8192 }, Dsync, &areas);
    // What the kernel would do with the buffer: more than it counts.
    let fill = |call: Call, at: u64, count: usize| match call {
        Call::Read { offset, buf, len, .. } => {
            assert_eq!((offset, u64::from(len)), (at, 8192 - at));
            // SAFETY: the slot's buffer has `len` bytes there.
            unsafe { std::ptr::write_bytes(buf, 7, (count + 100).min(len as usize)) };
        }
        _ => panic!("no read"),
    };
    fill(slot.call(), 0, 4000);
    again(&slot.landed(4000, &areas));
    fill(slot.call(), 4000, 1000);
    let bytes = done(slot.landed(1000, &areas)).unwrap();
    assert_eq!(bytes.len(), 8192);
    assert!(bytes[..5000].iter().all(|b| *b == 7));
    assert!(bytes[5000..].iter().all(|b| *b == 0));
}

#[test]
fn where_holes_cannot_be_punched_zeros_are_written_up_to_the_end() {
    let areas = areas(3 << 20);
    let punch = |offset, len| DiskOp::Punch { offset, len };
    let mut slot_ = slot(punch(4096, 8 << 20), Dsync, &areas);
    assert!(matches!(slot_.call(), Call::Punch { .. }));
    again(&slot_.landed(-libc::EOPNOTSUPP, &areas));
    let mut at = 4096;
    loop {
        let (offset, bytes, dsync) = written(&slot_.call());
        assert_eq!((offset, dsync), (at, false));
        assert!(bytes.len() <= ZEROS_BYTES && bytes.iter().all(|b| *b == 0));
        at += bytes.len() as u64;
        match slot_.landed(bytes.len() as i32, &areas) {
            Next::Again => {}
            Next::Done(result) => break assert!(result.is_ok()),
        }
    }
    assert_eq!(at, 3 << 20);
    let mut behind = slot(punch(4 << 20, 4096), Dsync, &areas);
    assert!(done(behind.landed(-libc::EOPNOTSUPP, &areas)).is_ok());
    let mut failing = slot(punch(0, 4096), Dsync, &areas);
    assert!(done(failing.landed(-libc::EIO, &areas)).is_err());
}

#[test]
fn where_space_cannot_be_reserved_nothing_is_done() {
    let areas = areas(0);
    let allocate = DiskOp::Allocate { offset: 0, len: 4096 };
    let mut unable = slot(allocate.clone(), Dsync, &areas);
    assert!(done(unable.landed(-libc::EOPNOTSUPP, &areas)).is_ok());
    let mut full = slot(allocate, Dsync, &areas);
    let error = done(full.landed(-libc::ENOSPC, &areas)).unwrap_err();
    assert_eq!(error.kind, DiskErrorKind::NoSpace);
    assert!(error.text.starts_with("reserve data at 0: "));
}

#[test]
fn an_extension_that_failed_says_so() {
    let areas = Areas::new(File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap());
    let failed = Err(io::Error::from_raw_os_error(libc::EFBIG));
    let what = DiskOp::Extend { len: 1 };
    let areas = areas.unwrap();
    let mut slot = Slot::new(OpId(1), what, Dsync, failed, &areas);
    assert!(matches!(slot.call(), Call::Nop));
    let error = done(slot.landed(0, &areas)).unwrap_err();
    assert!(error.text.starts_with("extend data: "), "{}", error.text);
}
