//! Judges histories: was each block a strictly linearizable register?
//!
//! Values of writes are unique, so a read says which write it saw. Each value then claims a stretch
//! of time, and two claims that collide are a violation (Gibbons and Korach); without writes of
//! zeros that is the whole answer. Zeros are not unique: where somebody wrote them, all orders that
//! the operations so far allow are carried along from event to event (`orders`), which is exact too,
//! and quick as long as few operations overlap.
//!
//! `search` is the slow checker that is right by looking: it is there to judge this one.

mod orders;
pub mod search;

use crate::history::{BlockId, DAMAGED, End, History, Kind, Op, Value, ZEROS};
use crate::shrink;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Runs that finding the smallest part of a violation may take.
const SHRINK_RUNS: usize = 2_000;

/// How a block's history was judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Some order of the operations explains every read.
    Fine,
    /// None does.
    Wrong(Violation),
    /// Too many operations overlap: looking at all orders was given up.
    Undecided,
}

/// Operations of a block that no order explains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// In words.
    pub why: String,
    /// Few of the operations, which are enough for it, as they began.
    pub ops: Vec<Op>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.why)?;
        self.ops.iter().try_for_each(|op| writeln!(f, "  {op}"))
    }
}

/// All blocks of a history together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Judgement {
    /// Blocks looked at.
    pub blocks: u64,
    /// Operations in them.
    pub ops: u64,
    /// Blocks whose judging was given up.
    pub undecided: u64,
    /// The blocks that are wrong.
    pub violations: Vec<(BlockId, Violation)>,
}

/// Judges every block of a history.
#[must_use]
pub fn history(history: &History) -> Judgement {
    let mut judgement = Judgement::default();
    for (block, ops) in history.blocks() {
        judgement.blocks += 1;
        judgement.ops += ops.len() as u64;
        match register(ops) {
            Verdict::Fine => {}
            Verdict::Wrong(violation) => judgement.violations.push((block, violation)),
            Verdict::Undecided => judgement.undecided += 1,
        }
    }
    judgement
}

/// Judges the operations of one block. It held zeros at first, and every write but of zeros has a
/// value of its own.
#[must_use]
pub fn register(ops: &[Op]) -> Verdict {
    match judge(ops) {
        Ok(verdict) => verdict,
        Err(why) => Verdict::Wrong(explain(ops, why)),
    }
}

/// An operation that took effect, or may have: at some moment after `from` and before `until`.
#[derive(Clone, Copy, Debug)]
struct Step {
    from: u64,
    until: u64,
    value: Value,
    writes: bool,
    /// It did take effect.
    must: bool,
}

/// What the operations say, without those that prove nothing; or why they cannot be right.
fn steps(ops: &[Op]) -> Result<Vec<Step>, String> {
    let mut written = BTreeMap::new();
    for op in ops {
        if let Kind::Write(value) = op.kind {
            let twice = written.insert(value, op.end != End::Never);
            assert!(twice.is_none() && value != ZEROS, "value {value} is written twice");
        }
    }
    let mut read = BTreeSet::new();
    for op in ops {
        let (Kind::Read(value), End::Done(_)) = (op.kind, op.end) else { continue };
        read.insert(value);
        match written.get(&value) {
            Some(true) => {}
            Some(false) => return Err(format!("the write of {value} was refused, yet it is read")),
            None if value == ZEROS => {}
            None if value == DAMAGED => return Err("a block is no whole write's".to_owned()),
            None => return Err(format!("nobody wrote {value}")),
        }
    }
    let mut steps = Vec::new();
    for op in ops {
        let (until, done) = match op.end {
            End::Done(event) => (event, true),
            End::Never => continue,
            End::Open(until) => (until.unwrap_or(u64::MAX), false),
        };
        let (value, writes, must) = match op.kind {
            Kind::Read(_) if !done => continue,
            Kind::Read(value) => (value, false, true),
            Kind::Zero => (ZEROS, true, done),
            // An unanswered write that somebody saw did happen; one that nobody saw proves nothing.
            Kind::Write(value) if !done && !read.contains(&value) => continue,
            Kind::Write(value) => (value, true, true),
        };
        if until <= op.invoked && must {
            return Err(format!("what began at {} took effect before {until}", op.invoked));
        }
        if until <= op.invoked {
            continue;
        }
        steps.push(Step { from: op.invoked, until, value, writes, must });
    }
    Ok(steps)
}

