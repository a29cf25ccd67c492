//! Reads an image: size first, then its bytes in order, in pieces, holes and zero runs told apart
//! as far as the file knows them.

use super::{Format, PROBE_BYTES, Probed, probe};
use crate::failure::strerror;
use bytes::Bytes;
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, Mapping, StorageOpenOptions};
use rustix::fs::{FileType, SeekFrom};
use sheepdog_types::PageBuf;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use tokio::sync::{mpsc, oneshot};

/// Bytes of a piece of data.
const PIECE: u64 = 1 << 20;
/// Pieces read ahead.
const READ_AHEAD: usize = 4;
/// Longest range a qcow2 image is asked about at once.
const MAPPING_MAX: u64 = 1 << 40;

/// A piece of an image, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes at an offset.
    Data(u64, Bytes),
    /// So many zeros.
    Zeros(u64),
}

/// What is known before anything is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of the disk.
    pub size: u64,
    /// How the file keeps them.
    pub format: Format,
}

/// An image that is being read.
pub struct Source {
    /// What it is.
    pub header: Header,
    /// Its pieces; they end early only with an error.
    pub pieces: mpsc::Receiver<Result<Piece, String>>,
}

/// Opens an image and begins to read it. `-` is stdin, whose `size` must be given if it is a pipe;
/// a `size` beyond that of the image adds zeros.
///
/// # Errors
/// One line without the name of the file.
pub async fn open(
    path: &OsStr,
    format: Option<Format>,
    size: Option<u64>,
) -> Result<Source, String> {
    let (header_sender, header) = oneshot::channel();
    let (sender, pieces) = mpsc::channel(READ_AHEAD);
    let path = path.to_owned();
    super::on_thread(move || {
        let mut header = Some(header_sender);
        let mut began = |opened: Header| {
            if let Some(sender) = header.take() {
                let _ = sender.send(Ok(opened));
            }
        };
        if let Err(line) = work(&path, format, size, &mut began, &sender) {
            match header.take() {
                Some(header) => drop(header.send(Err(line))),
                None => drop(sender.blocking_send(Err(line))),
            }
        }
    });
    let header = header.await.unwrap_or_else(|_| Err("the image cannot be read".to_owned()))?;
    Ok(Source { header, pieces })
}

type Pieces = mpsc::Sender<Result<Piece, String>>;

/// Says a piece; whether anyone still listens.
fn say(pieces: &Pieces, piece: Piece) -> bool {
    pieces.blocking_send(Ok(piece)).is_ok()
}

fn words(error: &io::Error) -> String {
    strerror(error)
}

fn work(
    path: &OsStr,
    format: Option<Format>,
    size: Option<u64>,
    began: &mut dyn FnMut(Header),
    pieces: &Pieces,
) -> Result<(), String> {
    let file = if path == "-" {
        let fd = io::stdin().as_fd().try_clone_to_owned();
        File::from(fd.map_err(|e| words(&e))?)
    } else {
        File::open(path).map_err(|e| words(&e))?
    };
    let stat = rustix::fs::fstat(&file).map_err(|e| words(&e.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err("Is a directory".to_owned()),
        FileType::RegularFile | FileType::BlockDevice => {
            let len = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| words(&e.into()))?;
            let mut start = [0; PROBE_BYTES];
            let read = read_at_most(&file, &mut start).map_err(|e| words(&e))?;
            let found = decide(format, &start[..read])?;
            let named = Format::for_path(path.as_ref());
            if format.is_none() && found == Format::Raw && named == Format::Qcow2 {
                return Err("is named like a qcow2 image and is none: \
                            say '--format raw' to take it as it is"
                    .to_owned());
            }
            match found {
                Format::Raw => raw(&file, len, size, began, pieces),
                Format::Qcow2 => qcow2(file, len, size, began, pieces),
            }
        }
        _ => stream(file, format, size, began, pieces),
    }
}

fn read_at_most(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], have as u64) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// So many bytes that `read` writes, all of them, in memory that is used again and again: new
/// memory would cost more than the reading.
fn filled(len: usize, read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
    let mut buffer = PageBuf::reused(len);
    read(&mut buffer.as_mut()[..len])?;
    Ok(buffer.freeze().slice(..len))
}

/// The format asked for, else the one found.
fn decide(asked: Option<Format>, start: &[u8]) -> Result<Format, String> {
    if asked != Some(Format::Raw) && super::is_encrypted(start) {
        // Its bytes would be taken for the disk's.
        return Err("is encrypted: decrypt it with 'qemu-img convert' first".to_owned());
    }
    match (asked, probe(start)) {
        (Some(Format::Qcow2), found) if found != Probed::Known(Format::Qcow2) => {
            Err("not a qcow2 image".to_owned())
        }
        (Some(asked), _) => Ok(asked),
        (None, Probed::Known(found)) => Ok(found),
        (None, Probed::Foreign(name)) => Err(format!(
            "looks like a {name} image: convert it with 'qemu-img convert -O qcow2' first, or say '--format raw' to take it as it is"
        )),
    }
}

/// The size of the VDI for an image of `len` bytes.
fn wanted(size: Option<u64>, len: u64) -> Result<u64, String> {
    match size {
        Some(size) if size < len => {
            Err(format!("the image has {len} bytes, more than the {size} asked for"))
        }
        Some(size) => Ok(size),
        None => Ok(len),
    }
}

