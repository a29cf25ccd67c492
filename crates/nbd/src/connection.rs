//! One connection's state, shared by the tasks that read, run and write for it: what is admitted,
//! what waits to be sent, and how it ends.

use crate::budget::{Held, UNIT};
use crate::outbox::{Freed, Outbox, SLICES};
use crate::reply::{self, Answer};
use crate::socket::Socket;
use crate::table::Table;
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, IoSlice};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// Bytes sent before other connections get their turn.
const SEND_TURN: usize = 4 << 20;

/// How long nothing may come from a client until it is believed that nothing was held up: longer
/// than one retransmission takes.
const QUIET: Duration = Duration::from_millis(250);
/// How often a client that may be gone is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A connection, from its acceptance on.
pub struct Connection {
    /// Its socket.
    pub socket: Socket,
    table: Rc<Table>,
    outbox: RefCell<Outbox>,
    structured: Cell<bool>,
    /// Requests that hold a slot, and the payload bytes they were given.
    requests: Cell<usize>,
    payload: Cell<usize>,
    room: Notify,
    /// The reader waits for room and reads nothing.
    paused: Cell<bool>,
    /// Bytes received and sent since the beginning.
    received: Cell<u64>,
    sent: Cell<u64>,
    /// Requests that were admitted and whose effect is still to come.
    running: Cell<usize>,
    idle: Notify,
    /// Nothing more is admitted, ever.
    stopped: Cell<bool>,
    stop: Notify,
    /// Nothing more can be sent.
    failed: Cell<bool>,
    write: Notify,
    drained: Notify,
    /// Since when the client has not taken a whole answer that waits for it.
    sending_since: Cell<Option<Instant>>,
    /// Since when the client owes the payload that memory was reserved for.
    receiving_since: Cell<Option<Instant>>,
}

/// How far a flush came.
enum Flushed {
    All,
    /// Others should have their turn.
    Some,
    /// The client does not take more.
    Blocked,
}

impl Connection {
    /// A fresh one.
    pub fn new(socket: Socket, table: Rc<Table>) -> Self {
        Self {
            socket,
            table,
            outbox: RefCell::default(),
            structured: Cell::new(false),
            requests: Cell::new(0),
            payload: Cell::new(0),
            room: Notify::new(),
            paused: Cell::new(false),
            received: Cell::new(0),
            sent: Cell::new(0),
            running: Cell::new(0),
            idle: Notify::new(),
            stopped: Cell::new(false),
            stop: Notify::new(),
            failed: Cell::new(false),
            write: Notify::new(),
            drained: Notify::new(),
            sending_since: Cell::new(None),
            receiving_since: Cell::new(None),
        }
    }

    /// Replies come in chunks from now on.
    pub fn use_structured_replies(&self) {
        self.structured.set(true);
    }

