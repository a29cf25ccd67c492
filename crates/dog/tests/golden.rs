//! The contract's golden list (C01 and so on) as far as today's subcommands go: exact bytes,
//! streams and exit codes, by the real program against a sheep in this process.

mod fake;

use fake::{FakeSheep, dog_command, run};
use sheepdog_types::ErrorKind;
use sheepdog_wire::*;
use std::process::{Command, Stdio};

fn entry(vid: u32, name: &str) -> VdiEntry {
    VdiEntry {
        vid,
        name: name.into(),
        snapshot_id: 1,
        size: 1 << 30,
        object_shift: 22,
        redundancy: Some(RedundancyInfo { data: 3, parity: 0 }),
        created: Some(Time { seconds: 1_546_300_800, nanos: 0 }),
        ..VdiEntry::default()
    }
}

#[test]
fn c01_no_arguments_is_a_success_under_both_names() {
    for program in [env!("CARGO_BIN_EXE_dog"), env!("CARGO_BIN_EXE_collie")] {
        for args in [&[][..], &["help"], &["--help"], &["-h"]] {
            let output = Command::new(program).args(args).output().expect("runs");
            let text = String::from_utf8(output.stdout).expect("text");
            assert_eq!(output.status.code(), Some(0));
            assert!(output.stderr.is_empty());
            assert!(text.starts_with("Sheepdog administrator utility (version "));
            assert!(text.contains("\nUsage: dog <command> <subcommand> [options]\n\nAvailable commands:\n  vdi create              create an image\n"));
            assert!(
                text.ends_with(
                    "\n\nFor more information, run 'dog <command> <subcommand> --help'.\n"
                )
            );
        }
    }
}

#[test]
fn wrong_words_are_usage_errors() {
    let dog = |args: &[&str]| {
        let mut command = dog_command();
        command.args(args);
        run(command, b"")
    };
    dog(&["vid"]).is(64, "", "Invalid command 'vid'\nTry 'dog --help' for more information.\n");
    dog(&["node", "lost"]).is(
        64,
        "",
        "Invalid command 'node lost'\nAvailable node commands:\n  node list\n  node info\n  node md\n",
    );
    dog(&["node", "help"]).is(
        64,
        "",
        "Available node commands:\n  node list\n  node info\n  node md\n",
    );
    dog(&["node", "list", "-x"]).is(
        64,
        "",
        "dog: invalid option -- 'x'\nTry 'dog --help' for more information.\n",
    );
    dog(&["node", "list", "-p", "0"]).is(64, "", "Invalid port number '0'\n");
    dog(&["node", "list", "-p", "70000"]).is(64, "", "Invalid port number '70000'\n");
    dog(&["node", "list", "-a", "1.2.3"]).is(1, "", "Invalid ip address 1.2.3\n");
    let help = dog(&["vdi", "create", "-h"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    assert!(help.stdout.starts_with(
        "Usage: dog vdi create [-P] [-y] [-c copies] [-a address] [-p port] [-h] [-r] [-v] [-z block_size_shift] [-T] [--json] <vdiname> <size>\nOptions:\n  -P, --prealloc          "
    ));
}

/// A size in the place of a name or a word too many is a mistake, and nothing is done.
#[test]
fn an_argument_too_many_is_a_usage_error() {
    let sheep = FakeSheep::start();
    for args in [
        &["vdi", "create", "v", "1G", "extra"][..],
        &["vdi", "delete", "v", "extra"],
        &["vdi", "list", "v", "extra"],
        &["vdi", "resize", "v", "1G", "extra"],
        &["vdi", "read", "v", "0", "1", "extra"],
        &["vdi", "write", "v", "0", "1", "extra"],
        &["vdi", "rename", "v", "w", "extra"],
        &["vdi", "info", "v", "extra"],
        &["vdi", "import", "v", "-", "extra"],
        &["vdi", "export", "v", "-", "extra", "more"],
        &["node", "list", "extra"],
        &["node", "info", "extra"],
        &["cluster", "info", "extra"],
        &["cluster", "format", "extra"],
        &["cluster", "shutdown", "extra"],
    ] {
        sheep.dog(args).is_usage("Unexpected argument 'extra'\n");
    }
    assert!(sheep.state().requests.is_empty());
}

#[test]
fn c02_options_stand_anywhere() {
    let sheep = FakeSheep::start();
    sheep.state().add(VdiEntry { snapshot: true, tag: "t".into(), ..entry(9, "v") });
    let port = sheep.port.to_string();
    let orders: [&[&str]; 4] = [
        &["vdi", "read", "-s", "t", "-a", "127.0.0.1", "-p", &port, "v", "0", "4"],
        &["vdi", "read", "v", "0", "4", "-s", "t", "-a", "127.0.0.1", "-p", &port],
        &["vdi", "read", "v", "-st", "0", "--port", &port, "4"],
        &["vdi", "read", "--snapshot=t", "v", "0", "--", "4"],
    ];
    for args in orders {
        sheep.dog(args).is(0, "\0\0\0\0", "");
    }
}

#[test]
fn c03_c04_c20_c21_c22_raw_lists() {
    let sheep = FakeSheep::start();
    {
        let mut state = sheep.state();
        state.add(VdiEntry { used: 4 << 20, ..entry(0x7c_2b25, "test") });
        state.add(VdiEntry { name: "a b\\c".into(), ..entry(0x10, "") });
        state.add(VdiEntry { parent: 0x10, shared: 8 << 20, ..entry(0x20, "clone") });
        state.add(VdiEntry { parent: 0x10, snapshot_id: 2, ..entry(0x21, "older") });
        state.add(VdiEntry {
            snapshot: true,
            tag: "tag".into(),
            redundancy: Some(RedundancyInfo { data: 4, parity: 2 }),
            ..entry(0x22, "older")
        });
    }
    sheep.dog(&["vdi", "list", "-r"]).is(
        0,
        "= a\\ b\\\\c 0 1073741824 0 0 1546300800 10 3  22\n\
         c clone 0 1073741824 0 8388608 1546300800 20 3  22\n\
         = older 0 1073741824 0 0 1546300800 21 3  22\n\
         s older 1 1073741824 0 0 1546300800 22 4:2 tag 22\n\
         = test 0 1073741824 4194304 0 1546300800 7c2b25 3  22\n",
        "",
    );
    sheep.dog(&["vdi", "list", "test", "-r"]).is(
        0,
        "= test 0 1073741824 4194304 0 1546300800 7c2b25 3  22\n",
        "",
    );
    sheep.dog(&["vdi", "list", "older"]).is(
        0,
        "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift\n\
         \x20 older        0  1.0 GB  0.0 MB  0.0 MB 2019-01-01 00:00       21      3                22\n\
         s older        1  1.0 GB  0.0 MB  0.0 MB 2019-01-01 00:00       22    4:2           tag  22\n",
        "",
    );
}

#[test]
fn c05_a_missing_name_lists_nothing() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "list", "-r", "none"]).is_silent();
    let unformatted = FakeSheep::unformatted();
    unformatted.dog(&["vdi", "list", "-r"]).is(1, "", "Waiting for cluster to be formatted\n");
}

