//! Starts and stops of real processes: what a start says when it fails, with which code, and what
//! is left when a sheep is gone.

use sheepdog_testkit::process::Process;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SHEEP: &str = env!("CARGO_BIN_EXE_sheep");

/// The example `sheep_in_memory`, which cargo builds beside the tests: its data worker fails when
/// it is told to.
fn failing_sheep() -> PathBuf {
    let mut path = std::env::current_exe().expect("exe");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("examples/sheep_in_memory")
}

/// A directory with a store and a registry in it.
struct Place {
    dir: TempDir,
    port: u16,
}

impl Place {
    fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("bind");
        Self {
            dir: tempfile::tempdir().expect("dir"),
            port: free.local_addr().expect("address").port(),
        }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.path().join("pid")
    }

    fn command(&self, more: &[&str]) -> Command {
        self.command_of(Path::new(SHEEP), more)
    }

    fn command_of(&self, program: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(["-b", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-j", "size=64M", "-P"])
            .arg(self.pid_file())
            .args(more)
            .arg(self.store())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("run")
    }

    /// A start that fails: its one line.
    fn refused(&self, more: &[&str]) -> String {
        refusal(&self.run(more))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.store().join("sheep.log")).unwrap_or_default()
    }

    fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.pid_file()).expect("pid file");
        text.trim().parse().expect("a number")
    }

    /// A daemon that serves.
    fn daemon(&self) -> Daemon<'_> {
        let output = self.run(&[]);
        assert!(output.status.success(), "{output:?}");
        // Taken charge of before anything else can fail.
        let daemon = Daemon { place: self, pid: self.pid() };
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        daemon
    }
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    let line = text.strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n') && !line.is_empty(), "{text}");
    line.to_owned()
}

/// Killed when dropped.
struct Daemon<'a> {
    place: &'a Place,
    pid: i32,
}

impl Daemon<'_> {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("pid");
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Whether any thread of it is there. Its parent is not us, so it may stay as a zombie.
    fn is_running(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return false;
        };
        threads.flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().and_then(|s| s.chars().next());
            matches!(state, Some(state) if state != 'Z' && state != 'X')
        })
    }

    fn wait(&self) {
        wait_until("the sheep to end", || !self.is_running());
    }

    fn stop(self) {
        self.signal(rustix::process::Signal::TERM);
        self.wait();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(rustix::process::Signal::KILL);
            self.wait();
        }
        let _ = self.place;
    }
}

/// For what another process does: there is nothing to wait on but its effect.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < limit, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_daemon_serves_when_its_start_returns_and_leaves_nothing_behind() {
    let place = Place::new();
    let daemon = place.daemon();
    TcpStream::connect(("127.0.0.1", place.port)).expect("the main port");
    for name in ["sock", "nbd.sock"] {
        let path = place.store().join(name);
        UnixStream::connect(&path).expect(name);
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{name}");
    }
    let pid_mode = fs::metadata(place.pid_file()).expect("stat").permissions();
    assert_eq!(pid_mode.mode() & 0o777, 0o600);
    let version = env!("CARGO_PKG_VERSION");
    let started = format!("sheepdog daemon (version {version}) started");
    assert!(place.log().contains(&started), "{}", place.log());
    // It is nobody's child and in a session of its own.
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid)).expect("stat");
    let fields: Vec<_> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    assert_eq!(fields[3], daemon.pid.to_string(), "session");
    let cwd = fs::read_link(format!("/proc/{}/cwd", daemon.pid)).expect("cwd");
    assert_eq!(cwd, Path::new("/"));
    for fd in 0..3 {
        let at = fs::read_link(format!("/proc/{}/fd/{fd}", daemon.pid)).expect("fd");
        assert_eq!(at, Path::new("/dev/null"), "{fd}");
    }

    daemon.stop();
    assert!(place.log().lines().last().expect("lines").ends_with(" shutdown"));
    for gone in [place.pid_file(), place.store().join("sock"), place.store().join("nbd.sock")] {
        assert!(!gone.exists(), "{}", gone.display());
    }
    assert!(TcpStream::connect(("127.0.0.1", place.port)).is_err());
    place.daemon().stop();
}

#[test]
fn the_log_is_opened_anew_on_hangup() {
    let place = Place::new();
    let daemon = place.daemon();
    let moved = place.store().join("moved.log");
    fs::rename(place.store().join("sheep.log"), &moved).expect("rename");
    daemon.signal(rustix::process::Signal::HUP);
    wait_until("a new log", || place.store().join("sheep.log").exists());
    daemon.stop();
    assert!(place.log().contains("shutdown"));
    assert!(!fs::read_to_string(moved).expect("old").contains("shutdown"));
}

