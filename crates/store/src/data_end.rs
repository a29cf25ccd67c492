//! How far the data file reaches, as an engine must know it to make the file longer without ever
//! cutting off a write.

use crate::areas::Areas;
use sheepdog_storelog::io::{Area, DiskOp};
use std::io;

/// No write or extension given to the engine ends behind this. Lives in the thread that submits.
#[derive(Debug, Default)]
pub(crate) struct DataEnd(u64);

impl DataEnd {
    /// Takes note of an operation about to start.
    pub(crate) fn note(&mut self, what: &DiskOp) {
        if let DiskOp::Write { area: Area::Data, offset, data, .. } = what {
            let bytes: u64 = data.iter().map(|b| b.len() as u64).sum();
            if bytes > 0 {
                self.0 = self.0.max(offset.saturating_add(bytes));
            }
        }
    }

    /// Makes the data file at least `len` long, now: asking for the size and setting it are two
    /// calls, and in between no write may start that would be cut off again. Never below the end of
    /// any write given to the engine, so those in flight are safe too.
    pub(crate) fn extend(&mut self, areas: &Areas, len: u64) -> io::Result<()> {
        if areas.data_is_device() {
            return Ok(());
        }
        let end = self.0.max(len);
        let file = areas.file(Area::Data);
        if file.metadata()?.len() < end {
            file.set_len(end)?;
        }
        Ok(())
    }
}
