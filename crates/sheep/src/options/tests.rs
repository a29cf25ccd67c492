//! Every option: what it means, and the exact line that refuses what it cannot mean.

use super::*;
use crate::log::{Destination, Format, Level};
use std::path::Path;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn run(line: &str) -> Options {
    match parse(words(line)) {
        Ok(Action::Run(options)) => *options,
        other => panic!("{line}: {other:?}"),
    }
}

fn local(file: impl Into<std::path::PathBuf>) -> Option<Driver> {
    Some(Driver::Local { file: Some(file.into()) })
}

fn refusal(line: &str) -> Refusal {
    match parse(words(line)) {
        Err(refusal) => refusal,
        Ok(action) => panic!("{line}: {action:?}"),
    }
}

#[test]
fn silence_means_the_defaults_of_old() {
    let options = run("");
    assert_eq!(options.store, Path::new("/tmp"));
    assert_eq!((options.bind, options.port), (None, 7000));
    assert_eq!(options.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(options.zone, 16_777_343);
    assert_eq!(options.cluster, None);
    assert!(!options.foreground && !options.daemonized);
    assert_eq!(options.log, LogOptions::default());
    assert_eq!((options.nbd, options.nbd_group), (None, None));
    assert_eq!((options.io, options.journal.clone()), (EngineChoice::Auto, None));
    assert_eq!(options.pid_file, None);
}

#[test]
fn every_option_says_what_it_means() {
    let options = run("-b 127.0.0.2 -p7001 -z 4294967295 -c local:/r/db -f -P /run/s.pid \
         -l level=debug,dir=/l,format=json,dst=default --nbd=10809 --nbd-group=0 \
         --io blocking -j size=1g /s//");
    assert_eq!(options.store, Path::new("/s"));
    assert_eq!(options.bind, Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))));
    assert_eq!(options.address, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    assert_eq!((options.port, options.zone), (7001, u32::MAX));
    assert_eq!(options.cluster, local("/r/db"));
    assert!(options.foreground);
    assert_eq!(options.pid_file.as_deref(), Some(Path::new("/run/s.pid")));
    assert_eq!(options.log.level, Level::Debug);
    assert_eq!(options.log.dir.as_deref(), Some(Path::new("/l")));
    assert_eq!(options.log.format, Format::Json);
    assert_eq!(options.nbd, "127.0.0.1:10809".parse().ok());
    assert_eq!(options.nbd_group, Some(0));
    assert_eq!(options.io, EngineChoice::Blocking);
    assert_eq!(options.journal.as_ref().and_then(|j| j.bytes), Some(1 << 30));
    let skip = run("-j skip");
    assert_eq!(skip.journal.as_ref().and_then(|j| j.bytes), None);
    assert_eq!(skip.notices.len(), 1);
}

#[test]
fn addresses_of_every_form() {
    assert_eq!(run("-y 10.0.0.1").zone, 0x0100_000a);
    assert_eq!(run("-b 0.0.0.0 -y ::1").address.to_string(), "::1");
    assert_eq!(run("-b ::").bind, None);
    assert_eq!(run("--nbd=0.0.0.0:1").nbd, "0.0.0.0:1".parse().ok());
    assert_eq!(run("--nbd=[::1]:2").nbd, "[::1]:2".parse().ok());
    assert_eq!(run("--nbd-group=root").nbd_group, Some(0));
}

#[test]
fn words_are_absolute_paths() {
    let here = std::env::current_dir().expect("cwd");
    assert_eq!(run("a/b/").store, here.join("a/b"));
    assert_eq!(run("/").store, Path::new("/"));
    assert_eq!(run("-- -x").store, here.join("-x"));
    assert_eq!(run("-c local:r").cluster, local(here.join("r")));
    assert_eq!(run("-c local").cluster, Some(Driver::Local { file: None }));
}

#[test]
fn the_terminal_is_in_the_foreground() {
    let options = run("-l dst=stdout");
    assert!(options.foreground);
    assert_eq!(options.log.destination, Destination::Stdout);
}

