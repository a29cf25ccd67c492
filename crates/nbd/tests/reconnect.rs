//! A closed connection is the crash of its client: each of its unanswered requests takes effect
//! before the next connection to that VDI is served, or never. And how connections end otherwise.

mod common;

use common::client::*;
use common::{KEY, PATIENCE, TestServer};
use sheepdog_nbd::Limits;
use sheepdog_testkit::shown::assert_same;
use std::io::Write as _;
use std::net::Shutdown;

/// A server to reach by unix socket, one by TCP.
fn both(limits: &Limits) -> [TestServer; 2] {
    [false, true].map(|tcp| {
        let mut server = TestServer::with_limits(limits.clone());
        server.tcp = tcp;
        server
    })
}

/// Waits until the server has worked through everything that had come before, by a round trip.
fn settle(server: &TestServer) {
    Client::greet(server).ask(3, &[]);
}

/// A connection that has asked for the disk; its answer has not been read.
fn asking(server: &TestServer) -> Client {
    let mut client = Client::greet(server);
    let opens = server.gate.state().opens;
    client.send(&option(GO, &info("disk", &[])));
    server.gate.wait("the export is opened", |s| s.opens > opens);
    client
}

#[test]
fn a_resend_is_never_overtaken_by_its_delayed_original() {
    for server in both(&Limits::default()) {
        let mut first = Client::simple(&server, "disk");
        server.gate.hold();
        first.send(&write(1, 0, b"original"));
        server.gate.wait("it starts", |s| s.started == 1);
        drop(first);

        let mut second = asking(&server);
        settle(&server);
        assert!(second.is_silent(), "the original still runs");
        server.gate.release(1);
        second.went().expect("now it is served");
        assert_eq!(server.gate.state().done, 1, "the original had its effect before");
        server.gate.release(1);
        assert_eq!(second.write(0, b"resent!!").error, 0);
        assert_eq!(second.read(0, 8), b"resent!!");
    }
}

#[test]
fn what_was_not_admitted_never_takes_effect() {
    for server in both(&Limits { requests: 1, ..Limits::default() }) {
        let mut first = Client::simple(&server, "disk");
        server.gate.hold();
        // The first is admitted; of the others some lie in the server's buffer, some in the socket.
        first.send(&write(1, 0, b"admitted"));
        server.gate.wait("it starts", |s| s.started == 1);
        for i in 1..8 {
            first.send(&write(i, i << 16, &[b'u'; 20_000]));
        }
        drop(first);
        let mut second = asking(&server);
        server.gate.release(1000);
        second.went().expect("the first one's write is over");
        let before = server.gate.state().started;
        // By TCP the server may learn only while it reads that the client is gone: what it read
        // until then took effect before.
        assert!(server.tcp || before == 1);
        assert_eq!(second.read(0, 8), b"admitted");
        for i in 1..8 {
            let old = second.read(i << 16, 20_000);
            assert!(old == vec![0; 20_000] || server.tcp && old == vec![b'u'; 20_000]);
            assert_eq!(second.write(i << 16, &[b'n'; 20_000]).error, 0);
        }
        settle(&server);
        for i in 1..8 {
            assert!(second.read(i << 16, 20_000) == vec![b'n'; 20_000], "{i}");
        }
        assert_eq!(server.gate.state().started, before + 7);
    }
}

