//! The contract between the registry's users and its engines.
//!
//! # What every engine guarantees
//! * **One history.** Every commit that changes something makes exactly one new [`Revision`];
//!   revisions only grow. A commit that changes nothing (no changes, or only deletes of keys that
//!   are not there) makes none and reports the current one.
//! * **Linearizable.** A commit takes effect at one moment between its call and its answer, all of
//!   it or nothing; `get` and `list` see everything that was answered before they were called. No
//!   reader ever sees half a transaction, nor a commit that a crash could still take back.
//! * **Durable.** An answered commit survives the crash of every process and of the machine.
//! * **Complete watches.** A watch reports every later commit that touches its prefix, once, in
//!   the order of revisions, one event per commit. Where the engine has forgotten the history that
//!   would need, it says so ([`WatchEvent::TooOld`]) instead of leaving a gap.
//! * **The same refusals.** Keys, prefixes and transactions are checked by [`crate::check`] before
//!   an engine sees them.
//!
//! What it does not guarantee: any timing. Nothing may be unsafe because an answer, an event or
//! the end of a session comes late.
//!
//! # Errors
//! * `Invalid`: the request breaks a limit. Nothing happened.
//! * `NoSpace`, `ReadOnly`: the registry cannot take writes now. Nothing happened.
//! * `Conflict` (only from [`Session::commit`]): the session is over. Nothing happened.
//! * `Unreachable`: nobody answered in time, or the engine is closed. A commit **may or may not
//!   have happened, or may still happen**: read again and decide anew; finding one's own change
//!   there is success.
//! * `Io`, `Internal`: something broke; for a commit as `Unreachable`.
//!
//! A future that is dropped before it is done counts as `Unreachable`.

use sheepdog_types::Result;
use sheepdog_types::kv::{Change, Entry, Outcome, Revision, Txn};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;

/// The future of an object-safe async method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One client of the registry. Guarantees and errors: see the [module](self).
pub trait Registry: Send + Sync {
    /// The key as it is now.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>>;

    /// All keys that begin with `prefix` (byte for byte, not by path component; empty for all),
    /// at one moment.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing>>;

    /// Makes all changes of `txn` if all its comparisons hold. A key put here belongs to no
    /// session, even if it did before.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>>;

    /// Everything committed after `from` to keys that begin with `prefix`. `list` followed by
    /// `watch` from the listing's revision misses nothing. `Invalid` if `from` lies beyond the
    /// registry's history: this is another registry, or one that went back in time.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>>>;

    /// A session that others see end when this client has been dead or cut off for about `ttl`
    /// (an engine that knows better may be quicker).
    fn session(&self, ttl: Duration) -> BoxFuture<'_, Result<Box<dyn Session>>>;
}

/// Keys with their values at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// The moment: every commit up to it is in, none after it.
    pub revision: Revision,
    /// Ascending by the bytes of the key.
    pub entries: Vec<Entry>,
}

/// The later history of a prefix.
pub trait Watch: Send {
    /// Waits for the next event. Dropping the future loses nothing; the next call goes on. After
    /// an error or [`WatchEvent::TooOld`] the watch is over and says the same again.
    fn next(&mut self) -> BoxFuture<'_, Result<WatchEvent>>;
}

/// What a watch reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// One commit.
    Committed {
        /// Its revision, larger than that of any event before.
        revision: Revision,
        /// Its changes below the prefix, at least one, each key once; their order means nothing.
        /// Deletes of keys that were not there are left out.
        changes: Vec<Change>,
    },
    /// Some of the history between the last event (or the watch's beginning) and now is
    /// forgotten. List again, and watch from there.
    TooOld,
}

/// A sign of life with keys that vanish with it. Dropping it ends it as [`Session::end`] does, but
/// without waiting.
pub trait Session: Send + Sync {
    /// As [`Registry::commit`], and the keys it puts are ephemeral: when the session ends, they
    /// are deleted, all in one commit. `Conflict` (the error) once the session is over: check
    /// and commit are one step, so nothing of a session appears after its end.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>>;

    /// Where it stands; changes once, to [`SessionState::Expired`].
    fn state(&self) -> watch::Receiver<SessionState>;

    /// Ends it: its keys are gone when this returns.
    fn end(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// Whether a session lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionState {
    /// Its keys are there for everybody, as far as this client knows.
    Alive,
    /// It is over, or this client cannot know any more that it is not. Its keys are gone or will
    /// be; begin a new one.
    Expired,
}
