//! What each command means: which requests are refused, what the others ask of the volume.

use crate::limits::Limits;
use crate::proto::{Request, command, errno, flag, state};
use crate::reply::Answer;
use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::io::{MapKind, Segment, Volume, ZeroMode};
use std::rc::Rc;

/// Most extents of one answer to a block status request; the client asks again for the rest.
const EXTENTS_MAX: usize = 8192;
/// Bytes of the disk one step of a block status looks at: what bounds the memory of a map whose
/// blocks alternate.
const MAP_STEP: u64 = 32 << 20;
/// What a block status costs of a connection's payload bytes.
const MAP_COST: usize = 256 << 10;

/// What was agreed on for a connection.
pub struct Session<V> {
    /// The disk.
    pub volume: Rc<V>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether reads are answered in chunks.
    pub structured: bool,
    /// Whether block status is answered.
    pub allocation: bool,
}

/// A command in the volume's terms; a write's data comes behind its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    Read {
        offset: u64,
        len: u32,
        whole: bool,
    },
    Write {
        offset: u64,
        len: u32,
    },
    Zero {
        offset: u64,
        len: u32,
        mode: ZeroMode,
    },
    Flush,
    Status {
        offset: u64,
        len: u32,
        one: bool,
    },
    /// Nothing is to be done for it.
    Nothing,
}

/// What becomes of a request.
#[derive(PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The client leaves.
    Disconnect,
    /// It is answered with an error, and so many bytes behind its header are skipped.
    Refuse { answer: Answer, skip: u32 },
    /// It is carried out, at this cost of payload bytes.
    Run { command: Command, cost: usize },
}

/// Judges a request by its header.
pub fn judge<V: Volume>(request: &Request, session: &Session<V>, limits: &Limits) -> Verdict {
    let Request { offset, len, .. } = *request;
    let refuse = |errno: u32, text: String| Verdict::Refuse {
        answer: Answer::Failed(errno, text),
        skip: if request.kind == command::WRITE { len } else { 0 },
    };
    let allowed = match request.kind {
        command::DISCONNECT => return Verdict::Disconnect,
        command::READ if session.structured => flag::FUA | flag::DF,
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => {
            flag::FUA
        }
        command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        command::BLOCK_STATUS => flag::FUA | flag::REQ_ONE,
        kind => return refuse(errno::INVAL, format!("there is no command {kind}")),
    };
    if request.flags & !allowed != 0 {
        let flags = request.flags & !allowed;
        return refuse(errno::INVAL, format!("flags {flags:#x} do not go with this command"));
    }
    if request.kind == command::FLUSH {
        let command = Command::Flush;
        return Verdict::Run { command, cost: 0 };
    }
    let writes = matches!(request.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if writes && session.read_only {
        return refuse(errno::PERM, "the export is read-only".to_owned());
    }
    let carries = matches!(request.kind, command::READ | command::WRITE);
    if carries && len > limits.request_bytes {
        let most = limits.request_bytes;
        return refuse(errno::INVAL, format!("{len} bytes, one request carries at most {most}"));
    }
    let size = session.volume.size();
    if offset.checked_add(u64::from(len)).is_none_or(|end| end > size) {
        let errno = match request.kind {
            command::WRITE | command::WRITE_ZEROES => errno::NOSPC,
            _ => errno::INVAL,
        };
        return refuse(errno, format!("{len} bytes at {offset}, the disk ends at {size}"));
    }
    let payload = len as usize;
    let (command, cost) = match request.kind {
        command::BLOCK_STATUS if !session.allocation => {
            return refuse(errno::INVAL, "no meta context was negotiated".to_owned());
        }
        command::BLOCK_STATUS if len == 0 => {
            return refuse(errno::INVAL, "the status of no bytes".to_owned());
        }
        command::READ => {
            let whole = request.flags & flag::DF != 0;
            (Command::Read { offset, len, whole }, payload)
        }
        command::WRITE => (Command::Write { offset, len }, payload),
        command::TRIM => {
            let mode = ZeroMode::Discard;
            (Command::Zero { offset, len, mode }, 0)
        }
        command::WRITE_ZEROES => {
            // Zeroing is always fast, so FAST_ZERO asks for nothing.
            let mode = match request.flags & flag::NO_HOLE {
                0 => ZeroMode::Discard,
                _ => ZeroMode::Reserve,
            };
            (Command::Zero { offset, len, mode }, 0)
        }
        command::BLOCK_STATUS => {
            let one = request.flags & flag::REQ_ONE != 0;
            (Command::Status { offset, len, one }, MAP_COST)
        }
        // CACHE: a hint that there is no use for.
        _ => (Command::Nothing, 0),
    };
    Verdict::Run { command, cost }
}

/// Carries out a command; `data` is what a write carries.
pub async fn run<V: Volume>(volume: &V, command: Command, data: Bytes) -> Answer {
    let done = match command {
        Command::Nothing => Ok(()),
        Command::Flush => volume.flush().await,
        Command::Read { offset, len: 0, whole } => {
            let segments = Vec::new();
            return data_answer(offset, segments, whole);
        }
        Command::Write { len: 0, .. } | Command::Zero { len: 0, .. } => Ok(()),
        Command::Read { offset, len, whole } => match read(volume, offset, len).await {
            Ok(segments) => return data_answer(offset, segments, whole),
            Err(error) => Err(error),
        },
        Command::Write { offset, .. } => volume.write(offset, data).await,
        Command::Zero { offset, len, mode } => {
            volume.write_zeroes(offset, u64::from(len), mode).await
        }
        Command::Status { offset, len, one } => match status(volume, offset, len, one).await {
            Ok(extents) => return Answer::Status(extents),
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(()) => Answer::Done,
        Err(error) => Answer::of_error(&error),
    }
}

fn data_answer(offset: u64, segments: Vec<Segment>, whole: bool) -> Answer {
    Answer::Data { offset, segments, whole }
}

/// Reads, and makes sure that the client gets as many bytes as it asked for: one more or less and
/// it would take data for headers.
async fn read<V: Volume>(volume: &V, offset: u64, len: u32) -> Result<Vec<Segment>> {
    let mut segments = volume.read(offset, len).await?;
    segments.retain(|segment| !segment.is_empty());
    let got: u64 = segments.iter().map(Segment::len).sum();
    if got == u64::from(len) {
        Ok(segments)
    } else {
        Err(Error::new(ErrorKind::Internal, format!("a read of {len} bytes gave {got}")))
    }
}

/// Lengths and states from `offset` on: all of `len` bytes or as many as fit an answer.
async fn status<V: Volume>(
    volume: &V,
    offset: u64,
    len: u32,
    one: bool,
) -> Result<Vec<(u32, u32)>> {
    let most = if one { 1 } else { EXTENTS_MAX };
    let end = offset + u64::from(len);
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut at = offset;
    while at < end {
        let step = MAP_STEP.min(end - at);
        let mut left = step;
        for extent in volume.map(at, step).await? {
            let len = extent.len.min(left) as u32;
            left -= u64::from(len);
            let state = match extent.kind {
                MapKind::Data => 0,
                MapKind::Zero => state::ZERO,
                MapKind::Hole => state::HOLE | state::ZERO,
            };
            let full = extents.len() == most;
            match extents.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.1 == state => last.0 += len,
                _ if full => return Ok(extents),
                _ => extents.push((len, state)),
            }
        }
        if left > 0 {
            let text = format!("a map of {step} bytes lacks {left}");
            return Err(Error::new(ErrorKind::Internal, text));
        }
        at += step;
    }
    Ok(extents)
}
