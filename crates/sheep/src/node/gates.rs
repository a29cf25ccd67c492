//! Which VDIs control connections have open, so that a deletion can stop their requests and a new
//! open can wait for those that a vanished client left behind.

use super::lock;
use sheepdog_types::{ErrorKind, Result, Vid};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// The other side of a connection.
pub trait Peer: Send + Sync {
    /// Whether it has closed the connection, even if what it sent before was not read yet.
    fn is_gone(&self) -> bool;

    /// Whether it may have closed the connection without this side being told: the news comes
    /// behind bytes that were not read here yet.
    fn may_hide_its_end(&self) -> bool {
        false
    }
}

/// The open handle of one connection to one VDI.
#[derive(Default)]
pub struct Gate {
    /// Shared by requests under way; exclusive means that there are none.
    requests: Arc<RwLock<()>>,
    /// The VDI was deleted.
    deleted: AtomicBool,
    /// Its connection is gone.
    orphaned: AtomicBool,
    /// Who asks; nobody in particular for tests.
    peer: Option<Arc<dyn Peer>>,
}

/// A request under way.
pub type Pass = OwnedRwLockReadGuard<()>;

impl Gate {
    /// Lets a request through; it is under way while the pass lives.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the VDI was deleted, [`ErrorKind::Unreachable`] when the client
    /// is gone: what it asked for and did not begin never happens.
    pub async fn enter(&self) -> Result<Pass> {
        let pass = Arc::clone(&self.requests).read_owned().await;
        self.check()?;
        if self.orphaned.load(Ordering::Acquire) {
            return Err(ErrorKind::Unreachable.into());
        }
        Ok(pass)
    }

    /// Whether the VDI is still there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn check(&self) -> Result<()> {
        if self.deleted.load(Ordering::Acquire) {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(())
    }

    /// The connection is gone: requests under way still end, others do not begin.
    pub fn orphan(&self) {
        self.orphaned.store(true, Ordering::Release);
    }

    /// Whether its client is gone, whoever noticed.
    fn is_orphaned(&self) -> bool {
        if self.peer.as_ref().is_some_and(|peer| peer.is_gone()) {
            self.orphan();
        }
        self.orphaned.load(Ordering::Acquire)
    }

    /// Returns when no request is under way.
    pub async fn drained(&self) {
        drop(self.requests.write().await);
    }
}

/// All open handles by VDI.
#[derive(Default)]
pub struct Gates {
    open: Mutex<BTreeMap<Vid, Vec<Weak<Gate>>>>,
}

impl Gates {
    /// A new handle.
    #[must_use]
    pub fn open(&self, vid: Vid, peer: Option<Arc<dyn Peer>>) -> Arc<Gate> {
        let gate = Arc::new(Gate { peer, ..Gate::default() });
        let mut open = lock(&self.open);
        let gates = open.entry(vid).or_default();
        gates.retain(|gate| gate.strong_count() > 0);
        gates.push(Arc::downgrade(&gate));
        gate
    }

    /// Handles that are open by living connections.
    #[must_use]
    pub fn count(&self, vid: Vid) -> usize {
        let gates = self.of(vid);
        gates.iter().filter(|gate| !gate.is_orphaned()).count()
    }

    /// Before a new client is served: each request of clients that are gone has taken effect when
    /// this returns, or never will.
    pub async fn settle(&self, vid: Vid) {
        for gate in self.of(vid) {
            if gate.is_orphaned() {
                gate.drained().await;
            }
        }
    }

    /// After a deletion: no request enters any more, and none is under way when this returns.
    pub async fn close(&self, vid: Vid) {
        let gates = self.of(vid);
        for gate in &gates {
            gate.deleted.store(true, Ordering::Release);
        }
        for gate in gates {
            gate.drained().await;
        }
    }

    fn of(&self, vid: Vid) -> Vec<Arc<Gate>> {
        let mut open = lock(&self.open);
        let Some(gates) = open.get_mut(&vid) else {
            return Vec::new();
        };
        gates.retain(|gate| gate.strong_count() > 0);
        let found: Vec<_> = gates.iter().filter_map(Weak::upgrade).collect();
        if found.is_empty() {
            open.remove(&vid);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deletion_waits_for_requests_and_stops_later_ones() {
        let gates = Arc::new(Gates::default());
        let vid = Vid::new(7).expect("vid");
        let gate = gates.open(vid, None);
        let other = gates.open(Vid::new(8).expect("vid"), None);
        let pass = gate.enter().await.expect("open");
        let closing = {
            let gates = Arc::clone(&gates);
            tokio::spawn(async move { gates.close(vid).await })
        };
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        assert!(gate.check().is_err());
        drop(pass);
        closing.await.expect("closed");
        assert_eq!(gate.enter().await.map(drop).expect_err("deleted").kind(), ErrorKind::NotFound);
        assert!(other.enter().await.is_ok());
    }

    #[tokio::test]
    async fn orphans_are_waited_for_and_not_counted() {
        let gates = Arc::new(Gates::default());
        let vid = Vid::new(7).expect("vid");
        let gate = gates.open(vid, None);
        let living = gates.open(vid, None);
        assert_eq!(gates.count(vid), 2);
        let pass = gate.enter().await.expect("open");
        let _living = living.enter().await.expect("open");
        gate.orphan();
        drop(gate);
        assert_eq!(gates.count(vid), 1);
        // The gate must live as long as a request of it does: its holder keeps both.
        drop(pass);
        gates.settle(vid).await;
        drop(living);
        assert_eq!(gates.count(vid), 0);
    }

    #[derive(Default)]
    struct Client(AtomicBool);

    impl Peer for Client {
        fn is_gone(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }

    #[tokio::test]
    async fn what_a_client_that_is_gone_did_not_begin_never_happens() {
        let gates = Gates::default();
        let vid = Vid::new(7).expect("vid");
        let client = Arc::new(Client::default());
        let gate = gates.open(vid, Some(Arc::clone(&client) as _));
        drop(gate.enter().await.expect("there"));
        gates.settle(vid).await;
        drop(gate.enter().await.expect("still there"));
        client.0.store(true, Ordering::Release);
        // Whoever reads its connection has not noticed yet.
        gates.settle(vid).await;
        let late = gate.enter().await.map(drop).expect_err("gone");
        assert_eq!(late.kind(), ErrorKind::Unreachable);
        assert_eq!(gates.count(vid), 0);
    }
}
