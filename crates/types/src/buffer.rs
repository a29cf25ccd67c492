//! Page-aligned memory for direct I/O, shared without copies.

use crate::BLOCK_SIZE;
use bytes::Bytes;

/// One block of memory at an address that direct I/O accepts.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_SIZE]);

/// A zeroed, writable, page-aligned buffer of whole blocks. Freeze it into [`Bytes`] to share it;
/// slices of those keep the memory alive.
pub struct PageBuf {
    pages: Vec<Page>,
}

impl PageBuf {
    /// `bytes` is rounded up to whole blocks.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        Self {
            pages: vec![Page([0; BLOCK_SIZE]); bytes.div_ceil(BLOCK_SIZE)],
        }
    }

    /// A buffer of whole blocks that starts with `data` and is zero behind it.
    #[must_use]
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::zeroed(data.len());
        buf.as_mut()[..data.len()].copy_from_slice(data);
        buf
    }

    /// Bytes, a multiple of the block size.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len() * BLOCK_SIZE
    }

    /// Whether it holds no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Shares the memory; no copy.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PageBuf {
    fn as_ref(&self) -> &[u8] {
        self.pages.as_slice().as_flattened_bytes()
    }
}

impl AsMut<[u8]> for PageBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_slice().as_flattened_bytes_mut()
    }
}

/// A run of pages seen as the bytes it is.
trait Flatten {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl Flatten for [Page] {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: `Page` is repr(C), 4096 bytes of u8 at alignment 4096: no padding, every bit
        // pattern valid, and the slice covers exactly `len` of them.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * BLOCK_SIZE) }
    }

    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() * BLOCK_SIZE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_padded_with_zeros() {
        let frozen = PageBuf::copy_of(&[7; 5000]).freeze();
        assert_eq!(frozen.len(), 8192);
        assert_eq!(frozen.as_ptr() as usize % BLOCK_SIZE, 0);
        assert!(frozen[..5000].iter().all(|b| *b == 7));
        assert!(frozen[5000..].iter().all(|b| *b == 0));
        let second = frozen.slice(4096..);
        drop(frozen);
        assert_eq!(second[0], 7);
    }
}
