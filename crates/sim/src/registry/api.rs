//! What hosts ask the registry and what they are told.

use crate::{Delay, Host, MS, SECOND};
use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Change, Entry, Outcome, Revision, Txn};

/// How the registry behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// From a host to the registry, and back.
    pub way: Delay,
    /// Until a watch hears of a commit.
    pub watch: Delay,
    /// A call that nobody answers fails after between so and so much.
    pub timeout: (u64, u64),
    /// How many events of watches, in thousandths, are lost; the watch is too old then.
    pub lost: u64,
    /// Commits that are remembered for watches that begin in the past.
    pub keep: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let way = Delay { least: 50_000, typical: 500_000, rare: 20, longest: 100 * MS };
        Self { way, watch: way, timeout: (SECOND, 5 * SECOND), lost: 0, keep: 1000 }
    }
}

/// Names a call; a watch goes by the name of the call that began it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallId(pub u64);

/// Names a session; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SessionId(pub u64);

/// What a host asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// The key as it is.
    Get(String),
    /// All keys that begin with this.
    List(String),
    /// All changes if all comparisons hold. With a session the keys vanish with it.
    Commit(Txn, Option<SessionId>),
    /// Everything committed after that revision to keys that begin with this.
    Watch(String, Revision),
    /// A session that ends when it was not renewed for so many nanoseconds. Its host renews it by
    /// itself while it runs.
    Open(u64),
    /// Ends a session.
    End(SessionId),
}

/// What it is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To [`Call::Get`].
    Got(Option<Entry>),
    /// To [`Call::List`]: the moment, and the entries by key.
    Listed(Revision, Vec<Entry>),
    /// To [`Call::Commit`].
    Commit(Outcome),
    /// To [`Call::Watch`]: its events follow.
    Watching,
    /// To [`Call::Open`].
    Opened(SessionId),
    /// To [`Call::End`].
    Ended,
}

/// What a watch reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// One commit, with its changes below the prefix.
    Committed(Revision, Vec<Change>),
    /// Something before this is forgotten; the watch is over.
    TooOld,
    /// The watch broke and is over.
    Broken,
}

/// What a host learns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// A call ended. `Unreachable`: a commit may have happened, or may still happen.
    Answer {
        /// Who asked.
        host: Host,
        /// Which call.
        call: CallId,
        /// How it ended.
        result: Result<Answer, ErrorKind>,
    },
    /// A watch has something.
    Watch {
        /// Whose.
        host: Host,
        /// The call that began it.
        watch: CallId,
        /// What.
        event: WatchEvent,
    },
    /// A session is over, or its host cannot know any more that it is not.
    Expired {
        /// Whose.
        host: Host,
        /// Which.
        session: SessionId,
    },
}
