//! Page-aligned memory for direct I/O, shared without copies.

use crate::BLOCK_SIZE;
use bytes::Bytes;
use pool::{POOLED_PAGES_MAX, Pool};

mod pool;

/// One block of memory at an address that direct I/O accepts.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_SIZE]);

/// A writable, page-aligned buffer of whole blocks. Freeze it into [`Bytes`] to share it; slices of
/// those keep the memory alive.
pub struct PageBuf {
    /// All of the memory; the buffer is its first `blocks`.
    pages: Vec<Page>,
    blocks: usize,
}

impl PageBuf {
    /// All zeros. `bytes` is rounded up to whole blocks.
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let (mut buf, fresh) = Self::take(bytes);
        if !fresh {
            buf.as_mut().fill(0);
        }
        buf
    }

    /// For a reader that writes every byte before anyone else sees the buffer: it holds zeros or
    /// bytes of an earlier use. `bytes` is rounded up to whole blocks.
    #[must_use]
    pub fn reused(bytes: usize) -> Self {
        Self::take(bytes).0
    }

    /// The buffer, and whether it is freshly zeroed.
    fn take(bytes: usize) -> (Self, bool) {
        let blocks = bytes.div_ceil(BLOCK_SIZE);
        if blocks == 0 {
            return (Self { pages: Vec::new(), blocks }, true);
        }
        let pages = blocks.next_power_of_two();
        let pooled = (pages <= POOLED_PAGES_MAX)
            .then(|| Pool::of(pages, |pool| pool.take(pages)))
            .flatten()
            .flatten();
        match pooled {
            Some(pages) => (Self { pages, blocks }, false),
            None if pages <= POOLED_PAGES_MAX => {
                (Self { pages: vec![Page([0; BLOCK_SIZE]); pages], blocks }, true)
            }
            None => (Self { pages: vec![Page([0; BLOCK_SIZE]); blocks], blocks }, true),
        }
    }

    /// A buffer of whole blocks that starts with `data` and is zero behind it.
    #[must_use]
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::reused(data.len());
        let (head, tail) = buf.as_mut().split_at_mut(data.len());
        head.copy_from_slice(data);
        tail.fill(0);
        buf
    }

    /// Bytes, a multiple of the block size.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.blocks * BLOCK_SIZE
    }

    /// Whether it holds no block.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Shares the memory; no copy.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for PageBuf {
    fn drop(&mut self) {
        let pages = self.pages.len();
        if !pages.is_power_of_two() || pages > POOLED_PAGES_MAX {
            return;
        }
        let memory = std::mem::take(&mut self.pages);
        drop(Pool::of(pages, |pool| pool.keep(memory)));
    }
}

impl AsRef<[u8]> for PageBuf {
    fn as_ref(&self) -> &[u8] {
        self.pages[..self.blocks].as_flattened_bytes()
    }
}

impl AsMut<[u8]> for PageBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self.pages[..self.blocks].as_flattened_bytes_mut()
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
    use super::pool::{POOLED_BYTES_MAX, SHARED_PAGES_MIN, kept};
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

    #[test]
    fn memory_is_reused_but_zeroed_buffers_are_zero() {
        let mut buf = PageBuf::zeroed(3 * BLOCK_SIZE);
        buf.as_mut().fill(9);
        let address = buf.as_ref().as_ptr();
        drop(buf);
        let again = PageBuf::zeroed(4 * BLOCK_SIZE);
        assert_eq!(again.as_ref().as_ptr(), address, "sizes of one power of two share memory");
        assert!(again.as_ref().iter().all(|b| *b == 0));
        drop(again.freeze());
        let short = PageBuf::copy_of(&[7; 3 * BLOCK_SIZE - 10]);
        assert_eq!((short.len(), short.as_ref()[3 * BLOCK_SIZE - 10]), (3 * BLOCK_SIZE, 0));
        assert!(PageBuf::zeroed(0).is_empty());
    }

    // One test, as it is about what all threads share.
    #[test]
    fn large_buffers_pass_between_threads_and_a_bounded_amount_is_kept() {
        let bytes = 2 << 20;
        let mut buf = PageBuf::zeroed(bytes);
        buf.as_mut().fill(9);
        let address = buf.as_ref().as_ptr();
        let frozen = buf.freeze();
        std::thread::scope(|scope| scope.spawn(|| drop(frozen)).join()).expect("no panic");
        let again = PageBuf::zeroed(bytes);
        assert_eq!(again.as_ref().as_ptr(), address);
        assert!(again.as_ref().iter().all(|byte| *byte == 0));
        drop(again);

        let held: Vec<_> = (0..40).map(|_| PageBuf::zeroed(4 << 20)).collect();
        drop(held);
        let shared = kept(SHARED_PAGES_MIN);
        assert!((POOLED_BYTES_MAX - (4 << 20)..=POOLED_BYTES_MAX).contains(&shared), "{shared}");
        assert_eq!(PageBuf::zeroed(5 << 20).len(), 5 << 20);
        let small = SHARED_PAGES_MIN / 2 * BLOCK_SIZE;
        let held: Vec<_> = (0..600).map(|_| PageBuf::zeroed(small)).collect();
        drop(held);
        assert_eq!(kept(1), POOLED_BYTES_MAX);
    }
}
