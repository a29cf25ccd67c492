//! Bad input: each with one clear line and the right code, and nothing lost.

use rustix::process::Signal;
use sheepdog_testkit::Server;
use sheepdog_testkit::kept::{KEPT, assert_kept, sheep_with_kept};
use sheepdog_testkit::nbd::{Client, Command, connect};
use sheepdog_testkit::process::{Ended, PATIENCE, Process, run};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::free_port;
use sheepdog_testkit::shown::assert_same;
use sheepdog_testkit::tools::command;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// What a user types, and what comes of it.
struct Case {
    words: Vec<OsString>,
    code: i32,
    says: &'static str,
    /// Lines on standard error.
    lines: usize,
}

fn case<W: AsRef<OsStr>>(code: i32, says: &'static str, words: &[W]) -> Case {
    Case { words: words.iter().map(|w| w.as_ref().to_owned()).collect(), code, says, lines: 1 }
}

/// A case of old whose text has two lines.
fn two_lines(mut case: Case) -> Case {
    case.lines = 2;
    case
}

fn check(case: &Case, ended: &Ended) {
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!(
        ended.code == case.code && lines.len() == case.lines && lines[0].contains(case.says),
        "{:?}: expected code {}, {} line(s), {:?}; got code {} and\n{}",
        case.words,
        case.code,
        case.lines,
        case.says,
        ended.code,
        ended.stderr
    );
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    // The usage is all that may follow a usage error.
    assert!(
        ended.stdout.is_empty() || (case.code == 64 && ended.text().starts_with("Usage: ")),
        "{:?}: {}",
        case.words,
        ended.text()
    );
}

/// A case whose words have no blanks.
fn words(code: i32, says: &'static str, line: &str) -> Case {
    case(code, says, &line.split(' ').collect::<Vec<_>>())
}

#[test]
fn dog_refuses_names_that_are_none() {
    let (sheep, content) = sheep_with_kept();
    let long = OsString::from("n".repeat(256));
    let text = OsString::from;
    let names = [
        ("VDI name is empty", text("")),
        ("VDI name is 256 bytes long", long.clone()),
        ("control character", text("a\nb")),
        ("control character", text("a\x1b[31m")),
        ("control character", text("\u{85}")),
        ("not UTF-8", OsString::from_vec(b"na\xffme".to_vec())),
    ];
    let image = tempfile::NamedTempFile::new().expect("an image");
    let image = image.path().as_os_str();
    let (vdi, kept, size) = (text("vdi"), text("kept"), text("1G"));
    for (says, name) in &names {
        let uses: [(&str, &[&OsStr]); 5] = [
            ("create", &[name, &size]),
            ("rename", &[&kept, name]),
            ("import", &[name, image]),
            ("resize", &[name, &size]),
            ("read", &[name]),
        ];
        for (verb, rest) in uses {
            let mut words = vec![vdi.as_os_str(), verb.as_ref()];
            words.extend_from_slice(rest);
            let ended = run(sheep.dog().command().args(&words), b"");
            check(&case(1, says, &words), &ended);
        }
    }
    // 255 bytes are a name, at every door.
    let long = "ñ".repeat(127) + "n";
    let dog = sheep.dog();
    let _ = dog.run(&["vdi", "create", &long, "1M"]).ok();
    let mut client = Client::connect(sheep.socket(), &long).expect("connect");
    client.write(0, b"x").expect("write");
    let _ = dog.run(&["vdi", "delete", &long]).ok();
    assert_kept(&sheep, &content);
}

