//! `dog vdi export`: an image from a VDI or snapshot.

use super::import::format;
use super::read::{copy, piece};
use super::vdi::entry;
use super::{Context, Mode, open};
use crate::args;
use crate::definitions::Opt;
use crate::failure::{Failure, Result};
use crate::image::sink::{self, Pending};
use crate::image::{Format, without_zeros};
use crate::pipeline::{Unordered, pieces};
use crate::print::{self, vdi::Change, vdi::Transfer};
use crate::progress;
use bytes::Bytes;
use indicatif::ProgressBar;
use sheepdog_types::Error;
use sheepdog_wire::{Connection, Map, ReadSegment, SegmentKind};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Saves a VDI as an image.
pub async fn export(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, "Please specify the VDI name")?;
    let Some(file) = cx.parsed.args.get(1).cloned() else {
        return Err(Failure::usage("Please specify the image file"));
    };
    let vdi = args::selector(&cx.parsed, name)?;
    let format = format(cx)?;
    let stdout = file == OsStr::new("-");
    if stdout && format == Some(Format::Qcow2) {
        return Err(Failure::usage("A qcow2 image cannot be written to standard output"));
    }
    if stdout && cx.mode == Mode::Json {
        return Err(Failure::usage("Standard output cannot take both the image and JSON"));
    }
    let sheep = cx.connect().await?;
    let opened = open(&sheep, &vdi, true).await?;
    if stdout {
        let out = &mut *cx.out;
        return copy(&sheep, opened.handle, 0, opened.size, |bytes| out.bytes(bytes)).await;
    }
    let path = Path::new(&file);
    let format = format.unwrap_or_else(|| Format::for_path(path));
    let bar = progress::bar(opened.size, cx.mode, cx.out.is_terminal());
    let failed =
        |why: &str| Failure::failed(format!("Failed to export to {}: {why}", args::shown(&file)));
    let (pending, output) =
        Pending::create(path, cx.has(Opt::Force)).map_err(|why| failed(&why))?;
    let sink = sink::begin(output, format, opened.size);
    // The temporary file goes when the command is told to go.
    let copied = tokio::select! {
        copied = drain(&sheep, opened.handle, opened.size, sink.pieces, &bar) => copied,
        () = told_to_go() => return Err(failed("interrupted")),
    };
    let ended = sink.ended.await.unwrap_or_else(|_| Err("writing the image failed".to_owned()));
    let written = match (copied, ended) {
        (_, Err(why)) | (Err(Stop::Image(why)), Ok(())) => return Err(failed(&why)),
        (Err(Stop::Sheep(error)), Ok(())) => {
            let tried = format!("Failed to export VDI {}", vdi.name);
            return Err(Failure::answered(tried, &error));
        }
        (Ok(written), Ok(())) => written,
    };
    pending.publish().map_err(|why| failed(&why))?;
    bar.finish_and_clear();
    let transfer = Transfer { format: format.name(), size: opened.size, written };
    print::vdi::changed(
        cx.out,
        cx.mode,
        cx.has(Opt::Verbose),
        Change::Exported(transfer),
        &entry(opened.vdi)?,
    )
}

/// Ends when the process is asked to end.
async fn told_to_go() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Why the copy ended early.
enum Stop {
    Sheep(Error),
    /// The sink is gone; it says why itself.
    Image(String),
}

/// Reads what is stored and hands on what is not zero; the bytes handed on.
async fn drain(
    sheep: &Connection,
    handle: u64,
    size: u64,
    sink: mpsc::Sender<(u64, Bytes)>,
    bar: &ProgressBar,
) -> std::result::Result<u64, Stop> {
    let written = Arc::new(AtomicU64::new(0));
    let mut jobs = Unordered::default();
    let mut at = 0;
    while at < size {
        let ask = Map { handle, offset: at, len: size - at };
        let map = sheep.call(&ask).await.map_err(Stop::Sheep)?;
        let before = at;
        for extent in map.extents {
            let len = extent.len.min(size - at);
            if extent.kind() != SegmentKind::Data {
                bar.inc(len);
                at += len;
                continue;
            }
            for (offset, len) in pieces(at, len) {
                let (sheep, sink, bar) = (sheep.clone(), sink.clone(), bar.clone());
                let written = Arc::clone(&written);
                let job = async move {
                    let segments = piece(&sheep, handle, offset, len).await.map_err(Stop::Sheep)?;
                    let mut at = offset;
                    for segment in segments {
                        if let ReadSegment::Data(data) = &segment {
                            for run in without_zeros(at, data) {
                                written.fetch_add(run.1.len() as u64, Ordering::Relaxed);
                                let gone = |_| Stop::Image("writing the image failed".to_owned());
                                sink.send(run).await.map_err(gone)?;
                            }
                        }
                        at += segment.len();
                    }
                    bar.inc(len.into());
                    Ok(())
                };
                jobs.start(job).await?;
            }
            at += len;
        }
        if at == before {
            return Err(Stop::Sheep(Error::new(
                sheepdog_types::ErrorKind::Internal,
                "the map of the VDI is empty",
            )));
        }
    }
    jobs.finish().await?;
    Ok(written.load(Ordering::Relaxed))
}
