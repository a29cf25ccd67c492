//! Ending exceptions for their own sake, when the cluster is idle.

use super::{Goal, Leveller};
use crate::map::Roster;
use crate::quota::Quota;
use std::collections::VecDeque;

/// A move of a shard's replica from one disk to another.
type Step = (u32, u32, u32);

/// The sets after at most `copies` moves, each of which ends an exception and leaves every load
/// within its band.
pub(crate) fn tidied(
    roster: &Roster,
    quotas: &[Quota],
    stride: usize,
    wanted: &[u32],
    origin: &[u32],
    copies: u64,
) -> Vec<u32> {
    let mut leveller = Leveller::unplaced(roster, quotas, stride, wanted, origin);
    leveller.adopt(origin);
    leveller.aim(Goal::Band);
    leveller.tidy(copies);
    leveller.sets
}

impl Leveller<'_> {
    fn tidy(&mut self, copies: u64) {
        for member in 0..self.loads.len() as u32 {
            while self.copies < copies {
                let Some(path) = self.way_home(member, copies - self.copies) else {
                    break;
                };
                if !self.make(&path) {
                    break;
                }
            }
        }
    }

    /// The shortest sequence of moves, each to a disk that its shard wants, that begins at `start`
    /// and ends where one more replica fits, or at `start` again, with no load changed.
    fn way_home(&self, start: u32, longest: u64) -> Option<Vec<Step>> {
        let mut reached: Vec<Option<Step>> = vec![None; self.loads.len()];
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((from, length)) = queue.pop_front() {
            if length >= longest {
                return None;
            }
            let held = [&self.settled, &self.displaced].map(|h| h[from as usize].iter());
            for shard in held.into_iter().flatten() {
                if self.is_wanted(*shard, from) {
                    continue;
                }
                for to in self.wants(*shard) {
                    if self.set(*shard).contains(to)
                        || reached[*to as usize].is_some()
                        || !self.allowed(*shard, from, *to)
                    {
                        continue;
                    }
                    reached[*to as usize] = Some((*shard, from, *to));
                    if *to == start || self.may_lose(start) && self.may_gain(*to) {
                        return Some(trace(&reached, *to, length as usize + 1));
                    }
                    queue.push_back((*to, length + 1));
                }
            }
        }
        None
    }

    /// Makes all moves, or none if two of them contradict.
    fn make(&mut self, path: &[Step]) -> bool {
        for (done, (shard, from, to)) in path.iter().enumerate() {
            let set = self.set(*shard);
            if set.contains(from) && !set.contains(to) && self.allowed(*shard, *from, *to) {
                self.put(*shard, *from, *to);
                continue;
            }
            for (shard, from, to) in path[..done].iter().rev() {
                self.put(*shard, *to, *from);
            }
            return false;
        }
        true
    }
}

fn trace(reached: &[Option<Step>], end: u32, length: usize) -> Vec<Step> {
    let mut path = Vec::with_capacity(length);
    let mut at = end;
    while path.len() < length {
        let Some(step) = reached[at as usize] else {
            break;
        };
        path.push(step);
        at = step.1;
    }
    path
}
