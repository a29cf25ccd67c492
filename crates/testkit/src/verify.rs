//! The verifying writer: many writes in flight, a journal of what was sent and what was
//! acknowledged, and from it, for every block, the set of contents it may have now.
//!
//! The rule is that of a register. A write may be what a block holds unless a write that was
//! acknowledged began after it had ended. A write ends when it is acknowledged; one that was
//! never answered ends when the next connection is served, having happened or not. What a read
//! shows while no write is under way is then fixed.

use crate::nbd::{Command, FUA, NO_HOLE, Reply, Sender, connect};
use crate::rng::Rng;
use crate::stamp::{BLOCK, Content, recognise, stamp};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

/// What the writer does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Names the run: choices and contents.
    pub seed: u64,
    /// Blocks of the disk that are used, from its beginning.
    pub blocks: u64,
    /// Requests in flight.
    pub depth: usize,
    /// Most blocks of one write.
    pub longest: u64,
}

/// A content that a block may have.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    op: u64,
    content: Content,
    begun: u64,
    /// `u64::MAX`: under way.
    ended: u64,
}

/// What every block may hold.
#[derive(Debug)]
struct Model {
    run: u64,
    now: u64,
    blocks: Vec<Vec<Candidate>>,
}

impl Model {
    fn new(run: u64, blocks: u64) -> Self {
        let untouched = Candidate { op: 0, content: Content::Zero, begun: 0, ended: 0 };
        Self { run, now: 1, blocks: (0..blocks).map(|_| vec![untouched]).collect() }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn begin(&mut self, op: &Op) {
        let begun = self.tick();
        for block in op.blocks() {
            self.blocks[block].push(Candidate {
                op: op.id,
                content: op.content,
                begun,
                ended: u64::MAX,
            });
        }
    }

    /// The write is over; if it was acknowledged, what had ended before it began is history.
    fn end(&mut self, op: &Op, acknowledged: bool) {
        let now = self.tick();
        for block in op.blocks() {
            let candidates = &mut self.blocks[block];
            let Some(own) = candidates.iter_mut().find(|c| c.op == op.id) else {
                continue;
            };
            own.ended = now;
            let begun = own.begun;
            if acknowledged {
                candidates.retain(|c| c.ended > begun);
            }
        }
    }

    /// Checks what a read showed while no write to the block was under way.
    fn observe(&mut self, block: usize, data: &[u8]) -> Result<(), String> {
        let candidates = &mut self.blocks[block];
        let content =
            recognise(data, self.run, block as u64).map_err(|e| format!("block {block}: {e}"))?;
        if !candidates.iter().any(|c| c.content == content) {
            return Err(format!(
                "block {block} holds {content:?}, it may only hold one of {candidates:?}"
            ));
        }
        candidates.retain(|c| c.content == content);
        Ok(())
    }
}

/// A request in flight.
#[derive(Clone, Debug)]
struct Op {
    id: u64,
    first: u64,
    count: u64,
    content: Content,
    read: bool,
}

impl Op {
    fn blocks(&self) -> std::ops::Range<usize> {
        let first = usize::try_from(self.first).expect("fits");
        first..first + usize::try_from(self.count).expect("fits")
    }
}

/// How many of what; every write that was sent is acknowledged, refused, pending
/// or still in flight.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Writes sent.
    pub sent: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Writes never answered.
    pub pending: u64,
    /// Writes answered with an error.
    pub refused: u64,
    /// Reads answered with an error.
    pub unread: u64,
    /// Reads checked while writing.
    pub reads: u64,
    /// Blocks checked by [`Writer::verify`].
    pub blocks: u64,
}

/// How far a run came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// As many acknowledgements as were asked for.
    Reached,
    /// The connection ended before.
    Lost,
}