#[test]
fn c06_c07_deleting_what_is_missing_is_a_success_with_the_old_text() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "delete", "v"]).is(
        0,
        "",
        "Failed to open VDI v (snapshot id: 0 snapshot tag: ): No VDI found\n",
    );
    sheep.state().add(entry(9, "v"));
    sheep.dog(&["vdi", "delete", "v", "-s", "t"]).is(
        0,
        "",
        "Failed to open VDI v (snapshot id: 0 snapshot tag: t): Failed to find requested tag\n",
    );
    sheep.dog(&["vdi", "delete", "v", "-s", "7"]).is(
        0,
        "",
        "Failed to open VDI v (snapshot id: 7 snapshot tag: ): Failed to find requested tag\n",
    );
    sheep.dog(&["vdi", "delete", "v"]).is_silent();
    assert!(sheep.state().vdis.is_empty());
    sheep.state().broken = Some((ErrorKind::Locked, "by someone"));
    sheep.dog(&["vdi", "delete", "v"]).is(1, "", "Failed to delete v: VDI is already locked\n");
    for option in ["-B", "-I", "-m"] {
        for value in ["0", "x", "-1"] {
            assert_eq!(sheep.dog(&["vdi", "delete", "v", option, value]).code, 1);
        }
    }
}

#[test]
fn delete_in_steps_frees_objects_and_keeps_the_vdi() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "16M"]).is_silent();
    sheep.dog_with(&["vdi", "write", "v", "0", "9M"], &vec![1; 9 << 20]).is_silent();
    sheep.dog(&["vdi", "delete", "-m", "2", "v"]).is_silent();
    let bytes = sheep.state().bytes("v");
    assert!(bytes[..8 << 20].iter().all(|b| *b == 0));
    assert!(bytes[8 << 20..9 << 20].iter().all(|b| *b == 1));
}

#[test]
fn c08_c18_create_and_grow() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "0"]).is_silent();
    sheep.dog(&["vdi", "create", "v", "1G"]).is(
        1,
        "",
        "Failed to create VDI v: VDI exists already\n",
    );
    sheep.dog(&["vdi", "resize", "v", "64m"]).is_silent();
    assert_eq!(sheep.state().vdi("v").entry.size, 64 << 20);
    sheep.dog(&["vdi", "create", "w", "1", "-v"]).is(0, "VDI ID of newly created VDI: 12\n", "");
    sheep.dog(&["vdi", "create", "-v", "-r", "x", "1"]).is(0, "13\n", "");
    let unformatted = FakeSheep::unformatted();
    unformatted.dog(&["vdi", "create", "v", "1G"]).is(
        1,
        "",
        "Failed to create VDI v: Waiting for cluster to be formatted\n",
    );
}

