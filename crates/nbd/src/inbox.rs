//! Bytes received and not yet looked at.

/// Bytes one call takes from the kernel, and the longest request it can hold whole.
pub const INBOX_BYTES: usize = 64 << 10;

/// A fixed buffer that fills at the end and empties at the front.
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Self {
        Self { bytes: vec![0; INBOX_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `N` bytes, once they are there.
    pub fn first<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes().first_chunk()
    }

    /// Drops `count` bytes, all of which are there.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room for more, with enough of it that `want` bytes will be there at once. `want` is at most
    /// [`INBOX_BYTES`]; call it only while fewer are there.
    pub fn room(&mut self, want: usize) -> &mut [u8] {
        debug_assert!(want <= INBOX_BYTES && self.bytes().len() < want);
        if self.start + want > INBOX_BYTES {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were put at the front of [`Inbox::room`].
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= INBOX_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_as_they_came_however_they_are_cut() {
        let mut inbox = Inbox::new();
        let (mut sent, mut taken) = (0_u64, 0_u64);
        let mut step = 1_usize;
        while taken < 1 << 20 {
            step = step * 31 % 60_000 + 1;
            let want = step % INBOX_BYTES + 1;
            while inbox.bytes().len() < want {
                let room = inbox.room(want);
                let count = room.len().min(step);
                for byte in &mut room[..count] {
                    *byte = (sent % 251) as u8;
                    sent += 1;
                }
                inbox.filled(count);
            }
            for byte in &inbox.bytes()[..want] {
                assert_eq!(u64::from(*byte), taken % 251);
                taken += 1;
            }
            inbox.consume(want);
        }
    }
}
