//! `dog vdi read`: bytes of a VDI to stdout.

use super::{Context, Mode, open};
use crate::args;
use crate::failure::{Failure, Result, code_of, reason};
use crate::output::Output;
use crate::pipeline::{Ordered, pieces};
use crate::print::vdi::HexDocument;
use bytes::Bytes;
use sheepdog_types::Error;
use sheepdog_wire::{Connection, Read, ReadSegment};

/// What holes are written from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Reads and prints.
pub async fn read(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, "Please specify the VDI name")?;
    let offset = match cx.parsed.args.get(1) {
        Some(text) => args::size(text)?,
        None => 0,
    };
    let len = match cx.parsed.args.get(2) {
        Some(text) => args::size(text)?,
        None => u64::MAX,
    };
    let vdi = args::selector(&cx.parsed, name)?;
    let sheep = cx.connect().await?;
    let opened = open(&sheep, &vdi, true).await?;
    if offset > opened.size || (offset == opened.size && offset > 0) {
        return Err(Failure::failed("Read offset is beyond the end of the VDI"));
    }
    let len = len.min(opened.size - offset);
    if cx.mode == Mode::Json {
        let mut document = HexDocument::begin(cx.out, offset, len)?;
        copy(&sheep, opened.handle, offset, len, |bytes| document.bytes(bytes)).await?;
        return document.end();
    }
    let out: &mut Output = cx.out;
    copy(&sheep, opened.handle, offset, len, |bytes| out.bytes(bytes)).await
}

/// Reads a range with many requests in flight and hands the bytes on in order, zeros for holes.
pub async fn copy(
    sheep: &Connection,
    handle: u64,
    offset: u64,
    len: u64,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut ranges = pieces(offset, len).peekable();
    let mut jobs = Ordered::default();
    loop {
        while jobs.has_room()
            && let Some((offset, len)) = ranges.next()
        {
            let sheep = sheep.clone();
            jobs.start(async move { piece(&sheep, handle, offset, len).await });
        }
        let Some(segments) = jobs.next().await else {
            return Ok(());
        };
        for segment in segments.map_err(|e| failed(&e))? {
            match segment {
                ReadSegment::Data(bytes) => sink(&bytes)?,
                ReadSegment::Hole(len) | ReadSegment::Zero(len) => {
                    let mut left = len;
                    while left > 0 {
                        let now = left.min(ZEROS.len() as u64);
                        sink(&ZEROS[..now as usize])?;
                        left -= now;
                    }
                }
            }
        }
    }
}

/// One request.
pub async fn piece(
    sheep: &Connection,
    handle: u64,
    offset: u64,
    len: u32,
) -> std::result::Result<Vec<ReadSegment>, Error> {
    let request = Read { handle, offset, len };
    let (reply, bulk): (_, Bytes) = sheep.exchange(&request, Vec::new()).await?;
    reply.split(bulk, len.into())
}

/// The old line, and behind it the reason.
fn failed(error: &Error) -> Failure {
    Failure::new(code_of(error), "Failed to read VDI").and(reason(error))
}
