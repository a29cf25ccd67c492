//! Clients that send garbage, too much, too little, or do not read: the server stays within its
//! bounds and serves the others.

mod common;

use common::client::*;
use common::{DISK, TestServer};
use sheepdog_nbd::Limits;
use sheepdog_testkit::shown::assert_same;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// Numbers from a seed, the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Changes, cuts, repeats or invents some bytes.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() as u64 + 1) as usize;
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => {
                    let more: Vec<u8> = (0..self.below(40)).map(|_| self.next() as u8).collect();
                    bytes.splice(at..at, more);
                }
                2 => {
                    let again = bytes[at..].to_vec();
                    bytes.extend(again);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = [0, 0xff, *byte ^ 1, *byte ^ 0x80][self.below(4) as usize];
                    }
                }
            }
        }
    }
}

/// Sends and hangs up; what the server answers until it hangs up too.
fn throw(mut client: Client, bytes: &[u8]) -> usize {
    // The server may have hung up already.
    match client.stream.write_all(bytes) {
        Ok(()) => {}
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
            "{error}"
        ),
    }
    let _ = client.stream.shutdown(Shutdown::Write);
    client.rest().len()
}

fn is_sound(server: &TestServer) {
    let mut client = Client::full(server, "disk");
    assert_eq!(client.write(DISK - 8, b"sound   ").error, 0);
    assert_eq!(client.read(DISK - 8, 8), b"sound   ");
}

#[test]
fn spoilt_negotiations() {
    let server = TestServer::start();
    let mut random = Random(0x5eed_0001);
    for round in 0..600 {
        let mut bytes = option(STRUCTURED, &[]);
        bytes.extend(option(3, &[]));
        bytes.extend(option(9, &contexts("disk", &["base:", "x:y"])));
        bytes.extend(option(SET_CONTEXT, &contexts("disk", &["base:allocation"])));
        bytes.extend(option(6, &info("disk@snap", &[0, 1, 2, 3])));
        bytes.extend(option(GO, &info("disk", &[3])));
        bytes.extend(request(READ, 0, 1, 0, 4096));
        random.spoil(&mut bytes);
        let mut client = Client::greet(&server);
        client.structured = true;
        assert!(throw(client, &bytes) < 1 << 20);
        if round % 100 == 0 {
            is_sound(&server);
        }
    }
    is_sound(&server);
    server.wait_connections(0);
}

#[test]
fn spoilt_requests() {
    let server = TestServer::start();
    let mut random = Random(0x5eed_0002);
    for round in 0..600 {
        let mut bytes = Vec::new();
        for i in 0..random.below(20) {
            let kind = random.below(9) as u16;
            let flags = if random.below(3) == 0 { random.below(64) as u16 } else { 0 };
            let offset = if random.below(8) == 0 { random.next() } else { random.below(DISK) };
            let len = random.below(9000) as u32;
            bytes.extend(request(kind, flags, i, offset, len));
            if kind == WRITE {
                bytes.resize(bytes.len() + len as usize, random.next() as u8);
            }
        }
        random.spoil(&mut bytes);
        let client = if round % 2 == 0 {
            Client::full(&server, "disk")
        } else {
            Client::simple(&server, "disk@snap")
        };
        // A spoilt length may still be a right one: some reads of a few MiB.
        assert!(throw(client, &bytes) < 64 << 20);
        if round % 100 == 0 {
            is_sound(&server);
        }
    }
    is_sound(&server);
    server.wait_connections(0);
}

#[test]
fn noise() {
    let server = TestServer::start();
    let mut random = Random(0x5eed_0003);
    for round in 0..200 {
        let bytes: Vec<u8> = (0..random.below(3000)).map(|_| random.next() as u8).collect();
        let client = match round % 2 {
            0 => Client::simple(&server, "disk"),
            _ => Client::greet_with(&server, random.next() as u32 & 3),
        };
        assert!(throw(client, &bytes) < 1 << 16);
    }
    is_sound(&server);
    assert_eq!(server.gate.state().started, 1, "noise writes nothing");
}

