//! A model of the registry: the contract of `sheepdog-registry`, kept to the letter and to nothing
//! more. One linearizable history with compare-and-swap, watches that say everything once or that
//! they are too old, sessions with keys that vanish with them; and no promise about any time.
//!
//! Calls go in at once, take effect when they arrive and are answered later, all by the queue. It can
//! be without a leader, out of one host's reach, forgetful, slow, and put back from a backup.

mod api;
mod data;

use crate::{Counts, Host, Queue, Rng};
pub use api::{Answer, Call, CallId, Report, SessionId, Settings, WatchEvent};
use data::{Data, Lease, key_of};
use sheepdog_types::ErrorKind;
use sheepdog_types::kv::{Change, Entry, Outcome, Revision, Txn};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Something that happens in the registry at its time: give it back to [`Registry::step`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(What);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Arrives(u64),
    Answers(u64),
    Tells(u64),
    Beats(u64),
    Lapses(u64),
}

/// The registry as it once was.
#[derive(Clone)]
pub struct Backup(Data);

struct Asked {
    host: Host,
    call: Call,
    /// The asker is told nothing any more.
    deaf: bool,
}

struct Watch {
    host: Host,
    prefix: String,
    pending: VecDeque<WatchEvent>,
    /// Nothing is told earlier than what came before.
    last: u64,
    /// Events whose time came while the host was out of reach.
    waiting: u64,
    over: bool,
}

/// A session as its host knows it.
struct Client {
    host: Host,
    ttl: u64,
    /// Renewed until then, as far as it knows.
    until: u64,
}

/// See the [module](self).
pub struct Registry {
    /// How it behaves from now on.
    pub settings: Settings,
    /// Faults that happened, by kind.
    pub happened: Counts,
    rng: Rng,
    data: Data,
    leader: bool,
    unreached: BTreeSet<Host>,
    /// Calls, watches and sessions, all from one counter.
    last_id: u64,
    asked: BTreeMap<u64, Asked>,
    answers: BTreeMap<u64, (Host, Result<Answer, ErrorKind>)>,
    /// Commits that nobody was answered, and that may still happen.
    limbo: Vec<Call>,
    watches: BTreeMap<u64, Watch>,
    clients: BTreeMap<u64, Client>,
}

impl Registry {
    /// Empty, with a leader, in everybody's reach.
    #[must_use]
    pub fn new(settings: Settings, rng: Rng) -> Self {
        Self {
            settings,
            happened: Counts::default(),
            rng,
            data: Data::default(),
            leader: true,
            unreached: BTreeSet::new(),
            last_id: 0,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            limbo: Vec::new(),
            watches: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }

    /// The last commit, as it is now: for oracles and for preparing.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        Revision(self.data.revision)
    }