    /// Admits nothing more: what was not admitted never takes effect.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.stop.notify_waiters();
    }

    /// Whether [`Connection::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Returns once [`Connection::stop`] was called.
    pub async fn stopped(&self) {
        loop {
            let stop = self.stop.notified();
            if self.stopped.get() {
                return;
            }
            stop.await;
        }
    }

    /// Breaks it off: admitted requests still take effect, their answers do not leave.
    pub fn abort(&self) {
        self.socket.abort();
        self.fail();
    }

    /// Ends one that is still in its handshake.
    pub fn abort_newcomer(&self) {
        self.abort();
        self.stop();
    }

    /// Returns when no admitted request is without its effect. Final once stopped.
    pub async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.running.get() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Returns when all answers have left or cannot leave.
    pub async fn drained(&self) {
        loop {
            let drained = self.drained.notified();
            if self.failed.get() || self.outbox.borrow().is_empty() {
                return;
            }
            drained.await;
        }
    }

    /// Since when the client neither takes nor sends what memory is held for.
    pub fn stalled_since(&self) -> Option<Instant> {
        let (sending, receiving) = (self.sending_since.get(), self.receiving_since.get());
        sending.into_iter().chain(receiving).min()
    }

    /// Whether the client owes the rest of a payload.
    pub fn set_receiving(&self, receiving: bool) {
        self.receiving_since.set(receiving.then(Instant::now));
    }

    /// Waits for room for one more request with `bytes` of payload; `None` once stopped. The
    /// bounds on what a connection can make the server hold are kept here and nowhere else.
    pub async fn reserve(self: &Rc<Self>, cookie: u64, bytes: usize) -> Option<Slot> {
        let limits = &self.table.limits;
        let cost = bytes.next_multiple_of(UNIT);
        let fits = || {
            let (requests, payload) = (self.requests.get(), self.payload.get());
            requests == 0 || requests < limits.requests && payload + cost <= limits.payload_bytes
        };
        let _paused = Paused::unless(&self.paused, fits());
        while !self.stopped.get() && !fits() {
            let room = self.room.notified();
            tokio::select! { biased; () = self.stopped() => {}, () = room => {} }
        }
        if self.stopped.get() {
            return None;
        }
        self.requests.set(self.requests.get() + 1);
        let held = Held::default();
        let mut slot =
            Slot { connection: Rc::clone(self), cookie, held, state: SlotState::Reserved };
        let taken = if cost == 0 { Some(held) } else { self.table.budget.try_take(cost) };
        let held = if let Some(held) = taken {
            held
        } else {
            let _paused = Paused::unless(&self.paused, false);
            let held = tokio::select! {
                biased;
                () = self.stopped() => return None,
                held = self.table.take(cost) => held,
            };
            if self.stopped.get() {
                self.table.budget.give_back(held);
                return None;
            }
            held
        };
        slot.held = held;
        self.payload.set(self.payload.get() + cost);
        Some(slot)
    }

    /// So many bytes were received.
    pub fn count_received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Whether the client may have closed the connection without this side being told yet.
    pub fn may_hide_its_end(&self) -> bool {
        !self.socket.is_unix() && (self.paused.get() || self.socket.hides_the_end())
    }

    /// Waits until it is known whether the client of a connection that may hide its end is there:
    /// whether it is gone. A client is there that takes an answer sent from now on (the kernel of
    /// one that has closed answers it with a reset) or whose stream runs dry without an end.
    /// Whoever keeps others waiting for this too long counts as gone.
    pub async fn find_out(&self) -> bool {
        let start = Instant::now();
        let (sent, mut received) = (self.sent.get(), self.received.get());
        let mut quiet_since = start;
        loop {
            // In this order: the acknowledgement may have been a reset.
            let took_answer = self.sent.get() > sent && self.socket.unacknowledged() == 0;
            if self.is_stopped() || self.socket.peer_gone() {
                return true;
            }
            if self.may_hide_its_end() || self.received.get() != received {
                received = self.received.get();
                quiet_since = Instant::now();
            }
            if took_answer || quiet_since.elapsed() >= QUIET {
                return false;
            }
            if start.elapsed() >= self.table.limits.stall {
                return true;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Gives up what requests held.
    fn release(&self, freed: Freed) {
        if freed.requests == 0 {
            return;
        }
        self.requests.set(self.requests.get() - freed.requests);
        self.payload.set(self.payload.get() - freed.held.bytes());
        self.table.budget.give_back(freed.held);
        self.room.notify_one();
    }

    /// One admitted request has had its effect, or never will.
    fn finish_one(&self) {
        self.running.set(self.running.get() - 1);
        if self.running.get() == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Nothing can be sent any more, so nothing more is admitted.
    fn fail(&self) {
        self.failed.set(true);
        let freed = self.outbox.borrow_mut().clear();
        self.sending_since.set(None);
        self.release(freed);
        self.stop();
        self.drained.notify_waiters();
        self.write.notify_one();
    }

    fn flush(&self) -> Flushed {
        let mut turn = SEND_TURN;
        loop {
            let mut outbox = self.outbox.borrow_mut();
            if outbox.is_empty() {
                self.sending_since.set(None);
                self.drained.notify_waiters();
                return Flushed::All;
            }
            if turn == 0 {
                return Flushed::Some;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = outbox.gather(&mut slices);
            match self.socket.try_send(&slices[..count]) {
                Ok(sent) => {
                    let freed = outbox.advance(sent);
                    drop(outbox);
                    if freed.requests > 0 {
                        self.sending_since.set(None);
                    }
                    self.release(freed);
                    self.sent.set(self.sent.get() + sent as u64);
                    turn = turn.saturating_sub(sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.sending_since.get().is_none() {
                        self.sending_since.set(Some(Instant::now()));
                    }
                    return Flushed::Blocked;
                }
                Err(error) => {
                    drop(outbox);
                    tracing::debug!(%error, "an NBD client is gone");
                    self.fail();
                    return Flushed::All;
                }
            }
        }
    }

    /// Sends what completing requests could not send at once, until nothing can be sent any more.
    pub async fn write_behind(&self) {
        while !self.failed.get() {
            self.write.notified().await;
            loop {
                match self.flush() {
                    Flushed::All => break,
                    Flushed::Some => tokio::task::yield_now().await,
                    Flushed::Blocked => {
                        if let Err(error) = self.socket.writable().await {
                            tracing::debug!(%error, "an NBD client's socket broke");
                            self.fail();
                        }
                    }
                }
            }
        }
    }

    /// Ends it once nothing is admitted any more and nothing runs: lets the last answers leave,
    /// then lets the client see the end before the socket is closed (closing with unread input
    /// would take answers on their way with it).
    pub async fn close(&self, scratch: &mut [u8]) {
        let limits = &self.table.limits;
        if timeout(limits.drain, self.drained()).await.is_err() {
            tracing::debug!("an NBD client did not take its last answers");
        }
        if !self.failed.get() && self.outbox.borrow().is_empty() && !self.socket.peer_gone() {
            self.socket.end();
            let until_the_end =
                async { while self.socket.read(scratch).await.is_ok_and(|count| count > 0) {} };
            // Whoever has not noticed by then is cut off.
            let _ = timeout(limits.linger, until_the_end).await;
        }
        self.abort();
    }
}

/// Says that the reader waits, while it lives.
struct Paused<'a>(&'a Cell<bool>);

impl<'a> Paused<'a> {
    fn unless(paused: &'a Cell<bool>, goes_on: bool) -> Option<Self> {
        if goes_on {
            return None;
        }
        paused.set(true);
        Some(Self(paused))
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[derive(PartialEq, Eq)]
enum SlotState {
    /// Its payload may still be on its way.
    Reserved,
    /// It takes effect.
    Running,
    /// Its answer is queued; the outbox frees what it holds.
    Answered,
}

/// One request's share of the connection. Dropped before [`Slot::start`] it is as if the request
/// had never come.
pub struct Slot {
    connection: Rc<Connection>,
    cookie: u64,
    held: Held,
    state: SlotState,
}

impl Slot {
    /// Admits the request: it is complete, and nothing takes it back.
    pub fn start(&mut self) {
        let running = &self.connection.running;
        running.set(running.get() + 1);
        self.state = SlotState::Running;
    }

    /// Answers it. The task that completes the last running request sends by itself, without
    /// waking anyone; while others run, their answers leave together.
    pub fn answer(mut self, answer: Answer) {
        let connection = Rc::clone(&self.connection);
        if self.state == SlotState::Running {
            connection.finish_one();
        }
        if connection.failed.get() {
            self.state = SlotState::Reserved;
            return;
        }
        self.state = SlotState::Answered;
        {
            let mut outbox = connection.outbox.borrow_mut();
            reply::encode(answer, self.cookie, connection.structured.get(), &mut outbox);
            outbox.end(self.held);
        }
        if connection.sending_since.get().is_some() {
            // The writer waits for the client already.
            return;
        }
        if connection.running.get() > 0 || !matches!(connection.flush(), Flushed::All) {
            connection.write.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.state == SlotState::Answered {
            return;
        }
        self.connection.release(Freed { requests: 1, held: self.held });
        if self.state == SlotState::Running {
            // Its task died; the client would wait for the answer for ever.
            self.connection.finish_one();
            self.connection.abort();
        }
    }
}
