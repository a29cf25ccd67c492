//! Every option, well-formed and not.

mod common;

use common::client::*;
use common::{DISK, TestServer};
use sheepdog_nbd::Limits;
use std::time::Duration;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const LIST_CONTEXT: u32 = 9;
const UNSUP: u32 = 1;
const POLICY: u32 = 2;
const INVALID: u32 = 3;
const UNKNOWN: u32 = 6;
const TOO_BIG: u32 = 9;

/// The one answer is this error.
fn refused(answers: &[(u32, Vec<u8>)], error: u32) {
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, ERR + error);
    let text = std::str::from_utf8(&answers[0].1).expect("text");
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

#[test]
fn an_old_client_says_only_the_name() {
    let server = TestServer::start();
    for (flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        let mut client = Client::greet_with(&server, flags);
        client.send(&option(EXPORT_NAME, b"disk"));
        assert_eq!(client.bytes(8), DISK.to_be_bytes());
        let flags = u16::from_be_bytes(client.bytes(2).try_into().expect("two"));
        // Flags, flush, FUA, trim, write zeroes, multi-conn, cache, fast zero.
        assert_eq!(flags, 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048);
        assert_eq!(client.bytes(zeroes), vec![0; zeroes]);
        assert_eq!(client.write(5, b"hello").error, 0);
        assert_eq!(client.read(4, 7), b"\0hello\0");
        client.send(&request(DISC, 0, 0, 0, 0));
        assert_eq!(client.rest(), b"");
    }
    for name in [&b"nothing"[..], b"", b"\xff", &[b'a'; 5000], &[b'a'; 70_000]] {
        let mut client = Client::greet(&server);
        client.send(&option(EXPORT_NAME, name));
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn a_client_that_is_not_fixed_newstyle_has_no_other_options() {
    let server = TestServer::start();
    let mut client = Client::greet_with(&server, 2);
    client.send(&option(LIST, &[]));
    assert_eq!(client.rest(), b"");
    let client = Client::greet_with(&server, 4);
    assert_eq!(client.rest(), b"", "unknown client flags");
}

#[test]
fn info_and_go_tell_the_same() {
    let server = TestServer::start();
    for (name, snapshot) in [("disk", false), ("disk@snap", true)] {
        let mut client = Client::greet(&server);
        client.ask(STRUCTURED, &[]);
        let first = client.ask(INFO, &info(name, &[0, 1, 2, 3, 99]));
        let second = client.ask(INFO, &info(name, &[1, 2]));
        assert_eq!(first, second);
        let mut flags = 1 | 4 | 8 | 128 | 256 | 1024_u16;
        flags |= if snapshot { 2 } else { 32 | 64 | 2048 };
        let mut want = vec![(3, [&[0, 1], name.as_bytes()].concat())];
        if snapshot {
            want.push((3, b"\0\x02a snapshot".to_vec()));
        }
        want.push((3, vec![0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]));
        want.push((3, [&[0, 0][..], &DISK.to_be_bytes(), &flags.to_be_bytes()].concat()));
        want.push((ACK, vec![]));
        assert_eq!(first, want);
        assert_eq!(client.ask(GO, &info(name, &[1, 2])), want);
        client.structured = true;
        assert_eq!(client.read(0, 3), [0; 3]);
    }
}

#[test]
fn exports_that_cannot_be_had_are_refused_and_the_talk_goes_on() {
    let server = TestServer::start();
    let mut client = Client::greet(&server);
    for number in [GO, INFO] {
        for (name, error) in [
            ("", UNKNOWN),
            ("nothing", UNKNOWN),
            ("disk@nothing", UNKNOWN),
            ("half", POLICY),
            ("a\nb", INVALID),
            (&"x".repeat(300), INVALID),
            (&"x".repeat(4097), TOO_BIG),
        ] {
            refused(&client.ask(number, &info(name, &[])), error);
        }
        refused(&client.ask(number, b"\0\0\0\x04dis"), INVALID);
        refused(&client.ask(number, b""), INVALID);
        refused(&client.ask(number, b"\0\0\0\x01\xff\0\0"), INVALID);
    }
    let (_, text) = client.go("half").expect_err("it is incomplete");
    assert_eq!(text, "VDI is incomplete: import it again");
    client.go("disk").expect("after all this");
    assert_eq!(client.size, DISK);
}

#[test]
fn an_export_that_was_deleted_meanwhile_is_not_served() {
    let server = TestServer::start();
    let mut client = Client::greet(&server);
    server.gate.change(|state| state.deleted = true);
    client.send(&option(GO, &info("disk", &[])));
    assert_eq!(client.rest(), b"", "closed without an answer");
    server.wait_connections(0);
}

#[test]
fn list_tls_abort_and_unknown_options() {
    let server = TestServer::start();
    let mut client = Client::greet(&server);
    let want = ["disk", "disk@snap", "huge"].map(|name| (2, text(name)));
    let list = client.ask(LIST, &[]);
    assert_eq!(list[..3], want);
    assert_eq!(list[3..], [(ACK, vec![])]);
    refused(&client.ask(LIST, b"x"), INVALID);
    refused(&client.ask(STARTTLS, &[]), POLICY);
    refused(&client.ask(STARTTLS, b"x"), INVALID);
    refused(&client.ask(STRUCTURED, b"x"), INVALID);
    refused(&client.ask(4, b"disk"), UNSUP);
    refused(&client.ask(11, &[]), UNSUP);
    refused(&client.ask(0xffff_ffff, b"whatever"), UNSUP);
    assert_eq!(client.ask(ABORT, &[]), [(ACK, vec![])]);
    assert_eq!(client.rest(), b"");
}

#[test]
fn meta_contexts() {
    let server = TestServer::start();
    let mut client = Client::greet(&server);
    refused(&client.ask(SET_CONTEXT, &contexts("disk", &["base:allocation"])), INVALID);
    client.ask(STRUCTURED, &[]);
    client.structured = true;
    let listed = (4, [&[0; 4], &b"base:allocation"[..]].concat());
    let chosen = (4, [&[0, 0, 0, 1], &b"base:allocation"[..]].concat());
    let ack = (ACK, vec![]);
    let only_ack = [(ACK, vec![])];
    for queries in [&[][..], &["base:"], &["base:allocation"], &["x:y", "base:allocation", "base:"]]
    {
        let answers = client.ask(LIST_CONTEXT, &contexts("disk", queries));
        assert_eq!(answers, [listed.clone(), ack.clone()]);
    }
    for queries in [&["qemu:dirty-bitmap:x"][..], &["base:other"], &[""], &["base"]] {
        let answers = client.ask(LIST_CONTEXT, &contexts("disk", queries));
        assert_eq!(answers, only_ack);
    }
    for number in [LIST_CONTEXT, SET_CONTEXT] {
        refused(&client.ask(number, &contexts("nothing", &[])), UNKNOWN);
        refused(&client.ask(number, b"\0\0\0\x04disk\xff\xff\xff\xff"), INVALID);
    }
    for queries in [&[][..], &["base:"], &["other:x"]] {
        assert_eq!(client.ask(SET_CONTEXT, &contexts("disk", queries)), only_ack);
    }
    let set = client.ask(SET_CONTEXT, &contexts("disk", &["x:y", "base:allocation"]));
    assert_eq!(set, [chosen.clone(), ack.clone()]);
    client.go("disk").expect("it is there");
    assert_eq!(client.call(STATUS, 0, 0, 4096).extents, [(4096, 3)]);

    // Chosen for one export, it does not hold for another, nor after a later choice.
    for (name, last) in [("huge", None), ("disk", Some(contexts("disk", &["base:"])))] {
        let mut client = Client::greet(&server);
        client.ask(STRUCTURED, &[]);
        client.structured = true;
        client.ask(SET_CONTEXT, &contexts("disk", &["base:allocation"]));
        if let Some(last) = last {
            client.ask(SET_CONTEXT, &last);
        }
        client.go(name).expect("it is there");
        assert_eq!(client.call(STATUS, 0, 0, 4096).error, 22);
    }
}

#[test]
fn long_options_are_skipped_and_much_too_long_ones_end_it() {
    let server = TestServer::start();
    let mut client = Client::greet(&server);
    for number in [LIST_CONTEXT, GO, 77] {
        refused(&client.ask(number, &vec![7; 100_000]), TOO_BIG);
    }
    client.go("disk").expect("still in step");
    let mut client = Client::greet(&server);
    let mut bytes = option(GO, &[]);
    bytes[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    client.send(&bytes);
    refused(&client.answers(GO), TOO_BIG);
    assert_eq!(client.rest(), b"");
}

#[test]
fn options_and_time_are_limited() {
    let server = TestServer::with_limits(Limits {
        options: 3,
        handshake: Duration::from_millis(200),
        ..Limits::default()
    });
    let mut client = Client::greet(&server);
    for _ in 0..3 {
        client.ask(LIST, &[]);
    }
    assert_eq!(client.rest(), b"");
    let mut slow = Client::greet(&server);
    slow.send(b"IHAVE");
    assert_eq!(slow.rest(), b"");
    let mut client = Client::greet(&server);
    client.go("disk").expect("in time");
}

#[test]
fn requests_may_come_right_behind_the_choice() {
    let server = TestServer::start();
    let mut client = Client::greet(&server);
    let mut bytes = option(GO, &info("disk", &[]));
    bytes.extend(write(1, 10, b"early"));
    bytes.extend(request(FLUSH, 0, 2, 0, 0));
    client.send(&bytes);
    client.went().expect("it is there");
    let mut cookies = [client.reply(None).cookie, client.reply(None).cookie];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert_eq!(client.read(10, 5), b"early");
}