#[test]
fn create_passes_on_its_options_and_refuses_bad_ones() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "-c", "4:2", "-z", "24", "v", "5T"]).is_silent();
    {
        let state = sheep.state();
        let vdi = &state.vdi("v").entry;
        assert_eq!((vdi.size, vdi.object_shift, vdi.hyper), (5 << 40, 24, false));
        assert_eq!(vdi.redundancy, Some(RedundancyInfo { data: 4, parity: 2 }));
    }
    sheep.dog(&["vdi", "create", "-y", "h", "16P"]).is_silent();
    assert!(sheep.state().vdi("h").entry.hyper);
    sheep.dog(&["vdi", "create", "-P", "p", "130M"]).is_silent();
    assert_eq!(sheep.state().vdi("p").reserved, 130 << 20);

    sheep.dog(&["vdi", "create", "n"]).is_usage("Please specify the VDI size\n");
    sheep.dog(&["vdi", "create"]).is_usage("Please specify the VDI name\n");
    sheep.dog(&["vdi", "create", "n", "1Z"]).is_usage(
        "Invalid size '1Z'\nYou may use B, K, M, G, T or P suffixes for bytes, kilobytes, megabytes, gigabytes, terabytes and petabytes.\n",
    );
    sheep.dog(&["vdi", "create", "n", "4398046511105"]).is_usage(
        "VDI size is larger than 4.0 TB bytes, please use '-y' to create a hyper volume with size up to 16 PB bytes or use '-z' to create larger object size volume\n",
    );
    sheep.dog(&["vdi", "create", "-z", "20", "n", "1025G"]).is_usage(
        "VDI size is larger than 1.0 TB bytes, please use '-y' to create a hyper volume with size up to 16 PB bytes or use '-z' to create larger object size volume\n",
    );
    sheep
        .dog(&["vdi", "create", "-y", "n", "18014398509481985"])
        .is_usage("VDI size is too large\n");
    sheep.dog(&["vdi", "create", "-y", "-z", "22", "n", "1"]).is(
        1,
        "",
        "Don't specify both -y and -z options, please\n",
    );
    sheep.dog(&["vdi", "create", "-c", "0", "n", "1"]).is(
        1,
        "",
        "Invalid parameter 0\nTo create replicated vdi, set -c x\n  x(1 to 31)   - number of replicated copies\nTo create erasure coded vdi, set -c x:y\n  x(2,4,8,16)  - number of data strips\n  y(1 to 15)   - number of parity strips\n",
    );
}

/// A preallocation that fails leaves nothing behind.
#[test]
fn a_failed_preallocation_takes_the_vdi_back() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "-P", "full", "1G"]).is(
        1,
        "",
        "Failed to create VDI full: Server has no space for new objects\n",
    );
    assert!(sheep.state().vdis.is_empty());
}

#[test]
fn c10_c11_resize_has_the_old_lines() {
    let sheep = FakeSheep::start();
    sheep.state().add(entry(9, "v"));
    sheep.dog(&["vdi", "resize", "v", "1M"]).is_usage("Shrinking VDIs is not implemented\n");
    sheep
        .dog(&["vdi", "resize", "v", "4398046511105"])
        .is_usage("New VDI size is too large. This volume's max size is 4398046511104\n");
    sheep.dog(&["vdi", "resize", "v", "1G"]).is_silent();
    sheep.dog(&["vdi", "resize", "n", "1G"]).is(
        1,
        "",
        "Failed to open VDI n (snapshot id: 0 snapshot tag: ): No VDI found\n",
    );
    assert_eq!(sheep.dog(&["vdi", "resize", "v"]).code, 64);
}

#[test]
fn c12_cluster_info() {
    let sheep = FakeSheep::start();
    {
        let mut state = sheep.state();
        let first = state.cluster.epochs[0].clone();
        let mut second = first.clone();
        second.epoch = 2;
        second.nodes.push(EpochNode { address: "::1".into(), port: 7001, vnodes: 0, disks: 0 });
        state.cluster.epochs = vec![second, first];
    }
    sheep.dog(&["cluster", "info"]).is(
        0,
        "Cluster status: running, auto-recovery enabled\n\
         \n\
         Cluster created at Fri Jul 14 02:40:00 2017\n\
         \n\
         Epoch Time           Version [Host:Port:V-Nodes,,,]\n\
         2017-07-14 02:40:00      2 [127.0.0.1:7000:128, [::1]:7001:0]\n\
         2017-07-14 02:40:00      1 [127.0.0.1:7000:128]\n",
        "",
    );
    sheep.dog(&["cluster", "info", "-v", "-d"]).is(
        0,
        "Cluster status: running, auto-recovery enabled\n\
         Cluster store: plain with 3 redundancy policy\n\
         Cluster vnodes strategy: auto\n\
         Cluster vnode mode: node\n\
         Cluster created at Fri Jul 14 02:40:00 2017\n\
         \n\
         Epoch Time           Version [Host:Port:V-Nodes,,,]\n\
         2017-07-14 02:40:00      2 [+[::1]:7001:0]\n\
         2017-07-14 02:40:00      1 [formated]\n",
        "",
    );
    sheep.dog(&["cluster", "info", "-r"]).is(
        0,
        "running, auto-recovery enabled\n\
         1500000000 2 [127.0.0.1:7000:128, [::1]:7001:0]\n\
         1500000000 1 [127.0.0.1:7000:128]\n",
        "",
    );
    FakeSheep::unformatted().dog(&["cluster", "info"]).is(
        0,
        "Cluster status: Waiting for cluster to be formatted\n\
         \n\
         Epoch Time           Version [Host:Port:V-Nodes,,,]\n",
        "",
    );
    for (state, text) in [
        (ClusterState::WaitForJoin, "Waiting for other nodes to join cluster"),
        (ClusterState::ShuttingDown, "System is shutting down"),
    ] {
        sheep.state().cluster.state = state.into();
        let info = sheep.dog(&["cluster", "info"]);
        assert_eq!(info.code, 0);
        assert!(info.stdout.starts_with(&format!("Cluster status: {text}\n\n")));
        let info = sheep.dog(&["cluster", "info", "-v"]);
        assert!(
            info.stdout.contains(&format!("Cluster store: {text}\nCluster vnode mode: node\n"))
        );
    }
}

