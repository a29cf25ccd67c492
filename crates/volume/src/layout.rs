//! Where the bytes of a disk lie: ranges cut into pieces of fragments, and objects against
//! fragments, which may be larger or smaller than they are.

use sheepdog_types::Geometry;
use std::ops::Range;

/// A range within one fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Number of the fragment in its lineage.
    pub fragment: u64,
    /// Bytes from the fragment's start.
    pub offset: u32,
    /// Bytes, never 0.
    pub len: u32,
}

/// Cuts a byte range into pieces, in order. What would lie beyond 2^64 is left out.
#[must_use]
pub fn pieces(geometry: Geometry, offset: u64, len: u64) -> Pieces {
    Pieces {
        fragment_bytes: geometry.fragment_bytes(),
        at: offset,
        left: len.min(u64::MAX - offset),
    }
}

/// The iterator of [`pieces`].
#[derive(Clone, Debug)]
pub struct Pieces {
    fragment_bytes: u64,
    at: u64,
    left: u64,
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        let offset = self.at % self.fragment_bytes;
        let len = self.left.min(self.fragment_bytes - offset);
        let piece = Piece {
            fragment: self.at / self.fragment_bytes,
            // A fragment has at most 4 MiB.
            offset: offset as u32,
            len: len as u32,
        };
        self.at += len;
        self.left -= len;
        Some(piece)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = match self.left {
            0 => 0,
            left => (self.at + left - 1) / self.fragment_bytes - self.at / self.fragment_bytes + 1,
        };
        match usize::try_from(count) {
            Ok(count) => (count, Some(count)),
            Err(_) => (usize::MAX, None),
        }
    }
}

/// Objects of one size against the fragments of one geometry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Objects {
    object_shift: u8,
    fragment_shift: u8,
}

impl Objects {
    /// `None` if an object is smaller than a block, or a fragment has more than 64 of them, or the
    /// shift is beyond 63. Every object size of a VDI is fine with every geometry.
    #[must_use]
    pub fn new(geometry: Geometry, object_shift: u8) -> Option<Self> {
        let fragment_shift = geometry.fragment_bytes().trailing_zeros() as u8;
        let block_shift = sheepdog_types::BLOCK_SIZE.trailing_zeros() as u8;
        ((block_shift..64).contains(&object_shift)
            && fragment_shift <= object_shift.saturating_add(6))
        .then_some(Self { object_shift, fragment_shift })
    }

    /// Parts a fragment has for [`Usage`]: the objects in it, or 1 if it is no larger than one.
    #[must_use]
    pub const fn parts(self) -> u32 {
        1 << self.fragment_shift.saturating_sub(self.object_shift)
    }

    /// The parts of a fragment that a piece of it touches, as a mask. Nothing for an empty piece or
    /// for what lies beyond the fragment.
    #[must_use]
    pub fn parts_of(self, offset: u32, len: u32) -> u64 {
        let fragment = 1u64 << self.fragment_shift;
        let start = u64::from(offset).min(fragment);
        let end = (u64::from(offset) + u64::from(len)).min(fragment);
        if start == end {
            return 0;
        }
        let shift = self.object_shift.min(self.fragment_shift);
        let (first, last) = (start >> shift, (end - 1) >> shift);
        // Ones from `first` to `last`, both below 64.
        (u64::MAX >> (63 - (last - first))) << first
    }

    /// The objects that lie in a fragment or, if it is smaller, the one it lies in.
    #[must_use]
    pub const fn of_fragment(self, fragment: u64) -> Range<u64> {
        if self.object_shift >= self.fragment_shift {
            let object = fragment >> (self.object_shift - self.fragment_shift);
            object..object.saturating_add(1)
        } else {
            let parts = self.parts() as u64;
            fragment.saturating_mul(parts)..fragment.saturating_add(1).saturating_mul(parts)
        }
    }

    /// The fragments that hold an object.
    #[must_use]
    pub const fn fragments_of(self, object: u64) -> Range<u64> {
        if self.object_shift >= self.fragment_shift {
            let per_object = 1u64 << (self.object_shift - self.fragment_shift);
            object.saturating_mul(per_object)..object.saturating_add(1).saturating_mul(per_object)
        } else {
            let fragment = object >> (self.fragment_shift - self.object_shift);
            fragment..fragment.saturating_add(1)
        }
    }

    /// Counts `used` and `shared` of a VDI of `size` bytes.
    #[must_use]
    pub const fn usage(self, size: u64) -> Usage {
        Usage {
            objects: self,
            // In this form because `div_ceil` of a shift of 63 and more would overflow.
            count: (size >> self.object_shift)
                + (!size.is_multiple_of(1 << self.object_shift)) as u64,
            current: 0,
            own: 0,
            other: 0,
            used: 0,
            shared: 0,
        }
    }
}

/// Adds up which objects of a VDI hold something, from what each fragment says of its parts.
#[derive(Clone, Debug)]
pub struct Usage {
    objects: Objects,
    /// Objects of the VDI; parts beyond are not counted.
    count: u64,
    /// The fragment group last added to: where an object spans several, they count once.
    current: u64,
    own: u64,
    other: u64,
    used: u64,
    shared: u64,
}

impl Usage {
    /// Adds a fragment. `own` has a bit for each of its [`Objects::parts`] in which the VDI itself
    /// owns anything, `other` for each in which it sees anything of an ancestor or a base. A
    /// fragment may be added in several calls; fragments come in ascending order, and those that
    /// hold nothing may be left out.
    pub fn add(&mut self, fragment: u64, own: u64, other: u64) {
        let first = self.objects.of_fragment(fragment).start;
        debug_assert!(first >= self.current, "fragments come in ascending order");
        if first != self.current {
            self.count_current();
            self.current = first;
        }
        self.own |= own;
        self.other |= other;
    }

    /// Bytes of the objects in which the VDI owns anything, and of the others in which it sees
    /// anything: whole objects, as lists show them.
    #[must_use]
    pub fn finish(mut self) -> (u64, u64) {
        self.count_current();
        let bytes = |objects: u64| objects.saturating_mul(1 << self.objects.object_shift);
        (bytes(self.used), bytes(self.shared))
    }

    fn count_current(&mut self) {
        let parts = u64::from(self.objects.parts());
        let within = parts.min(self.count.saturating_sub(self.current));
        let mask = match within {
            0 => 0,
            bits => u64::MAX >> (64 - bits),
        };
        self.used += u64::from((self.own & mask).count_ones());
        self.shared += u64::from((self.other & !self.own & mask).count_ones());
        (self.own, self.other) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