#[test]
fn a_connection_too_many_is_closed_and_a_place_that_is_free_is_given() {
    let server = TestServer::with_limits(Limits { connections: 2, ..Limits::default() });
    let _first = Client::simple(&server, "disk");
    let second = Client::simple(&server, "disk");
    let mut third = server.connect();
    assert_eq!(third.read(&mut [0; 18]).expect("the end"), 0);
    drop(second);
    server.wait_connections(1);
    is_sound(&server);
}

#[test]
fn connections_that_say_nothing_make_way() {
    let server = TestServer::with_limits(Limits { connections: 4, ..Limits::default() });
    let mut first = Client::simple(&server, "disk");
    let mut silent: Vec<_> = (0..8).map(|_| server.connect()).collect();
    // They were let in, one after the other, at the cost of the oldest of them.
    for stream in silent.iter_mut().take(5) {
        let mut bytes = Vec::new();
        // The greeting, if it left in time, and then the end or a reset.
        let _ = stream.read_to_end(&mut bytes);
        assert!(bytes.len() <= 18, "{bytes:?}");
    }
    server.wait_connections(4);
    let mut client = Client::simple(&server, "disk");
    assert_eq!(client.write(0, b"in").error, 0);
    assert_eq!(first.read(0, 2), b"in");
}

#[test]
fn requests_in_flight_are_bounded() {
    let server = TestServer::with_limits(Limits { requests: 4, ..Limits::default() });
    let mut client = Client::simple(&server, "disk");
    server.gate.hold();
    for i in 0..100 {
        client.send(&write(i, i * 512, &[i as u8; 512]));
    }
    server.gate.wait("the first start", |s| s.started == 4);
    let mut other = Client::simple(&server, "huge");
    other.read(0, 4096);
    assert_eq!(server.gate.state().started, 4, "the fifth waits");
    server.gate.release(1);
    assert_eq!(client.reply(None).error, 0);
    server.gate.wait("one more starts", |s| s.started == 5);
    other.read(0, 4096);
    assert_eq!(server.gate.state().started, 5);
    server.gate.release(99);
    for _ in 1..100 {
        assert_eq!(client.reply(None).error, 0);
    }
}

#[test]
fn bytes_of_writes_in_flight_are_bounded() {
    let server = TestServer::with_limits(Limits { payload_bytes: 256 << 10, ..Limits::default() });
    let mut client = Client::simple(&server, "disk");
    server.gate.hold();
    let mut sender = client.stream.try_clone().expect("a second handle");
    let sending = std::thread::spawn(move || {
        for i in 0..40 {
            sender.write_all(&write(i, 0, &[1; 64 << 10])).expect("it is read in the end");
        }
        // One larger than the bound goes alone.
        sender.write_all(&write(40, 0, &[2; 1 << 20])).expect("it is read in the end");
    });
    server.gate.wait("the first start", |s| s.started == 4);
    let mut other = Client::simple(&server, "huge");
    other.read(0, 4096);
    assert_eq!(server.gate.state().started, 4);
    server.gate.release(100);
    for _ in 0..41 {
        assert_eq!(client.reply(None).error, 0);
    }
    sending.join().expect("all was sent");
    assert_same(client.read(0, 1 << 20), vec![2; 1 << 20]);
}

#[test]
fn answers_a_client_does_not_read_are_bounded() {
    const PIECE: u32 = 256 << 10;
    let server = TestServer::with_limits(Limits { payload_bytes: 1 << 20, ..Limits::default() });
    let mut client = Client::simple(&server, "disk");
    assert_eq!(client.write(0, &vec![5; PIECE as usize]).error, 0);
    for i in 0..200 {
        client.send(&request(READ, 0, i, 0, PIECE));
    }
    // As much as fits is there; others are served meanwhile.
    server.gate.wait("answers wait", |s| s.alive >= (1 << 20) - PIECE as usize);
    let mut other = Client::simple(&server, "disk");
    assert_eq!(other.read(0, 5), [5; 5]);
    drop(other);
    for _ in 0..200 {
        let reply = client.reply(Some((0, PIECE)));
        assert!(reply.data.iter().all(|byte| *byte == 5));
    }
    let most = server.gate.state().most_alive;
    assert!(most <= (1 << 20) + 4096, "{most}");

    // Nor do such answers keep a closing connection for ever.
    for i in 0..200 {
        client.send(&request(READ, 0, i, 0, PIECE));
    }
    drop(client);
    server.wait_connections(0);
    server.gate.wait("all is free", |s| s.alive == 0);
}

