//! Every command, and random ones against a plain array of bytes.

mod common;

use common::client::*;
use common::{DISK, TestServer};
use proptest::prelude::*;
use sheepdog_nbd::Limits;
use sheepdog_testkit::shown::assert_same;
use sheepdog_types::ErrorKind;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PERM: u32 = 1;
const INVAL: u32 = 22;
const NOSPC: u32 = 28;

#[test]
fn holes_are_not_sent_but_with_df_or_simple_replies() {
    let server = TestServer::start();
    let mut full = Client::full(&server, "disk");
    assert_eq!(full.write(8192, &[1; 8192]).error, 0);
    assert_eq!(full.call(ZEROES, NO_HOLE, 20480, 4096).error, 0);
    let reply = full.call(READ, 0, 100, 32768);
    assert_eq!(reply.chunks, [(false, 8092), (true, 8192), (false, 16484)]);
    assert_eq!(reply.data[8092..16284], [1; 8192]);
    let whole = full.call(READ, DF | FUA, 100, 32768);
    assert_eq!(whole.chunks, [(true, 32768)]);
    assert_eq!(whole.data, reply.data);
    assert_eq!(full.call(READ, 0, 0, 4096).chunks, [(false, 4096)]);
    let mut simple = Client::simple(&server, "disk");
    assert_same(simple.read(100, 32768), reply.data);
    assert_eq!(simple.call(READ, DF, 0, 1).error, INVAL, "only with structured replies");
}

#[test]
fn block_status_tells_data_zeros_and_holes() {
    let server = TestServer::start();
    let mut client = Client::full(&server, "disk");
    client.write(8192, &[1; 8192]);
    assert_eq!(client.call(ZEROES, NO_HOLE | FAST_ZERO, 16384, 4096).error, 0);
    let want = [(8192 - 10, 3), (8192, 0), (4096, 2), (5000, 3)];
    let len = want.iter().map(|extent| extent.0).sum();
    assert_eq!(client.call(STATUS, 0, 10, len).extents, want);
    assert_eq!(client.call(STATUS, REQ_ONE, 10, len).extents, want[..1]);
    assert_eq!(client.call(STATUS, REQ_ONE, 8192, 100).extents, [(100, 0)]);
    assert_eq!(client.call(TRIM, 0, 8192, 12288).error, 0);
    let all = DISK as u32;
    assert_eq!(client.call(STATUS, 0, 0, all).extents, [(all, 3)]);
    assert_eq!(client.call(STATUS, 0, 0, 0).error, INVAL);
    assert_eq!(client.call(STATUS, NO_HOLE, 0, 1).error, INVAL);
    assert_eq!(client.call(STATUS, 0, 1, all).error, INVAL);
    let mut simple = Client::simple(&server, "disk");
    assert_eq!(simple.call(STATUS, 0, 0, 4096).error, INVAL, "not negotiated");
}

#[test]
fn block_status_is_bounded() {
    let server = TestServer::start();
    let mut client = Client::full(&server, "huge");
    assert_eq!(client.size, 16 << 50);
    // Every other block of 128 MiB.
    for i in 0..16384 {
        client.send(&write(i, i * 8192, &[1; 4096]));
        if i % 64 == 63 {
            for _ in 0..64 {
                assert_eq!(client.reply(None).error, 0);
            }
        }
    }
    let reply = client.call(STATUS, 0, 0, u32::MAX);
    assert_eq!(reply.extents.len(), 8192);
    assert!(reply.extents.iter().all(|extent| extent.0 == 4096));
    // Across the steps in which the map is asked for, extents are one.
    let far = 15 << 50;
    assert_eq!(client.call(STATUS, 0, far, 200 << 20).extents, [(200 << 20, 3)]);
    assert_eq!(client.call(TRIM, 0, 0, 1 << 30).error, 0);
    assert_eq!(client.call(STATUS, REQ_ONE, 0, 3 << 30).extents, [(3 << 30, 3)]);
    // Bounds beyond 32 bits.
    assert_eq!(client.write((16 << 50) - 3, b"end").error, 0);
    assert_eq!(client.read((16 << 50) - 4, 4), b"\0end");
    assert_eq!(client.write((16 << 50) - 2, b"end").error, NOSPC);
}

#[test]
fn ranges_beyond_the_end_are_refused_and_the_stream_stays_in_step() {
    let server = TestServer::start();
    for mut client in [Client::simple(&server, "disk"), Client::full(&server, "disk")] {
        for (offset, len) in [(DISK, 1), (DISK - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 70_000)] {
            let data = vec![9; len as usize];
            assert_eq!(client.write(offset, &data).error, NOSPC);
            assert_eq!(client.call(ZEROES, 0, offset, len).error, NOSPC);
            for kind in [READ, TRIM, CACHE] {
                assert_eq!(client.call(kind, 0, offset, len).error, INVAL);
            }
        }
        for kind in [READ, WRITE, ZEROES, TRIM, CACHE] {
            assert_eq!(client.call(kind, 0, 5, 0).error, 0, "nothing is no error");
            assert_eq!(client.call(kind, 0, DISK, 0).error, 0);
            assert_ne!(client.call(kind, 0, DISK + 1, 0).error, 0);
        }
        assert_eq!(client.call(FLUSH, FUA, 0, 0).error, 0);
        assert_eq!(client.call(CACHE, 0, 0, 4096).error, 0);
        assert_eq!(client.read(DISK - 9, 9), [0; 9]);
    }
    assert_eq!(server.gate.state().started, 0);
}

