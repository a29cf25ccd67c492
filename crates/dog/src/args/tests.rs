//! Values at and beyond their limits.

use super::*;
use crate::definitions::{command, parse::parse};
use std::os::unix::ffi::OsStringExt;

fn parsed(words: &[&str]) -> Parsed {
    let subcommand = command("vdi").and_then(|c| c.subcommand("create")).expect("create");
    parse(subcommand, words.iter().map(OsString::from)).expect("parses")
}

fn line(failure: &Failure) -> (u8, &str) {
    (failure.code(), &failure.lines()[0])
}

#[test]
fn addresses_are_names_or_literals() {
    for good in ["localhost", "sheep-1.example", "127.0.0.1", "::1", "fe80::1%eth0", "7.host"] {
        assert_eq!(address(good.as_ref()).as_deref(), Ok(good));
    }
    assert_eq!(address("[::1]".as_ref()).as_deref(), Ok("::1"));
    for bad in ["", "1.2.3", "999.1.1.1", "a b", "a:b", "::g", "host:7000", "-x/", "::1%a b"] {
        let failure = address(bad.as_ref()).expect_err(bad);
        assert_eq!(line(&failure), (1, &*format!("Invalid ip address {bad}")));
    }
    let failure = address("::1%\u{1b}[2J".as_ref()).expect_err("would steer a terminal");
    assert_eq!(line(&failure), (1, "Invalid ip address ::1%?[2J"));
}

#[test]
fn ports_are_plain_numbers() {
    assert_eq!(port("1".as_ref()), Ok(1));
    assert_eq!(port("65535".as_ref()), Ok(65535));
    for bad in ["", "0", "65536", "-1", "+1", "1 ", "x", "99999999999"] {
        let failure = port(bad.as_ref()).expect_err(bad);
        assert_eq!(line(&failure), (64, &*format!("Invalid port number '{bad}'")));
    }
}

#[test]
fn shifts_have_the_old_lines() {
    let shift = |text| object_shift(&parsed(&["-z", text]));
    assert_eq!(shift("20"), Ok(Some(20)));
    assert_eq!(shift("31"), Ok(Some(31)));
    for (text, said) in [
        ("19", "Object Size is larger than 2^20. Please set shift bit larger than 20"),
        ("32", "Object Size is limited to 2^31. Please set shift bit lower than 31"),
        ("999", "Object Size is limited to 2^31. Please set shift bit lower than 31"),
        ("x", "Invalid block size shift 'x'"),
        ("-1", "Invalid block size shift '-1'"),
    ] {
        assert_eq!(line(&shift(text).expect_err(text)), (1, said));
    }
}

#[test]
fn redundancy_is_copies_or_strips() {
    let copies = |text| redundancy(&parsed(&["-c", text]));
    assert_eq!(copies("31"), Ok(Some(RedundancyInfo { data: 31, parity: 0 })));
    assert_eq!(copies("4:2"), Ok(Some(RedundancyInfo { data: 4, parity: 2 })));
    for bad in ["0", "32", "3:1", "4:0", "4:16", "4:2:1", "x", ""] {
        let failure = copies(bad).expect_err(bad);
        assert_eq!(line(&failure), (1, &*format!("Invalid parameter {bad}")));
        assert_eq!(failure.lines().len(), 6);
    }
}

#[test]
fn names_are_checked_before_anything_is_sent() {
    let name = |bytes: &[u8]| vdi_name(&[OsString::from_vec(bytes.to_vec())], 0, "missing");
    assert_eq!(name("日本".as_bytes()), Ok("日本".to_owned()));
    assert!(name(&[b'n'; 255]).is_ok());
    for bad in [&b""[..], &[b'n'; 256], b"\xff", b"a\nb", b"a\x1b[0m"] {
        let failure = name(bad).expect_err("bad");
        assert_eq!((failure.code(), failure.lines().len()), (1, 1));
        assert!(!failure.lines()[0].contains(['\n', '\x1b']));
    }
    assert_eq!(line(&vdi_name(&[], 0, "missing").expect_err("none")), (64, "missing"));
}

#[test]
fn snapshots_are_ids_or_tags() {
    let subcommand = command("vdi").and_then(|c| c.subcommand("read")).expect("read");
    let select = |text: &str| {
        let parsed = parse(subcommand, [OsString::from("-s"), text.into()]).expect("parses");
        selector(&parsed, "v".into())
    };
    assert_eq!(select("12").map(|s| (s.snapshot_id, s.tag)), Ok((12, String::new())));
    assert_eq!(select("12a").map(|s| (s.snapshot_id, s.tag)), Ok((0, "12a".into())));
    let zero = select("0").expect_err("zero");
    assert_eq!(line(&zero), (1, "The snapshot id must be larger than zero"));
    assert_eq!(select("99999999999").expect_err("large").code(), 1);
    assert_eq!(select("").expect_err("empty").code(), 1);
}
