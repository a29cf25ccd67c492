//! All connections of a server, which VDI each is for, and the memory they share.

use crate::budget::{Budget, Held};
use crate::connection::Connection;
use crate::limits::Limits;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::Notify;

/// The table.
pub struct Table {
    /// The bounds.
    pub limits: Limits,
    /// Payload memory nobody holds.
    pub budget: Budget,
    connections: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
    closed: Cell<bool>,
    left: Notify,
}

struct Entry {
    connection: Rc<Connection>,
    /// The VDI it is for, from before it is served until its last request has had its effect.
    key: Option<u32>,
}

impl Table {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self {
            budget: Budget::new(&limits),
            limits,
            connections: RefCell::default(),
            next: Cell::new(0),
            closed: Cell::new(false),
            left: Notify::new(),
        }
    }

    /// Whether no connection may enter.
    pub fn is_full(&self) -> bool {
        self.closed.get() || self.len() >= self.limits.connections
    }

    /// Makes room for one more connection, if need be at the cost of the oldest that has not said
    /// yet which VDI it is for: those that only sit there must not keep clients out. Whether there
    /// is room.
    pub async fn make_room(&self) -> bool {
        while self.is_full() {
            let left = self.left.notified();
            let newcomer = {
                let connections = self.connections.borrow();
                let mut entries = connections.values();
                let idle = entries.find(|e| e.key.is_none() && !e.connection.is_stopped());
                idle.map(|entry| Rc::clone(&entry.connection))
            };
            match newcomer {
                Some(connection) if !self.closed.get() => connection.abort_newcomer(),
                _ => return false,
            }
            left.await;
        }
        true
    }

    /// Connections that are there.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Takes a connection in; it is there until the [`Member`] is dropped.
    pub fn enter(self: &Rc<Self>, connection: Rc<Connection>) -> Member {
        let id = self.next.get();
        self.next.set(id + 1);
        let entry = Entry { connection, key: None };
        self.connections.borrow_mut().insert(id, entry);
        Member { table: Rc::clone(self), id }
    }

    fn of_key(&self, key: u32, but: Option<u64>) -> Vec<Rc<Connection>> {
        let connections = self.connections.borrow();
        let of_key =
            connections.iter().filter(|(id, entry)| entry.key == Some(key) && Some(**id) != but);
        of_key.map(|(_, entry)| Rc::clone(&entry.connection)).collect()
    }

    /// Connections to a VDI whose clients are there.
    pub fn live(&self, key: u32) -> usize {
        let alive = |c: &Rc<Connection>| !c.is_stopped() && !c.socket.peer_gone();
        self.of_key(key, None).iter().filter(|c| alive(c)).count()
    }

    /// Makes the requests of clients that are gone take effect or never: from here on nothing more
    /// of theirs is read, and when it returns nothing of theirs runs. Live connections go on.
    pub async fn settle(&self, key: u32, but: Option<u64>) {
        let is_gone = |c: &Rc<Connection>| c.is_stopped() || c.socket.peer_gone();
        let (gone, there): (Vec<_>, Vec<_>) = self.of_key(key, but).into_iter().partition(is_gone);
        for connection in &gone {
            connection.stop();
        }
        // Over TCP, the end of one that this side is slow to read comes behind what was not read.
        for connection in there {
            if is_gone(&connection) || connection.may_hide_its_end() && connection.find_out().await
            {
                finish(&[connection]).await;
            }
        }
        finish(&gone).await;
    }

    /// Ends all connections to a VDI; when it returns nothing of theirs runs.
    pub async fn close(&self, key: u32) {
        finish(&self.of_key(key, None)).await;
    }

    /// Ends all connections and lets none in; returns when all have left.
    pub async fn shut_down(&self) {
        self.closed.set(true);
        for entry in self.connections.borrow().values() {
            entry.connection.stop();
        }
        loop {
            let left = self.left.notified();
            if self.len() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Waits for payload bytes. Whoever holds some and does not move while others wait is closed.
    pub async fn take(&self, bytes: usize) -> Held {
        self.budget.take(bytes, self.limits.stall, || self.evict_stalled()).await
    }

    fn evict_stalled(&self) {
        let stalled = |c: &Rc<Connection>| {
            c.stalled_since().is_some_and(|since| since.elapsed() >= self.limits.stall)
        };
        let connections = self.connections.borrow();
        let all = connections.values().map(|entry| Rc::clone(&entry.connection));
        let victims: Vec<_> = all.filter(stalled).collect();
        drop(connections);
        for connection in victims {
            tracing::warn!("closing an NBD connection that holds memory others wait for");
            connection.abort();
        }
    }
}

/// Stops all of them, then waits for what they had admitted.
async fn finish(connections: &[Rc<Connection>]) {
    for connection in connections {
        connection.stop();
    }
    for connection in connections {
        connection.idle().await;
    }
}

/// A connection's place in the table.
pub struct Member {
    table: Rc<Table>,
    id: u64,
}

impl Member {
    /// It is for this VDI from now on.
    pub fn set_key(&self, key: Option<u32>) {
        if let Some(entry) = self.table.connections.borrow_mut().get_mut(&self.id) {
            entry.key = key;
        }
    }

    /// [`Table::settle`] for the other connections to a VDI.
    pub async fn settle_others(&self, key: u32) {
        self.table.settle(key, Some(self.id)).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let entry = self.table.connections.borrow_mut().remove(&self.id);
        drop(entry);
        self.table.left.notify_waiters();
    }
}