#[test]
fn c13_no_sheep() {
    // A port that was free a moment ago and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("loopback")
        .port()
        .to_string();
    for args in [
        &["cluster", "info"][..],
        &["node", "list"],
        &["vdi", "delete", "v"],
        &["vdi", "create", "v", "1G"],
    ] {
        let mut command = dog_command();
        command.args(args).args(["-p", &port]);
        run(command, b"").is(
            2,
            "",
            &format!(
                "failed to connect to 127.0.0.1:{port}: Connection refused\nFailed to get node list\n"
            ),
        );
    }
}

/// What answers there speaks another protocol: the same two lines, no hang.
#[test]
fn a_stranger_at_the_port_is_no_sheep() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("bound").port().to_string();
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("client");
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(&[b'x'; 64]);
    });
    let mut command = dog_command();
    command.args(["node", "list", "-p", &port]);
    run(command, b"").is(
        2,
        "",
        &format!(
            "failed to connect to 127.0.0.1:{port}: Protocol version mismatch: the peer does not speak the protocol of dog and sheep\nFailed to get node list\n"
        ),
    );
    stranger.join().expect("stranger");
}

/// `node md`: rows are disks that work; a lost one is told to people and programs of today.
fn disks_of_nodes(sheep: &FakeSheep) {
    let disk = |path: &str, used| DiskInfo {
        id: vec![7; 16],
        path: path.into(),
        used,
        available: 3 << 20,
        ..DiskInfo::default()
    };
    let lost = DiskInfo { lost: "it fell".into(), used: 0, available: 0, ..disk("/d/b", 0) };
    sheep.state().space[0].disks = vec![disk("/d/a", 1 << 20), lost, disk("/d/c", 9 << 20)];
    sheep.dog(&["node", "md", "info", "-r"]).is(
        0,
        "127.0.0.1:7000 0 4194304 1048576 3145728 25% /d/a\n127.0.0.1:7000 1 12582912 9437184 3145728 75% /d/c\n",
        "",
    );
    let rows = " 0\t4.0 MB\t1.0 MB\t3.0 MB\t 25%\t/d/a\n 1\t12 MB\t9.0 MB\t3.0 MB\t 75%\t/d/c\nlost: /d/b: it fell\n";
    let head = "Id\tSize\tUsed\tAvail\tUse%\tPath\n";
    sheep.dog(&["node", "md", "info"]).is(0, &format!("{head}{rows}"), "");
    sheep.dog(&["node", "md", "info", "-A"]).is(0, &format!("{head}Node 0:\n{rows}"), "");
    let json: serde_json::Value =
        serde_json::from_str(&sheep.dog(&["node", "md", "info", "--json"]).stdout).expect("JSON");
    assert_eq!(json["nodes"][0]["disks"][1]["lost"], "it fell");
    assert_eq!(json["nodes"][0]["disks"][2]["used"], 9 << 20);
    for args in [&["node", "md"][..], &["node", "md", "list"]] {
        let usage = sheep.dog(args);
        assert_eq!((usage.code, usage.stderr.as_str()), (1, ""));
        assert!(
            usage.stdout.starts_with("Usage: dog node md {info|plug|unplug} [-a address] [-p port] [-r] [-A] [-f] [-h] [-T] [--json] [disks]\nAvailable subcommands:\n  info                    "),
            "{}",
            usage.stdout
        );
    }
    sheep.dog(&["node", "md", "info", "/d/a"]).is_usage("Unexpected argument '/d/a'\n");
    sheep.dog(&["node", "md", "plug", "/d/e"]).is(
        1,
        "",
        "Disks cannot be added or taken away while sheep runs: not supported by this version\n",
    );
}

#[test]
fn c14_c15_nodes() {
    let sheep = FakeSheep::start();
    sheep.state().add(entry(9, "v"));
    sheep.dog(&["node", "info", "-r"]).is(
        0,
        "0 4194304 1048576 3145728 25%\nTotal 4194304 1048576 3145728 25% 1073741824\n",
        "",
    );
    sheep.dog(&["node", "info"]).is(
        0,
        "Id\tSize\tUsed\tAvail\tUse%\n 0\t4.0 MB\t1.0 MB\t3.0 MB\t 25%\nTotal\t4.0 MB\t1.0 MB\t3.0 MB\t 25%\n\nTotal virtual image size\t1.0 GB\n",
        "",
    );
    disks_of_nodes(&sheep);
    {
        let mut state = sheep.state();
        let node = state.nodes[0].clone();
        for port in 7001..7004 {
            state.nodes.push(NodeEntry { port, vnodes: 0, zone: 5, ..node.clone() });
        }
    }
    sheep.dog(&["node", "list", "-r"]).is(
        0,
        "0 127.0.0.1:7000 128 16777343\n1 127.0.0.1:7001 0 5\n2 127.0.0.1:7002 0 5\n3 127.0.0.1:7003 0 5\n",
        "",
    );
    let list = sheep.dog(&["node", "list"]);
    assert!(list.stdout.starts_with(
        "  Id   Host:Port         V-Nodes       Zone\n   0   127.0.0.1:7000      \t128   16777343\n   1   127.0.0.1:7001      \t 0          5\n"
    ));
    sheep.state().space[0].reachable = false;
    sheep.dog(&["node", "info", "-r"]).is(2, "", "Cannot get information from any nodes\n");
    sheep.state().nodes.clear();
    sheep.dog(&["node", "list"]).is(1, "", "There are no active sheep daemons\n");
}