fn judge(ops: &[Op]) -> Result<Verdict, String> {
    let steps = steps(ops)?;
    collisions(&steps)?;
    if !steps.iter().any(|step| step.writes && step.value == ZEROS) {
        return Ok(Verdict::Fine);
    }
    orders::any(&steps)
}

/// When the register must have, or may have, held a value that only one write wrote.
#[derive(Clone, Copy, Debug)]
struct Claim {
    value: Value,
    /// Where the write began.
    written_from: u64,
    /// The earliest end and the latest beginning of its operations: if the end comes first, the
    /// value was held from there to the latest beginning; else all operations may have happened
    /// together at any moment between the two.
    end: u64,
    beginning: u64,
}

fn collisions(steps: &[Step]) -> Result<(), String> {
    let zeros_written = steps.iter().any(|step| step.writes && step.value == ZEROS);
    let mut claims = BTreeMap::new();
    if !zeros_written {
        // The zeros at the beginning are the only ones, as if written before everything.
        claims.insert(ZEROS, Claim { value: ZEROS, written_from: 0, end: 0, beginning: 0 });
    }
    for step in steps.iter().filter(|step| step.value != ZEROS || !zeros_written) {
        let claim = claims.entry(step.value).or_insert(Claim {
            value: step.value,
            written_from: 0,
            end: u64::MAX,
            beginning: 0,
        });
        claim.end = claim.end.min(step.until);
        claim.beginning = claim.beginning.max(step.from);
        if step.writes {
            claim.written_from = step.from;
        }
    }
    let (mut held, mut moments): (Vec<Claim>, Vec<Claim>) =
        claims.into_values().partition(|claim| claim.end <= claim.beginning);
    held.sort_by_key(|claim| claim.end);
    moments.sort_by_key(|claim| claim.end);
    for claim in held.iter().chain(&moments) {
        if claim.value != ZEROS && claim.end <= claim.written_from {
            return Err(format!("{} is read before its write began", claim.value));
        }
    }
    for two in held.windows(2) {
        if two[1].end <= two[0].beginning {
            return Err(format!(
                "the block held {} from before {} to after {}, and {} from before {} to after {}",
                two[0].value,
                two[0].end,
                two[0].beginning,
                two[1].value,
                two[1].end,
                two[1].beginning
            ));
        }
    }
    for moment in &moments {
        let before = held.partition_point(|claim| claim.end <= moment.beginning);
        let Some(around) = before.checked_sub(1).map(|place| held[place]) else { continue };
        if moment.end <= around.beginning {
            return Err(format!(
                "the block held {} from before {} to after {}, yet {} between {} and {}",
                around.value,
                around.end,
                around.beginning,
                moment.value,
                moment.beginning,
                moment.end
            ));
        }
    }
    Ok(())
}

/// The smallest part of a history that is wrong by itself, in words.
fn explain(ops: &[Op], why: String) -> Violation {
    let wrong = |part: &[Op]| closed(part, ops) && judge(part).is_err();
    let small = shrink::list(ops, SHRINK_RUNS, wrong).items;
    let why = judge(&small).err().unwrap_or(why);
    Violation { why, ops: small }
}

/// Whether a wrong part makes the whole wrong: leaving out reads, and writes that nobody kept saw,
/// takes nothing away that could have explained something.
fn closed(part: &[Op], whole: &[Op]) -> bool {
    let kept: BTreeSet<u64> = part.iter().filter_map(|op| writes(op.kind)).collect();
    let read: BTreeSet<Value> = part
        .iter()
        .filter_map(|op| match op.kind {
            Kind::Read(value) => Some(value),
            _ => None,
        })
        .collect();
    let zeros = |ops: &[Op]| ops.iter().filter(|op| op.kind == Kind::Zero).count();
    (!read.contains(&ZEROS) || zeros(part) == zeros(whole))
        && whole
            .iter()
            .filter_map(|op| writes(op.kind))
            .all(|value| kept.contains(&value) || !read.contains(&value))
}

fn writes(kind: Kind) -> Option<Value> {
    if let Kind::Write(value) = kind { Some(value) } else { None }
}

#[cfg(test)]
mod tests;
