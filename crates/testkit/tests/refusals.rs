//! Bad input: each with one clear line and the right code, and nothing lost.

use rustix::process::Signal;
use sheepdog_testkit::Server;
use sheepdog_testkit::nbd::{Client, Command, connect};
use sheepdog_testkit::process::{Ended, PATIENCE, run};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::{Sheep, free_port};
use sheepdog_testkit::tools::command;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;

/// What a user types, and what comes of it.
struct Case {
    words: Vec<OsString>,
    code: i32,
    says: &'static str,
    /// Lines on standard error.
    lines: usize,
}

fn case<W: AsRef<OsStr>>(code: i32, says: &'static str, words: &[W]) -> Case {
    Case {
        words: words.iter().map(|w| w.as_ref().to_owned()).collect(),
        code,
        says,
        lines: 1,
    }
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

const KEPT: u64 = 8 << 20;

/// A sheep with one VDI whose content is known.
fn sheep_with_kept() -> (Sheep, Vec<u8>) {
    let sheep = Sheep::new();
    let mut content = vec![0; KEPT as usize];
    Rng::new(7).fill(&mut content);
    let _ = sheep.dog().run(&["vdi", "create", "kept", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "kept"], &content).ok();
    (sheep, content)
}

fn assert_kept(sheep: &Sheep, content: &[u8]) {
    let list = sheep.dog().run(&["vdi", "list", "-r"]).ok().text();
    assert_eq!(list.lines().count(), 1, "{list}");
    assert!(list.starts_with("= kept 0 8388608 "), "{list}");
    let read = sheep.dog().run(&["vdi", "read", "kept"]).ok();
    assert!(read.stdout == content, "the content of the VDI changed");
}

#[test]
fn dog_refuses_what_makes_no_sense() {
    let (sheep, content) = sheep_with_kept();
    let long = "n".repeat(256);
    let not_utf8 = OsString::from_vec(b"na\xffme".to_vec());
    let size = "Invalid size";
    let port = "Invalid port number";
    let too_big = "VDI size is larger than 4.0 TB bytes";
    let mut cases = vec![
        case(1, "VDI name is empty", &["vdi", "create", "", "1G"]),
        case(
            1,
            "VDI name is 256 bytes long",
            &["vdi", "create", &long, "1G"],
        ),
        case(1, "control character", &["vdi", "create", "a\nb", "1G"]),
        case(
            1,
            "control character",
            &["vdi", "create", "a\x1b[31m", "1G"],
        ),
        case(1, "VDI exists already", &["vdi", "create", "kept", "1G"]),
        case(1, "VDI exists already", &["vdi", "rename", "kept", "kept"]),
        case(64, "Please specify the VDI size", &["vdi", "create", "new"]),
        case(64, too_big, &["vdi", "create", "new", "5T"]),
        case(
            64,
            "VDI size is too large",
            &["vdi", "create", "new", "17P", "-y"],
        ),
        case(
            1,
            "Object Size is limited",
            &["vdi", "create", "new", "1G", "-z", "32"],
        ),
        case(
            1,
            "Object Size is larger",
            &["vdi", "create", "new", "1G", "-z", "19"],
        ),
        case(
            1,
            "both -y and -z",
            &["vdi", "create", "new", "1G", "-y", "-z", "22"],
        ),
        case(
            64,
            "Shrinking VDIs is not implemented",
            &["vdi", "resize", "kept", "4M"],
        ),
        case(
            64,
            "New VDI size is too large",
            &["vdi", "resize", "kept", "5T"],
        ),
        case(1, "No VDI found", &["vdi", "resize", "missing", "1G"]),
        case(1, "No VDI found", &["vdi", "rename", "missing", "other"]),
        case(1, "No VDI found", &["vdi", "read", "missing"]),
        case(
            1,
            "No VDI found",
            &["vdi", "export", "missing", "/dev/null"],
        ),
        case(
            1,
            "Read offset is beyond the end of the VDI",
            &["vdi", "read", "kept", "8388609"],
        ),
        case(
            1,
            "beyond the end of the VDI",
            &["vdi", "write", "kept", "8388609"],
        ),
        case(
            1,
            "beyond the end of the VDI",
            &["vdi", "write", "kept", "4M", "5M"],
        ),
        case(0, "No VDI found", &["vdi", "delete", "missing"]),
        case(64, port, &["vdi", "list", "-p", "0"]),
        case(64, port, &["vdi", "list", "-p", "65536"]),
        case(64, port, &["vdi", "list", "-p", "7000x"]),
        case(1, "Invalid ip address", &["vdi", "list", "-a", "300.1.1.1"]),
        case(
            1,
            "/no/such/file",
            &["vdi", "import", "new", "/no/such/file"],
        ),
        case(
            1,
            "VDI exists already",
            &["vdi", "import", "kept", "/dev/null"],
        ),
    ];
    for bad in ["", "x", "-1", "1Z", "1GG", "1e3", "99999999999999999999"] {
        cases.push(two_lines(case(64, size, &["vdi", "create", "new", bad])));
    }
    let words: [&OsStr; 4] = ["vdi".as_ref(), "create".as_ref(), &not_utf8, "1G".as_ref()];
    cases.push(case(1, "not UTF-8", &words));
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
    convert
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&raw)
        .arg(&whole);
    let _ = run(&mut convert, b"").ok();
    let bytes = std::fs::read(&whole).expect("read");
    // In the header, in the tables, in the data.
    for len in [3, 60, 70_000, 200_000, bytes.len() - 100_000] {
        let cut = home.path().join("cut.qcow2");
        std::fs::write(&cut, &bytes[..len]).expect("write");
        let path = cut.to_str().expect("a plain path");
        let ended = sheep
            .dog()
            .run(&["vdi", "import", "cut", "--format", "qcow2", path]);
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
    import
        .args(["vdi", "import", "half", "--format", "raw", "--size", "8M"])
        .arg("-");
    import.stdin(std::process::Stdio::piped());
    let mut import = sheepdog_testkit::process::Process::spawn_as_is("dog", &mut import, &log);
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
        let payload = vec![
            0xee;
            if command == Command::Write {
                len as usize
            } else {
                0
            }
        ];
        let reply = client
            .call(command, 0, offset, len, &payload)
            .expect("an answer");
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
    assert_eq!(client.read(0, 65536).expect("read"), &content[..65536]);
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

/// How a start that must fail ended.
fn failed_start(sheep: &mut Sheep) -> (i32, String) {
    let (status, said) = sheep.try_start().expect_err("it must not start");
    (status.code().unwrap_or(-1), said)
}

fn assert_refused(sheep: &mut Sheep, says: &str) {
    let (code, said) = failed_start(sheep);
    assert_eq!(code, 1, "{said}");
    let line = said.lines().find(|line| line.contains(says));
    assert!(line.is_some(), "expected {says:?} in:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn sheep_refuses_paths_it_cannot_use() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = home.path().join("file");
    std::fs::write(&file, b"not a store").expect("write");
    assert_refused(&mut Sheep::at(&file, &[]), "file");
    assert_eq!(std::fs::read(&file).expect("read"), b"not a store");
    assert_refused(&mut Sheep::at(&file.join("below"), &[]), "below");
    assert_refused(&mut Sheep::at(&home.path().join("a/b/c"), &[]), "a/b/c");

    let (mut sheep, content) = sheep_with_kept();
    let store = sheep.store().to_owned();
    assert_refused(&mut Sheep::at(&store, &[]), "another sheep daemon is using");
    assert_kept(&sheep, &content);
    sheep.stop();
}

#[test]
fn sheep_refuses_ports_it_cannot_have() {
    let home = tempfile::tempdir().expect("a temporary directory");
    for port in ["0", "65536", "x", "", "+7000", "-1"] {
        let mut sheep = Sheep::at(&home.path().join("store"), &["-p", port]);
        assert_refused(&mut sheep, &format!("Invalid port number '{port}'"));
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("bound").port().to_string();
    let mut sheep = Sheep::at(&home.path().join("store"), &["-p", &port]);
    assert_refused(&mut sheep, &port);
    for nbd in ["--nbd=0", "--nbd=65536", "--nbd=x:10809", "--nbd="] {
        let mut sheep = Sheep::at(&home.path().join("store"), &[nbd]);
        assert_refused(&mut sheep, "nbd");
    }
    // None of these left something that is in the way.
    let mut sheep = Sheep::at(&home.path().join("store"), &[]);
    sheep.start();
    sheep.stop();
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let driver = |name: &str| format!("local:{}", home.path().join(name).display());
    let (one, two) = (driver("one.db"), driver("two.db"));
    let mut first = Sheep::at(&home.path().join("first"), &["-c", &one]);
    first.start();
    let _ = first.dog().run(&["cluster", "format", "-c", "1"]).ok();
    first.stop();
    let mut second = Sheep::at(&home.path().join("second"), &["-c", &two]);
    second.start();
    let _ = second.dog().run(&["cluster", "format", "-c", "1"]).ok();
    second.stop();
    let mut crossed = Sheep::at(&home.path().join("first"), &["-c", &two]);
    let (code, said) = failed_start(&mut crossed);
    assert_eq!(code, 1, "{said}");
    // Where it belongs it is welcome.
    first.start();
    first.stop();
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let (mut sheep, content) = sheep_with_kept();
    sheep.stop();
    let identity = sheep.store().join("identity");
    let ours = std::fs::read_to_string(&identity).expect("read");
    let newer = ours.replace("format = 1\n", "format = 2\n");
    assert_ne!(newer, ours, "the identity names its format");
    std::fs::write(&identity, newer).expect("write");
    assert_refused(&mut sheep, "written by a newer version");
    std::fs::write(&identity, ours).expect("write");
    sheep.start();
    assert_kept(&sheep, &content);
}

#[test]
fn full_and_read_only_disks_are_refused_or_reported() {
    let Some(disk) = sheepdog_testkit::loopfs::SmallFs::new(768 << 20) else {
        return;
    };
    let store = disk.path().join("store");
    let mut sheep = Sheep::at(&store, &[]);
    sheep.start();
    let dog = sheep.dog();
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    let _ = dog.run(&["vdi", "create", "disk", "1G"]).ok();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    let mut written = 0;
    let mut data = vec![0; 1 << 20];
    let error = loop {
        Rng::new(written).fill(&mut data);
        let reply = client.call(Command::Write, 0, written << 20, 1 << 20, &data);
        match reply.expect("an answer, not a dead sheep").error {
            0 => written += 1,
            error => break error,
        }
        assert!(written < 768, "more was taken than there is");
    };
    assert_eq!(error, 28, "no space");
    assert!(written > 16, "only {written} MiB fit on a disk of 768");
    let check = |client: &mut Client, from: u64| {
        let mut expected = vec![0; 1 << 20];
        for at in from..written {
            Rng::new(at).fill(&mut expected);
            let found = client.read(at << 20, 1 << 20).expect("read");
            assert!(found == expected, "MiB {at} differs");
        }
    };
    check(&mut client, 0);
    // Room is made by discarding, on the full disk, and used again.
    let reply = client
        .call(Command::Trim, 0, 0, 8 << 20, &[])
        .expect("an answer");
    assert_eq!(reply.error, 0);
    client.write(0, &data[..4096]).expect("there is room again");
    // And a full disk is no reason not to start.
    drop(client);
    sheep.kill();
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    assert!(client.read(0, 4096).expect("read") == data[..4096]);
    check(&mut client, 8);
    drop(client);
    sheep.stop();

    disk.set_read_only(true);
    assert_refused(&mut sheep, "store");
    disk.set_read_only(false);
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    check(&mut client, 8);
    drop(client);
    sheep.stop();

    // A new store where there is no room for one.
    let filler = std::fs::File::create(disk.path().join("filler")).expect("create");
    let free = disk.free();
    let all = free - free % 4096;
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, all).expect("fill");
    assert_refused(&mut Sheep::at(&disk.path().join("other"), &[]), "other");
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
