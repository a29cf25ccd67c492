//! What goes in and what comes out.

use crate::map::{DiskState, MapRecord};
use crate::records::{Fences, Settings, Stamp};
use crate::shards::{Activation, ShardRecord};
use sheepdog_placement::Policy;
use sheepdog_types::kv::{Change, Entry, Outcome, Revision, Txn};
use sheepdog_types::{DiskId, ErrorKind, Interval, NodeId, Process, ShardId};
use std::collections::BTreeMap;

/// Nanoseconds of the driver's clock, which never goes back.
pub type Now = u64;

/// Names a call to the registry; its answers carry it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// A disk that this process has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalDisk {
    /// Its share among the disks of the node, usually its capacity.
    pub weight: u64,
    /// How far it has come.
    pub stamp: Stamp,
}

/// What a process starts with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Its node.
    pub node: NodeId,
    /// Where it listens.
    pub address: String,
    /// Its failure domain.
    pub zone: u32,
    /// Its weight; 0 is a gateway.
    pub vnodes: u32,
    /// Its disks.
    pub disks: BTreeMap<DiskId, LocalDisk>,
    /// The largest incarnation its store remembers. A registry that went back in time may not.
    pub known_incarnation: u64,
    /// The largest revision its store remembers, by which a registry that went back is recognised.
    pub known_revision: Revision,
}

/// A call to the registry. The driver makes it when it likes and in any order; each token is
/// answered once by [`Event::Registry`], a watch by events until it is lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// Begin a session. Answered by [`Answer::Session`].
    Begin,
    /// End the present session. Answered by [`Answer::Ended`].
    End,
    /// `list`.
    List {
        /// Of which keys.
        prefix: String,
    },
    /// `watch`. Answered only when it fails; replaces any watch of a smaller token, and is not begun
    /// where there is one of a larger.
    Watch {
        /// Of which keys.
        prefix: String,
        /// After which revision.
        from: Revision,
    },
    /// `commit`.
    Commit {
        /// What.
        txn: Txn,
        /// Through the session: the keys put are ephemeral.
        session: bool,
    },
}

/// An answer of the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The session has begun.
    Session,
    /// The session has ended, or there was none.
    Ended,
    /// Keys at one moment.
    Listing {
        /// The moment.
        revision: Revision,
        /// By key.
        entries: Vec<Entry>,
    },
    /// A commit was decided.
    Commit(Outcome),
    /// The call failed. A commit that failed as `Unreachable`, `Io` or `Internal` may have
    /// happened, or may still happen. A watch is over.
    Failed(ErrorKind),
}

/// What a replica durably knows of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Knowledge {
    /// Of which shard.
    pub shard: ShardId,
    /// The replica.
    pub disk: DiskId,
    /// The latest interval it promised.
    pub promised: Interval,
    /// The last interval it was activated in, with its members; 0 if it has no vote.
    pub activation: Activation,
}

/// Something happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Begin. Once, first.
    Start,
    /// Time passed; at the latest when `next_tick` said.
    Tick,
    /// The registry answered.
    Registry(Token, Answer),
    /// The watch saw a commit.
    Watched {
        /// Which watch.
        token: Token,
        /// Of the commit.
        revision: Revision,
        /// What it changed.
        changes: Vec<Change>,
    },
    /// The session is over, or this process cannot know that it is not.
    SessionExpired,
    /// A peer process gave any sign of life.
    Heard(Process),
    /// A connection to a peer process was reset, or could not be made.
    Reset(Process),
    /// A message of a peer.
    Message {
        /// Who sent it.
        from: Process,
        /// What it says.
        message: Message,
    },
    /// A local primary activated all members and waits for the commit.
    Activated {
        /// Of which shard.
        shard: ShardId,
        /// In which interval.
        interval: Interval,
    },
    /// A local primary found that all members have everything.
    Clean {
        /// Of which shard.
        shard: ShardId,
        /// In which interval.
        interval: Interval,
    },
    /// A local primary wants another interval: somebody who may have what this one lacks came too
    /// late for it, or went while it was being asked.
    Again {
        /// Of which shard.
        shard: ShardId,
        /// In which interval.
        interval: Interval,
    },
    /// A local replica knows a later interval than the record: the registry went back.
    KnowsLater(Knowledge),
    /// The answer to [`Effect::AskLocal`]: what each local replica of those shards knows.
    Local {
        /// Which question.
        round: u64,
        /// All there is.
        knows: Vec<Knowledge>,
    },
    /// A local disk holds, or does not hold any more, a replica of a shard. Records of held shards
    /// are told whether they name the disk or not.
    Holds {
        /// Of which shard.
        shard: ShardId,
        /// Whether any local disk does.
        held: bool,
    },
    /// A disk made a checkpoint.
    Stamped {
        /// Which.
        disk: DiskId,
        /// How far it is now.
        stamp: Stamp,
    },
    /// The vote of a flagged disk was taken, durably, in all its shards; with its stamp now.
    VoteTaken {
        /// Which.
        disk: DiskId,
        /// How far it is now.
        stamp: Stamp,
    },
    /// A disk failed, or was taken away.
    DiskGone(DiskId),
    /// A disk came.
    DiskCame(DiskId, LocalDisk),
    /// Leave cleanly. Answered by [`Effect::Left`].
    Leave,
    /// An order of the operator. Answered by [`Effect::CommandDone`].
    Command {
        /// Chosen by the caller.
        id: u64,
        /// What to do.
        command: Command,
    },
}

