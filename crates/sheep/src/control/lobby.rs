//! Where connections are until they have said who they are and a place is free. They hold next to no memory and no
//! place of those that are served; when there are too many, the oldest has to go, so that whoever
//! connects and says nothing cannot keep `dog` out.

use crate::node::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Connections that are not served at a time, on each listener.
const NEWCOMERS_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Lobby {
    newcomers: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

/// A newcomer's seat; it leaves when this is dropped.
pub struct Seat<'a> {
    lobby: &'a Lobby,
    number: u64,
    shown_out: Arc<Notify>,
}

impl Lobby {
    /// A connection comes in. If there are too many the oldest is shown out.
    pub fn enter(&self) -> Seat<'_> {
        let mut newcomers = lock(&self.newcomers);
        if newcomers.len() >= NEWCOMERS_MAX
            && let Some((_, oldest)) = newcomers.pop_first()
        {
            oldest.notify_one();
        }
        let number = newcomers.last_key_value().map_or(0, |(number, _)| number + 1);
        let shown_out = Arc::new(Notify::new());
        newcomers.insert(number, Arc::clone(&shown_out));
        Seat { lobby: self, number, shown_out }
    }
}

impl Seat<'_> {
    /// Returns when the connection has to go.
    pub async fn shown_out(&self) {
        self.shown_out.notified().await;
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut newcomers = lock(&self.lobby.newcomers);
        if newcomers.get(&self.number).is_some_and(|n| Arc::ptr_eq(n, &self.shown_out)) {
            newcomers.remove(&self.number);
        }
    }
}
