//! A sheep of our own on a store of its own.

use crate::Server;
use crate::bins::bin;
use crate::dog::Dog;
use crate::process::{PATIENCE, Process, wait_readable};
use crate::rng::Rng;
use crate::shown;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;

/// A TCP port for a server of this process, which may come and go: nobody else gets it while this
/// process lives. It is below those the kernel gives to clients, and the UDP port of the same
/// number, held to the end, tells other tests that it is taken.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 12_000..32_000;
    static HELD: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let mut rng = Rng::new(Rng::from_kernel());
    for _ in 0..1000 {
        let port = PORTS.start + rng.below(PORTS.len() as u64) as u16;
        let Ok(held) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else {
            continue;
        };
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            HELD.lock().expect("no panic").push(held);
            return port;
        }
    }
    panic!("no free port");
}

fn home() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sheep-").tempdir().expect("a temporary directory")
}

/// A sheep process in the foreground on loopback, with its directory. Both go when it is dropped.
#[derive(Debug)]
pub struct Sheep {
    store: PathBuf,
    /// Disks elsewhere.
    disks: Vec<PathBuf>,
    socket: PathBuf,
    port: u16,
    options: Vec<String>,
    process: Option<Process>,
    /// Its log, and its store unless that is the caller's.
    home: tempfile::TempDir,
}

impl Sheep {
    /// A sheep on a new temporary store, running and formatted with one copy.
    #[must_use]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with options.
    #[must_use]
    pub fn with(options: &[&str]) -> Self {
        let sheep = Self::unformatted(options);
        let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
        sheep
    }

    /// A running sheep on a new temporary store, with options.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn unformatted(options: &[&str]) -> Self {
        let home = home();
        let mut sheep = Self::in_home(&home.path().join("store"), options, home);
        sheep.start();
        sheep
    }

    /// A sheep for a directory of the caller's, not started.
    #[must_use]
    pub fn at(store: &Path, options: &[&str]) -> Self {
        Self::in_home(store, options, home())
    }

    fn in_home(store: &Path, options: &[&str], home: tempfile::TempDir) -> Self {
        Self {
            store: store.to_owned(),
            disks: Vec::new(),
            socket: store.join("nbd.sock"),
            port: free_port(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            process: None,
            home,
        }
    }

    /// The disks that PATH names behind the store, from the next start on.
    pub fn set_disks(&mut self, disks: &[&Path]) {
        self.disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// The command that starts it in the foreground.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(bin("sheep"));
        command.args(["-f", "-b", "127.0.0.1", "-p", &self.port.to_string()]).args(&self.options);
        let mut path = self.store.clone().into_os_string();
        for disk in &self.disks {
            path.push(",");
            path.push(disk);
        }
        command.arg(path);
        command
    }

    /// Starts it; `Err` with how it ended and what it said this time if it ends instead of
    /// becoming ready.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Panics
    /// When it neither ends nor becomes ready.
    pub fn try_start(&mut self) -> Result<(), (ExitStatus, String)> {
        assert!(self.process.is_none(), "it runs");
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let path = scratch.path().join("notify");
        let notify = UnixDatagram::bind(&path).expect("bind the notify socket");
        let mut command = self.command();
        command.env("NOTIFY_SOCKET", &path);
        let log = self.log_file();
        let before = std::fs::metadata(&log).map_or(0, |m| m.len());
        let mut process = Process::spawn("sheep", &mut command, &log);
        let mut message = [0; 4096];
        loop {
            match wait_readable(&[notify.as_fd(), process.pidfd()], PATIENCE) {
                Some(0) => {
                    let len = notify.recv(&mut message).expect("receive");
                    let text = String::from_utf8_lossy(&message[..len]);
                    if text.lines().any(|line| line == "READY=1") {
                        self.process = Some(process);
                        return Ok(());
                    }
                }
                Some(_) => {
                    let status = process.wait(PATIENCE);
                    return Err((status, shown::file(&log, before)));
                }
                None => panic!("sheep does not become ready; it said:\n{}", process.log()),
            }
        }
    }

    /// The store's directory.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The port dog talks to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// A dog that talks to it.
    #[must_use]
    pub const fn dog(&self) -> Dog {
        Dog::new(self.port)
    }

    /// The running process.
    ///
    /// # Panics
    /// When it does not run.
    pub const fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("sheep runs")
    }

    /// Whether a VDI holds any data.
    ///
    /// # Panics
    /// When dog is not answered.
    #[must_use]
    pub fn has_data(&self, vdi: &str) -> bool {
        let list = self.dog().run(&["vdi", "list", "-r", vdi]).ok().text();
        list.split(' ').nth(4).is_some_and(|used| used != "0")
    }

    /// The address of an export for tools that take URIs.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        uri(&self.socket, export)
    }

    /// SIGTERM, and waits for a clean end.
    ///
    /// # Panics
    /// When it ends with an error.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("sheep runs");
        let status = process.terminate();
        assert!(status.success(), "sheep: {status}\n{}", process.log());
    }

    /// What it printed so far, all starts together, shortened if that is much.
    #[must_use]
    pub fn log(&self) -> String {
        shown::file(&self.log_file(), 0)
    }
}

impl Default for Sheep {
    fn default() -> Self {
        Self::new()
    }
}

/// The address of an export on a unix socket.
#[must_use]
pub fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

impl Server for Sheep {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn start(&mut self) {
        if let Err((status, said)) = self.try_start() {
            panic!("sheep ended: {status}\n{said}");
        }
    }

    fn process(&mut self) -> &mut Option<Process> {
        &mut self.process
    }
}
