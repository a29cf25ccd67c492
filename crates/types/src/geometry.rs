//! How a fragment divides into chunks and blocks. A parameter, not a constant, so that tests and
//! the simulator can use small fragments where collisions are frequent.

/// Bytes of a block: the atomic unit, with one checksum and one owner.
pub const BLOCK_SIZE: usize = 4096;

/// Blocks per chunk and chunks per fragment. Both are powers of two, at most 16 and 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    blocks_per_chunk: u16,
    chunks_per_fragment: u16,
}

impl Geometry {
    /// The product's: chunks of 64 KiB, fragments of 4 MiB.
    pub const STANDARD: Self = Self { blocks_per_chunk: 16, chunks_per_fragment: 64 };

    /// `None` unless both are powers of two within their limits (a chunk's blocks fit a 16-bit
    /// mask, a fragment's chunks a 64-bit one).
    #[must_use]
    pub const fn new(blocks_per_chunk: u16, chunks_per_fragment: u16) -> Option<Self> {
        if blocks_per_chunk.is_power_of_two()
            && blocks_per_chunk <= 16
            && chunks_per_fragment.is_power_of_two()
            && chunks_per_fragment <= 64
        {
            Some(Self { blocks_per_chunk, chunks_per_fragment })
        } else {
            None
        }
    }

    /// Blocks of one chunk.
    #[must_use]
    pub const fn blocks_per_chunk(self) -> u32 {
        self.blocks_per_chunk as u32
    }

    /// Chunks of one fragment.
    #[must_use]
    pub const fn chunks_per_fragment(self) -> u32 {
        self.chunks_per_fragment as u32
    }

    /// Blocks of one fragment.
    #[must_use]
    pub const fn blocks_per_fragment(self) -> u32 {
        self.blocks_per_chunk() * self.chunks_per_fragment()
    }

    /// Bytes of one chunk.
    #[must_use]
    pub const fn chunk_bytes(self) -> u64 {
        self.blocks_per_chunk as u64 * BLOCK_SIZE as u64
    }

    /// Bytes of one fragment.
    #[must_use]
    pub const fn fragment_bytes(self) -> u64 {
        self.chunk_bytes() * self.chunks_per_fragment as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_is_64_kib_and_4_mib() {
        assert_eq!(Geometry::STANDARD.chunk_bytes(), 64 << 10);
        assert_eq!(Geometry::STANDARD.fragment_bytes(), 4 << 20);
        assert_eq!(Geometry::STANDARD.blocks_per_fragment(), 1024);
        assert_eq!(Geometry::new(16, 64), Some(Geometry::STANDARD));
    }

    #[test]
    fn odd_shapes_are_refused() {
        for (b, c) in [(0, 1), (1, 0), (3, 4), (32, 4), (4, 128)] {
            assert_eq!(Geometry::new(b, c), None, "{b} {c}");
        }
    }
}