#[test]
fn bad_input_has_one_exact_line() {
    let later = |short: char, long: &str| {
        format!("option '-{short}' (--{long}) is not supported by this version")
    };
    for (line, refused) in [
        ("-p 0", "Invalid port number '0'".to_owned()),
        ("-p 65536", "Invalid port number '65536'".to_owned()),
        ("-p +1", "Invalid port number '+1'".to_owned()),
        ("-p 70x", "Invalid port number '70x'".to_owned()),
        ("--port=", "Invalid port number ''".to_owned()),
        ("-b nowhere", "Invalid address: 'nowhere'".to_owned()),
        ("-y 1.2.3", "Invalid address: '1.2.3'".to_owned()),
        ("-z -1", "Invalid zone id '-1': must be an integer between 0 and 4294967295".to_owned()),
        (
            "-z 4294967296",
            "Invalid zone id '4294967296': must be an integer between 0 and 4294967295".to_owned(),
        ),
        ("-c accord", "Invalid cluster driver 'accord'".to_owned()),
        ("-c local:", "cluster driver 'local:' names no file".to_owned()),
        ("-c zookeeper:a:1", "cluster driver 'zookeeper' is not in this build".to_owned()),
        ("-j dir=/x", "you must specify size for journal".to_owned()),
        ("-j skip,dir=/x", "you must specify size for journal".to_owned()),
        ("-j skip=yes,size=1g", "Invalid journal option 'skip'".to_owned()),
        ("-j sise=1g", "Invalid journal option 'sise'".to_owned()),
        ("-j size=63m", "invalid size 63m, must be bigger than 64(M)".to_owned()),
        ("-j size=x", "invalid size x, must be bigger than 64(M)".to_owned()),
        ("-j size=1.2.3T", "invalid size 1.2.3T, must be bigger than 64(M)".to_owned()),
        (
            "-j size=18446744073709551615",
            "invalid size 18446744073709551615, must not be bigger than 1024P".to_owned(),
        ),
        ("-j size=99999999T", "invalid size 99999999T, must not be bigger than 1024P".to_owned()),
        ("-j size=1025P", "invalid size 1025P, must not be bigger than 1024P".to_owned()),
        ("-l level=loud", "Invalid log level 'loud'".to_owned()),
        ("-l format=xml", "Invalid log format 'xml'".to_owned()),
        ("-l dst=mail", "Invalid log destination 'mail'".to_owned()),
        ("-l dir=", "Invalid log directory ''".to_owned()),
        ("-l volume=11", "Invalid log option 'volume'".to_owned()),
        (
            "-l dir=/x,dst=syslog",
            "log option 'dir' can be used only with the default destination".to_owned(),
        ),
        ("-P", "option requires an argument -- 'P'".to_owned()),
        ("-k", "invalid option -- 'k'".to_owned()),
        ("--sheep", "unrecognized option '--sheep'".to_owned()),
        ("--foreground=yes", "option '--foreground' doesn't allow an argument".to_owned()),
        ("--nbd 10809", "option '--nbd' requires its argument with '='".to_owned()),
        ("--nbd=", "Invalid NBD port number ''".to_owned()),
        (
            "--nbd=::1:1",
            "Invalid NBD address '::1:1': must be [ADDR:]PORT, an IPv6 address in brackets"
                .to_owned(),
        ),
        (
            "--nbd=[1.2.3.4]:1",
            "Invalid NBD address '[1.2.3.4]:1': must be [ADDR:]PORT, an IPv6 address in brackets"
                .to_owned(),
        ),
        ("--nbd-group=no:such", "Invalid group 'no:such': not in /etc/group".to_owned()),
        ("--nbd-group=", "Invalid group '': not in /etc/group".to_owned()),
        ("--io=aio", "Invalid I/O engine 'aio': must be auto, ring or blocking".to_owned()),
        ("/a /b", "only one PATH can be given, not also '/b'".to_owned()),
        ("/a,,/b", "PATH '/a,,/b' has an empty part".to_owned()),
        ("/a,", "PATH '/a,' has an empty part".to_owned()),
        ("/a,/b,/b/", "PATH names '/b' twice".to_owned()),
        (
            "--config=/no/such",
            "configuration file /no/such: No such file or directory (os error 2)".to_owned(),
        ),
        ("-g", later('g', "gateway")),
        ("-i host=1.1.1.1", later('i', "ioaddr")),
        ("-r host=x", later('r', "http")),
        ("-R max=1", later('R', "recovery")),
        ("-u", later('u', "upgrade")),
        ("-V 3", later('V', "vnodes")),
        ("-w net=1", later('w', "wq-threads")),
        ("-W", later('W', "wildcard-recovery")),
        ("-x 3", later('x', "max-dynamic-threads")),
    ] {
        let refusal = refusal(line);
        assert_eq!(refusal.line, refused, "{line}");
        assert!(!refusal.line.contains('\n'));
    }
    let Err(refusal) = parse([OsString::from("")]) else { panic!("an empty path was taken") };
    assert_eq!(refusal.line, "the path of the store is empty");
}