#[test]
fn dog_refuses_what_makes_no_sense() {
    let (sheep, content) = sheep_with_kept();
    let (size, port) = ("Invalid size", "Invalid port number");
    let too_big = "VDI size is larger than 4.0 TB bytes, please use '-y'";
    let mut cases = vec![
        words(1, "VDI exists already", "vdi create kept 1G"),
        words(1, "VDI exists already", "vdi rename kept kept"),
        words(64, "Please specify the VDI size", "vdi create new"),
        words(64, too_big, "vdi create new 5T"),
        words(64, too_big, "vdi create new 4398046511105"),
        words(64, "larger than 1.0 TB", "vdi create new -z 20 1099511627777"),
        words(64, "larger than 2.0 PB", "vdi create new -z 31 2251799813685249"),
        words(64, "VDI size is too large", "vdi create new 17P -y"),
        words(64, "VDI size is too large", "vdi create new 18014398509481985 -y"),
        words(1, "Object Size is limited", "vdi create new 1G -z 32"),
        words(1, "Object Size is larger", "vdi create new 1G -z 19"),
        words(1, "both -y and -z", "vdi create new 1G -y -z 22"),
        words(64, "Shrinking VDIs is not implemented", "vdi resize kept 4M"),
        words(64, "Shrinking VDIs is not implemented", "vdi resize kept 8388607"),
        words(64, "New VDI size is too large", "vdi resize kept 5T"),
        words(1, "No VDI found", "vdi resize missing 1G"),
        words(1, "No VDI found", "vdi rename missing other"),
        words(1, "No VDI found", "vdi read missing"),
        words(1, "No VDI found", "vdi info missing"),
        words(1, "No VDI found", "vdi export missing /dev/null"),
        words(1, "Read offset is beyond the end of the VDI", "vdi read kept 8388609"),
        words(1, "Read offset is beyond the end of the VDI", "vdi read kept 18446744073709551615"),
        words(1, "beyond the end of the VDI", "vdi write kept 8388609"),
        words(1, "beyond the end of the VDI", "vdi write kept 4M 5M"),
        words(1, "beyond the end of the VDI", "vdi write kept 4M 18446744073709551615"),
        words(0, "No VDI found", "vdi delete missing"),
        words(64, port, "vdi list -p 0"),
        words(64, port, "vdi list -p 65536"),
        words(64, port, "vdi list -p 7000x"),
        words(1, "Invalid ip address", "vdi list -a 300.1.1.1"),
        words(1, "/no/such/file", "vdi import new /no/such/file"),
    ];
    for bad in ["", "x", "-1", "1Z", "1GG", "1e3", "99999999999999999999"] {
        cases.push(two_lines(case(64, size, &["vdi", "create", "--", "new", bad])));
        cases.push(two_lines(case(64, size, &["vdi", "resize", "--", "kept", bad])));
    }
    let image = tempfile::NamedTempFile::new().expect("an image");
    let path = image.path().as_os_str();
    let import = ["vdi", "import", "kept"].map(OsStr::new);
    cases.push(case(1, "VDI exists already", &[&import[..], &[path]].concat()));
    for case in &cases {
        let ended = run(sheep.dog().command().args(&case.words), b"");
        check(case, &ended);
    }
    let unreachable = free_port().to_string();
    let ended = sheep.dog().run(&["vdi", "list", "-p", &unreachable]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    let says = format!("failed to connect to 127.0.0.1:{unreachable}: Connection refused");
    assert!(ended.stderr.starts_with(&says), "{}", ended.stderr);
    assert_kept(&sheep, &content);
}

#[test]
fn a_truncated_image_is_refused_and_leaves_nothing_usable() {
    let (sheep, content) = sheep_with_kept();
    let home = tempfile::tempdir().expect("a temporary directory");
    let raw = home.path().join("image.raw");
    std::fs::write(&raw, &content).expect("write");
    let whole = home.path().join("whole.qcow2");
    let mut convert = command("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&whole);
    let _ = run(&mut convert, b"").ok();
    let bytes = std::fs::read(&whole).expect("read");
    // In the header, in the tables, in the data.
    for len in [3, 60, 70_000, 200_000, bytes.len() - 100_000] {
        let cut = home.path().join("cut.qcow2");
        std::fs::write(&cut, &bytes[..len]).expect("write");
        let path = cut.to_str().expect("a plain path");
        let ended = sheep.dog().run(&["vdi", "import", "cut", "--format", "qcow2", path]);
        assert_eq!(ended.code, 1, "{len}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{len}: {}", ended.stderr);
        // Nothing was made, or what was made cannot be mistaken for the image.
        assert!(Client::connect(sheep.socket(), "cut").is_err(), "{len}");
        let ended = sheep.dog().run(&["vdi", "delete", "cut"]);
        assert_eq!(ended.code, 0, "{len}: {}", ended.stderr);
    }
    // The whole one comes in under the same name.
    let path = whole.to_str().expect("a plain path");
    let _ = sheep.dog().run(&["vdi", "import", "cut", path]).ok();
    let read = sheep.dog().run(&["vdi", "read", "cut"]).ok();
    assert!(read.stdout == content, "the imported content differs");
    let _ = sheep.dog().run(&["vdi", "delete", "cut"]).ok();
    assert_kept(&sheep, &content);
}

#[test]
fn an_interrupted_import_is_marked_until_it_is_done_again() {
    let (mut sheep, content) = sheep_with_kept();
    let home = tempfile::tempdir().expect("a temporary directory");
    // dog reads an image that never ends, and is killed once sheep has taken some of it.
    let log = home.path().join("dog.log");
    let mut import = sheep.dog().command();
    import.args(["vdi", "import", "half", "--format", "raw", "--size", "8M"]).arg("-");
    let mut import = Process::spawn_with_input("dog", &mut import, Stdio::piped(), &log);
    let mut image = import.child().stdin.take().expect("piped");
    image.write_all(&content[..6 << 20]).expect("feed");
    import.kill();
    let refused = Client::connect(sheep.socket(), "half");
    let listed = sheep.dog().run(&["vdi", "list", "-r", "half"]).ok().text();
    assert!(refused.is_err(), "an incomplete VDI was served");
    if !listed.is_empty() {
        let read = sheep.dog().run(&["vdi", "read", "half"]);
        assert_eq!(read.code, 1, "{}", read.stderr);
    }
    // It stays marked over a restart, and a second import makes it whole.
    sheep.stop();
    sheep.start();
    assert!(Client::connect(sheep.socket(), "half").is_err());
    let raw = home.path().join("image.raw");
    std::fs::write(&raw, &content).expect("write");
    let path = raw.to_str().expect("a plain path");
    let _ = sheep.dog().run(&["vdi", "import", "half", path]).ok();
    let read = sheep.dog().run(&["vdi", "read", "half"]).ok();
    assert!(read.stdout == content, "the imported content differs");
}

#[test]
fn requests_beyond_the_end_are_refused_and_the_connection_lives() {
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    let (sheep, content) = sheep_with_kept();
    let mut client = Client::connect(sheep.socket(), "kept").expect("connect");
    let cases = [
        (Command::Read, KEPT, 1, EINVAL),
        (Command::Read, KEPT - 4096, 4097, EINVAL),
        (Command::Read, u64::MAX, 4096, EINVAL),
        (Command::Write, KEPT, 1, ENOSPC),
        (Command::Write, KEPT - 1, 2, ENOSPC),
        (Command::Write, u64::MAX - 1, 4096, ENOSPC),
        (Command::WriteZeroes, KEPT - 4096, 8192, ENOSPC),
        (Command::Trim, KEPT, 4096, EINVAL),
        (Command::Trim, u64::MAX - 4095, 4096, EINVAL),
    ];
    for (command, offset, len, error) in cases {
        let payload = vec![0xee; if command == Command::Write { len as usize } else { 0 }];
        let reply = client.call(command, 0, offset, len, &payload).expect("an answer");
        assert_eq!(reply.error, error, "{command:?} {offset} {len}");
    }
    assert_eq!(client.read(0, 4096).expect("it lives"), &content[..4096]);
    assert_kept(&sheep, &content);
}

#[test]
fn a_client_that_vanishes_in_a_request_changes_nothing() {
    let (sheep, content) = sheep_with_kept();
    for cut in [1, 27, 28, 29, 28 + 4096, 28 + 65535] {
        let (mut sender, _receiver) = connect(sheep.socket(), "kept").expect("connect");
        let mut request = Vec::new();
        request.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        request.extend_from_slice(&[0, 0, 0, 1]);
        request.extend_from_slice(&1u64.to_be_bytes());
        request.extend_from_slice(&0u64.to_be_bytes());
        request.extend_from_slice(&65536u32.to_be_bytes());
        request.resize(28 + 65536, 0xee);
        sender.send_raw(&request[..cut]).expect("send");
        sender.hang_up();
    }
    let mut client = Client::connect(sheep.socket(), "kept").expect("connect");
    assert_same(client.read(0, 65536).expect("read"), &content[..65536]);
    assert_kept(&sheep, &content);
}

#[test]
fn garbage_at_every_door_is_survived() {
    let (mut sheep, content) = sheep_with_kept();
    let mut rng = Rng::new(Rng::fresh_seed());
    for _ in 0..30 {
        let mut bytes = vec![0; 1 + rng.below(5000) as usize];
        rng.fill(&mut bytes);
        // A door that hangs up early is right to; the socket then refuses the rest.
        let mut nbd = UnixStream::connect(sheep.socket()).expect("connect");
        let _ = nbd.write_all(&bytes);
        let _ = nbd.shutdown(std::net::Shutdown::Write);
        let _ = nbd.read_to_end(&mut Vec::new());
        let mut dog = std::net::TcpStream::connect(("127.0.0.1", sheep.port())).expect("connect");
        let _ = dog.write_all(&bytes);
        let _ = dog.shutdown(std::net::Shutdown::Write);
        let _ = dog.read_to_end(&mut Vec::new());
    }
    assert!(sheep.process().is_running());
    assert_kept(&sheep, &content);
}

#[test]
fn freezing_is_not_dying() {
    // A sheep that was stopped for a while goes on as if nothing had been.
    let (mut sheep, content) = sheep_with_kept();
    sheep.process().signal(Signal::STOP);
    let mut client = UnixStream::connect(sheep.socket()).expect("the socket still listens");
    sheep.process().signal(Signal::CONT);
    let mut hello = [0; 18];
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    client.read_exact(&mut hello).expect("greeted");
    assert_eq!(&hello[..8], b"NBDMAGIC");
    assert_kept(&sheep, &content);
}