#[test]
fn c17_read_and_write_exact_bytes() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "100M"]).is_silent();
    let data: Vec<u8> = (0..64u32 << 20).map(|i| (i / 4096 % 251) as u8 + 1).collect();
    let offset = (3 << 20) + 517;
    let (at, len) = (offset.to_string(), data.len().to_string());
    sheep.dog_with(&["vdi", "write", "v", &at, &len], &data).is_silent();
    assert!(sheep.state().in_flight.1 <= 16);
    let read = sheep.dog(&["vdi", "read", "v", &at, &len]);
    assert_eq!((read.code, read.stderr.as_str()), (0, ""));
    assert!(read.bytes == data);
    let read = sheep.dog(&["vdi", "read", "v", "0", "4M"]);
    assert!(read.bytes[..offset].iter().all(|b| *b == 0));
    assert!(read.bytes[offset..] == data[..(4 << 20) - offset], "4 MiB differ");
    // Zero length, the end, and beyond it.
    sheep.dog(&["vdi", "read", "v", "5", "0"]).is_silent();
    sheep.dog_with(&["vdi", "write", "v", "5", "0"], b"ignored").is_silent();
    assert_eq!(sheep.dog(&["vdi", "read", "v", "104857599"]).bytes, [0]);
    assert_eq!(sheep.dog(&["vdi", "read", "v", "104857598", "1G"]).bytes, [0, 0]);
    let beyond = "Read offset is beyond the end of the VDI\n";
    sheep.dog(&["vdi", "read", "v", "100M"]).is(1, "", beyond);
    sheep.dog(&["vdi", "read", "v", "1P"]).is(1, "", beyond);
    sheep.dog_with(&["vdi", "write", "v", "101M", "1"], b"x").is(
        1,
        "",
        "Write offset is beyond the end of the VDI\n",
    );
    let writes = sheep.state().requests.len();
    sheep.dog_with(&["vdi", "write", "v", "100M", "1"], b"x").is(
        1,
        "",
        "Write length is beyond the end of the VDI\n",
    );
    assert!(!sheep.state().requests[writes..].iter().any(|r| matches!(r, Request::Write(_))));
    sheep.dog(&["vdi", "read", "n"]).is(
        1,
        "",
        "Failed to open VDI n (snapshot id: 0 snapshot tag: ): No VDI found\n",
    );
}

#[test]
fn short_input_is_padded_to_the_length_or_the_objects_end() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "12M"]).is_silent();
    let fill = vec![9; 12 << 20];
    let begin = || sheep.dog_with(&["vdi", "write", "v"], &fill).is_silent();
    let zeros = |from: usize, to: usize| {
        let bytes = sheep.state().bytes("v");
        assert!(bytes[..from - 3].iter().all(|b| *b == 9));
        assert_eq!(&bytes[from - 3..from], b"abc");
        assert!(bytes[from..to].iter().all(|b| *b == 0));
        assert!(bytes[to..].iter().all(|b| *b == 9));
    };
    begin();
    sheep.dog_with(&["vdi", "write", "v", "4096", "8192"], b"abc").is_silent();
    zeros(4099, 12288);
    begin();
    sheep.dog_with(&["vdi", "write", "v", "3M", "8M"], b"abc").is_silent();
    zeros((3 << 20) + 3, 4 << 20);
    begin();
    sheep.dog_with(&["vdi", "write", "v", "9M"], b"abc").is_silent();
    zeros((9 << 20) + 3, 12 << 20);
    // Nothing comes, or it ends where an object ends: nothing is padded.
    begin();
    sheep.dog_with(&["vdi", "write", "v", "0", "4M"], b"").is_silent();
    sheep.dog_with(&["vdi", "write", "v", "4M"], &fill[..4 << 20]).is_silent();
    assert!(sheep.state().bytes("v") == fill);
}

/// What is behind the length stays in the pipe for the next program.
#[test]
fn write_takes_exactly_its_length_from_stdin() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "1M"]).is_silent();
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg("\"$DOG\" vdi write v 0 3 && \"$DOG\" vdi write v 3 2 && cat")
        .env("DOG", env!("CARGO_BIN_EXE_dog"))
        .env("SHEEPDOG_DOG_PORT", sheep.port.to_string());
    run(shell, b"abcdefgh").is(0, "fgh", "");
    assert_eq!(sheep.state().bytes("v")[..6], *b"abcde\0");
}

#[test]
fn failures_of_the_data_path_have_the_old_line_first() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "4M"]).is_silent();
    sheep.state().fail_writes = Some((0, ErrorKind::NoSpace));
    sheep.dog_with(&["vdi", "write", "v", "0", "1"], b"x").is(
        1,
        "",
        "Failed to write VDI\nServer has no space for new objects: as told\n",
    );
    sheep.state().cut_at_write = Some(0);
    let cut = sheep.dog_with(&["vdi", "write", "v", "0", "1"], b"x");
    assert_eq!((cut.code, cut.stdout.as_str()), (2, ""));
    assert!(
        cut.stderr.starts_with("Failed to write VDI\nNetwork error between sheep: connection ")
    );
    assert!(!cut.stderr.contains("os error"));
}