#[test]
fn a_killed_sheep_is_followed_by_the_next_one() {
    let place = Place::new();
    let daemon = place.daemon();
    daemon.signal(rustix::process::Signal::KILL);
    daemon.wait();
    assert!(place.pid_file().exists() && place.store().join("sock").exists());
    drop(daemon);
    place.daemon().stop();
}

#[test]
fn one_store_one_port_one_sheep() {
    let place = Place::new();
    let daemon = place.daemon();
    let store = place.store();
    assert_eq!(place.refused(&[]), format!("another sheep daemon is using {}", store.display()));
    assert_eq!(
        place.refused(&["-f"]),
        format!("another sheep daemon is using {}", store.display())
    );

    let mut second = Place::new();
    second.port = place.port;
    assert_eq!(
        second.refused(&[]),
        format!("cannot listen on port {}: Address already in use (os error 98)", place.port)
    );
    assert!(second.log().contains("cannot listen on port"));
    assert!(!second.store().join("data").exists());
    let nbd = format!("--nbd={}", place.port);
    second = Place::new();
    assert_eq!(
        second.refused(&[&nbd]),
        format!(
            "cannot listen on 127.0.0.1:{} for NBD: Address already in use (os error 98)",
            place.port
        )
    );

    // A sibling would join the same registry.
    let sibling = place.dir.path().join("sibling");
    let output = Command::new(SHEEP)
        .args(["-b", "127.0.0.1", "-p", &second.port.to_string()])
        .arg(&sibling)
        .output()
        .expect("run");
    let line = refusal(&output);
    assert!(line.starts_with("the cluster is served by another sheep (127.0.0.1:"), "{line}");
    daemon.stop();
}

#[test]
fn unusable_paths_are_named() {
    let place = Place::new();
    fs::write(place.store(), "a file").expect("write");
    let shown = place.store().display().to_string();
    assert_eq!(place.refused(&[]), format!("{shown} is not a directory"));
    fs::remove_file(place.store()).expect("remove");

    let deep = place.dir.path().join("no/such");
    let output = Command::new(SHEEP).arg(&deep).output().expect("run");
    assert_eq!(
        refusal(&output),
        format!("cannot create {}: No such file or directory (os error 2)", deep.display())
    );
    let output = Command::new(SHEEP).arg("/proc/sheep").output().expect("run");
    assert!(refusal(&output).starts_with("cannot create /proc/sheep: "));

    let no_log = place.refused(&["-l", "dir=/no/such"]);
    assert!(no_log.starts_with("cannot open the log of "), "{no_log}");
    let pid_file = place.dir.path().join("pid-dir");
    fs::create_dir(&pid_file).expect("mkdir");
    let held = place.refused(&["-P", pid_file.to_str().expect("UTF-8")]);
    assert!(held.starts_with("cannot write pid file "), "{held}");
    // After all that, nothing is in the way.
    place.daemon().stop();
}

#[test]
fn a_store_that_is_not_whole_is_refused() {
    let place = Place::new();
    place.daemon().stop();
    let identity = place.store().join("identity");
    let text = fs::read_to_string(&identity).expect("identity");
    let shown = place.store().display().to_string();
    fs::write(&identity, text.replace("format = 1", "format = 3")).expect("write");
    assert_eq!(place.refused(&[]), format!("the store {shown} was written by a newer version"));
    fs::write(&identity, "garbage").expect("write");
    assert_eq!(place.refused(&[]), format!("{} is damaged: it is not TOML", identity.display()));
    fs::remove_file(&identity).expect("remove");
    assert_eq!(
        place.refused(&[]),
        format!(
            "the store {shown} has data, but its file 'identity' is missing: bring that file back \
             from a copy; 'sheep store export' reads the data without it"
        )
    );
    let other = "cluster = \"00000000-0000-4000-8000-000000000000\"\n";
    fs::write(&identity, format!("{text}{other}")).expect("write");
    let line = place.refused(&[]);
    assert!(line.contains("belongs to cluster 00000000-"), "{line}");
    fs::write(&identity, &text).expect("write");
    place.daemon().stop();
}