#[test]
fn by_tcp_the_end_may_be_held_up_behind_what_the_server_does_not_read() {
    // More than the sockets take, so that the client's end cannot be seen: only an answer shows
    // that nobody is there to take it. And a live client is found to be there.
    for alive in [false, true] {
        let mut server = TestServer::with_limits(Limits { requests: 2, ..Limits::default() });
        server.tcp = true;
        let mut first = Client::simple(&server, "disk");
        server.gate.hold();
        first.send(&write(1, 0, b"one"));
        first.send(&write(2, 8, b"two"));
        server.gate.wait("both start", |s| s.started == 2);
        first.stream.set_nonblocking(true).expect("a mode");
        let many: Vec<u8> = (3..40_u64).flat_map(|i| write(i, i << 16, &[b'u'; 60_000])).collect();
        let mut sent = 0;
        while let Ok(count) = first.stream.write(&many[sent..]) {
            sent += count;
            if sent == many.len() {
                break;
            }
        }
        first.stream.set_nonblocking(false).expect("a mode");
        let kept = alive.then_some(first);
        let mut second = asking(&server);
        settle(&server);
        assert!(second.is_silent(), "it is not known yet");
        server.gate.release(1000);
        second.went().expect("now it is");
        if let Some(mut first) = kept {
            assert_eq!(server.run(|s| async move { s.live(KEY) }), 2);
            assert!(first.reply(None).cookie <= 2);
            continue;
        }
        let before = server.gate.state().started;
        for i in 3..40 {
            assert_eq!(second.write(i << 16, &[b'n'; 60_000]).error, 0);
        }
        settle(&server);
        for i in 3..40 {
            assert!(second.read(i << 16, 60_000) == vec![b'n'; 60_000], "{i}");
        }
        assert_eq!(server.gate.state().started, before + 37);
        server.wait_connections(1);
    }
}

#[test]
fn bytes_unread_in_a_dead_socket_never_take_effect() {
    for server in both(&Limits::default()) {
        // The server's thread is busy while the client writes, leaves, and another one comes: at the
        // time the other one asks, nothing of what the first one sent has been read.
        for round in 1..4 {
            let mut first = Client::simple(&server, "disk");
            let mut second = Client::greet(&server);
            settle(&server);
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            let (busy, is_busy) = std::sync::mpsc::channel();
            let job = server.begin(move |_| async move {
                busy.send(()).expect("the test waits");
                receiver.recv_timeout(PATIENCE).expect("the test goes on");
            });
            is_busy.recv_timeout(PATIENCE).expect("it runs");
            second.send(&option(GO, &info("disk", &[])));
            first.send(&write(1, 0, b"unanswered"));
            drop(first);
            sender.send(()).expect("the server waits");
            job.recv_timeout(PATIENCE).expect("it ends");
            second.went().expect("nobody else is there");
            // It took effect before or never: both are right, but it must not change any more.
            let before = second.read(0, 10);
            assert_eq!(second.write(0, b"newer data").error, 0);
            settle(&server);
            assert_eq!(second.read(0, 10), b"newer data", "{round} {before:?}");
            second.write(0, &[0; 10]);
            drop(second);
            server.wait_connections(0);
        }
    }
}

#[test]
fn a_half_received_write_never_takes_effect() {
    for half in [2_000, 60_000, 400_000] {
        let server = TestServer::start();
        let mut first = Client::simple(&server, "disk");
        let bytes = write(1, 0, &vec![b'h'; 500_000.min(half * 2)]);
        first.send(&bytes[..half]);
        drop(first);
        let mut second = Client::simple(&server, "disk");
        assert_same(second.read(0, 500_000), vec![0; 500_000]);
        server.wait_connections(1);
        assert_eq!(server.gate.state().started, 0);
    }
}

#[test]
fn live_connections_are_not_waited_for() {
    let server = TestServer::start();
    let mut first = Client::simple(&server, "disk");
    server.gate.hold();
    first.send(&write(1, 0, b"slow"));
    server.gate.wait("it starts", |s| s.started == 1);
    let mut second = Client::simple(&server, "disk");
    assert_eq!(second.flags & 256, 256, "multi-conn");
    assert_eq!(second.read(0, 4), [0; 4]);
    assert_eq!(server.run(|s| async move { s.live(KEY) }), 2);
    // Nor is one to another VDI, gone or not.
    drop(first);
    Client::simple(&server, "huge").read(0, 1);
    Client::simple(&server, "disk@snap").read(0, 1);
    server.gate.release(1);
}

