//! fio as a judge: it writes with checksums while the server is killed, and reads everything back
//! later. Its log of completed requests is the record of what was acknowledged.

use crate::process::{PATIENCE, Process, run, wait_readable, wait_until};
use crate::tools::command;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Size of a file that fio may write: its log and its record are far smaller.
const FILE_MAX: u64 = 64 << 20;

/// One verified random write job over an export.
#[derive(Debug)]
pub struct Job {
    uri: String,
    seed: u64,
    bytes: u64,
    dir: PathBuf,
    align: u32,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// Writes acknowledged before the server was killed.
    pub acknowledged: u64,
    /// Blocks of the job whose checksum was right afterwards.
    pub good: u64,
    /// Others: never written, or in flight when the server was killed.
    pub other: u64,
}

/// fio, writing.
#[derive(Debug)]
pub struct Running(Process);

impl Running {
    /// Returns some time after the first write was `seen` (fio takes its time to start), or when
    /// all is written.
    ///
    /// # Panics
    /// When neither happens.
    pub fn go_on(&mut self, mut seen: impl FnMut() -> bool, some_time: Duration) {
        wait_until("fio writes", || !self.0.is_running() || seen());
        let _ = wait_readable(&[self.0.pidfd()], some_time);
    }

    /// Waits for its end: it has written everything, or its server is gone.
    ///
    /// # Panics
    /// When it does not end, or is killed for what it wrote: its record is lost then.
    pub fn finish(mut self) {
        let status = self.0.wait(PATIENCE);
        assert!(status.code().is_some(), "fio: {status}; it said:\n{}", self.0.log());
    }
}

impl Job {
    /// Writes the first `bytes` of the export in random order, each place once. `dir` is for its
    /// files.
    #[must_use]
    pub fn new(uri: &str, seed: u64, bytes: u64, dir: &Path) -> Self {
        Self { uri: uri.to_owned(), seed, bytes, dir: dir.to_owned(), align: 4096 }
    }

    /// The same with writes that begin and end anywhere but inside a sector.
    #[must_use]
    pub fn unaligned(self) -> Self {
        Self { align: 512, ..self }
    }

    fn command(&self) -> Command {
        let mut fio = command("fio");
        fio.current_dir(&self.dir)
            .args(["--name=job", "--ioengine=nbd", "--rw=randwrite"])
            // Jobs of its own process: a forked one would outlive it.
            .args(["--thread", "--iodepth=32"])
            .arg(format!("--bsrange={}-64k", self.align))
            .arg(format!("--blockalign={}", self.align))
            .args(["--verify=crc32c", "--verify_state_save=0"])
            .arg(format!("--uri={}", self.uri))
            .arg(format!("--size={}", self.bytes))
            .arg(format!("--randseed={}", self.seed));
        fio
    }

    /// Starts to write.
    ///
    /// # Panics
    /// When fio cannot be started.
    #[must_use]
    pub fn start(&self) -> Running {
        let _ = std::fs::remove_file(self.acks());
        let mut fio = self.command();
        fio.args(["--do_verify=0", "--write_lat_log=acks", "--log_offset=1"]);
        // Room for all from the start. To make more, fio waits for what is in flight; and when the
        // connection breaks just then, it waits for ever, writing an error each time it looks.
        let writes = self.bytes / u64::from(self.align);
        fio.arg(format!("--log_entries={}", writes.clamp(1024, 1 << 20)));
        let log = self.dir.join("fio-write.log");
        let process = Process::spawn("fio", &mut fio, &log);
        process.limit_files(FILE_MAX);
        Running(process)
    }

    fn acks(&self) -> PathBuf {
        self.dir.join("acks_lat.1.log")
    }

    /// Reads everything back and compares with what was acknowledged.
    ///
    /// # Errors
    /// Names the acknowledged writes that are lost or damaged.
    ///
    /// # Panics
    /// When fio did not come to read at all.
    pub fn check(&self) -> Result<Outcome, String> {
        // time, latency, direction, size, offset, …
        let acks = std::fs::read_to_string(self.acks()).unwrap_or_default();
        let acknowledged: BTreeSet<u64> =
            acks.lines().filter_map(|line| line.split(", ").nth(4)?.parse().ok()).collect();
        let mut fio = self.command();
        fio.args(["--verify_only=1", "--continue_on_error=verify"]);
        fio.arg("--output-format=json");
        let ended = run(&mut fio, b"");
        let text = ended.text();
        let json = text.find('{').map_or("", |at| &text[at..]);
        let json = serde_json::Deserializer::from_str(json)
            .into_iter::<serde_json::Value>()
            .next()
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("fio: {text}\n{}", ended.stderr));
        let total = json["jobs"][0]["read"]["total_ios"].as_u64().unwrap_or(0);
        let bad: BTreeSet<u64> = ended
            .stderr
            .lines()
            .chain(text.lines())
            .filter_map(|line| line.split_once("requested block: offset="))
            .filter_map(|(_, rest)| rest.split(',').next()?.parse().ok())
            .collect();
        let (seen, wrong) = (acknowledged.len() as u64, bad.len() as u64);
        assert!(
            total >= seen && total > 0,
            "fio read {total} blocks back, {seen} were written: {}",
            ended.stderr
        );
        let lost: Vec<_> = acknowledged.intersection(&bad).take(10).collect();
        if !lost.is_empty() {
            return Err(format!("acknowledged writes are lost or damaged, first at {lost:?}"));
        }
        Ok(Outcome { acknowledged: seen, good: total - wrong, other: wrong })
    }
}