#[test]
fn a_client_that_never_reads_is_cut_off_at_shutdown() {
    let server =
        TestServer::with_limits(Limits { drain: Duration::from_millis(100), ..Limits::default() });
    let mut client = Client::simple(&server, "disk");
    assert_eq!(client.write(0, &vec![5; 1 << 20]).error, 0);
    for i in 0..50 {
        client.send(&request(READ, 0, i, 0, 1 << 20));
    }
    server.gate.wait("answers wait", |s| s.alive >= 16 << 20);
    server.run(|s| async move { s.shutdown().await });
    assert_eq!(server.gate.state().alive, 0);
}

#[test]
fn memory_others_wait_for_is_not_held_for_ever() {
    let server = TestServer::with_limits(Limits {
        request_bytes: 1 << 20,
        payload_bytes_total: 1 << 20,
        stall: Duration::from_millis(100),
        ..Limits::default()
    });
    // One announces a write and never sends it; one reads and never takes the answer.
    let mut liar = Client::simple(&server, "disk");
    let mut good = Client::simple(&server, "disk");
    assert_eq!(good.write(0, &vec![5; 1 << 20]).error, 0);
    liar.send(&request(WRITE, 0, 1, 0, 1 << 20));
    // Once a later connection is served, the lie has been heard.
    Client::greet(&server).ask(3, &[]);
    assert_eq!(good.write(0, &vec![6; 1 << 20]).error, 0);
    let mut deaf = Client::simple(&server, "disk");
    for i in 0..50 {
        deaf.send(&request(READ, 0, i, 0, 1 << 20));
    }
    Client::greet(&server).ask(3, &[]);
    for _ in 0..3 {
        assert_same(good.read(0, 1 << 20), vec![6; 1 << 20]);
        assert_eq!(good.write(0, &vec![6; 1 << 20]).error, 0);
    }
    assert_eq!(liar.rest(), b"");
    drop(deaf);
}

/// Three large requests use up what large ones may have; nobody counts as stalled for long after.
fn crowded() -> TestServer {
    TestServer::with_limits(Limits {
        payload_bytes_total: 128 << 20,
        payload_bytes_small: 32 << 20,
        stall: Duration::from_secs(3600),
        ..Limits::default()
    })
}

#[test]
fn large_writes_that_never_come_keep_nobody_from_small_requests() {
    let server = crowded();
    let mut good = Client::simple(&server, "disk");
    let mut half_written = Vec::new();
    for i in 0..40 {
        let mut client = Client::simple(&server, "huge");
        client.send(&request(WRITE, 0, i, i << 30, 32 << 20));
        client.send(&[1; 4096]);
        half_written.push(client);
    }
    // Once a later connection is served, they all have been heard.
    Client::greet(&server).ask(3, &[]);
    for round in 0..100 {
        assert_eq!(good.write(round * 4096, &[round as u8; 4096]).error, 0);
        assert_eq!(good.read(round * 4096, 4096), [round as u8; 4096]);
    }
    let mut large = Client::simple(&server, "disk");
    large.send(&request(READ, 0, 1, 0, 1 << 20));
    Client::greet(&server).ask(3, &[]);
    assert!(large.is_silent(), "a large one waits its turn");
    drop(half_written);
    assert_eq!(large.reply(Some((0, 1 << 20))).data[..4096], [0; 4096]);
}

#[test]
fn large_answers_nobody_takes_keep_nobody_from_small_requests() {
    let server = crowded();
    let mut good = Client::simple(&server, "disk");
    let mut deaf = Vec::new();
    for _ in 0..40 {
        let mut client = Client::simple(&server, "disk");
        for i in 0..8 {
            client.send(&request(READ, 0, i, 0, 8 << 20));
        }
        deaf.push(client);
    }
    Client::greet(&server).ask(3, &[]);
    for round in 0..100 {
        assert_eq!(good.write(round * 4096, &[round as u8; 4096]).error, 0);
        assert_eq!(good.read(round * 4096, 4096), [round as u8; 4096]);
    }
    drop(deaf);
    server.wait_connections(1);
}