#[test]
fn half_closed_disconnected_and_broken_connections_are_gone() {
    for server in both(&Limits::default()) {
        for how in 0..3 {
            let mut first = Client::simple(&server, "disk");
            server.gate.hold();
            let done = server.gate.state().done;
            first.send(&write(1, 0, b"last"));
            server.gate.wait("it starts", |s| s.started == done + 1);
            match how {
                0 => first.stream.shutdown(Shutdown::Write).expect("half closed"),
                1 => first.send(&request(DISC, 0, 0, 0, 0)),
                _ => first.send(&[0xee; 28]),
            }
            let mut second = asking(&server);
            settle(&server);
            assert!(second.is_silent());
            server.gate.release(1);
            second.went().expect("the first one's write is over");
            assert_eq!(server.gate.state().done, done + 1);
            // It was admitted, so it is answered, whatever came behind it.
            assert_eq!(first.reply(None).cookie, 1);
            assert_eq!(first.rest(), b"");
        }
    }
}

#[test]
fn a_client_that_leaves_while_it_waits_is_let_go() {
    let server = TestServer::start();
    let mut first = Client::simple(&server, "disk");
    server.gate.hold();
    first.send(&write(1, 0, b"stuck"));
    server.gate.wait("it starts", |s| s.started == 1);
    drop(first);
    drop(asking(&server));
    server.wait_connections(1);
    server.gate.release(1);
    server.wait_connections(0);
}

#[test]
fn another_door_settles_closes_and_counts() {
    let server = TestServer::start();
    let live = |server: &TestServer| server.run(|s| async move { s.live(KEY) });
    let mut first = Client::simple(&server, "disk");
    let second = Client::simple(&server, "disk");
    let _other = Client::simple(&server, "huge");
    assert_eq!(live(&server), 2);
    server.gate.hold();
    first.send(&write(1, 0, b"one"));
    server.gate.wait("it starts", |s| s.started == 1);

    // A live one is not waited for.
    server.run(|s| async move { s.settle(KEY).await });
    drop(second);
    assert_eq!(live(&server), 1);
    server.wait_connections(2);

    let closing = server.begin(|s| async move { s.close(KEY).await });
    settle(&server);
    assert!(closing.try_recv().is_err(), "a write runs");
    first.send(&write(2, 8, b"two"));
    assert_eq!(live(&server), 0);
    server.gate.release(2);
    closing.recv_timeout(PATIENCE).expect("all are closed");
    assert_eq!(server.gate.state().done, 1);
    assert_eq!(first.reply(None).cookie, 1);
    assert_eq!(first.rest(), b"");
    server.run(|s| async move { s.settle(KEY).await });

    let mut third = Client::simple(&server, "disk");
    server.gate.hold();
    third.send(&write(3, 0, b"3"));
    server.gate.wait("it starts", |s| s.started == 2);
    drop(third);
    let settling = server.begin(|s| async move { s.settle(KEY).await });
    settle(&server);
    server.gate.release(1);
    settling.recv_timeout(PATIENCE).expect("it ends");
    assert_eq!(server.gate.state().done, 2);
}

#[test]
fn shutdown_finishes_what_was_admitted() {
    for server in both(&Limits::default()) {
        let mut busy = Client::simple(&server, "disk");
        let idle = Client::simple(&server, "disk");
        let early = Client::greet(&server);
        server.gate.hold();
        busy.send(&write(1, 0, b"admitted"));
        server.gate.wait("it starts", |s| s.started == 1);
        let down = server.begin(|s| async move { s.shutdown().await });
        assert_eq!(idle.rest(), b"");
        assert_eq!(early.rest(), b"");
        assert!(server.is_gone());
        busy.send(&write(2, 0, b"too late"));
        assert!(down.try_recv().is_err());
        server.gate.release(2);
        assert_eq!(busy.reply(None).cookie, 1);
        assert_eq!(busy.rest(), b"");
        down.recv_timeout(PATIENCE).expect("all have left");
        assert_eq!(server.gate.state().started, 1);
        assert_eq!(server.run(|s| async move { s.connections() }), 0);
    }
}