#[test]
fn unknown_commands_and_flags_are_refused() {
    let server = TestServer::start();
    let mut client = Client::full(&server, "disk");
    for kind in [8, 9, 0xffff] {
        assert_eq!(client.call(kind, 0, 0, 512).error, INVAL);
    }
    for (kind, flags) in [
        (READ, NO_HOLE),
        (READ, 32),
        (TRIM, NO_HOLE),
        (ZEROES, DF),
        (FLUSH, REQ_ONE),
        (CACHE, FAST_ZERO),
    ] {
        assert_eq!(client.call(kind, flags, 0, 512).error, INVAL);
    }
    assert_eq!(client.call_with(WRITE, DF, 0, 3, b"abc").error, INVAL);
    assert_eq!(client.call_with(WRITE, FUA, 0, 3, b"abc").error, 0);
    assert_eq!(client.read(0, 3), b"abc");
}

#[test]
fn lengths_beyond_the_limit() {
    let server = TestServer::with_limits(Limits {
        request_bytes: 1 << 20,
        skip_bytes: 2 << 20,
        ..Limits::default()
    });
    let mut client = Client::simple(&server, "disk");
    assert_eq!(client.call(READ, 0, 0, (1 << 20) + 1).error, INVAL);
    assert_eq!(client.write(0, &vec![1; (1 << 20) + 1]).error, INVAL);
    assert_eq!(client.write(0, &vec![2; 1 << 20]).error, 0);
    assert_same(client.read(0, 1 << 20), vec![2; 1 << 20]);
    client.send(&request(WRITE, 0, 99, 0, (2 << 20) + 1));
    let reply = client.reply(None);
    assert_eq!((reply.cookie, reply.error), (99, INVAL));
    assert_eq!(client.rest(), b"");
}

#[test]
fn read_only_exports_refuse_every_change() {
    let server = TestServer::start();
    Client::simple(&server, "disk").write(0, b"kept");
    let mut client = Client::full(&server, "disk@snap");
    assert_eq!(client.flags & 2, 2);
    let reply = client.write(0, b"lost");
    assert_eq!((reply.error, &*reply.text), (PERM, "the export is read-only"));
    assert_eq!(client.call(TRIM, 0, 0, 4096).error, PERM);
    assert_eq!(client.call(ZEROES, 0, 0, 4096).error, PERM);
    assert_eq!(client.call(FLUSH, 0, 0, 0).error, 0);
    assert_eq!(client.read(0, 4), b"kept");
}

#[test]
fn errors_of_the_volume_reach_the_client() {
    let server = TestServer::start();
    let mut client = Client::full(&server, "disk");
    for (kind, errno) in [
        (ErrorKind::NoSpace, 28),
        (ErrorKind::Io, 5),
        (ErrorKind::ReadOnly, 1),
        (ErrorKind::Invalid, 22),
        (ErrorKind::ShuttingDown, 108),
    ] {
        server.gate.state().fail = Some(kind);
        let reply = client.write(0, b"x");
        assert_eq!(reply.error, errno);
        assert_eq!(reply.text, format!("{}: as the test asked", kind.text()));
    }
    assert_eq!(client.read(0, 1), [0]);
}

#[test]
fn answers_come_as_they_are_ready() {
    let server = TestServer::start();
    let mut client = Client::simple(&server, "disk");
    server.gate.hold();
    client.send(&write(1, 0, b"slow"));
    server.gate.wait("the write starts", |s| s.started == 1);
    assert_eq!(client.read(0, 4), [0; 4], "not yet, and not stuck behind it");
    server.gate.release(1);
    let reply = client.reply(None);
    assert_eq!((reply.cookie, reply.error), (1, 0));
    assert_eq!(client.read(0, 4), b"slow");
}

#[test]
fn what_was_admitted_is_answered_after_disconnect() {
    let server = TestServer::start();
    let mut client = Client::simple(&server, "disk");
    server.gate.hold();
    for i in 0..3 {
        client.send(&write(i, i * 10, b"last"));
    }
    client.send(&request(DISC, 0, 0, 0, 0));
    client.send(&write(9, 90, b"never"));
    server.gate.wait("all start", |s| s.started == 3);
    server.gate.release(3);
    let mut cookies = [0, 1, 2].map(|_| {
        let reply = client.reply(None);
        assert_eq!(reply.error, 0);
        reply.cookie
    });
    cookies.sort_unstable();
    assert_eq!(cookies, [0, 1, 2]);
    assert_eq!(client.rest(), b"");
    assert_eq!(server.gate.state().started, 3);
}

