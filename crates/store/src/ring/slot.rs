//! One operation of the ring: which call to the kernel comes next, and what its result means. No
//! kernel in here.

use crate::areas::{Areas, area_name, disk_error};
use crate::engine::DurableMethod;
use bytes::Bytes;
use sheepdog_storelog::io::{Area, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_types::PageBuf;
use std::io;

/// Bytes of one call: less than what the kernel cuts calls to, and aligned.
const CALL_BYTES_MAX: usize = 1 << 30;
/// Segments of one call (`UIO_MAXIOV`).
const SEGMENTS_MAX: usize = 1024;
/// Zeros written at once where holes cannot be punched.
const ZEROS_BYTES: usize = 1 << 20;
/// Calls of one operation in a row that were interrupted or put off.
const RETRIES_MAX: u32 = 1000;

/// One call to the kernel. Pointers point into the slot that made it.
#[derive(Clone, Copy)]
pub(super) enum Call {
    Nop,
    Read { area: Area, offset: u64, buf: *mut u8, len: u32 },
    Write { area: Area, offset: u64, buf: *const u8, len: u32, dsync: bool },
    Writev { area: Area, offset: u64, segments: *const libc::iovec, count: u32, dsync: bool },
    Sync { area: Area },
    Punch { offset: u64, len: u64 },
    Allocate { offset: u64, len: u64 },
}

/// What a result means.
#[derive(Debug)]
pub(super) enum Next {
    /// Make another call.
    Again,
    /// The answer to the operation.
    Done(Result<Bytes, DiskError>),
}

/// An operation with everything the kernel may touch for it.
pub(super) struct Slot {
    pub(super) op: OpId,
    work: Work,
    retries: u32,
}

enum Work {
    /// Done without the kernel; a call that does nothing makes it complete like the others.
    Known(Result<Bytes, DiskError>),
    Read(Read),
    Write(Write),
    Sync(Area),
    Punch {
        offset: u64,
        len: u64,
    },
    Allocate {
        offset: u64,
        len: u64,
    },
}

struct Read {
    area: Area,
    offset: u64,
    len: usize,
    done: usize,
    buf: PageBuf,
}

struct Write {
    area: Area,
    offset: u64,
    data: Source,
    len: u64,
    done: u64,
    /// Bytes of the call that was made last.
    asked: u64,
    segments: Vec<libc::iovec>,
    dsync: bool,
    /// Sync when all is written.
    flush: bool,
}

/// What a write writes.
enum Source {
    Buffers(Vec<Bytes>),
    /// These zeros, over and over.
    Zeros(Bytes),
}

impl Slot {
    /// `extended` is the result if it is an extension.
    pub(super) fn new(
        op: OpId,
        what: DiskOp,
        method: DurableMethod,
        extended: io::Result<()>,
        areas: &Areas,
    ) -> Self {
        let nothing = || Work::Known(Ok(Bytes::new()));
        let work = match what {
            DiskOp::Read { len: 0, .. } => nothing(),
            DiskOp::Read { area, offset, len } => {
                Work::Read(Read { area, offset, len, done: 0, buf: PageBuf::reused(len) })
            }
            DiskOp::Write { area, offset, data, durable } => {
                let len = data.iter().map(|b| b.len() as u64).sum();
                let flush = durable && method == DurableMethod::Flush;
                match len {
                    0 => nothing(),
                    _ => Work::Write(Write {
                        area,
                        offset,
                        data: Source::Buffers(data),
                        len,
                        done: 0,
                        asked: 0,
                        segments: Vec::new(),
                        dsync: durable && !flush,
                        flush,
                    }),
                }
            }
            DiskOp::Sync { area } => Work::Sync(area),
            DiskOp::Punch { offset, len } => Work::Punch { offset, len },
            DiskOp::Allocate { .. } if areas.data_is_device() => nothing(),
            DiskOp::Allocate { offset, len } => Work::Allocate { offset, len },
            DiskOp::Extend { .. } => Work::Known(match extended {
                Ok(()) => Ok(Bytes::new()),
                Err(e) => Err(disk_error("extend data", &e)),
            }),
        };
        Self { op, work, retries: 0 }
    }

    /// The call to make now. The slot must not be touched again before its result is there.
    pub(super) fn call(&mut self) -> Call {
        match &mut self.work {
            Work::Known(_) => Call::Nop,
            Work::Read(read) => read.call(),
            Work::Write(write) => write.call(),
            Work::Sync(area) => Call::Sync { area: *area },
            Work::Punch { offset, len } => Call::Punch { offset: *offset, len: *len },
            Work::Allocate { offset, len } => Call::Allocate { offset: *offset, len: *len },
        }
    }

    /// The call of [`Slot::call`] ended with `result`: a count or a negated error number.
    pub(super) fn landed(&mut self, result: i32, areas: &Areas) -> Next {
        let count = match u32::try_from(result) {
            Ok(count) => count,
            Err(_) => return self.failed(-result, areas),
        };
        self.retries = 0;
        match &mut self.work {
            Work::Known(known) => Next::Done(std::mem::replace(known, Ok(Bytes::new()))),
            Work::Read(read) => read.landed(count as usize, areas),
            Work::Write(write) => match write.landed(u64::from(count), areas) {
                Ok(Some(area)) => {
                    self.work = Work::Sync(area);
                    Next::Again
                }
                Ok(None) if write.done < write.len => Next::Again,
                Ok(None) => Next::Done(Ok(Bytes::new())),
                Err(e) => Next::Done(Err(e)),
            },
            Work::Sync(_) | Work::Punch { .. } | Work::Allocate { .. } => {
                Next::Done(Ok(Bytes::new()))
            }
        }
    }

    fn failed(&mut self, errno: i32, areas: &Areas) -> Next {
        let put_off = matches!(errno, libc::EINTR | libc::EAGAIN);
        // A sync that failed in any way, EINTR too, may have lost what it was to save: the kernel
        // counts an error of earlier writes as told with whatever error it gives.
        if put_off && self.retries < RETRIES_MAX && !matches!(self.work, Work::Sync(_)) {
            self.retries += 1;
            return Next::Again;
        }
        let error = io::Error::from_raw_os_error(errno);
        match &self.work {
            Work::Allocate { .. } if errno == libc::EOPNOTSUPP => {
                areas.say_no_reserving();
                Next::Done(Ok(Bytes::new()))
            }
            Work::Punch { offset, len } if errno == libc::EOPNOTSUPP => {
                match areas.zeros_end(*offset, *len) {
                    Ok(end) if end > *offset => {
                        self.work = Work::Write(Write::zeros(*offset, end - *offset));
                        Next::Again
                    }
                    Ok(_) => Next::Done(Ok(Bytes::new())),
                    Err(e) => Next::Done(Err(disk_error("punch data", &e))),
                }
            }
            work => Next::Done(Err(disk_error(&work.name(), &error))),
        }
    }
}

impl Work {
    fn name(&self) -> String {
        let at = |verb, area, offset| format!("{verb} {} at {offset}", area_name(area));
        match self {
            Work::Known(_) => "complete".to_owned(),
            Work::Read(read) => at("read", read.area, read.offset),
            Work::Write(write) => at("write", write.area, write.offset),
            Work::Sync(area) => format!("sync {}", area_name(*area)),
            Work::Punch { offset, .. } => at("punch", Area::Data, *offset),
            Work::Allocate { offset, .. } => at("reserve", Area::Data, *offset),
        }
    }
}

impl Read {
    fn call(&mut self) -> Call {
        let rest = &mut self.buf.as_mut()[self.done..self.len];
        Call::Read {
            area: self.area,
            offset: self.offset + self.done as u64,
            len: rest.len().min(CALL_BYTES_MAX) as u32,
            buf: rest.as_mut_ptr(),
        }
    }

    fn landed(&mut self, count: usize, areas: &Areas) -> Next {
        let end = self.done + count;
        if end < self.len && count > 0 {
            match areas.ends_before(self.area, self.offset + end as u64) {
                Ok(true) => {}
                Ok(false) => {
                    let next = areas.resume_at(end);
                    if next <= self.done {
                        return self.error(&io::ErrorKind::UnexpectedEof.into());
                    }
                    self.done = next;
                    return Next::Again;
                }
                Err(e) => return self.error(&e),
            }
        }
        let mut buf = std::mem::replace(&mut self.buf, PageBuf::zeroed(0));
        // The kernel may have used the buffer behind what it counted.
        buf.as_mut()[end..self.len].fill(0);
        Next::Done(Ok(buf.freeze().slice(..self.len)))
    }

    fn error(&self, error: &io::Error) -> Next {
        let what = format!("read {} at {}", area_name(self.area), self.offset);
        Next::Done(Err(disk_error(&what, error)))
    }
}

impl Write {
    /// Zeros for a range of the data area.
    fn zeros(offset: u64, len: u64) -> Self {
        Self {
            area: Area::Data,
            offset,
            data: Source::Zeros(PageBuf::zeroed(ZEROS_BYTES).freeze()),
            len,
            done: 0,
            asked: 0,
            segments: Vec::new(),
            dsync: false,
            flush: false,
        }
    }

    fn call(&mut self) -> Call {
        self.segments.clear();
        let mut room = CALL_BYTES_MAX;
        let mut add = |segments: &mut Vec<libc::iovec>, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(room)];
            room -= bytes.len();
            if !bytes.is_empty() {
                segments.push(libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                });
            }
        };
        match &self.data {
            Source::Zeros(zeros) => {
                let rest = (self.len - self.done).min(zeros.len() as u64);
                add(&mut self.segments, &zeros[..rest as usize]);
            }
            Source::Buffers(buffers) => {
                let mut skip = self.done;
                for buffer in buffers {
                    if self.segments.len() == SEGMENTS_MAX {
                        break;
                    }
                    let len = buffer.len() as u64;
                    add(&mut self.segments, &buffer[skip.min(len) as usize..]);
                    skip = skip.saturating_sub(len);
                }
            }
        }
        self.asked = self.segments.iter().map(|s| s.iov_len as u64).sum();
        let offset = self.offset + self.done;
        match &self.segments[..] {
            [one] => Call::Write {
                area: self.area,
                offset,
                buf: one.iov_base.cast_const().cast(),
                len: one.iov_len as u32,
                dsync: self.dsync,
            },
            several => Call::Writev {
                area: self.area,
                offset,
                segments: several.as_ptr(),
                count: several.len() as u32,
                dsync: self.dsync,
            },
        }
    }

    /// `Some` when it is written and a sync is left to do.
    fn landed(&mut self, count: u64, areas: &Areas) -> Result<Option<Area>, DiskError> {
        let count = count.min(self.asked);
        let count =
            if count == self.asked { count } else { areas.resume_at(count as usize) as u64 };
        if count == 0 {
            let at = self.offset + self.done;
            return Err(DiskError {
                kind: DiskErrorKind::Io,
                text: format!("write {} at {at}: nothing was written", area_name(self.area)),
            });
        }
        self.done += count;
        Ok((self.done == self.len && self.flush).then_some(self.area))
    }
}

#[cfg(test)]
mod tests;
