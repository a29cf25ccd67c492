//! `dog vdi write`: bytes from stdin into a VDI.

use super::vdi::entry;
use super::{Context, open};
use crate::args;
use crate::failure::{Failure, Result, code_of, reason, strerror};
use crate::pipeline::{PIECE, Unordered};
use crate::print;
use bytes::{Bytes, BytesMut};
use sheepdog_types::Error;
use sheepdog_wire::{Connection, VdiSelector, Write, WriteZeroes, ZeroKind};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use tokio::sync::mpsc;

/// Pieces of stdin read ahead.
const READ_AHEAD: usize = 4;

/// Reads stdin and writes it.
pub async fn write(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, "Please specify the VDI name")?;
    let offset = match cx.parsed.args.get(1) {
        Some(text) => args::size(text)?,
        None => 0,
    };
    let len = cx.parsed.args.get(2).map(|t| args::size(t)).transpose()?;
    let sheep = cx.connect().await?;
    let vdi = VdiSelector { name, ..VdiSelector::default() };
    let opened = open(&sheep, &vdi, false).await?;
    let (handle, size) = (opened.handle, opened.size);
    if offset > size {
        return Err(Failure::failed("Write offset is beyond the end of the VDI"));
    }
    if len.is_some_and(|len| len > size - offset) {
        // Nothing is written rather than a part.
        return Err(Failure::failed("Write length is beyond the end of the VDI"));
    }
    let len = len.unwrap_or(size - offset);
    let mut input = Stdin::begin(offset, len);
    let mut jobs = Unordered::default();
    let mut written = 0;
    while let Some(piece) = input.pieces.recv().await {
        let data = piece.map_err(|e| {
            Failure::failed("Failed to write VDI")
                .and(format!("Failed to read standard input: {}", strerror(&e)))
        })?;
        let (sheep, at, count) = (sheep.clone(), offset + written, data.len() as u64);
        let job = async move { send(&sheep, handle, at, data).await };
        jobs.start(job).await.map_err(|e| failed(&e))?;
        written += count;
    }
    jobs.finish().await.map_err(|e| failed(&e))?;
    // Input that ended inside an object is followed by zeros, up to the object's end or `len`.
    let object = 1u64 << entry(opened.vdi)?.object_shift.min(63);
    let reached = offset + written;
    let padded = if written < len && written > 0 && !reached.is_multiple_of(object) {
        (object - reached % object).min(len - written)
    } else {
        0
    };
    if padded > 0 {
        let zeros =
            WriteZeroes { handle, offset: reached, len: padded, kind: ZeroKind::Discard.into() };
        sheep.call(&zeros).await.map_err(|e| failed(&e))?;
    }
    print::vdi::written(cx.out, cx.mode, offset, written, padded)
}

/// One request.
pub async fn send(
    sheep: &Connection,
    handle: u64,
    offset: u64,
    data: Bytes,
) -> std::result::Result<(), Error> {
    let request = Write { handle, offset };
    sheep.exchange(&request, vec![data]).await.map(|_| ())
}

/// The old line, and behind it the reason.
fn failed(error: &Error) -> Failure {
    Failure::new(code_of(error), "Failed to write VDI").and(reason(error))
}

/// Standard input, read by a thread of its own so that requests in flight do not wait for it.
struct Stdin {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

impl Stdin {
    /// Reads exactly `len` bytes or to the end, in pieces for a range from `offset` on.
    fn begin(offset: u64, len: u64) -> Self {
        let (sender, pieces) = mpsc::channel(READ_AHEAD);
        // The thread may wait for input for ever; the process does not wait for it.
        std::thread::spawn(move || {
            // Not the standard library's reader, which takes more than was asked for.
            let mut input = match io::stdin().as_fd().try_clone_to_owned() {
                Ok(fd) => File::from(fd),
                Err(error) => {
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
            };
            for (_, piece) in crate::pipeline::pieces(offset, len) {
                let result = read_up_to(&mut input, piece as usize);
                let last = match &result {
                    Ok(bytes) => bytes.len() < piece as usize,
                    Err(_) => true,
                };
                let empty = matches!(&result, Ok(bytes) if bytes.is_empty());
                if (!empty && sender.blocking_send(result).is_err()) || last {
                    break;
                }
            }
        });
        Self { pieces }
    }
}

/// Reads `len` bytes, fewer only at the end of the input.
fn read_up_to(input: &mut impl io::Read, len: usize) -> io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(len.min(PIECE as usize));
    let mut have = 0;
    while have < buffer.len() {
        match input.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(have);
    Ok(buffer.freeze())
}
