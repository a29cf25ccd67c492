//! `dog vdi import`: a VDI from an image. Until it is whole it is marked incomplete and no door
//! serves it.

use super::vdi::{Shape, entry};
use super::{Context, hint, write::send};
use crate::args;
use crate::definitions::Opt;
use crate::failure::{EXIT_FAILURE, EXIT_USAGE, Failure, Result};
use crate::image::source::{self, Piece, Source};
use crate::image::{Format, without_zeros};
use crate::pipeline::Unordered;
use crate::print::{self, vdi::Change, vdi::Transfer};
use crate::progress;
use indicatif::ProgressBar;
use rustix::fs::FileType;
use sheepdog_types::ErrorKind;
use sheepdog_wire::{Close, Connection, Flush, ImportBegin, ImportFinish, VdiDelete, VdiSelector};
use std::ffi::OsStr;

/// The `--format` option.
pub fn format(cx: &Context<'_>) -> Result<Option<Format>> {
    match cx.parsed.value(Opt::Format) {
        None => Ok(None),
        Some(text) => Format::from_name(text).map(Some).ok_or_else(|| {
            Failure::usage(format!(
                "Invalid image format '{}': raw and qcow2 are known",
                args::shown(text)
            ))
        }),
    }
}

/// Makes a VDI from an image.
pub async fn import(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, "Please specify the VDI name")?;
    let Some(file) = cx.parsed.args.get(1).cloned() else {
        return Err(Failure::usage("Please specify the image file"));
    };
    let shape = Shape::of(&cx.parsed)?;
    let format = format(cx)?;
    let size = cx.parsed.value(Opt::Size).map(args::size).transpose()?;
    let failed =
        |why: &str| Failure::failed(format!("Failed to import {}: {why}", args::shown(&file)));
    if size.is_none() && has_no_length(&file) {
        return Err(Failure::usage(
            "Please specify the size of what comes from a pipe with '--size'",
        ));
    }
    let source = source::open(&file, format, size).await.map_err(|why| failed(&why))?;
    let header = source.header;
    let sheep = cx.connect().await?;
    let tried = format!("Failed to import VDI {name}");
    let answered = |e| Failure::answered(&tried, &e);
    let create = shape.request(&sheep, name.clone(), header.size).await.map_err(|f| {
        // The size is the image's, not a word of the command line.
        let code = f.code();
        f.with_code(if code == EXIT_USAGE { EXIT_FAILURE } else { code })
    })?;
    let begin = ImportBegin { create: Some(create) };
    let opened = sheep.call(&begin).await.map_err(answered)?;
    let handle = opened.handle;
    let bar = progress::bar(header.size, cx.mode, cx.out.is_terminal());
    let written = match fill(&sheep, handle, source, &bar).await {
        Ok(written) => written,
        Err(Stop::Sheep(error)) if error.kind() == ErrorKind::NoSpace => {
            let hint = format!("VDI {name} stays incomplete: delete it, or import it again");
            return Err(answered(error).and(hint));
        }
        Err(Stop::Sheep(error)) => return Err(answered(error)),
        Err(Stop::Image(why)) => {
            // A damaged image stays damaged: nothing to keep for a second try.
            bar.finish_and_clear();
            let _ = sheep.call(&Close { handle }).await;
            let vdi = VdiSelector { name, ..VdiSelector::default() };
            let _ = sheep.call(&VdiDelete { vdi: Some(vdi) }).await;
            return Err(failed(&why));
        }
    };
    sheep.call(&Flush { handle }).await.map_err(answered)?;
    let done = sheep.call(&ImportFinish { handle }).await.map_err(answered)?;
    sheep.call(&Close { handle }).await.map_err(answered)?;
    bar.finish_and_clear();
    let transfer = Transfer { format: header.format.name(), size: header.size, written };
    let change = Change::Imported(transfer);
    let verbose = cx.has(Opt::Verbose);
    let vdi = entry(done.vdi)?;
    print::vdi::changed(cx.out, cx.mode, verbose, change, &vdi)?;
    hint::reduced_redundancy(cx, &sheep, &vdi).await;
    Ok(())
}

/// Whether it is a pipe, a terminal or the like. It is looked at before it is opened: opening a
/// named pipe waits for a writer.
fn has_no_length(file: &OsStr) -> bool {
    let stat = match file == OsStr::new("-") {
        true => rustix::fs::fstat(std::io::stdin()),
        false => rustix::fs::stat(file),
    };
    let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| {
        !matches!(kind, FileType::RegularFile | FileType::BlockDevice | FileType::Directory)
    })
}

/// Why the copy ended early.
enum Stop {
    Sheep(sheepdog_types::Error),
    Image(String),
}

/// Writes all that is not zero; the bytes written.
async fn fill(
    sheep: &Connection,
    handle: u64,
    mut source: Source,
    bar: &ProgressBar,
) -> std::result::Result<u64, Stop> {
    let mut jobs = Unordered::default();
    let copied = copy(sheep, handle, &mut source, bar, &mut jobs).await;
    jobs.settle().await;
    copied
}

async fn copy(
    sheep: &Connection,
    handle: u64,
    source: &mut Source,
    bar: &ProgressBar,
    jobs: &mut Unordered<sheepdog_types::Error>,
) -> std::result::Result<u64, Stop> {
    let (mut written, mut seen) = (0, 0);
    while let Some(piece) = source.pieces.recv().await {
        match piece.map_err(Stop::Image)? {
            Piece::Zeros(len) => {
                seen += len;
                bar.inc(len);
            }
            Piece::Data(offset, data) => {
                seen += data.len() as u64;
                let mut zeros = data.len();
                for (at, run) in without_zeros(offset, &data) {
                    written += run.len() as u64;
                    zeros -= run.len();
                    let (sheep, bar, len) = (sheep.clone(), bar.clone(), run.len() as u64);
                    let job = async move {
                        send(&sheep, handle, at, run).await?;
                        bar.inc(len);
                        Ok(())
                    };
                    jobs.start(job).await.map_err(Stop::Sheep)?;
                }
                bar.inc(zeros as u64);
            }
        }
    }
    jobs.finish().await.map_err(Stop::Sheep)?;
    if seen == source.header.size {
        Ok(written)
    } else {
        Err(Stop::Image("reading it ended early".to_owned()))
    }
}
