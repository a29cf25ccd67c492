//! Rounds in which one single operation of the disk goes wrong, wherever that is: while a sheep
//! writes, while it makes its store, while it opens it. Afterwards it must be as if nothing had
//! happened.

use super::{EIO, ENOSPC, Patient};
use crate::Server;
use crate::brokenfs::{BrokenFs, Fault, Op};
use crate::process::wait_until;
use crate::rng::Rng;
use crate::verify::{Plan, Progress, Writer};

/// Blocks of the VDI in these rounds.
pub const BLOCKS: u64 = 2048;
/// Writes acknowledged or refused in one stretch.
const STRETCH: u64 = 60;

/// How a stretch under a fault ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Kill,
    Terminate,
    GoOn,
}

/// What one round showed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Round {
    /// Operations that the fault might have met.
    pub met: u64,
    /// Operations that went wrong.
    pub hits: u64,
    /// Writes or starts that were refused for it.
    pub refused: u64,
    /// Whether the disk failed.
    pub failed: bool,
}

/// A sheep at work, for many rounds on the same store.
#[derive(Debug)]
pub struct AtWork {
    patient: Patient,
    writer: Writer,
    rng: Rng,
}

impl AtWork {
    /// A new sheep on that disk.
    #[must_use]
    pub fn new(disk: &BrokenFs, seed: u64) -> Self {
        let patient = Patient::new(disk.path(), BLOCKS, &disk.options());
        let writer = patient.writer(Plan { seed, blocks: BLOCKS, depth: 16, longest: 48 });
        Self { patient, writer, rng: Rng::new(!seed) }
    }

    /// The data file finds no space for one operation, or (`more`) for all from there on.
    ///
    /// # Errors
    /// When a promise was broken.
    pub fn without_space(
        &mut self,
        disk: &BrokenFs,
        spared: u64,
        more: bool,
    ) -> Result<Round, String> {
        let times = if more { u64::MAX } else { 1 };
        let fault = Fault::full().on("data").after(spared).times(times);
        let round = self.round(disk, fault, &[ENOSPC])?;
        if round.failed {
            return Err(format!("want of space failed the disk: {}", self.patient.said()));
        }
        Ok(round)
    }

    /// One operation of the files of the store fails, whatever it is.
    ///
    /// # Errors
    /// When a promise was broken.
    pub fn with_an_error(&mut self, disk: &BrokenFs, spared: u64) -> Result<Round, String> {
        let ops = [Op::Read, Op::Write, Op::Sync, Op::Allocate, Op::Punch, Op::Resize];
        let fault = Fault::eio().ops(&ops).after(spared).times(1);
        self.round(disk, fault, &[EIO, ENOSPC])
    }

    fn round(&mut self, disk: &BrokenFs, fault: Fault, tolerated: &[u32]) -> Result<Round, String> {
        let before = self.writer.counts();
        let said_before = self.patient.said().len();
        let ending = [Ending::Kill, Ending::Terminate, Ending::GoOn][self.rng.below(3) as usize];
        let broken = disk.inject(fault);
        self.writer.tolerate(tolerated);
        self.stretch()?;
        self.reserve_and_delete();
        self.stretch()?;
        self.patient.assert_alive();
        match ending {
            Ending::Kill => {
                self.writer.fill(u64::MAX).map_err(|e| format!("before the kill: {e}"))?;
                self.patient.sheep.kill();
            }
            Ending::Terminate => {
                self.writer.drain()?;
                let _ = self.patient.end();
            }
            Ending::GoOn => self.writer.drain()?,
        }
        let mut round = Round {
            met: broken.met(),
            hits: broken.hits(),
            refused: self.writer.counts().refused - before.refused,
            failed: false,
        };
        drop(broken);
        round.failed = self.patient.said()[said_before..].contains(" failed: ");
        if ending == Ending::GoOn && !round.failed {
            self.until_well()?;
        }
        if ending == Ending::GoOn {
            self.writer.drain()?;
            let status = self.patient.end();
            if status.success() == round.failed {
                return Err(format!("{round:?}, but it ended with {status}"));
            }
        }
        self.patient.start_and_verify(&mut self.writer)?;
        self.stretch()?;
        self.writer.drain()?;
        self.patient.assert_sane();
        Ok(round)
    }

