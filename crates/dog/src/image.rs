//! Disk images in files: which format one has, reading one piece by piece without its zeros,
//! writing one sparsely. All of it blocks, so it runs on a thread of its own.

pub mod sink;
pub mod source;
mod tables;

use bytes::Bytes;
use sheepdog_types::BLOCK_SIZE;
use std::ffi::OsStr;
use std::path::Path;

/// Formats that are read and written here; for all others there is `qemu-img` and our NBD door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's.
    Qcow2,
}

impl Format {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of a name.
    #[must_use]
    pub fn from_name(name: &OsStr) -> Option<Self> {
        [Self::Raw, Self::Qcow2].into_iter().find(|f| name == f.name())
    }

    /// What a file to be written should be, by its extension.
    #[must_use]
    pub fn for_path(path: &Path) -> Self {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("qcow2")) {
            Self::Qcow2
        } else {
            Self::Raw
        }
    }
}

/// Bytes at the beginning of a file that tell its format.
pub const PROBE_BYTES: usize = 72;

/// What the first bytes of a file say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probed {
    /// A format we read. Raw is what nothing else is.
    Known(Format),
    /// A format we do not read.
    Foreign(&'static str),
}

/// Whether the first bytes of a qcow2 image say that the rest is encrypted: `crypt_method`, a
/// big-endian u32 at 32 of the header, is 0 when it is not.
#[must_use]
pub fn is_encrypted(start: &[u8]) -> bool {
    start.starts_with(b"QFI\xfb") && start.get(32..36).is_some_and(|method| method != [0; 4])
}

/// Tells the format by the magic of the first [`PROBE_BYTES`] bytes.
#[must_use]
pub fn probe(start: &[u8]) -> Probed {
    let at =
        |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|s| s.starts_with(magic));
    if at(0, b"QFI\xfb\0\0\0\x01") {
        Probed::Foreign("qcow")
    } else if at(0, b"QFI\xfb") {
        Probed::Known(Format::Qcow2)
    } else if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"# Disk DescriptorFile") {
        Probed::Foreign("VMDK")
    } else if at(0, b"vhdxfile") {
        Probed::Foreign("VHDX")
    } else if at(0, b"conectix") {
        Probed::Foreign("VHD")
    } else if at(64, b"\x7f\x10\xda\xbe") {
        Probed::Foreign("VirtualBox VDI")
    } else if at(0, b"QED\0") {
        Probed::Foreign("QED")
    } else {
        Probed::Known(Format::Raw)
    }
}

/// Name of the threads that work on images.
const THREAD: &str = "image";

/// Runs work on an image. Should the library stumble over a damaged one and panic, its channels
/// close and whoever waits says so in one line.
fn on_thread(work: impl FnOnce() + Send + 'static) {
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(THREAD) {
                usual(info);
            }
        }));
    });
    // If no thread can be had, the work and its channels are dropped, with the same effect.
    drop(std::thread::Builder::new().name(THREAD.to_owned()).spawn(work));
}

/// Cuts the all-zero blocks out of a run of bytes that begins at `offset` of a disk. What is left
/// shares the memory; blocks are those of the disk.
#[must_use]
pub fn without_zeros(offset: u64, data: &Bytes) -> Vec<(u64, Bytes)> {
    let mut runs: Vec<(u64, Bytes)> = Vec::new();
    let mut run_begin = None;
    let mut at = 0;
    while at < data.len() {
        let in_block = ((offset + at as u64) % BLOCK_SIZE as u64) as usize;
        let end = (at + BLOCK_SIZE - in_block).min(data.len());
        match (is_zero(&data[at..end]), run_begin) {
            (true, Some(begin)) => {
                runs.push((offset + begin as u64, data.slice(begin..at)));
                run_begin = None;
            }
            (false, None) => run_begin = Some(at),
            _ => {}
        }
        at = end;
    }
    if let Some(begin) = run_begin {
        runs.push((offset + begin as u64, data.slice(begin..)));
    }
    runs
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
#[path = "image/tests.rs"]
mod tests;