    /// A key as it is now: for oracles.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Entry> {
        self.data.get(key)
    }

    /// All keys with a prefix as they are now: for oracles.
    #[must_use]
    pub fn peek_all(&self, prefix: &str) -> Vec<Entry> {
        self.data.list(prefix)
    }

    /// Asks something. The answer is reported to the host under the returned name.
    pub fn call<E: From<Step>>(&mut self, queue: &mut Queue<E>, host: Host, call: Call) -> CallId {
        self.last_id += 1;
        let id = self.last_id;
        if self.unreached.contains(&host) {
            self.fail(queue, id, host);
        } else {
            self.asked.insert(id, Asked { host, call, deaf: false });
            let way = self.settings.way.draw(&mut self.rng);
            queue.after(way, Step(What::Arrives(id)));
        }
        CallId(id)
    }

    /// A watch is not wanted any more.
    pub fn unwatch(&mut self, watch: CallId) {
        self.watches.remove(&watch.0);
    }

    /// Whether the registry can answer anything. Sessions do not end while it cannot, and have a whole
    /// term when it can again.
    pub fn set_leader<E: From<Step>>(&mut self, queue: &mut Queue<E>, leader: bool) {
        if self.leader == leader {
            return;
        }
        self.leader = leader;
        if !leader {
            self.happened.one("registry: leader lost");
            // Some of those that were not told yet never are.
            let ids: Vec<(u64, Host)> =
                self.answers.iter().map(|(id, (host, _))| (*id, *host)).collect();
            for (id, host) in ids {
                if self.rng.chance(50) {
                    self.answers.remove(&id);
                    self.fail(queue, id, host);
                }
            }
            return;
        }
        for call in std::mem::take(&mut self.limbo) {
            if let Call::Commit(txn, session) = call {
                self.happened.one("registry: commit after its failure");
                let _ = self.commit(queue, &txn, session);
            }
        }
        self.renew_all(queue);
    }

    /// Whether a host reaches the registry.
    pub fn set_reach<E: From<Step>>(&mut self, queue: &mut Queue<E>, host: Host, reaches: bool) {
        if !reaches {
            if self.unreached.insert(host) {
                self.happened.one("registry: out of reach");
            }
            return;
        }
        if !self.unreached.remove(&host) {
            return;
        }
        for (id, watch) in self.watches.iter_mut().filter(|(_, watch)| watch.host == host) {
            for _ in 0..std::mem::take(&mut watch.waiting) {
                watch.last = watch.last.max(queue.now() + self.settings.way.draw(&mut self.rng));
                queue.at_host(watch.last, host, Step(What::Tells(*id)));
            }
        }
    }

    /// Everybody reaches it, and it has a leader.
    pub fn heal<E: From<Step>>(&mut self, queue: &mut Queue<E>) {
        for host in self.unreached.clone() {
            self.set_reach(queue, host, true);
        }
        self.set_leader(queue, true);
    }

    /// A process died. What it asked may still happen; its sessions end when they are not renewed. The
    /// caller lets the queue forget the host's events.
    pub fn forget(&mut self, host: Host) {
        for asked in self.asked.values_mut().filter(|asked| asked.host == host) {
            asked.deaf = true;
        }
        self.answers.retain(|_, (other, _)| *other != host);
        self.watches.retain(|_, watch| watch.host != host);
        self.clients.retain(|_, client| client.host != host);
    }

    /// A session ends at once, as an engine may do that knows that its process is dead.
    pub fn expire<E: From<Step>>(&mut self, queue: &mut Queue<E>, session: SessionId) {
        let changes = self.data.end(session.0);
        self.publish(queue, changes);
    }

    /// All watches lose what they did not tell yet and are too old.
    pub fn lose_watches<E: From<Step>>(&mut self, queue: &mut Queue<E>) {
        self.end_watches(queue, &WatchEvent::TooOld);
        self.happened.one("registry: watches lost");
    }

    /// Forgets all but the last so many commits.
    pub fn compact(&mut self, keep: usize) {
        self.data.compact(keep);
        self.happened.one("registry: history forgotten");
    }

    /// All that it holds.
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup(self.data.clone())
    }

    /// It goes back in time: later commits never happened, and their revisions are given again. All
    /// watches break. Sessions of that time live again, for a term, if nobody renews them.
    pub fn restore<E: From<Step>>(&mut self, queue: &mut Queue<E>, backup: &Backup) {
        self.data = backup.0.clone();
        self.limbo.clear();
        self.end_watches(queue, &WatchEvent::Broken);
        self.renew_all(queue);
        self.happened.one("registry: back in time");
    }

    /// Something happens. What hosts learn by it is put behind `out`.
    pub fn step<E: From<Step>>(&mut self, queue: &mut Queue<E>, step: Step, out: &mut Vec<Report>) {
        match step.0 {
            What::Arrives(id) => self.arrives(queue, id),
            What::Answers(id) => {
                let Some((host, result)) = self.answers.remove(&id) else { return };
                let fails = result == Err(ErrorKind::Unreachable);
                if !fails && self.unreached.contains(&host) {
                    // It happened, and nobody hears of it.
                    self.fail(queue, id, host);
                    return;
                }
                if let Ok(Answer::Opened(session)) = &result {
                    let ttl = self.data.leases.get(&session.0).map_or(0, |lease| lease.ttl);
                    self.clients.insert(session.0, Client { host, ttl, until: queue.now() + ttl });
                    queue.at_host(queue.now() + ttl / 4, host, Step(What::Beats(session.0)));
                }
                out.push(Report::Answer { host, call: CallId(id), result });
            }
            What::Tells(id) => {
                let Some(watch) = self.watches.get_mut(&id) else { return };
                if self.unreached.contains(&watch.host) {
                    watch.waiting += 1;
                    return;
                }
                let Some(event) = watch.pending.pop_front() else { return };
                let host = watch.host;
                if watch.over && watch.pending.is_empty() {
                    self.watches.remove(&id);
                }
                out.push(Report::Watch { host, watch: CallId(id), event });
            }
            What::Beats(id) => self.beats(queue, id, out),
            What::Lapses(id) => {
                let Some(lease) = self.data.leases.get(&id) else { return };
                if queue.now() >= lease.until && self.leader {
                    self.happened.one("registry: session ended");
                    let changes = self.data.end(id);
                    self.publish(queue, changes);
                }
            }
        }
    }

    fn arrives<E: From<Step>>(&mut self, queue: &mut Queue<E>, id: u64) {
        let Some(Asked { host, call, deaf }) = self.asked.remove(&id) else { return };
        if !self.leader {
            if matches!(call, Call::Commit(..)) && self.rng.chance(33) {
                self.limbo.push(call);
            }
            if !deaf {
                self.fail(queue, id, host);
            }
            return;
        }
        if deaf && matches!(call, Call::Watch(..)) {
            return;
        }
        let result = self.execute(queue, id, host, call);
        if !deaf {
            self.answers.insert(id, (host, result));
            let way = self.settings.way.draw(&mut self.rng);
            queue.at_host(queue.now() + way, host, Step(What::Answers(id)));
        }
    }

    fn execute<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        id: u64,
        host: Host,
        call: Call,
    ) -> Result<Answer, ErrorKind> {
        match call {
            Call::Get(key) => Ok(Answer::Got(self.data.get(&key))),
            Call::List(prefix) => Ok(Answer::Listed(self.revision(), self.data.list(&prefix))),
            Call::Commit(txn, session) => self.commit(queue, &txn, session).map(Answer::Commit),
            Call::Watch(prefix, from) => {
                if from.0 > self.data.revision {
                    return Err(ErrorKind::Invalid);
                }
                let watch = Watch {
                    host,
                    prefix,
                    pending: VecDeque::new(),
                    // Its events come behind the answer.
                    last: queue.now() + self.settings.way.least,
                    waiting: 0,
                    over: false,
                };
                self.watches.insert(id, watch);
                match self.data.since(from.0) {
                    None => self.tell(queue, id, WatchEvent::TooOld),
                    Some(commits) => {
                        for (revision, changes) in commits {
                            self.tell_commit(queue, id, revision, &changes);
                        }
                    }
                }
                Ok(Answer::Watching)
            }
            Call::Open(ttl) => {
                self.last_id += 1;
                let session = self.last_id;
                let until = queue.now() + ttl;
                self.data.leases.insert(session, Lease { ttl, until });
                queue.at(until, Step(What::Lapses(session)));
                Ok(Answer::Opened(SessionId(session)))
            }
            Call::End(session) => {
                self.clients.remove(&session.0);
                let changes = self.data.end(session.0);
                self.publish(queue, changes);
                Ok(Answer::Ended)
            }
        }
    }

    fn commit<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        txn: &Txn,
        session: Option<SessionId>,
    ) -> Result<Outcome, ErrorKind> {
        let (outcome, changes) = self.data.commit(txn, session.map(|session| session.0))?;
        self.publish(queue, changes);
        Ok(outcome)
    }

    /// Tells all watches of the last commit.
    fn publish<E: From<Step>>(&mut self, queue: &mut Queue<E>, changes: Option<Vec<Change>>) {
        let Some(changes) = changes else { return };
        let ids: Vec<u64> = self.watches.keys().copied().collect();
        for id in ids {
            self.tell_commit(queue, id, self.data.revision, &changes);
        }
        self.data.compact(self.settings.keep);
    }

    fn tell_commit<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        id: u64,
        revision: u64,
        changes: &[Change],
    ) {
        let Some(watch) = self.watches.get(&id) else { return };
        let below = changes.iter().filter(|change| key_of(change).starts_with(&watch.prefix));
        let below: Vec<Change> = below.cloned().collect();
        if below.is_empty() {
            return;
        }
        if self.rng.rare(self.settings.lost) {
            self.happened.one("registry: watch event lost");
            self.tell(queue, id, WatchEvent::TooOld);
        } else {
            self.tell(queue, id, WatchEvent::Committed(Revision(revision), below));
        }
    }

    fn tell<E: From<Step>>(&mut self, queue: &mut Queue<E>, id: u64, event: WatchEvent) {
        let Some(watch) = self.watches.get_mut(&id).filter(|watch| !watch.over) else { return };
        watch.over = !matches!(event, WatchEvent::Committed(..));
        watch.pending.push_back(event);
        watch.last = watch.last.max(queue.now() + self.settings.watch.draw(&mut self.rng));
        queue.at_host(watch.last, watch.host, Step(What::Tells(id)));
    }

    fn end_watches<E: From<Step>>(&mut self, queue: &mut Queue<E>, event: &WatchEvent) {
        let ids: Vec<u64> = self.watches.keys().copied().collect();
        for id in ids {
            if let Some(watch) = self.watches.get_mut(&id) {
                // What is told has its time already: the one step more than events does nothing.
                watch.pending.clear();
                watch.over = false;
            }
            self.tell(queue, id, event.clone());
        }
    }

    fn beats<E: From<Step>>(&mut self, queue: &mut Queue<E>, id: u64, out: &mut Vec<Report>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let (host, now) = (client.host, queue.now());
        let reached = self.leader && !self.unreached.contains(&host);
        let lives = match self.data.leases.get_mut(&id) {
            Some(lease) if reached => {
                client.until = now + client.ttl;
                lease.until = client.until;
                queue.at(lease.until, Step(What::Lapses(id)));
                true
            }
            None if reached => false,
            _ => now < client.until,
        };
        if lives {
            queue.at_host(now + client.ttl / 4, host, Step(What::Beats(id)));
        } else {
            self.clients.remove(&id);
            out.push(Report::Expired { host, session: SessionId(id) });
        }
    }

    fn renew_all<E: From<Step>>(&mut self, queue: &mut Queue<E>) {
        for (id, lease) in &mut self.data.leases {
            lease.until = queue.now() + lease.ttl;
            queue.at(lease.until, Step(What::Lapses(*id)));
        }
    }

    fn fail<E: From<Step>>(&mut self, queue: &mut Queue<E>, id: u64, host: Host) {
        self.happened.one("registry: call failed");
        let (least, most) = self.settings.timeout;
        let when = queue.now() + self.rng.between(least, most);
        self.answers.insert(id, (host, Err(ErrorKind::Unreachable)));
        queue.at_host(when, host, Step(What::Answers(id)));
    }
}

#[cfg(test)]
mod tests;