fn raw(
    file: &File,
    len: u64,
    size: Option<u64>,
    began: &mut dyn FnMut(Header),
    pieces: &Pieces,
) -> Result<(), String> {
    let size = wanted(size, len)?;
    began(Header { size, format: Format::Raw });
    let mut at = 0;
    while at < len {
        // Where the file system knows no holes, all is data.
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(len),
            Err(rustix::io::Errno::NXIO) => len,
            Err(_) => at,
        };
        if data > at && !say(pieces, Piece::Zeros(data - at)) {
            return Ok(());
        }
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => hole.min(len),
            _ => len,
        };
        at = data;
        while at < hole {
            let end = ((at / PIECE + 1) * PIECE).min(hole);
            let read = |buffer: &mut [u8]| file.read_exact_at(buffer, at);
            let data = filled((end - at) as usize, read).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => "the file became shorter".to_owned(),
                _ => words(&e),
            })?;
            if !say(pieces, Piece::Data(at, data)) {
                return Ok(());
            }
            at = end;
        }
    }
    if size > len {
        say(pieces, Piece::Zeros(size - len));
    }
    Ok(())
}

/// Raw bytes from something without a length.
fn stream(
    mut file: File,
    format: Option<Format>,
    size: Option<u64>,
    began: &mut dyn FnMut(Header),
    pieces: &Pieces,
) -> Result<(), String> {
    if format == Some(Format::Qcow2) {
        return Err("a qcow2 image cannot be read from a pipe".to_owned());
    }
    let Some(size) = size else {
        return Err("its size is not known: say it with '--size'".to_owned());
    };
    let mut at = 0;
    loop {
        // One byte more than fits, to see that there is too much.
        let mut buffer = Vec::new();
        let room = PIECE.min((size - at).saturating_add(1));
        io::Read::take(&mut file, room).read_to_end(&mut buffer).map_err(|e| words(&e))?;
        if at == 0 {
            if decide(format, &buffer)? == Format::Qcow2 {
                return Err("a qcow2 image cannot be read from a pipe".to_owned());
            }
            began(Header { size, format: Format::Raw });
        }
        let len = buffer.len() as u64;
        if len > size - at {
            return Err(format!("the image has more than the {size} bytes asked for"));
        }
        if len == 0 {
            say(pieces, Piece::Zeros(size - at));
            return Ok(());
        }
        if !say(pieces, Piece::Data(at, buffer.into())) {
            return Ok(());
        }
        at += len;
    }
}

fn qcow2(
    file: File,
    len: u64,
    size: Option<u64>,
    began: &mut dyn FnMut(Header),
    pieces: &Pieces,
) -> Result<(), String> {
    super::tables::check(&file, len)?;
    // The library is asynchronous by its interface; file I/O inside it blocks this thread. Pieces
    // are handed on outside of the runtime, where waiting is allowed.
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| words(&e))?;
    let broken = |e: io::Error| format!("not a usable qcow2 image: {}", words(&e));
    let storage = ImageFile::from_open_file(file, StorageOpenOptions::new()).map_err(broken)?;
    let mut image =
        runtime.block_on(Qcow2::<ImageFile>::open_image(storage, false)).map_err(broken)?;
    // Files that an image names are never opened: the image may come from anyone.
    if let Some(backing) = image.implicit_backing_file() {
        return Err(format!(
            "needs its backing file '{}': merge them with 'qemu-img convert' first",
            backing.escape_debug()
        ));
    }
    if image.requires_external_data_file() {
        return Err(
            "keeps its data in another file: merge them with 'qemu-img convert' first".to_owned()
        );
    }
    image.set_backing(None);
    image.set_data_file(None);
    let image = FormatAccess::new(image);
    let disk = image.size();
    let size = wanted(size, disk)?;
    // A look at all of the index finds most damage before a VDI is made.
    let mut at = 0;
    while at < disk {
        at += runtime.block_on(mapped(&image, at, disk, len))?.0;
    }
    began(Header { size, format: Format::Qcow2 });
    let mut at = 0;
    while at < disk {
        let (run, zero) = runtime.block_on(mapped(&image, at, disk, len))?;
        if zero {
            if !say(pieces, Piece::Zeros(run)) {
                return Ok(());
            }
            at += run;
            continue;
        }
        let end = ((at / PIECE + 1) * PIECE).min(at + run);
        let read = |buffer: &mut [u8]| runtime.block_on(image.read(buffer, at));
        let data = filled((end - at) as usize, read).map_err(broken)?;
        if !say(pieces, Piece::Data(at, data)) {
            return Ok(());
        }
        at = end;
    }
    if size > disk {
        say(pieces, Piece::Zeros(size - disk));
    }
    Ok(())
}

/// Length of the run at an offset and whether it is zeros. Data behind the end of the file means
/// that a part of the file is missing.
async fn mapped(
    image: &FormatAccess<ImageFile>,
    at: u64,
    disk: u64,
    file_len: u64,
) -> Result<(u64, bool), String> {
    let (mapping, run) = image
        .get_mapping(at, (disk - at).min(MAPPING_MAX))
        .await
        .map_err(|e| format!("not a usable qcow2 image: {}", words(&e)))?;
    let zero = match mapping {
        Mapping::Zero { .. } => true,
        Mapping::Raw { offset, .. } if offset.saturating_add(run) > file_len => {
            return Err(
                "the qcow2 image is truncated: data lies behind the end of the file".to_owned()
            );
        }
        _ => false,
    };
    if run == 0 {
        return Err("not a usable qcow2 image: it ends early".to_owned());
    }
    Ok((run, zero))
}