#[test]
fn misuse_shows_the_long_help_where_there_is_one() {
    assert_eq!(refusal("-l").help, Some(help::LOG));
    assert_eq!(refusal("-j").help, Some(help::JOURNAL));
    assert_eq!(refusal("-c accord").help, Some(help::DRIVERS));
    assert_eq!(refusal("-p").help, None);
}

#[test]
fn help_and_version_print_and_leave() {
    let printed = |line: &str| match parse(words(line)) {
        Ok(Action::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    };
    let usage = printed("-f -h -p nonsense");
    for spec in SPECS.iter().filter(|s| !s.hidden) {
        let supported = usage.contains(&format!("--{}", spec.long));
        let refused = parse(words(&format!("--{}=1", spec.long)))
            .err()
            .is_some_and(|r| r.line.ends_with("not supported by this version"));
        let flag = spec.arg == Arg::No;
        assert!(supported != refused || flag, "{}", spec.long);
    }
    assert!(
        printed("--version")
            .starts_with(&format!("Sheepdog daemon version {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn the_file_speaks_where_the_command_line_is_silent() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("sheep.toml");
    std::fs::write(
        &file,
        "path = \"/from/file\"\nport = 7100\nzone = 5\nforeground = true\nnbd = 10810\n\
         log = { level = \"debug\", format = \"json\" }\n[journal]\nsize = \"128M\"\n",
    )
    .expect("write");
    let options = run(&format!("--config {} -p 7200", file.display()));
    assert_eq!(options.store, Path::new("/from/file"));
    assert_eq!((options.port, options.zone), (7200, 5));
    assert!(options.foreground);
    assert_eq!(options.nbd, "127.0.0.1:10810".parse().ok());
    assert_eq!(options.log.level, Level::Debug);
    assert_eq!(options.journal.as_ref().and_then(|j| j.bytes), Some(128 << 20));
    let options = run(&format!("/from/line --config {}", file.display()));
    assert_eq!(options.store, Path::new("/from/line"));
}

#[test]
fn a_bad_file_is_refused_with_one_line() {
    for (text, reason) in [
        ("prot = 7000", "unknown key 'prot'"),
        ("daemonized = true", "unknown key 'daemonized'"),
        ("config = \"x\"", "unknown key 'config'"),
        ("help = true", "unknown key 'help'"),
        ("port = 7.5", "'port' must be a string or a number"),
        ("port = 70000", "Invalid port number '70000'"),
        ("foreground = 1", "'foreground' must be true or false"),
        ("path = 1", "'path' must be a string"),
        ("gateway = true", "option '-g' (--gateway) is not supported by this version"),
    ] {
        assert_eq!(config::parse(text).map(|_| ()), Err(reason.to_owned()), "{text}");
    }
    let error = config::parse("port = 1\nport = 2").map(|_| ()).expect_err("twice");
    assert!(error.starts_with("line 2: "), "{error}");
    assert!(!error.contains('\n'), "{error}");
    // It has no length, and no end.
    let endless = refusal("--config /dev/zero");
    assert_eq!(endless.line, "configuration file /dev/zero: larger than 1 MiB");
}
