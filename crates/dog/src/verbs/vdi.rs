//! `dog vdi`: the subcommands that change or show the table of VDIs.

use super::{Context, hint, open, open_failed};
use crate::args;
use crate::definitions::{Opt, parse::Parsed};
use crate::failure::{EXIT_OK, Failure, Result};
use crate::pipeline::Unordered;
use crate::print::{self, vdi::Change};
use crate::progress;
use sheepdog_types::limits::{OBJECT_SHIFT_DEFAULT, VDI_BYTES_MAX};
use sheepdog_types::{ErrorKind, size};
use sheepdog_volume::size::max_bytes;
use sheepdog_wire::{
    Close, ClusterInfo, Connection, ImportBegin, ImportFinish, Map, SegmentKind, VdiChanged,
    VdiCreate, VdiDelete, VdiEntry, VdiInfo, VdiList, VdiLookup, VdiRename, VdiResize, VdiSelector,
    WriteZeroes, ZeroKind,
};
use std::ffi::OsStr;

const NO_NAME: &str = "Please specify the VDI name";
/// Bytes that one request of a preallocation reserves.
const RESERVE_PIECE: u64 = 64 << 20;

/// What `-c`, `-y` and `-z` say about a VDI to make.
pub struct Shape {
    redundancy: Option<sheepdog_wire::RedundancyInfo>,
    hyper: bool,
    object_shift: Option<u8>,
}

impl Shape {
    /// Reads the options.
    pub fn of(parsed: &Parsed) -> Result<Self> {
        let shape = Self {
            redundancy: args::redundancy(parsed)?,
            hyper: parsed.has(Opt::Hyper),
            object_shift: args::object_shift(parsed)?,
        };
        if shape.hyper && shape.object_shift.is_some() {
            return Err(Failure::failed("Don't specify both -y and -z options, please"));
        }
        Ok(shape)
    }

    /// The request, once the size is known to be allowed.
    pub async fn request(&self, sheep: &Connection, name: String, size: u64) -> Result<VdiCreate> {
        if size > VDI_BYTES_MAX {
            return Err(Failure::usage("VDI size is too large"));
        }
        let max = match self.object_shift {
            _ if self.hyper => VDI_BYTES_MAX,
            Some(shift) => max_bytes(shift, false),
            // Only a size that could be too large makes the cluster's default matter.
            None if size <= max_bytes(20, false) => VDI_BYTES_MAX,
            None => {
                let info = sheep
                    .call(&ClusterInfo::default())
                    .await
                    .map_err(|e| create_failed(&name, &e))?;
                let shift = u8::try_from(info.object_shift).unwrap_or(0);
                max_bytes(if shift == 0 { OBJECT_SHIFT_DEFAULT } else { shift }, false)
            }
        };
        if size > max {
            return Err(Failure::usage(format!(
                "VDI size is larger than {} bytes, please use '-y' to create a hyper volume with size up to {} bytes or use '-z' to create larger object size volume",
                size::human(max),
                size::human(VDI_BYTES_MAX)
            )));
        }
        Ok(VdiCreate {
            name,
            size,
            object_shift: self.object_shift.unwrap_or(0).into(),
            redundancy: self.redundancy,
            hyper: self.hyper,
            preallocated: false,
        })
    }
}

fn create_failed(name: &str, error: &sheepdog_types::Error) -> Failure {
    Failure::answered(format!("Failed to create VDI {name}"), error)
}

/// The table's line in a reply. A sheep that leaves it out breaks the protocol.
pub fn entry(vdi: Option<VdiEntry>) -> Result<VdiEntry> {
    vdi.ok_or_else(|| Failure::failed("The answer of the sheep is incomplete"))
}

/// The working VDI of a name.
fn working(name: &str) -> VdiSelector {
    VdiSelector { name: name.to_owned(), ..VdiSelector::default() }
}

/// Makes a VDI.
pub async fn create(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, NO_NAME)?;
    let Some(size) = cx.parsed.args.get(1) else {
        return Err(Failure::usage("Please specify the VDI size"));
    };
    let shape = Shape::of(&cx.parsed)?;
    let size = args::size(size)?;
    let sheep = cx.connect().await?;
    let mut request = shape.request(&sheep, name.clone(), size).await?;
    request.preallocated = cx.has(Opt::Prealloc);
    let VdiChanged { vdi } = if request.preallocated {
        preallocate(cx, &sheep, request).await?
    } else {
        sheep.call(&request).await.map_err(|e| create_failed(&name, &e))?
    };
    let vdi = entry(vdi)?;
    let verbose = cx.has(Opt::Verbose);
    print::vdi::changed(cx.out, cx.mode, verbose, Change::Created, &vdi)?;
    hint::reduced_redundancy(cx, &sheep, &vdi).await;
    Ok(())
}

