//! Replies on their way out: pieces of bytes in order, sent with few calls and without copies, and
//! which requests are over once they have left.

use crate::budget::Held;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Slices one send takes.
pub const SLICES: usize = 64;
/// The zeros of all replies.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Longest header: a hole chunk, or a data chunk's with its offset.
const HEAD_MAX: usize = 32;

/// A short run of header bytes, kept in the queue itself.
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: u8,
}

impl Head {
    /// No bytes yet.
    pub const fn new() -> Self {
        Self { bytes: [0; HEAD_MAX], len: 0 }
    }

    /// Appends; at most [`HEAD_MAX`] bytes in all.
    fn put(mut self, bytes: &[u8]) -> Self {
        let at = usize::from(self.len);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
        self
    }

    /// Appends two bytes.
    pub fn u16(self, value: u16) -> Self {
        self.put(&value.to_be_bytes())
    }

    /// Appends four bytes.
    pub fn u32(self, value: u32) -> Self {
        self.put(&value.to_be_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(self, value: u64) -> Self {
        self.put(&value.to_be_bytes())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

enum Piece {
    Head(Head),
    Bytes(Bytes),
    Zeros(u64),
    /// All of a request's reply is in front of this.
    End(Held),
}

/// What became free because replies left.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Freed {
    /// Requests.
    pub requests: usize,
    /// Payload memory they were admitted with.
    pub held: Held,
}

/// The queue.
#[derive(Default)]
pub struct Outbox {
    queue: VecDeque<Piece>,
    /// Bytes of the first piece that have left.
    sent: usize,
}

impl Outbox {
    /// Appends a header.
    pub fn head(&mut self, head: Head) {
        self.queue.push_back(Piece::Head(head));
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.queue.push_back(Piece::Bytes(bytes));
        }
    }

    /// Appends zeros.
    pub fn zeros(&mut self, count: u64) {
        if count > 0 {
            self.queue.push_back(Piece::Zeros(count));
        }
    }

    /// Ends the reply of a request that was admitted with this much memory.
    pub fn end(&mut self, held: Held) {
        self.queue.push_back(Piece::End(held));
    }

    /// Whether everything has left.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next bytes to send, as slices; how many of them are set.
    pub fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut count = 0;
        let mut skip = self.sent;
        for piece in &self.queue {
            if count == SLICES {
                break;
            }
            let bytes = match piece {
                Piece::Head(head) => head.as_bytes(),
                Piece::Bytes(bytes) => bytes,
                Piece::Zeros(zeros) => {
                    // What has left of zeros was subtracted from them.
                    let mut left = *zeros;
                    while left > 0 && count < SLICES {
                        let len = left.min(ZEROS.len() as u64) as usize;
                        slices[count] = IoSlice::new(&ZEROS[..len]);
                        count += 1;
                        left -= len as u64;
                    }
                    skip = 0;
                    continue;
                }
                Piece::End(_) => continue,
            };
            slices[count] = IoSlice::new(&bytes[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }

    /// `count` bytes have left. Requests whose last byte is among them are over.
    pub fn advance(&mut self, mut count: usize) -> Freed {
        let mut freed = Freed::default();
        while let Some(piece) = self.queue.front_mut() {
            let left = match piece {
                Piece::Head(head) => usize::from(head.len) - self.sent,
                Piece::Bytes(bytes) => bytes.len() - self.sent,
                Piece::Zeros(zeros) => {
                    let now = (*zeros).min(count as u64);
                    *zeros -= now;
                    count -= now as usize;
                    if *zeros > 0 {
                        break;
                    }
                    0
                }
                Piece::End(held) => {
                    freed.requests += 1;
                    freed.held.add(*held);
                    0
                }
            };
            if count < left {
                self.sent += count;
                break;
            }
            count -= left;
            self.sent = 0;
            self.queue.pop_front();
        }
        freed
    }

    /// Nothing leaves any more: every queued request is over.
    pub fn clear(&mut self) -> Freed {
        let mut freed = Freed::default();
        for piece in self.queue.drain(..) {
            if let Piece::End(held) = piece {
                freed.requests += 1;
                freed.held.add(held);
            }
        }
        self.sent = 0;
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> (Outbox, Vec<u8>) {
        let mut outbox = Outbox::default();
        let mut want = Vec::new();
        for i in 0..60_u32 {
            outbox.head(Head::new().u32(i).u16(7).u64(u64::from(i) << 40));
            want.extend(i.to_be_bytes());
            want.extend(7_u16.to_be_bytes());
            want.extend((u64::from(i) << 40).to_be_bytes());
            let data: Vec<u8> = (0..i * 37).map(|b| b as u8).collect();
            want.extend(&data);
            outbox.bytes(data.into());
            outbox.zeros(u64::from(i % 3) * 70_000);
            want.resize(want.len() + (i % 3) as usize * 70_000, 0);
            outbox.end(Held { open: i as usize, kept: 1 });
        }
        (outbox, want)
    }

    #[test]
    fn every_cut_sends_the_same_bytes_and_frees_all_requests() {
        for most in [1_usize, 13, 4096, 65_536, 1 << 30] {
            let (mut outbox, want) = filled();
            let (mut got, mut freed) = (Vec::<u8>::new(), Freed::default());
            while !outbox.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = outbox.gather(&mut slices);
                let before = got.len();
                // The smallest steps only where they matter, or it takes for ever.
                let step = if got.len() < 5000 { most } else { most.max(9999) };
                for slice in &slices[..count] {
                    let room = step - (got.len() - before);
                    got.extend(&slice[..slice.len().min(room)]);
                }
                let sent = got.len() - before;
                assert!(sent > 0);
                let more = outbox.advance(sent);
                freed.requests += more.requests;
                freed.held.add(more.held);
            }
            assert!(got == want);
            let all = Freed { requests: 60, held: Held { open: 59 * 30, kept: 60 } };
            assert_eq!(freed, all);
            assert_eq!(filled().0.clear(), all);
        }
    }

    #[test]
    fn a_request_is_over_with_its_last_byte() {
        let mut outbox = Outbox::default();
        outbox.head(Head::new().u32(1));
        outbox.bytes(Bytes::from_static(b"abc"));
        outbox.end(Held { open: 9, kept: 0 });
        assert_eq!(outbox.advance(6), Freed::default());
        let one = Freed { requests: 1, held: Held { open: 9, kept: 0 } };
        assert_eq!(outbox.advance(1), one);
        assert!(outbox.is_empty());
    }
}
