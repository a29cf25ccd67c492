//! Rounds of trouble for a server under the verifying writer: killed, frozen while its client
//! goes, deserted with requests in flight. After each, what was acknowledged must be there.

use crate::Server;
use crate::rng::Rng;
use crate::verify::{Plan, Progress, Writer};
use serde_json::{Value, json};
use std::time::Instant;

/// What happens to the server in one round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// kill -9, and started again.
    Kill,
    /// The client hangs up and comes again at once; the server lives.
    HangUp,
    /// The client sends to a stopped server, hangs up, and comes again as the server goes on:
    /// its old requests are read only then.
    Freeze,
}

/// One round, as reported.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// What happened.
    pub trouble: Trouble,
    /// Writes acknowledged in this round.
    pub acknowledged: u64,
    /// Writes left unanswered by it.
    pub pending: u64,
    /// Milliseconds from the start of the server, or of the connection, to the first answer.
    pub back_ms: u64,
}

/// All rounds of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Names the run.
    pub seed: u64,
    /// In order.
    pub rounds: Vec<Round>,
    /// Writes sent, in all.
    pub sent: u64,
    /// Blocks compared with what they may hold.
    pub checked: u64,
}

impl Report {
    /// Every write that was sent was acknowledged or left unanswered.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let total: u64 = self.rounds.iter().map(|r| r.acknowledged + r.pending).sum();
        total == self.sent
    }

    /// For the record.
    #[must_use]
    pub fn json(&self) -> Value {
        let sum = |f: fn(&Round) -> u64| self.rounds.iter().map(f).sum::<u64>();
        let count = |t| self.rounds.iter().filter(|r| r.trouble == t).count();
        let mut back: Vec<_> = self.rounds.iter().map(|r| r.back_ms).collect();
        back.sort_unstable();
        json!({
            "seed": self.seed,
            "rounds": self.rounds.len(),
            "killed": count(Trouble::Kill),
            "deserted": count(Trouble::HangUp),
            "frozen": count(Trouble::Freeze),
            "writes_sent": self.sent,
            "writes_acknowledged": sum(|r| r.acknowledged),
            "writes_unanswered": sum(|r| r.pending),
            "adds_up": self.adds_up(),
            "blocks_checked": self.checked,
            "back_ms_median": back.get(back.len() / 2),
            "back_ms_longest": back.last(),
        })
    }
}

/// Runs `rounds` rounds of `troubles` chosen by the plan's seed, calling `tell` after each.
/// `export` must be all zeros.
///
/// # Errors
/// When the server breaks a promise: says which, and the seed.
pub fn rounds(
    server: &mut dyn Server,
    export: &str,
    plan: Plan,
    rounds: u32,
    troubles: &[Trouble],
    mut tell: impl FnMut(u32, &Round),
) -> Result<Report, String> {
    let mut rng = Rng::new(!plan.seed);
    let mut writer = Writer::new(plan);
    let mut report = Report { seed: plan.seed, rounds: Vec::new(), sent: 0, checked: 0 };
    let named = |round: u32, e: String| format!("seed {}, round {round}: {e}", plan.seed);
    writer.connect(server.socket(), export).map_err(|e| named(0, e))?;
    for number in 1..=rounds {
        let trouble = troubles[usize::try_from(rng.below(troubles.len() as u64)).expect("small")];
        let round = one(server, export, &mut writer, trouble, &mut rng);
        let round = round.map_err(|e| named(number, e))?;
        tell(number, &round);
        report.rounds.push(round);
    }
    let last = |e| named(rounds, e);
    let before = writer.counts();
    writer.drain().map_err(last)?;
    writer.verify().map_err(last)?;
    // What was undecided is decided now and has to stay so.
    writer.disconnect().map_err(last)?;
    server.kill();
    server.start();
    writer.connect(server.socket(), export).map_err(last)?;
    writer.verify().map_err(last)?;
    let counts = writer.counts();
    if let Some(round) = report.rounds.last_mut() {
        round.acknowledged += counts.acknowledged - before.acknowledged;
    }
    report.sent = counts.sent;
    report.checked = counts.blocks;
    Ok(report)
}

fn one(
    server: &mut dyn Server,
    export: &str,
    writer: &mut Writer,
    trouble: Trouble,
    rng: &mut Rng,
) -> Result<Round, String> {
    let before = writer.counts();
    let most = if rng.chance(30) { 20 } else { 1500 };
    let acks = 1 + rng.below(most);
    if writer.run(acks)? == Progress::Lost {
        return Err("the server closed the connection".to_owned());
    }
    // Full depth in flight at the moment of trouble.
    let lost = |e| format!("before any trouble: {e}");
    let begin = match trouble {
        Trouble::Kill => {
            writer.fill(u64::MAX).map_err(lost)?;
            server.kill();
            writer.disconnect()?;
            let begin = Instant::now();
            server.start();
            begin
        }
        Trouble::HangUp => {
            writer.fill(u64::MAX).map_err(lost)?;
            writer.disconnect()?;
            Instant::now()
        }
        Trouble::Freeze => {
            writer.drain()?;
            server.freeze(true);
            // As much as the socket holds while nobody reads from it.
            writer.fill(64 << 10).map_err(lost)?;
            writer.disconnect()?;
            server.freeze(false);
            Instant::now()
        }
    };
    writer.connect(server.socket(), export)?;
    let back_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let after = writer.counts();
    if rng.chance(25) {
        writer.drain()?;
        writer.verify()?;
    }
    let ended = writer.counts();
    Ok(Round {
        trouble,
        acknowledged: ended.acknowledged - before.acknowledged,
        pending: after.pending - before.pending,
        back_ms,
    })
}
