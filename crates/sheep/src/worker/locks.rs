//! Who writes which blocks of a fragment now. Whole-block writes may overlap (the store orders
//! them); a write of part of a block first reads the rest, so nothing else may write that block
//! until it is done.

use sheepdog_types::FragmentId;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

/// How blocks are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// Together with other whole-block writes.
    Shared,
    /// Alone.
    Exclusive,
}

struct Claim {
    id: u64,
    blocks: Range<u32>,
    hold: Hold,
    held: bool,
    waker: Option<Waker>,
}

impl Claim {
    fn conflicts(&self, other: &Self) -> bool {
        self.blocks.start < other.blocks.end
            && other.blocks.start < self.blocks.end
            && (self.hold == Hold::Exclusive || other.hold == Hold::Exclusive)
    }
}

/// See the module.
#[derive(Default)]
pub struct BlockLocks {
    /// Claims of each fragment in the order in which they were made; a claim is held once it
    /// conflicts with none before it.
    claims: RefCell<BTreeMap<FragmentId, Vec<Claim>>>,
    next: RefCell<u64>,
}

impl BlockLocks {
    /// Waits until the blocks may be written. First come, first served where claims conflict.
    pub async fn hold(&self, fragment: FragmentId, blocks: Range<u32>, hold: Hold) -> Held<'_> {
        let id = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        {
            let mut all = self.claims.borrow_mut();
            let claims = all.entry(fragment).or_default();
            let mut claim = Claim { id, blocks, hold, held: false, waker: None };
            claim.held = !claims.iter().any(|earlier| earlier.conflicts(&claim));
            claims.push(claim);
        }
        // Made before waiting, so that a dropped future gives its claim back.
        let held = Held { locks: self, fragment, id };
        poll_fn(|context| {
            let mut all = self.claims.borrow_mut();
            let claim = all.get_mut(&fragment).and_then(|c| c.iter_mut().find(|c| c.id == id));
            match claim {
                Some(claim) if !claim.held => {
                    claim.waker = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
        held
    }

    /// Whether anything is being written there.
    pub fn is_claimed(&self, fragment: FragmentId) -> bool {
        self.claims.borrow().contains_key(&fragment)
    }

    fn release(&self, fragment: FragmentId, id: u64) {
        let mut all = self.claims.borrow_mut();
        let Some(claims) = all.get_mut(&fragment) else {
            return;
        };
        claims.retain(|claim| claim.id != id);
        if claims.is_empty() {
            all.remove(&fragment);
            return;
        }
        for at in 0..claims.len() {
            let (earlier, rest) = claims.split_at_mut(at);
            let Some(claim) = rest.first_mut() else { break };
            if !claim.held && !earlier.iter().any(|earlier| earlier.conflicts(claim)) {
                claim.held = true;
                if let Some(waker) = claim.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// Blocks that are held until this is dropped.
pub struct Held<'a> {
    locks: &'a BlockLocks,
    fragment: FragmentId,
    id: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.locks.release(self.fragment, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_types::LineageId;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    const F: FragmentId = FragmentId { lineage: LineageId(1), number: 1 };

    fn ready<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn partial_writes_are_alone_on_their_block_and_keep_their_turn() {
        let locks = BlockLocks::default();
        let mut a = pin!(locks.hold(F, 0..4, Hold::Shared));
        let mut b = pin!(locks.hold(F, 2..6, Hold::Shared));
        let mut c = pin!(locks.hold(F, 3..4, Hold::Exclusive));
        let mut d = pin!(locks.hold(F, 0..8, Hold::Shared));
        let mut e = pin!(locks.hold(F, 6..8, Hold::Exclusive));
        let a = ready(a.as_mut()).expect("free");
        let b = ready(b.as_mut()).expect("shared");
        assert!(ready(c.as_mut()).is_none());
        assert!(ready(d.as_mut()).is_none(), "d comes behind c");
        assert!(ready(e.as_mut()).is_none(), "e comes behind d");
        drop(a);
        assert!(ready(c.as_mut()).is_none());
        drop(b);
        let c = ready(c.as_mut()).expect("a and b are done");
        assert!(ready(d.as_mut()).is_none());
        drop(c);
        let d = ready(d.as_mut()).expect("c is done");
        drop(d);
        drop(ready(e.as_mut()).expect("d is done"));
        assert!(locks.claims.borrow().is_empty());
    }

    #[test]
    fn who_gives_up_waiting_does_not_block_others() {
        let locks = BlockLocks::default();
        let mut a = pin!(locks.hold(F, 0..1, Hold::Exclusive));
        let a = ready(a.as_mut()).expect("free");
        {
            let mut b = pin!(locks.hold(F, 0..1, Hold::Exclusive));
            assert!(ready(b.as_mut()).is_none());
        }
        let mut c = pin!(locks.hold(F, 0..1, Hold::Exclusive));
        assert!(ready(c.as_mut()).is_none());
        drop(a);
        drop(ready(c.as_mut()).expect("b is gone"));
    }
}