    fn stretch(&mut self) -> Result<(), String> {
        let before = self.writer.counts();
        let goal = before.acknowledged + before.refused + STRETCH;
        let ran = self.writer.run_until(|counts| counts.acknowledged + counts.refused >= goal)?;
        if ran == Progress::Lost {
            return Err(format!("the connection was lost; sheep said: {}", self.patient.said()));
        }
        Ok(())
    }

    /// Another VDI comes and goes. Either may fail; nothing of it may stay for ever.
    fn reserve_and_delete(&self) {
        let dog = self.patient.sheep.dog();
        let made = dog.run(&["vdi", "create", "-P", "thick", "2M"]);
        if made.code == 0 {
            let _ = dog.run(&["vdi", "delete", "thick"]).ok();
        }
    }

    /// Once the sheep has seen that there is space again, nothing is refused any more.
    fn until_well(&mut self) -> Result<(), String> {
        let sheep = &self.patient.sheep;
        wait_until("the sheep sees the space", || {
            let info = sheep.dog().run(&["node", "info", "--json"]).ok().text();
            let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
            info["nodes"][0]["available"].as_u64().is_some_and(|bytes| bytes > 64 << 20)
        });
        self.writer.tolerate(&[]);
        self.stretch()?;
        self.writer.drain()?;
        self.writer.verify()
    }
}

/// A new sheep, one operation of whose first start goes wrong: it says so and ends, or starts. The
/// next start works in any case.
///
/// # Errors
/// When a promise was broken.
pub fn first_start(disk: &BrokenFs, fault: Fault) -> Result<Round, String> {
    let store = disk.path().join("store");
    if store.exists() {
        std::fs::remove_dir_all(&store).map_err(|e| format!("{}: {e}", store.display()))?;
    }
    let mut patient = Patient::unborn(disk.path(), &disk.options());
    let round = start(&mut patient, disk, fault)?;
    patient.sheep.kill();
    let ended = |(status, said)| format!("sheep ended: {status}\n{said}");
    patient.start_after_kill().map_err(ended)?;
    patient.format(64);
    let mut client = patient.client();
    client.write(0, &[7; 8192]).map_err(|e| format!("write after all: {e}"))?;
    patient.sheep.kill();
    patient.start_after_kill().map_err(ended)?;
    let found = patient.client().read(0, 8192).map_err(|e| format!("read after all: {e}"))?;
    patient.assert_sane();
    match patient.end().success() && found.iter().all(|byte| *byte == 7) {
        true => Ok(round),
        false => Err(format!("after all: {}", patient.said())),
    }
}

/// A sheep with a log to replay, one operation of whose next start goes wrong.
///
/// # Errors
/// When a promise was broken.
pub fn next_start(work: &mut AtWork, disk: &BrokenFs, fault: Fault) -> Result<Round, String> {
    work.writer.tolerate(&[]);
    work.stretch()?;
    work.writer.fill(u64::MAX).map_err(|e| format!("before the kill: {e}"))?;
    work.patient.sheep.kill();
    work.writer.disconnect()?;
    let round = start(&mut work.patient, disk, fault)?;
    work.patient.sheep.kill();
    work.patient.start_and_verify(&mut work.writer)?;
    Ok(round)
}

/// A start under a fault: it works, or ends with a line that says why.
fn start(patient: &mut Patient, disk: &BrokenFs, fault: Fault) -> Result<Round, String> {
    let broken = disk.inject(fault);
    let started = patient.start_after_kill();
    let (met, hits) = (broken.met(), broken.hits());
    drop(broken);
    let refused = match started {
        Ok(()) => 0,
        Err((status, said)) => {
            let known = ["Input/output error", "No space left", "space"];
            if status.code() != Some(1) || !known.iter().any(|word| said.contains(word)) {
                return Err(format!("the start ended with {status} and said: {said:?}"));
            }
            if hits == 0 {
                return Err(format!("refused for nothing: {said:?}"));
            }
            1
        }
    };
    Ok(Round { met, hits, refused, failed: false })
}