#[derive(Debug)]
struct Connection {
    sender: Sender,
    replies: Receiver<std::io::Result<Reply>>,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.sender.hang_up();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The writer.
#[derive(Debug)]
pub struct Writer {
    plan: Plan,
    rng: Rng,
    model: Model,
    connection: Option<Connection>,
    in_flight: BTreeMap<u64, Op>,
    /// Writes of the last connection without an answer, ended when the next one is served.
    unanswered: Vec<Op>,
    /// Blocks being read, which are not written meanwhile.
    reading: Vec<bool>,
    writing: Vec<u32>,
    next: u64,
    counts: Counts,
    buffer: Vec<u8>,
    /// Errors that the server may report now.
    tolerated: Vec<u32>,
}

impl Writer {
    /// A writer for a disk that is all zeros.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let blocks = usize::try_from(plan.blocks).expect("fits");
        Self {
            rng: Rng::new(plan.seed),
            model: Model::new(plan.seed, plan.blocks),
            connection: None,
            in_flight: BTreeMap::new(),
            unanswered: Vec::new(),
            reading: vec![false; blocks],
            writing: vec![0; blocks],
            next: 1,
            counts: Counts::default(),
            buffer: Vec::new(),
            tolerated: Vec::new(),
            plan,
        }
    }

    /// What happened so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Opens a connection. What the last one left unanswered has happened or never will; some of
    /// it is sent again as it was, and over some something newer is written, at once.
    ///
    /// # Errors
    /// When the server refuses or is not there.
    pub fn connect(&mut self, socket: &Path, export: &str) -> Result<(), String> {
        assert!(self.connection.is_none(), "connected");
        let (sender, mut receiver) =
            connect(socket, export).map_err(|e| format!("connect: {e}"))?;
        if sender.size() < self.plan.blocks * BLOCK as u64 {
            return Err(format!("the export has only {} bytes", sender.size()));
        }
        let (tell, replies) = channel();
        let reader = std::thread::spawn(move || {
            loop {
                let reply = receiver.receive();
                let last = reply.is_err();
                if tell.send(reply).is_err() || last {
                    break;
                }
            }
        });
        self.connection = Some(Connection { sender, replies, reader: Some(reader) });
        let unanswered = std::mem::take(&mut self.unanswered);
        for op in &unanswered {
            self.model.end(op, false);
        }
        for mut op in unanswered {
            match self.rng.below(3) {
                0 => continue,
                1 => {}
                _ => op.content = Content::Write(self.next),
            }
            op.id = self.take_id();
            if self.send(op).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// From now on these error numbers are answers too: a write that got one has happened or never
    /// will.
    pub fn tolerate(&mut self, errors: &[u32]) {
        self.tolerated = errors.to_vec();
    }

    /// Writes, and reads some back, until `acks` more writes are acknowledged.
    ///
    /// # Errors
    /// When the server breaks a promise.
    pub fn run(&mut self, acks: u64) -> Result<Progress, String> {
        let goal = self.counts.acknowledged + acks;
        self.run_until(|counts| counts.acknowledged >= goal)
    }

    /// The same until so many more writes are refused.
    ///
    /// # Errors
    /// When the server breaks a promise, or acknowledges thousands instead.
    pub fn run_until_refused(&mut self, refusals: u64) -> Result<Progress, String> {
        const ENOUGH: u64 = 5000;
        let before = self.counts;
        let is_refused = |counts: &Counts| counts.refused >= before.refused + refusals;
        let progress = self.run_until(|counts| {
            is_refused(counts) || counts.acknowledged > before.acknowledged + ENOUGH
        })?;
        if progress == Progress::Reached && !is_refused(&self.counts) {
            return Err(format!("nobody refuses: {:?}", self.counts));
        }
        Ok(progress)
    }

    /// The same until the counts are such.
    ///
    /// # Errors
    /// When the server breaks a promise.
    pub fn run_until(&mut self, done: impl Fn(&Counts) -> bool) -> Result<Progress, String> {
        while !done(&self.counts) {
            if self.fill(u64::MAX).is_err() {
                return Ok(Progress::Lost);
            }
            if !self.next_answer()? {
                return Ok(Progress::Lost);
            }
        }
        Ok(Progress::Reached)
    }

    /// Sends requests until as many are in flight as planned, or `bytes` of blocks are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn fill(&mut self, bytes: u64) -> Result<(), std::io::Error> {
        let mut sent = 0;
        while self.in_flight.len() < self.plan.depth {
            let op = self.choose();
            sent += op.count * BLOCK as u64;
            if sent > bytes {
                break;
            }
            self.send(op)?;
        }
        Ok(())
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// When the server breaks a promise or the connection.
    pub fn drain(&mut self) -> Result<(), String> {
        while !self.in_flight.is_empty() {
            if !self.next_answer()? {
                return Err("the connection ended".to_owned());
            }
        }
        Ok(())
    }

    /// Closes the connection, or learns that it is closed. Answers that had arrived count.
    ///
    /// # Errors
    /// When the server broke a promise.
    pub fn disconnect(&mut self) -> Result<(), String> {
        let connection = self.connection.take();
        let Some(mut connection) = connection else {
            return Ok(());
        };
        connection.sender.hang_up();
        if let Some(reader) = connection.reader.take() {
            let _ = reader.join();
        }
        // The reader is gone, so this ends with what had arrived.
        let mut result = Ok(());
        while let (Ok(()), Ok(reply)) = (&result, connection.replies.try_recv()) {
            result = self.taken(reply).map(|_| ());
        }
        for op in std::mem::take(&mut self.in_flight).into_values() {
            self.release(&op);
            if !op.read {
                self.counts.pending += 1;
                self.unanswered.push(op);
            }
        }
        result
    }

    /// Reads the whole disk and compares. Nothing may be in flight.
    ///
    /// # Errors
    /// When a block holds what it must not.
    pub fn verify(&mut self) -> Result<(), String> {
        assert!(self.in_flight.is_empty(), "writes are under way");
        let step = 32;
        let mut first = 0;
        while first < self.plan.blocks || !self.in_flight.is_empty() {
            while first < self.plan.blocks && self.in_flight.len() < 8 {
                let count = step.min(self.plan.blocks - first);
                let id = self.take_id();
                let read = Op { id, first, count, content: Content::Zero, read: true };
                self.send(read).map_err(|e| format!("verify: {e}"))?;
                first += count;
            }
            if !self.next_answer()? {
                return Err("verify: the connection ended".to_owned());
            }
        }
        self.counts.blocks += self.plan.blocks;
        Ok(())
    }

    /// Blocks that may hold more than one content: what was pending and not yet looked at.
    #[must_use]
    pub fn undecided(&self) -> usize {
        let blocks = &self.model.blocks;
        blocks.iter().filter(|c| c.len() > 1).count()
    }

    const fn take_id(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        id
    }

    fn choose(&mut self) -> Op {
        loop {
            // A quarter of all goes to a few blocks, where it meets others in flight.
            let span =
                if self.rng.chance(25) { 64.min(self.plan.blocks) } else { self.plan.blocks };
            let first = self.rng.below(span);
            let count = if self.rng.chance(70) { 1 } else { 1 + self.rng.below(self.plan.longest) };
            let count = count.min(self.plan.blocks - first);
            let mut op = Op { id: 0, first, count, content: Content::Zero, read: false };
            let kind = self.rng.below(100);
            op.read = kind < 15;
            let blocks = op.blocks();
            if self.reading[blocks.clone()].iter().any(|r| *r)
                || (op.read && self.writing[blocks].iter().any(|w| *w > 0))
            {
                continue;
            }
            op.id = self.take_id();
            if kind >= 25 {
                op.content = Content::Write(op.id);
            }
            return op;
        }
    }

    fn send(&mut self, op: Op) -> Result<(), std::io::Error> {
        let (offset, len) = (op.first * BLOCK as u64, op.count * BLOCK as u64);
        let len = u32::try_from(len).expect("short");
        let mut flags = if self.rng.chance(30) { FUA } else { 0 };
        self.buffer.clear();
        let command = match (op.read, op.content) {
            (true, _) => {
                flags = 0;
                Command::Read
            }
            // TRIM need not read back as zeros; WRITE_ZEROES must.
            (false, Content::Zero) => {
                flags |= if self.rng.chance(50) { NO_HOLE } else { 0 };
                Command::WriteZeroes
            }
            (false, Content::Write(seq)) => {
                self.buffer.resize(len as usize, 0);
                for (i, block) in self.buffer.chunks_mut(BLOCK).enumerate() {
                    stamp(block, self.plan.seed, op.first + i as u64, seq);
                }
                Command::Write
            }
        };
        if op.read {
            self.reading[op.blocks()].fill(true);
        } else {
            self.counts.sent += 1;
            self.model.begin(&op);
            self.writing[op.blocks()].iter_mut().for_each(|w| *w += 1);
        }
        let connection = self.connection.as_mut().expect("connected");
        // The cookie is taken before anything can fail: what was half sent is in flight.
        let cookie = connection.sender.next_cookie();
        self.in_flight.insert(cookie, op);
        connection.sender.send(command, flags, offset, len, &self.buffer)?;
        Ok(())
    }

    fn release(&mut self, op: &Op) {
        if op.read {
            self.reading[op.blocks()].fill(false);
        } else {
            self.writing[op.blocks()].iter_mut().for_each(|w| *w -= 1);
        }
    }

    /// Takes the next answer; false when there will be none.
    fn next_answer(&mut self) -> Result<bool, String> {
        let connection = self.connection.as_ref().expect("connected");
        match connection.replies.recv() {
            Ok(reply) => self.taken(reply),
            Err(_) => Ok(false),
        }
    }

    fn taken(&mut self, reply: std::io::Result<Reply>) -> Result<bool, String> {
        match reply {
            Ok(reply) => self.answered(&reply).map(|()| true),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(e.to_string()),
            Err(_) => Ok(false),
        }
    }

    fn answered(&mut self, reply: &Reply) -> Result<(), String> {
        let op = self.in_flight.remove(&reply.cookie);
        let op = op.ok_or_else(|| format!("an answer to nothing: {}", reply.cookie))?;
        self.release(&op);
        if reply.error != 0 {
            if !self.tolerated.contains(&reply.error) {
                return Err(format!("the server reports error {} for {op:?}", reply.error));
            }
            if op.read {
                self.counts.unread += 1;
            } else {
                self.counts.refused += 1;
                self.model.end(&op, false);
            }
            return Ok(());
        }
        if op.read {
            self.counts.reads += 1;
            for (block, data) in op.blocks().zip(reply.data.chunks(BLOCK)) {
                self.model.observe(block, data)?;
            }
        } else {
            self.counts.acknowledged += 1;
            self.model.end(&op, true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(id: u64) -> Op {
        Op { id, first: 0, count: 1, content: Content::Write(id), read: false }
    }

    fn shows(model: &mut Model, seq: u64) -> Result<(), String> {
        let mut data = vec![0; BLOCK];
        if seq > 0 {
            stamp(&mut data, 9, 0, seq);
        }
        model.observe(0, &data)
    }

    #[test]
    fn an_acknowledged_write_may_not_be_lost() {
        let mut model = Model::new(9, 1);
        model.begin(&write(1));
        model.end(&write(1), true);
        assert!(shows(&mut model, 0).unwrap_err().contains("may only hold"));
        assert!(shows(&mut model, 1).is_ok());
    }

    #[test]
    fn a_pending_write_is_old_or_new_and_then_stays() {
        for outcome in [1, 2] {
            let mut model = Model::new(9, 1);
            model.begin(&write(1));
            model.end(&write(1), true);
            model.begin(&write(2));
            model.end(&write(2), false);
            assert!(shows(&mut model, outcome).is_ok());
            assert!(shows(&mut model, 3 - outcome).is_err());
            assert!(shows(&mut model, outcome).is_ok());
        }
    }

    #[test]
    fn a_delayed_original_may_not_overtake_what_came_later() {
        let mut model = Model::new(9, 1);
        model.begin(&write(1));
        model.end(&write(1), false);
        model.begin(&write(2));
        model.end(&write(2), true);
        assert!(shows(&mut model, 1).is_err());
        assert!(shows(&mut model, 2).is_ok());
    }

    #[test]
    fn overlapping_writes_may_end_in_either_order() {
        for last in [1, 2] {
            let mut model = Model::new(9, 1);
            model.begin(&write(1));
            model.begin(&write(2));
            model.end(&write(2), true);
            model.end(&write(1), true);
            assert!(shows(&mut model, last).is_ok());
            assert!(shows(&mut model, 0).is_err());
        }
    }
}
