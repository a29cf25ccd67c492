//! Answers to requests and how they look on the wire.

use crate::outbox::{Head, Outbox};
use crate::proto::{self, chunk, one_line};
use bytes::Bytes;
use sheepdog_types::Error;
use sheepdog_volume::io::Segment;

/// What a request is answered with.
#[derive(PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is refused or failed: the error number and a line for people.
    Failed(u32, String),
    /// The bytes from `offset` on. `whole`: in one chunk, holes and all.
    Data { offset: u64, segments: Vec<Segment>, whole: bool },
    /// Lengths and states of `base:allocation`; at least one.
    Status(Vec<(u32, u32)>),
}

impl Answer {
    /// A volume's error.
    pub fn of_error(error: &Error) -> Self {
        Self::Failed(proto::errno_of(error), error.full())
    }
}

/// Queues the answer to the request with this cookie.
pub fn encode(answer: Answer, cookie: u64, structured: bool, out: &mut Outbox) {
    match answer {
        Answer::Done => simple(out, cookie, 0),
        Answer::Failed(errno, _) if !structured => simple(out, cookie, errno),
        Answer::Failed(errno, text) => {
            let text = one_line(&text);
            let head = chunk_head(chunk::DONE, chunk::ERROR, cookie, 6 + text.len() as u32);
            out.head(head.u32(errno).u16(text.len() as u16));
            out.bytes(Bytes::from(text));
        }
        Answer::Data { offset, segments, whole } => {
            if !structured {
                simple(out, cookie, 0);
                contents(segments, out);
            } else if segments.is_empty() {
                out.head(chunk_head(chunk::DONE, chunk::NONE, cookie, 0));
            } else if whole {
                let len: u64 = segments.iter().map(Segment::len).sum();
                out.head(data_head(chunk::DONE, cookie, len, offset));
                contents(segments, out);
            } else {
                chunks(offset, segments, cookie, out);
            }
        }
        Answer::Status(extents) => {
            let len = 4 + 8 * extents.len() as u32;
            let head = chunk_head(chunk::DONE, chunk::BLOCK_STATUS, cookie, len);
            out.head(head.u32(proto::ALLOCATION_ID));
            let mut bytes = Vec::with_capacity(8 * extents.len());
            for (len, state) in extents {
                bytes.extend(len.to_be_bytes());
                bytes.extend(state.to_be_bytes());
            }
            out.bytes(Bytes::from(bytes));
        }
    }
}

/// A simple reply's header, which is all of it but for reads.
fn simple(out: &mut Outbox, cookie: u64, errno: u32) {
    let head = Head::new().u32(proto::SIMPLE_REPLY_MAGIC);
    out.head(head.u32(errno).u64(cookie));
}

fn chunk_head(flags: u16, kind: u16, cookie: u64, len: u32) -> Head {
    let head = Head::new().u32(proto::CHUNK_MAGIC).u16(flags).u16(kind);
    head.u64(cookie).u32(len)
}

fn data_head(flags: u16, cookie: u64, len: u64, offset: u64) -> Head {
    chunk_head(flags, chunk::DATA, cookie, len as u32 + 8).u64(offset)
}

/// The bytes themselves, zeros written out.
fn contents(segments: Vec<Segment>, out: &mut Outbox) {
    for segment in segments {
        match segment {
            Segment::Data(bytes) => out.bytes(bytes),
            Segment::Hole(len) | Segment::Zero(len) => out.zeros(len),
        }
    }
}

/// One chunk for each run of data and each run of zeros.
fn chunks(offset: u64, segments: Vec<Segment>, cookie: u64, out: &mut Outbox) {
    let is_data = |segment: &Segment| matches!(segment, Segment::Data(_));
    let mut at = offset;
    let mut rest = segments.into_iter().peekable();
    while let Some(first) = rest.next() {
        let data = is_data(&first);
        let mut len = first.len();
        let mut run = vec![first];
        while let Some(next) = rest.next_if(|next| is_data(next) == data) {
            len += next.len();
            run.push(next);
        }
        let flags = match rest.peek() {
            Some(_) => 0,
            None => chunk::DONE,
        };
        if data {
            out.head(data_head(flags, cookie, len, at));
            contents(run, out);
        } else {
            let head = chunk_head(flags, chunk::HOLE, cookie, 12);
            out.head(head.u64(at).u32(len as u32));
        }
        at += len;
    }
}
