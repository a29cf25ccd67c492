//! A sheep whose store is on a disk that can be broken, with one VDI for the verifying writer. Its
//! registry and its log file are elsewhere: only the disk breaks.

pub mod rounds;

use crate::Server;
use crate::brokenfs::{BrokenFs, Mode};
use crate::nbd::Client;
use crate::process::wait_until;
use crate::sheep::Sheep;
use crate::stamp::BLOCK;
use crate::verify::{Plan, Writer};
use std::fs;
use std::path::Path;
use std::process::ExitStatus;

/// The protocol's number for an I/O error.
pub const EIO: u32 = 5;
/// The protocol's number for a disk that is full.
pub const ENOSPC: u32 = 28;
/// The VDI.
pub const VDI: &str = "disk";

/// The sheep and all its places. Fields are dropped in this order.
#[derive(Debug)]
pub struct Patient {
    /// The sheep, running.
    pub sheep: Sheep,
    /// Where its registry and its log file are.
    pub elsewhere: tempfile::TempDir,
}

impl Patient {
    /// A sheep with its store in `dir`, with `blocks` blocks of [`VDI`].
    #[must_use]
    pub fn new(dir: &Path, blocks: u64, more: &[&str]) -> Self {
        let mut patient = Self::unborn(dir, more);
        patient.sheep.start();
        patient.format(blocks);
        patient
    }

    /// The same, not started.
    ///
    /// # Panics
    /// When there is no room for what is elsewhere.
    #[must_use]
    pub fn unborn(dir: &Path, more: &[&str]) -> Self {
        let elsewhere = tempfile::Builder::new().prefix("elsewhere-").tempdir().expect("a place");
        let registry = format!("local:{}", elsewhere.path().join("registry.db").display());
        let log = format!("dir={}", elsewhere.path().display());
        let options = ["-c", &registry, "-l", &log, "-j", "size=64M", "--scrub", "0"];
        let sheep = Sheep::at(&dir.join("store"), &[&options, more].concat());
        Self { sheep, elsewhere }
    }

    /// Formats its cluster and makes the VDI.
    pub fn format(&self, blocks: u64) {
        let dog = self.sheep.dog();
        let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
        let size = (blocks * BLOCK as u64).to_string();
        let _ = dog.run(&["vdi", "create", VDI, &size]).ok();
    }

    /// What its log file says.
    #[must_use]
    pub fn said(&self) -> String {
        let bytes = fs::read(self.elsewhere.path().join("sheep.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has said that.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_word(&self, word: &str) {
        wait_until(word, || self.said().contains(word));
    }

    /// A connection to the VDI.
    ///
    /// # Panics
    /// When it is not to be had.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect(self.sheep.socket(), VDI).expect("connect")
    }

    /// A verifying writer, connected.
    ///
    /// # Panics
    /// When it cannot connect.
    #[must_use]
    pub fn writer(&self, plan: Plan) -> Writer {
        let mut writer = Writer::new(plan);
        writer.connect(self.sheep.socket(), VDI).expect("connect");
        writer
    }

    /// SIGTERM, and how it ended: with an error if its disk has one.
    ///
    /// # Panics
    /// When it does not end, or by a signal: that was a crash.
    pub fn end(&mut self) -> ExitStatus {
        let mut process = Server::process(&mut self.sheep).take().expect("it runs");
        let status = process.terminate();
        assert!(status.code().is_some(), "it crashed: {status}\n{}", process.log());
        self.assert_sane();
        status
    }

    /// It runs and answers dog.
    ///
    /// # Panics
    /// Otherwise.
    pub fn assert_alive(&mut self) {
        let running = self.sheep.process().is_running();
        assert!(running, "it ended:\n{}\n{}", self.sheep.log(), self.said());
        let list = self.sheep.dog().run(&["vdi", "list", "-r"]).ok().text();
        assert!(list.contains(&format!(" {VDI} ")), "{list}");
        self.assert_sane();
    }

    /// It never said that it is broken itself.
    ///
    /// # Panics
    /// Otherwise.
    pub fn assert_sane(&self) {
        let said = self.said() + &self.sheep.log();
        for word in ["panic", "broken invariant", "nobody asked for"] {
            assert!(!said.contains(word), "{said}");
        }
    }

    /// Starts it again. What failed in the page cache behind a killed process, because the kill
    /// interrupted it before FUSE sent it or because of a fault, is told to the first flush or durable write
    /// of that file, by whomever: that start is refused, as any with a failed flush (docs/decisions.md), and the next one
    /// is told nothing.
    ///
    /// # Errors
    /// How it ended, and what it said.
    pub fn start_after_kill(&mut self) -> Result<(), (ExitStatus, String)> {
        match self.sheep.try_start() {
            Err((status, said))
                if status.code() == Some(1)
                    && (said.contains("read the store: sync ")
                        || said.contains("Interrupted system call")) =>
            {
                self.sheep.try_start()
            }
            started => started,
        }
    }

    /// Starts it again on its disk and compares all that was ever acknowledged.
    ///
    /// # Errors
    /// When a promise was broken.
    pub fn start_and_verify(&mut self, writer: &mut Writer) -> Result<(), String> {
        writer.disconnect()?;
        writer.tolerate(&[]);
        let ended = |(status, said)| format!("sheep ended: {status}\n{said}");
        self.start_after_kill().map_err(ended)?;
        writer.connect(self.sheep.socket(), VDI)?;
        writer.drain()?;
        writer.verify()
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of the sheep:\n{}---", self.said());
        }
    }
}

/// Mounts a disk that can be broken and starts a sheep on it; `None` where that cannot be. Keep them
/// in this order: the sheep goes first.
#[must_use]
pub fn patient(mode: Mode, blocks: u64) -> Option<(BrokenFs, Patient)> {
    let disk = BrokenFs::new(mode)?;
    let patient = Patient::new(disk.path(), blocks, &disk.options());
    Some((disk, patient))
}