#[test]
fn c19_sizes_are_exact() {
    let sheep = FakeSheep::start();
    for (i, (text, bytes)) in [
        ("1.5g", 3u64 << 29),
        ("1073741824.0", 1 << 30),
        ("10k", 10240),
        ("16p", 16 << 50),
        ("9007199254740993", 9_007_199_254_740_993),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("v{i}");
        sheep.dog(&["vdi", "create", "-y", &name, text]).is_silent();
        let list = sheep.dog(&["vdi", "list", "-r", &name]);
        assert_eq!(list.stdout.split(' ').nth(3), Some(bytes.to_string().as_str()));
    }
}

#[test]
fn c24_host_names_and_the_environment() {
    let sheep = FakeSheep::start();
    let listed = "0 127.0.0.1:7000 128 16777343\n";
    sheep.dog(&["node", "list", "-r", "-a", "localhost"]).is(0, listed, "");
    let mut command = dog_command();
    command
        .args(["node", "list", "-r", "-a", "localhost", "-p", &sheep.port.to_string()])
        .env("SHEEPDOG_DOG_ADDR", "999.9.9.9")
        .env("SHEEPDOG_DOG_PORT", "nonsense");
    run(command, b"").is(0, listed, "");
    let mut command = dog_command();
    command.args(["node", "list"]).env("SHEEPDOG_DOG_ADDR", "999.9.9.9");
    run(command, b"").is(1, "", "Invalid ip address 999.9.9.9\n");
    let mut command = dog_command();
    command.args(["node", "list"]).env("SHEEPDOG_DOG_PORT", "nonsense");
    run(command, b"").is(64, "", "Invalid port number 'nonsense'\n");
}

#[test]
fn invocations_are_logged_when_asked_for() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("log");
    for _ in 0..2 {
        let mut command = dog_command();
        command
            .args(["node", "list", "-a", "1.2"])
            .env("SHEEPDOG_DOG_LOG", "1")
            .env("SHEEPDOG_DOG_LOG_PATH", &path);
        assert_eq!(run(command, b"").code, 1);
    }
    let log = std::fs::read_to_string(path).expect("log");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].ends_with("dog node list -a 1.2"), "{}", lines[0]);
    assert_eq!(&lines[0][20..23], " : ");
}

#[test]
fn format_asks_before_anything_is_lost() {
    let sheep = FakeSheep::unformatted();
    sheep.dog(&["cluster", "format"]).is(0, "using backend plain store\n", "");
    let request = sheep.state().requests.last().cloned();
    assert_eq!(
        request,
        Some(Request::ClusterFormat(ClusterFormat {
            store: "plain".into(),
            force: true,
            ..ClusterFormat::default()
        }))
    );
    sheep.dog(&["vdi", "create", "v", "1G"]).is_silent();
    let zones = "Number of copies (2) is larger than number of zones (1).\nAre you sure you want to continue? [yes/no]: ";
    // Asked even with -f; no answer and no are no.
    sheep.dog(&["cluster", "format", "-f", "-c", "2"]).is(0, zones, "");
    sheep.dog_with(&["cluster", "format", "-f", "-c", "2"], b"no\n").is(0, zones, "");
    assert_eq!(sheep.state().vdis.len(), 1);
    let asked = sheep.dog_with(&["cluster", "format", "--json", "-c", "1"], b"no\n");
    assert_eq!((asked.code, asked.stdout.as_str()), (0, ""));
    assert!(asked.stderr.ends_with("[yes/no]: "));
    let caution = sheep.dog(&["cluster", "format", "-c", "1"]);
    assert_eq!((caution.code, caution.stderr.as_str()), (0, ""));
    assert!(caution.stdout.ends_with(
        "Caution! The cluster is not empty.\n(/_)_|_  Are you sure you want to continue? [yes/no]: "
    ));
    assert_eq!(sheep.state().vdis.len(), 1);
    let agreed = sheep.dog_with(&["cluster", "format", "-t", "-l", "-c", "1"], b"Yes, please\n");
    assert!(agreed.stdout.ends_with("[yes/no]: using backend plain store\n"));
    assert!(sheep.state().vdis.is_empty());
    sheep.dog(&["cluster", "format", "-f", "-b", "farm"]).is(
        2,
        "using backend farm store\nAvailable stores:\n---------------------------------------\ntree plain \n",
        "Format failed: Targeted backend store is not found\n",
    );
    sheep.dog(&["cluster", "format", "-f", "-V"]).is(
        1,
        "",
        "Can not apply the option of '-V', because there are vnode strategy of sheep is auto in the cluster\n",
    );
}

#[test]
fn shutdown_says_nothing_or_the_old_line() {
    let sheep = FakeSheep::start();
    sheep.dog(&["cluster", "shutdown"]).is_silent();
    sheep.state().broken = Some((ErrorKind::Internal, "stuck"));
    sheep.dog(&["cluster", "shutdown"]).is(
        1,
        "",
        "failed to execute request\nSystem error: stuck\n",
    );
}