#[test]
fn a_volume_that_dies_costs_its_connection_only() {
    let server = TestServer::start();
    let mut client = Client::simple(&server, "disk");
    server.gate.state().panic = true;
    client.send(&write(1, 0, b"x"));
    assert_eq!(client.rest(), b"");
    let mut client = Client::simple(&server, "disk");
    assert_eq!(client.write(0, b"y").error, 0);
}

#[test]
fn payloads_lie_in_memory_as_on_the_disk() {
    let server = TestServer::start();
    let mut client = Client::simple(&server, "disk");
    for len in [1_usize, 4096, 5000, 32 << 10, (32 << 10) + 1, 65536, 1 << 20, 3 << 20] {
        for offset in [0_u64, 1, 512, 4095, 4096, 70_001] {
            let data: Vec<u8> = (0..len).map(|i| (i as u64 * 31 + offset) as u8).collect();
            // Two at a time, so that what follows a payload comes with it.
            let mut bytes = write(1, offset, &data);
            bytes.extend(request(READ, 0, 2, DISK - 1, 1));
            client.send(&bytes);
            for _ in 0..2 {
                let magic_error_cookie = client.bytes(16);
                assert_eq!(magic_error_cookie[4..8], [0; 4]);
                if magic_error_cookie[15] == 2 {
                    client.bytes(1);
                }
            }
            assert!(client.read(offset, len as u32) == data, "{len} at {offset}");
        }
    }
    assert_eq!(server.gate.state().misaligned, 0);
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, u32, bool),
    Write(u64, u32, u8),
    Zero(u64, u32, bool),
    Trim(u64, u32),
    Status(u64, u32),
}

/// The part of the disk random requests are about.
const FIELD: u64 = 160 << 10;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let edge = prop_oneof![(0..FIELD), (0..FIELD / 4096).prop_map(|block| block * 4096)];
    let range = (edge.clone(), edge).prop_map(|(a, b)| (a.min(b), a.abs_diff(b) as u32));
    let op = (range, any::<u8>(), 0..5_u8).prop_map(|((at, len), byte, kind)| match kind {
        0 => Op::Read(at, len, byte & 1 == 1),
        1 => Op::Zero(at, len, byte & 1 == 1),
        2 => Op::Trim(at, len),
        3 if len > 0 => Op::Status(at, len),
        _ => Op::Write(at, len, byte),
    });
    prop::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_do_as_an_array_of_bytes(
        ops in ops(),
        structured in any::<bool>(),
        tcp in any::<bool>(),
    ) {
        let mut server = TestServer::start();
        server.tcp = tcp;
        let mut client = if structured {
            Client::full(&server, "disk")
        } else {
            Client::simple(&server, "disk")
        };
        let mut model = vec![0_u8; FIELD as usize];
        for op in ops {
            let span = |at: u64, len: u32| at as usize..at as usize + len as usize;
            match op {
                Op::Read(at, len, whole) => {
                    let flags = if whole && structured { DF } else { 0 };
                    let reply = client.call(READ, flags, at, len);
                    prop_assert_eq!(reply.error, 0);
                    prop_assert!(reply.data == model[span(at, len)]);
                }
                Op::Write(at, len, byte) => {
                    let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(byte)).collect();
                    prop_assert_eq!(client.write(at, &data).error, 0);
                    model[span(at, len)].copy_from_slice(&data);
                }
                Op::Zero(at, len, keep) => {
                    let flags = if keep { NO_HOLE } else { 0 };
                    prop_assert_eq!(client.call(ZEROES, flags, at, len).error, 0);
                    model[span(at, len)].fill(0);
                }
                Op::Trim(at, len) => {
                    prop_assert_eq!(client.call(TRIM, 0, at, len).error, 0);
                    model[span(at, len)].fill(0);
                }
                Op::Status(at, len) => {
                    let reply = client.call(STATUS, 0, at, len);
                    prop_assert_eq!(reply.error, if structured { 0 } else { INVAL });
                    let mut at = at;
                    for (i, &(len, state)) in reply.extents.iter().enumerate() {
                        prop_assert!(len > 0 && state != 1 && state < 4);
                        prop_assert!(i == 0 || reply.extents[i - 1].1 != state);
                        let zeros = model[span(at, len)].iter().all(|b| *b == 0);
                        prop_assert!(state & 2 == 0 || zeros);
                        at += u64::from(len);
                    }
                    let sum: u32 = reply.extents.iter().map(|extent| extent.0).sum();
                    prop_assert_eq!(sum, if structured { len } else { 0 });
                }
            }
        }
        prop_assert!(client.read(0, FIELD as u32) == model);
    }
}