/// Makes a VDI with all its space. Until it has that, it is marked incomplete as an import is:
/// whatever dies meanwhile, nobody takes it for one that has its space.
async fn preallocate(
    cx: &Context<'_>,
    sheep: &Connection,
    create: VdiCreate,
) -> Result<VdiChanged> {
    let (name, size) = (create.name.clone(), create.size);
    let failed = |e| create_failed(&name, &e);
    let begin = ImportBegin { create: Some(create) };
    let handle = sheep.call(&begin).await.map_err(failed)?.handle;
    if let Err(error) = reserve(cx, sheep, handle, size).await {
        // What was asked for cannot be had; nothing half-made stays.
        let _ = sheep.call(&Close { handle }).await;
        let vdi = Some(working(&name));
        let _ = sheep.call(&VdiDelete { vdi }).await;
        return Err(failed(error));
    }
    let changed = sheep.call(&ImportFinish { handle }).await.map_err(failed)?;
    sheep.call(&Close { handle }).await.map_err(failed)?;
    Ok(changed)
}

/// Reserves the space of a whole VDI.
async fn reserve(
    cx: &Context<'_>,
    sheep: &Connection,
    handle: u64,
    size: u64,
) -> std::result::Result<(), sheepdog_types::Error> {
    let bar = progress::bar(size, cx.mode, cx.out.is_terminal());
    let mut jobs = Unordered::default();
    let mut result = Ok(());
    let mut offset = 0;
    while offset < size && result.is_ok() {
        let len = RESERVE_PIECE.min(size - offset);
        let (sheep, bar) = (sheep.clone(), bar.clone());
        let job = async move {
            let request = WriteZeroes { handle, offset, len, kind: ZeroKind::Reserve.into() };
            sheep.call(&request).await?;
            bar.inc(len);
            Ok(())
        };
        result = jobs.start(job).await;
        offset += len;
    }
    if result.is_ok() {
        result = jobs.finish().await;
    }
    jobs.settle().await;
    bar.finish_and_clear();
    result
}

/// Deletes a VDI or snapshot. One that is not there is as good as deleted: scripts rely on it.
pub async fn delete(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, NO_NAME)?;
    args::positive(&cx.parsed, Opt::NrBatchedReclamation, "number of objects")?;
    args::positive(&cx.parsed, Opt::ReclamationInterval, "interval")?;
    let objects = args::positive(&cx.parsed, Opt::MaxReclaim, "number of objects")?;
    let vdi = args::selector(&cx.parsed, name)?;
    let sheep = cx.connect().await?;
    if let Some(objects) = objects {
        return match free(&sheep, &vdi, objects).await {
            Ok(()) => print::vdi::deleted(cx.out, cx.mode, false),
            Err(failure) => Err(failure),
        };
    }
    let open = hint::open_count(cx, &sheep, &vdi).await;
    let request = VdiDelete { vdi: Some(vdi.clone()) };
    match sheep.call(&request).await {
        Ok(_) => {
            print::vdi::deleted(cx.out, cx.mode, true)?;
            hint::deleted_while_open(&vdi, open);
            Ok(())
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NoTag) => {
            print::vdi::deleted(cx.out, cx.mode, false)?;
            Err(Failure::answered(open_failed(&vdi), &error).with_code(EXIT_OK))
        }
        Err(error) => Err(Failure::answered(format!("Failed to delete {}", vdi.name), &error)),
    }
}

/// Frees the first so many objects of a VDI and keeps it: what deleting in steps means.
async fn free(sheep: &Connection, vdi: &VdiSelector, objects: u64) -> Result<()> {
    let failed = |e| Failure::answered(format!("Failed to delete {}", vdi.name), &e);
    let opened = open(sheep, vdi, false).await?;
    let handle = opened.handle;
    let object = 1u64 << entry(opened.vdi)?.object_shift.min(63);
    let (mut offset, mut left) = (0, objects);
    while offset < opened.size && left > 0 {
        let ask = Map { handle, offset, len: opened.size - offset };
        for extent in sheep.call(&ask).await.map_err(failed)?.extents {
            let end = offset.saturating_add(extent.len);
            if extent.kind() != SegmentKind::Hole {
                let mut at = offset / object * object;
                while at < end && left > 0 {
                    let len = object.min(opened.size - at);
                    let discard =
                        WriteZeroes { handle, offset: at, len, kind: ZeroKind::Discard.into() };
                    sheep.call(&discard).await.map_err(failed)?;
                    left -= 1;
                    at += len;
                }
                // Extents inside the last object are gone with it.
                offset = end.max(at);
                break;
            }
            offset = end;
        }
    }
    sheep.call(&Close { handle }).await.map_err(failed)?;
    Ok(())
}