#[test]
fn rename_and_info() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "-c", "1", "v", "8M"]).is_silent();
    sheep.dog_with(&["vdi", "write", "v", "0", "1"], b"x").is_silent();
    sheep.dog(&["vdi", "rename", "v", "w"]).is_silent();
    sheep.dog(&["vdi", "rename", "v", "x"]).is(
        1,
        "",
        "Failed to rename VDI v to x: No VDI found\n",
    );
    sheep.dog(&["vdi", "create", "v", "8M"]).is_silent();
    sheep.dog(&["vdi", "rename", "v", "w"]).is(
        1,
        "",
        "Failed to rename VDI v to w: VDI exists already\n",
    );
    sheep.dog(&["vdi", "rename", "v"]).is_usage("Please specify the new name of the VDI\n");
    sheep.dog(&["vdi", "rename", "v", "w", "x"]).is_usage("Unexpected argument 'x'\n");
    sheep.dog(&["vdi", "info", "w", "-r"]).is(
        0,
        "name w\nvid 11\nstate working\nsize 8388608\nused 4194304\nshared 0\nstored 4096\nstored_total 12288\nobject_size 4194304\nredundancy 1\nhyper no\npreallocated no\ncreated 1500000000\nlineage 0\nopen 0\n",
        "",
    );
    let info = sheep.dog(&["vdi", "info", "w"]);
    assert!(info.stdout.starts_with("name:         w\nvid:          11\nstate:        working\nsize:         8.0 MB (8388608 bytes)\n"));
    assert!(info.stdout.contains("\nstored total: 0.0 MB (12288 bytes)\n"));
    sheep.dog(&["vdi", "info", "none"]).is(
        1,
        "",
        "Failed to open VDI none (snapshot id: 0 snapshot tag: ): No VDI found\n",
    );
}

#[test]
fn every_subcommand_speaks_json() {
    let sheep = FakeSheep::start();
    let vdi = r#"{"name":"v","tag":"","snapshot_id":0,"state":"working","vid":"11","size":8388608,"object_size":4194304,"redundancy":{"type":"copies","copies":3},"created":1500000000}"#;
    sheep.dog(&["vdi", "create", "v", "8M", "--json"]).is(0, &format!("{{\"vdi\":{vdi}}}\n"), "");
    sheep.dog_with(&["vdi", "write", "--json", "v", "1", "9"], b"abc").is(
        0,
        "{\"offset\":1,\"length\":3,\"padded\":6}\n",
        "",
    );
    sheep.dog(&["vdi", "read", "--json", "v", "0", "5"]).is(
        0,
        "{\"offset\":0,\"length\":5,\"data\":\"0061626300\"}\n",
        "",
    );
    sheep.dog(&["vdi", "resize", "--json", "v", "8M"]).is(0, &format!("{{\"vdi\":{vdi}}}\n"), "");
    sheep.dog(&["vdi", "rename", "--json", "v", "w"]).is(
        0,
        &format!("{{\"vdi\":{}}}\n", vdi.replace("\"v\"", "\"w\"")),
        "",
    );
    let full = r#"{"name":"w","tag":"","snapshot_id":0,"state":"working","clone":false,"vid":"11","parent":null,"lineage":"0","size":8388608,"used":4194304,"shared":0,"stored":4096,"stored_total":12288,"object_size":4194304,"redundancy":{"type":"copies","copies":3},"hyper":false,"preallocated":false,"created":1500000000,"snapshotted":null,"open":0}"#;
    sheep.dog(&["vdi", "info", "--json", "w"]).is(0, &format!("{full}\n"), "");
    sheep.dog(&["vdi", "list", "--json"]).is(0, &format!("{{\"vdis\":[{full}]}}\n"), "");
    sheep.dog(&["vdi", "delete", "--json", "w"]).is(0, "{\"deleted\":true}\n", "");
    let again = sheep.dog(&["vdi", "delete", "--json", "w"]);
    assert_eq!((again.code, again.stdout.as_str()), (0, "{\"deleted\":false}\n"));
    sheep.dog(&["node", "list", "--json"]).is(
        0,
        "{\"nodes\":[{\"id\":0,\"address\":\"127.0.0.1\",\"port\":7000,\"vnodes\":128,\"zone\":16777343,\"disks\":[],\"version\":\"2\"}]}\n",
        "",
    );
    sheep.dog(&["node", "info", "--json"]).is(
        0,
        "{\"nodes\":[{\"address\":\"127.0.0.1\",\"port\":7000,\"reachable\":true,\"size\":4194304,\"used\":1048576,\"available\":3145728,\"disks\":[]}],\"size\":4194304,\"used\":1048576,\"available\":3145728,\"virtual_size\":0}\n",
        "",
    );
    sheep.dog(&["cluster", "info", "--json"]).is(
        0,
        "{\"state\":\"running\",\"waiting_for\":[],\"id\":\"07070707-0707-0707-0707-070707070707\",\"created\":1500000000,\"redundancy\":{\"type\":\"copies\",\"copies\":3},\"object_size\":4194304,\"store\":\"plain\",\"vnodes\":\"auto\",\"recovery\":true,\"registry\":\"local\",\"vdis\":0,\"epochs\":[{\"epoch\":1,\"time\":1500000000,\"nodes\":[{\"address\":\"127.0.0.1\",\"port\":7000,\"vnodes\":128}]}]}\n",
        "",
    );
    sheep.dog(&["cluster", "format", "--json", "-c", "1"]).is(
        0,
        "{\"id\":\"07070707-0707-0707-0707-070707070707\",\"redundancy\":{\"type\":\"copies\",\"copies\":1},\"object_size\":4194304}\n",
        "",
    );
    sheep.dog(&["cluster", "shutdown", "--json"]).is(0, "{\"shutdown\":true}\n", "");
}