/// An order of the operator. Giving one again does nothing more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Begin to use a policy, with 2^`bits` shards.
    CreateSet {
        /// Its number.
        set: u16,
        /// How its data is kept.
        policy: Policy,
        /// Its shards, as a power of two.
        bits: u8,
    },
    /// Move all data away from a node, or do not any more.
    Drain {
        /// Which.
        node: NodeId,
        /// Whether.
        drain: bool,
    },
    /// Weight of a node, instead of the one it was started with.
    Vnodes {
        /// Which.
        node: NodeId,
        /// 0 to 65535.
        vnodes: u32,
    },
    /// State of a disk, one that the operator may choose: in, draining, out.
    Disk {
        /// Which.
        disk: DiskId,
        /// What it is to be.
        state: DiskState,
    },
    /// Do not wait for a node that is away.
    GiveUp {
        /// Which.
        node: NodeId,
    },
    /// Forget a node that is out.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// Fence a process and all older ones of its node, for ever.
    Fence(Process),
    /// New settings.
    Settings(Settings),
    /// Last resort: go on without the disks that are not there and these. They are fenced for ever.
    Force {
        /// Which shard.
        shard: ShardId,
        /// Disks to be given up though they are there.
        lost: Vec<DiskId>,
    },
}

/// A peer that does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspicion {
    /// Who.
    pub process: Process,
    /// For how many milliseconds nothing was heard of it.
    pub silent: u64,
    /// Whether its connection was reset, and a second look found the same.
    pub reset: bool,
}

/// What members say to each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// To the coordinator: all whom the sender cannot reach now.
    Suspect(Vec<Suspicion>),
    /// To the coordinator, repeated until the record shows it: see [`Event::Activated`].
    Activated {
        /// Of which shard.
        shard: ShardId,
        /// In which interval.
        interval: Interval,
    },
    /// To the coordinator, repeated until the record shows it: see [`Event::Clean`].
    Clean {
        /// Of which shard.
        shard: ShardId,
        /// In which interval.
        interval: Interval,
    },
    /// To the coordinator, repeated until there is a later interval: see [`Event::Again`].
    Again {
        /// Of which shard.
        shard: ShardId,
        /// In which interval.
        interval: Interval,
    },
    /// To the coordinator, repeated until the record shows it: see [`Event::KnowsLater`].
    KnowsLater(Knowledge),
    /// To the coordinator: the registry's history is shorter than one the sender has seen.
    WentBack {
        /// The revision it has seen.
        known: Revision,
    },
    /// From the coordinator: what do your replicas of these shards know?
    Ask {
        /// Which question.
        round: u64,
        /// Which shards.
        shards: Vec<ShardId>,
    },
    /// The answer.
    Know {
        /// Which question.
        round: u64,
        /// All there is.
        knows: Vec<Knowledge>,
    },
    /// To the coordinator.
    Command {
        /// Chosen by the sender.
        id: u64,
        /// What to do.
        command: Command,
    },
    /// The answer: `None` when it is done, else why not.
    CommandDone {
        /// Which.
        id: u64,
        /// Why not.
        refused: Option<(ErrorKind, String)>,
    },
}

/// How much people should care.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// The course of things.
    Info,
    /// Something is not as it should be.
    Warn,
    /// Somebody has to do something.
    Error,
}

/// Something is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Call the registry.
    Registry(Token, Call),
    /// Send, or lose.
    Send {
        /// To which process; not to another one at the same address.
        to: Process,
        /// What.
        message: Message,
    },
    /// Try to reach a peer by a new connection and tell [`Event::Heard`] or [`Event::Reset`].
    Probe(Process),
    /// This is the process's name from now on. Others learn it with its sign of life, perhaps before
    /// this process hears that it joined: it must take their messages, and promise, from here on.
    Claimed(Process),
    /// This process is part of the cluster.
    Joined(Process),
    /// It is not any more, or will not be under the name it claimed, as far as it can know: primaries
    /// stop. It joins anew by itself.
    Lost,
    /// A newer process of the same node has joined. This one stops for good.
    Superseded {
        /// Its incarnation.
        by: u64,
    },
    /// The process left cleanly and may end.
    Left,
    /// The record of a shard that concerns this process is now this.
    ShardChanged {
        /// Which.
        shard: ShardId,
        /// Its record.
        record: Box<ShardRecord>,
        /// When its pack last changed.
        revision: Revision,
    },
    /// The map is now this.
    MapChanged {
        /// The map.
        map: Box<MapRecord>,
        /// When it last changed.
        revision: Revision,
    },
    /// The fences are now these.
    FencesChanged {
        /// All of them.
        fences: Box<Fences>,
        /// When they last changed.
        revision: Revision,
    },
    /// A local disk is behind what was recorded of it: its vote is to be taken in all its shards
    /// before it answers any promise, then [`Event::VoteTaken`] be told. Comes before `Joined`.
    DiskBehind {
        /// Which.
        disk: DiskId,
        /// What was recorded.
        recorded: Stamp,
    },
    /// Tell what each local replica of these shards durably knows, by [`Event::Local`].
    AskLocal {
        /// Which question.
        round: u64,
        /// Which shards.
        shards: Vec<ShardId>,
    },
    /// An order was carried out, or refused.
    CommandDone {
        /// Which.
        id: u64,
        /// Why not.
        refused: Option<(ErrorKind, String)>,
    },
    /// For people.
    Log(LogLevel, String),
}
