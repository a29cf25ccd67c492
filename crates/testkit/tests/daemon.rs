//! sheep as a daemon: what a script sees of its start and its end.

use rustix::process::Signal;
use sheepdog_testkit::dog::Dog;
use sheepdog_testkit::process::{Daemon, Ended, PATIENCE, run};
use sheepdog_testkit::sheep::free_port;
use std::path::Path;
use std::process::Command;

fn start(store: &Path, pidfile: &Path, port: u16) -> Ended {
    let mut sheep = Command::new(sheepdog_testkit::bins::bin("sheep"));
    sheep.args(["-b", "127.0.0.1", "-p", &port.to_string(), "-P"]).arg(pidfile).arg(store);
    run(&mut sheep, b"")
}

fn adopt(pidfile: &Path) -> Daemon {
    let text = std::fs::read_to_string(pidfile).expect("a pid file");
    let pid = text.trim().parse().expect("a pid");
    Daemon::adopt(pid).expect("it runs")
}

#[test]
fn a_daemon_is_ready_when_its_start_returns() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let (store, pidfile) = (home.path().join("store"), home.path().join("pid"));
    let port = free_port();
    let started = start(&store, &pidfile, port);
    // Adopted before anything can fail, so that nothing is left behind.
    let daemon = adopt(&pidfile);
    let _ = started.ok();
    let dog = Dog::new(port);
    let info = dog.run(&["cluster", "info"]).ok().text();
    assert!(info.starts_with("Cluster status: Waiting for cluster to be formatted"), "{info}");
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    let info = dog.run(&["cluster", "info"]).ok().text();
    assert!(info.starts_with("Cluster status: running"), "{info}");
    let _ = dog.run(&["vdi", "create", "disk", "1G"]).ok();

    // A second one on the same store, and one on the same port, say so where they were started.
    let second = start(&store, &home.path().join("pid2"), free_port());
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    assert!(second.stderr.contains("another sheep daemon is using"), "{}", second.stderr);
    let other = start(&home.path().join("other"), &home.path().join("pid3"), port);
    assert_eq!(other.code, 1, "{}", other.stderr);
    assert_eq!(other.stderr.lines().count(), 1, "{}", other.stderr);
    assert!(other.stderr.contains(&port.to_string()), "{}", other.stderr);

    let _ = dog.run(&["cluster", "shutdown"]).ok();
    assert!(daemon.wait(PATIENCE), "shutdown did not end it");
    assert!(!pidfile.exists(), "the pid file is left");
    let gone = dog.run(&["vdi", "list"]);
    assert_eq!(gone.code, 2, "{}", gone.stderr);

    // Started again it has all it had.
    let started = start(&store, &pidfile, port);
    let daemon = adopt(&pidfile);
    let _ = started.ok();
    let list = dog.run(&["vdi", "list", "-r"]).ok().text();
    assert!(list.starts_with("= disk 0 1073741824 "), "{list}");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(PATIENCE), "SIGTERM did not end it");
}