#[test]
fn bad_options_end_before_anything_is_touched() {
    let place = Place::new();
    assert_eq!(place.refused(&["-p", "0"]), "Invalid port number '0'");
    assert_eq!(place.refused(&["-g"]), "option '-g' (--gateway) is not supported by this version");
    let output = place.run(&["-c", "accord"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("Invalid cluster driver 'accord'\n\nAvailable"), "{text}");
    assert!(!place.store().exists());
    let help = place.run(&["-h"]);
    assert!(help.status.success() && help.stderr.is_empty());
    assert!(String::from_utf8_lossy(&help.stdout).starts_with("Sheepdog daemon (version "));
    assert!(!place.store().exists());
}

#[test]
fn a_worker_that_fails_or_panics_is_told_to_the_caller() {
    let place = Place::new();
    let failing = |how: &str| {
        let mut command = place.command_of(&failing_sheep(), &[]);
        command.env(how, "1").output()
    };
    let output = failing("SHEEP_TEST_FAIL");
    let line = refusal(&output.expect("run"));
    assert!(line.starts_with("disk ") && line.ends_with(" is broken"), "{line}");
    assert!(place.log().contains(&line));
    assert!(!place.pid_file().exists());

    let output = failing("SHEEP_TEST_PANIC");
    let output = output.expect("run");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("panic in thread "), "{text}");
    assert!(text.contains("the daemon ended while it started"), "{text}");
    assert!(place.log().contains("panic in thread "));
    place.daemon().stop();
}

#[test]
fn in_the_foreground_the_service_manager_is_told() {
    let place = Place::new();
    let notify = place.dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).expect("bind");
    manager.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let out = place.dir.path().join("out");
    let mut command = place.command(&["-f", "-l", "dst=stdout"]);
    let mut sheep = Process::spawn("sheep", command.env("NOTIFY_SOCKET", &notify), &out);
    let told = || {
        let mut buffer = [0; 4096];
        let n = manager.recv(&mut buffer).expect("told");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    assert!(told().contains("READY=1"));
    assert_eq!(place.pid(), i32::try_from(sheep.pid()).expect("pid"));
    sheep.signal(rustix::process::Signal::INT);
    assert!(told().contains("STOPPING=1"));
    // Once more changes nothing.
    assert!(sheep.terminate().success());
    let text = fs::read_to_string(out).expect("its output");
    assert!(text.lines().last().expect("lines").ends_with(" shutdown"), "{text}");
    assert!(!place.store().join("sheep.log").exists());
}

/// As `dog cluster format` and then `dog vdi create`.
fn format_and_create(port: u16, vdi: &str) {
    use sheepdog_wire::{ClusterFormat, Connection, Hello, VdiCreate};
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        let hello = Hello::ours("test");
        let opened = Connection::open(stream.expect("connect"), hello).await;
        let (connection, driver) = opened.expect("hello");
        let talk = async {
            let format = ClusterFormat { store: "plain".to_owned(), ..ClusterFormat::default() };
            connection.call(&format).await.expect("format");
            let create = VdiCreate { name: vdi.to_owned(), size: 1 << 20, ..VdiCreate::default() };
            connection.call(&create).await.expect("create");
        };
        tokio::select! {
            () = talk => {}
            () = driver.run() => panic!("the sheep closed"),
        }
    });
}

#[test]
fn a_store_stays_with_its_cluster() {
    let home = Place::new();
    let daemon = home.daemon();
    format_and_create(home.port, "disk");
    daemon.stop();

    // Carried to a place where there is no registry, and to one with another cluster.
    let empty = Place::new();
    fs::rename(home.store(), empty.store()).expect("move");
    let line = empty.refused(&[]);
    assert!(line.contains("belongs to cluster"), "{line}");
    let other = Place::new();
    let daemon = other.daemon();
    format_and_create(other.port, "disk");
    daemon.stop();
    let kept = other.dir.path().join("kept");
    fs::rename(other.store(), &kept).expect("move");
    fs::rename(empty.store(), other.store()).expect("move");
    let line = other.refused(&[]);
    assert!(line.contains("belongs to cluster"), "{line}");

    // A new store beside one that is formatted and waits.
    fs::rename(other.store(), home.store()).expect("move back");
    fs::rename(&kept, other.store()).expect("move back");
    let sibling = other.dir.path().join("sibling");
    let port = other.port.to_string();
    let start_sibling = || {
        let mut command = Command::new(SHEEP);
        command.args(["-b", "127.0.0.1", "-p", &port]).arg(&sibling);
        refusal(&command.output().expect("run"))
    };
    let line = start_sibling();
    assert!(line.starts_with("the cluster's data is on disk "), "{line}");
    assert_eq!(start_sibling(), line);

    home.daemon().stop();
    other.daemon().stop();
    // Wiped, it begins anew.
    fs::remove_dir_all(home.store()).expect("wipe");
    let daemon = home.daemon();
    format_and_create(home.port, "disk");
    daemon.stop();
}