#[test]
fn bad_names_send_nothing() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let sheep = FakeSheep::start();
    for (name, line) in [
        (vec![], "Invalid parameters: VDI name is empty\n"),
        (vec![b'n'; 256], "Invalid parameters: VDI name is 256 bytes long, the limit is 255\n"),
        (vec![0xff], "Invalid parameters: VDI name is not UTF-8\n"),
        (b"a\nb".to_vec(), "Invalid parameters: VDI name contains the control character \\u{a}\n"),
    ] {
        let name = OsString::from_vec(name);
        for sub in ["create", "resize", "read", "write", "rename", "import", "export"] {
            sheep.dog(&["vdi".into(), sub.into(), name.clone(), "1".into()]).is(1, "", line);
        }
        for sub in ["delete", "info"] {
            sheep.dog(&["vdi".into(), sub.into(), name.clone()]).is(1, "", line);
        }
    }
    assert!(sheep.state().requests.is_empty());
}

#[test]
fn elapsed_time_comes_last() {
    let sheep = FakeSheep::start();
    let timed = sheep.dog(&["vdi", "list", "-r", "-T", "none"]);
    assert!(timed.stdout.starts_with("\nElapsed time: 0.") && timed.stdout.ends_with(" seconds\n"));
    let timed = sheep.dog(&["vdi", "read", "-T", "none"]);
    assert_eq!(timed.code, 1);
    assert!(timed.stdout.starts_with("\nElapsed time: "));
    sheep.dog(&["vdi", "create", "-T", "none"]).is_usage("Please specify the VDI size\n");
    let timed = sheep.dog(&["vdi", "list", "--json", "-T"]);
    assert_eq!(timed.stdout, "{\"vdis\":[]}\n");
    assert!(timed.stderr.starts_with("Elapsed time: "));
}

/// stdout is fully buffered: with both streams in one file, what goes to stderr comes first.
#[test]
fn c26_streams_are_those_of_c() {
    let sheep = FakeSheep::start();
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("both");
    let file = std::fs::File::create(&path).expect("file");
    let status = dog_command()
        .args(["cluster", "format", "-f", "-b", "farm"])
        .env("SHEEPDOG_DOG_PORT", sheep.port.to_string())
        .stdout(Stdio::from(file.try_clone().expect("file")))
        .stderr(Stdio::from(file))
        .status()
        .expect("runs");
    assert_eq!(status.code(), Some(2));
    let text = std::fs::read_to_string(path).expect("text");
    assert!(text.starts_with(
        "Format failed: Targeted backend store is not found\nusing backend farm store\n"
    ));
    assert!(!text.contains(['\x1b', '\r']));
}

#[test]
fn a_reader_that_goes_away_is_no_message_and_a_full_disk_is_one() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "64M"]).is_silent();
    let mut child = dog_command()
        .args(["vdi", "read", "v"])
        .env("SHEEPDOG_DOG_PORT", sheep.port.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("device");
    let output = dog_command()
        .args(["vdi", "list"])
        .env("SHEEPDOG_DOG_PORT", sheep.port.to_string())
        .stdout(full)
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, b"Failed to write to standard output: No space left on device\n");
}

#[test]
fn objects_are_found_by_id() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "v", "16M"]).is_silent();
    sheep.dog_with(&["vdi", "write", "v", "5M", "1"], b"x").is_silent();
    let count = |oid: &str| sheep.dog(&["vdi", "list", "-r", "-o", oid]).stdout.lines().count();
    assert_eq!(count("0000001100000001"), 1);
    assert_eq!(count("0x1100000001"), 1);
    assert_eq!(count("0000001100000000"), 0);
    assert_eq!(count("0000001200000001"), 0);
    assert_eq!(count("00000011ffffffff"), 0);
    sheep.dog(&["vdi", "list", "-o", "zz"]).is(1, "", "Invalid object id 'zz'\n");
}

/// On a terminal a long job has a bar; elsewhere, and with raw or JSON output, it has none.
#[test]
fn bars_are_for_terminals() {
    let sheep = FakeSheep::start();
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    std::fs::write(&path, vec![3; 8 << 20]).expect("written");
    let on_terminal = |options: &str, name: &str| {
        let mut script = Command::new("script");
        script
            .args(["-qec"])
            .arg(format!(
                "{} vdi import {options} {name} {}; {} vdi list -r none",
                env!("CARGO_BIN_EXE_dog"),
                path.display(),
                env!("CARGO_BIN_EXE_dog"),
            ))
            .arg("/dev/null")
            .env("SHEEPDOG_DOG_PORT", sheep.port.to_string())
            .env("TERM", "xterm");
        script.output().ok().map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
    };
    let Some(shown) = on_terminal("", "a") else {
        eprintln!("script is not installed: bars are not looked at");
        return;
    };
    assert!(shown.contains(" left"), "{shown:?}");
    assert_eq!(on_terminal("-r", "b").as_deref(), Some(""));
    let json = on_terminal("--json", "c").unwrap_or_default();
    assert!(json.starts_with('{') && !json.contains('\x1b'), "{json:?}");
}
