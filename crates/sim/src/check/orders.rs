//! All orders of overlapping operations that the events so far allow, carried from event to event.
//!
//! An order is told by what the block holds and which of the operations that have begun and not
//! ended took effect. Operations take effect as late as they can, when one must have ended that needs
//! it, but for those that never hurt: reads of the present value, which change nothing, and writes
//! that nobody reads, just before another write or while the block holds what nobody reads any more.
//! A value that only one write wrote stays until its last read, for it cannot come again.

use super::Step;
use crate::history::{Value, ZEROS};
use std::collections::BTreeSet;

/// Orders carried at most, and looked at for one event.
const MOST: usize = 1 << 14;

/// What the block holds when nobody reads it any more, whatever it is.
const UNREAD: Value = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    value: Value,
    /// One bit for each open operation that took effect.
    done: u64,
}

/// The operations that have begun and not ended, each in its bit.
struct Open {
    slots: [Option<Step>; 64],
    used: u64,
    /// Reads that have not ended, by value; values are numbered for that, [`ZEROS`] first.
    reads: Vec<usize>,
}

impl Open {
    fn each(&self, not_in: u64) -> impl Iterator<Item = (u64, &Step)> {
        let mut left = self.used & !not_in;
        std::iter::from_fn(move || {
            let slot = left.trailing_zeros();
            left = left.checked_sub(1)? & left;
            Some((1 << slot, self.slots[slot as usize].as_ref()?))
        })
    }

    fn is_read(&self, value: Value) -> bool {
        self.reads.get(value as usize).is_some_and(|reads| *reads > 0)
    }

    /// Open writes that nobody reads.
    fn unread(&self) -> u64 {
        let unread = self.each(0).filter(|(_, step)| step.writes && !self.is_read(step.value));
        unread.fold(0, |bits, (bit, _)| bits | bit)
    }

    /// Lets everything happen that never hurts.
    fn absorb(&self, mut order: Order) -> Order {
        let mut happened = 0;
        for (bit, step) in self.each(0) {
            if !step.writes && step.value == order.value {
                order.done |= bit;
                happened += 1;
            }
        }
        if self.reads.get(order.value as usize).is_none_or(|reads| *reads == happened) {
            order.value = UNREAD;
        }
        if order.value == UNREAD {
            order.done |= self.unread();
        }
        order
    }

    /// The orders that come of letting one more write happen.
    fn after(&self, order: Order, into: &mut Vec<Order>) {
        if order.value != ZEROS && order.value != UNREAD {
            return;
        }
        let unread = self.unread();
        let written = |value, bit| self.absorb(Order { value, done: order.done | unread | bit });
        if unread & !order.done != 0 {
            into.push(written(UNREAD, 0));
        }
        let mut zero: Option<(u64, u64)> = None;
        for (bit, step) in self.each(order.done | unread) {
            if !step.writes {
                continue;
            }
            if step.value != ZEROS {
                into.push(written(step.value, bit));
            } else if (step.must || order.value != ZEROS)
                && zero.is_none_or(|(until, _)| step.until < until)
            {
                // One write of zeros is as good as another, and the one that must end first can be
                // waited for the least. One that need not happen is not spent on zeros.
                zero = Some((step.until, bit));
            }
        }
        if let Some((_, bit)) = zero {
            into.push(written(ZEROS, bit));
        }
    }
}

/// Whether any order explains everything; else why not. Gives up when there are too many.
pub(super) fn any(steps: &[Step]) -> Result<super::Verdict, String> {
    // An end comes before a beginning at the same event: what is ruled out by it is over.
    let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(steps.len() * 2);
    for (place, step) in steps.iter().enumerate() {
        events.push((step.from, true, place));
        if step.until != u64::MAX {
            events.push((step.until, false, place));
        }
    }
    events.sort_unstable();
    let mut names = vec![ZEROS];
    names.extend(steps.iter().map(|step| step.value).filter(|value| *value != ZEROS));
    names.sort_unstable();
    names.dedup();
    let mut open = Open { slots: [None; 64], used: 0, reads: vec![0; names.len()] };
    let mut steps = steps.to_vec();
    for step in &mut steps {
        let number = names.partition_point(|value| *value < step.value);
        open.reads[number] += usize::from(!step.writes);
        step.value = number as u64;
    }
    let mut bit_of = vec![0_u64; steps.len()];
    let mut orders = vec![Order { value: ZEROS, done: 0 }];
    for (event, begins, place) in events {
        let step = steps[place];
        if begins {
            let slot = open.used.trailing_ones();
            if slot == 64 {
                return Ok(super::Verdict::Undecided);
            }
            open.used |= 1 << slot;
            open.slots[slot as usize] = Some(step);
            bit_of[place] = 1 << slot;
            for order in &mut orders {
                *order = open.absorb(*order);
            }
            continue;
        }
        let bit = bit_of[place];
        let Some(mut next) = ended(&open, &orders, bit, step.must) else {
            return Ok(super::Verdict::Undecided);
        };
        open.used &= !bit;
        if !step.writes
            && let Some(reads) = open.reads.get_mut(step.value as usize)
        {
            *reads -= 1;
        }
        if next.is_empty() {
            let all: BTreeSet<String> =
                orders.iter().map(|order| held(&names, order.value)).collect();
            let all: Vec<String> = all.into_iter().collect();
            return Err(format!(
                "no order lets what ends at {event} happen: before it the block held {}",
                all.join(" or ")
            ));
        }
        for order in &mut next {
            order.done &= !bit;
        }
        next.sort_unstable();
        next.dedup();
        orders = next;
    }
    Ok(super::Verdict::Fine)
}

/// The orders in which the operation of that bit has happened, and if it need not happen those in
/// which it has not.
fn ended(open: &Open, orders: &[Order], bit: u64, must: bool) -> Option<Vec<Order>> {
    let mut next = Vec::new();
    let mut seen = BTreeSet::new();
    let mut stack: Vec<Order> = Vec::new();
    for order in orders {
        if !must {
            next.push(*order);
        }
        if order.done & bit != 0 {
            next.push(*order);
        } else {
            stack.push(*order);
        }
    }
    let mut found = Vec::new();
    while let Some(order) = stack.pop() {
        open.after(order, &mut found);
        for order in found.drain(..) {
            if order.done & bit != 0 {
                next.push(order);
            } else if seen.insert(order) {
                stack.push(order);
            }
        }
        if seen.len() + next.len() > MOST {
            return None;
        }
    }
    Some(next)
}

fn held(names: &[Value], number: u64) -> String {
    let name = names.get(number as usize);
    name.map_or_else(|| "what nobody reads later".to_owned(), u64::to_string)
}