/// Shows VDIs.
pub async fn list(cx: &mut Context<'_>) -> Result<()> {
    let name = match cx.parsed.args.first() {
        Some(_) => args::vdi_name(&cx.parsed.args, 0, NO_NAME)?,
        None => String::new(),
    };
    let object = cx.parsed.value(Opt::Oid).map(object_id).transpose()?;
    let sheep = cx.connect().await?;
    let failed = |e: sheepdog_types::Error| {
        // A cluster that is not running is told as it is.
        let code = crate::failure::code_of(&e);
        Failure::new(code, crate::failure::reason(&e))
    };
    let mut vdis: Vec<VdiEntry> = Vec::new();
    loop {
        let request = VdiList { above: vdis.last().map_or(0, |v| v.vid), name: name.clone() };
        let page = sheep.call(&request).await.map_err(failed)?;
        let empty = page.vdis.is_empty();
        vdis.extend(page.vdis);
        if !page.more || empty {
            break;
        }
    }
    if let Some((vid, index)) = object {
        vdis.retain(|vdi| vdi.vid == vid);
        if let [vdi] = vdis.as_slice()
            && !holds(&sheep, vdi, index).await?
        {
            vdis.clear();
        }
    }
    print::vdi::list(cx.out, cx.mode, &vdis)
}

/// Takes a data object's id apart: the vid it belongs to and its index.
fn object_id(text: &OsStr) -> Result<(u32, u64)> {
    let bad = || Failure::failed(format!("Invalid object id '{}'", args::shown(text)));
    let digits = text.to_str().ok_or_else(bad)?;
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let id = u64::from_str_radix(digits, 16).map_err(|_| bad())?;
    Ok(((id >> 32) as u32 & 0xff_ffff, id & 0xffff_ffff))
}

/// Whether a VDI owns anything of an object.
async fn holds(sheep: &Connection, vdi: &VdiEntry, index: u64) -> Result<bool> {
    let selector = VdiSelector {
        name: vdi.name.clone(),
        tag: String::new(),
        snapshot_id: if vdi.snapshot { vdi.snapshot_id } else { 0 },
    };
    let opened = open(sheep, &selector, true).await?;
    let object = 1u64 << vdi.object_shift.min(63);
    let mut offset = index.saturating_mul(object);
    let end = offset.saturating_add(object).min(opened.size);
    while offset < end {
        let ask = Map { handle: opened.handle, offset, len: end - offset };
        let map =
            sheep.call(&ask).await.map_err(|e| Failure::answered("Failed to read VDI", &e))?;
        if map.extents.iter().any(|e| e.kind() != SegmentKind::Hole) {
            return Ok(true);
        }
        let covered: u64 = map.extents.iter().map(|e| e.len).sum();
        if covered == 0 {
            break;
        }
        offset = offset.saturating_add(covered);
    }
    Ok(false)
}

/// Makes a VDI larger.
pub async fn resize(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, NO_NAME)?;
    let Some(text) = cx.parsed.args.get(1) else {
        return Err(Failure::usage("Please specify the new size for the VDI"));
    };
    let size = args::size(text)?;
    let sheep = cx.connect().await?;
    let lookup = VdiLookup { vdi: Some(working(&name)) };
    let failed = |e| Failure::answered(open_failed(&working(&name)), &e);
    let vdi = entry(sheep.call(&lookup).await.map_err(failed)?.vdi)?;
    let max = max_bytes(u8::try_from(vdi.object_shift).unwrap_or(0), vdi.hyper);
    if size > max {
        return Err(Failure::usage(format!(
            "New VDI size is too large. This volume's max size is {max}"
        )));
    }
    if size < vdi.size {
        return Err(Failure::usage("Shrinking VDIs is not implemented"));
    }
    let request = VdiResize { name: name.clone(), size };
    let changed = sheep
        .call(&request)
        .await
        .map_err(|e| Failure::answered(format!("Failed to resize VDI {name}"), &e))?;
    print::vdi::changed(cx.out, cx.mode, false, Change::Resized, &entry(changed.vdi)?)
}

/// Gives a VDI another name.
pub async fn rename(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, NO_NAME)?;
    let new_name = args::vdi_name(&cx.parsed.args, 1, "Please specify the new name of the VDI")?;
    let sheep = cx.connect().await?;
    let tried = format!("Failed to rename VDI {name} to {new_name}");
    let changed = sheep
        .call(&VdiRename { name, new_name })
        .await
        .map_err(|e| Failure::answered(tried, &e))?;
    print::vdi::changed(cx.out, cx.mode, false, Change::Renamed, &entry(changed.vdi)?)
}

/// Shows everything about a VDI.
pub async fn info(cx: &mut Context<'_>) -> Result<()> {
    let name = args::vdi_name(&cx.parsed.args, 0, NO_NAME)?;
    let vdi = args::selector(&cx.parsed, name)?;
    let sheep = cx.connect().await?;
    let request = VdiInfo { vdi: Some(vdi.clone()) };
    let reply = sheep.call(&request).await.map_err(|e| Failure::answered(open_failed(&vdi), &e))?;
    print::vdi::info(cx.out, cx.mode, &entry(reply.vdi)?)
}
