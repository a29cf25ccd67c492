//! The disks behind the door: one small one in memory and what it is known by.

use bytes::Bytes;
use sheepdog_nbd::{Exports, Opened, look_up};
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, Result};
use sheepdog_volume::io::{MapExtent, MapKind, Segment, Volume, ZeroMode};
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of the disk: no whole number of blocks.
pub const SIZE: usize = 20 * BLOCK_SIZE + 1000;
/// Name of the disk; `disk@snap` is the same, read-only.
pub const NAME: &str = "disk";

/// Flat bytes, and what each block is.
#[derive(Clone)]
pub struct Disk {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Each block.
    pub kinds: Vec<MapKind>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { bytes: vec![0; SIZE], kinds: vec![MapKind::Hole; SIZE.div_ceil(BLOCK_SIZE)] }
    }
}

impl Disk {
    /// Pieces of a range by the block they lie in.
    fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let (mut at, end) = (offset as usize, (offset + len) as usize);
        assert!(end <= SIZE, "the door lets wrong ranges through");
        std::iter::from_fn(move || {
            let block = at / BLOCK_SIZE;
            let piece = at..end.min((block + 1) * BLOCK_SIZE);
            at = piece.end;
            (!piece.is_empty()).then_some((block, piece))
        })
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (block, _) in Self::pieces(offset, data.len() as u64) {
            self.kinds[block] = MapKind::Data;
        }
        self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }

    /// Makes zero. What is left of a block keeps it data.
    pub fn zero(&mut self, offset: u64, len: u64, kind: MapKind) {
        for (block, piece) in Self::pieces(offset, len) {
            self.bytes[piece.clone()].fill(0);
            let whole =
                piece.len() == BLOCK_SIZE || piece.end == SIZE && piece.start % BLOCK_SIZE == 0;
            if whole {
                self.kinds[block] = kind;
            }
        }
    }

    /// What is where.
    #[must_use]
    pub fn map(&self, offset: u64, len: u64) -> Vec<MapExtent> {
        let mut map = Vec::new();
        for (block, piece) in Self::pieces(offset, len) {
            MapExtent { len: piece.len() as u64, kind: self.kinds[block] }.push(&mut map);
        }
        map
    }
}

/// A disk as the door sees it.
pub struct Shared(RefCell<Disk>);

impl Volume for Shared {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>> {
        let disk = self.0.borrow();
        let mut segments = Vec::new();
        for (block, piece) in Disk::pieces(offset, len.into()) {
            let len = piece.len() as u64;
            match disk.kinds[block] {
                MapKind::Data => Segment::Data(Bytes::copy_from_slice(&disk.bytes[piece])),
                MapKind::Hole => Segment::Hole(len),
                MapKind::Zero => Segment::Zero(len),
            }
            .push(&mut segments);
        }
        Ok(segments)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        assert_eq!(data.as_ptr() as u64 % 4096, offset % 4096, "placed for the disk");
        self.0.borrow_mut().write(offset, &data);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let kind = match mode {
            ZeroMode::Discard => MapKind::Hole,
            ZeroMode::Reserve => MapKind::Zero,
        };
        self.0.borrow_mut().zero(offset, len, kind);
        Ok(())
    }

    async fn map(&self, offset: u64, len: u64) -> Result<Vec<MapExtent>> {
        Ok(self.0.borrow().map(offset, len))
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// The exports.
pub struct Disks(RefCell<Rc<Shared>>);

impl Default for Disks {
    fn default() -> Self {
        Self(RefCell::new(Rc::new(Shared(RefCell::default()))))
    }
}

impl Disks {
    /// A fresh disk for the next conversation.
    pub fn replace(&self) {
        self.0.replace(Rc::new(Shared(RefCell::default())));
    }

    /// What became of the disk.
    #[must_use]
    pub fn take(&self) -> Disk {
        self.0.borrow().0.take()
    }
}

impl Exports for Disks {
    type Volume = Shared;

    async fn open(&self, name: &str) -> Result<Opened<Shared>> {
        let read_only = look_up(name, async |vdi, tag| match (vdi, tag) {
            (NAME, None) => Ok(false),
            (NAME, Some("snap")) => Ok(true),
            (NAME, Some(_)) => Err(ErrorKind::NoTag.into()),
            ("half", None) => Err(Error::new(ErrorKind::Incomplete, "import it\nagain")),
            _ => Err(ErrorKind::NotFound.into()),
        })
        .await?;
        Ok(Opened {
            volume: Rc::clone(&self.0.borrow()),
            key: 7,
            name: name.to_owned(),
            description: if read_only { "a snapshot" } else { "" }.to_owned(),
            read_only,
        })
    }

    async fn is_there(&self, _key: u32) -> bool {
        true
    }

    async fn list(&self) -> Vec<String> {
        vec![NAME.to_owned(), format!("{NAME}@snap")]
    }
}
