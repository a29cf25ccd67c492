//! `sheep store export`: a raw image of what lies here of a VDI. What cannot be read is named and
//! left as zeros; the rest is saved.

use super::{Looked, bar, print};
use crate::node::path;
use crate::process::say;
use serde_json::json;
use sheepdog_storelog::{Answer, Command, Piece};
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, FragmentId, Result, Vid};
use sheepdog_volume::record::VdiRecord;
use sheepdog_volume::table::{Selector, Table};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Saves the VDI; whether all of it could be read.
pub fn run(looked: &mut Looked, vdi: &str, file: &Path, force: bool, json: bool) -> Result<bool> {
    let table = looked.table()?;
    let record = find(table, vdi)?.clone();
    if record.base.is_some() {
        let why = "it is a clone: what its base holds is not looked at by this version";
        return Err(Error::new(ErrorKind::Invalid, format!("{vdi:?} cannot be exported: {why}")));
    }
    let path: Arc<[Vid]> = path(table, record.vid, record.lineage).into();
    looked.own.refuse(file)?;
    refuse_no_file(file)?;
    let mut options = OpenOptions::new();
    let out = options.write(true).create(true).truncate(force).create_new(!force).open(file);
    let failed = |e: std::io::Error| {
        Error::with_source(ErrorKind::Io, format!("cannot write {}", file.display()), e)
    };
    let out = out.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(ErrorKind::Exists, format!("{} exists; --force replaces it", file.display()))
        }
        _ => failed(e),
    })?;
    out.set_len(record.size).map_err(failed)?;
    let mut image = Image { out, size: record.size, written: 0, lost: Vec::new() };
    let geometry = looked.geometry();
    let count = geometry.blocks_per_fragment();
    let wanted = |id: &FragmentId| id.number * geometry.fragment_bytes() < record.size;
    let mut fragments: Vec<(FragmentId, usize)> = Vec::new();
    for (at, one) in looked.stores.iter().enumerate() {
        let here = one.store.store().fragments(record.lineage).filter(wanted);
        fragments.extend(here.map(|id| (id, at)));
    }
    fragments.sort_unstable();
    let bar = bar(fragments.len() as u64 * geometry.fragment_bytes());
    for (fragment, from) in fragments {
        let store = &mut looked.stores[from].store;
        let at = fragment.number * geometry.fragment_bytes();
        let read = |start, count| Command::Read { fragment, path: path.clone(), start, count };
        match store.ask(read(0, count)) {
            Ok(Answer::Data(pieces)) => image.put(at, &pieces).map_err(failed)?,
            _ => {
                for block in 0..count {
                    let at = at + u64::from(block) * BLOCK_SIZE as u64;
                    match store.ask(read(block, 1)) {
                        Ok(Answer::Data(pieces)) => image.put(at, &pieces).map_err(failed)?,
                        Ok(_) => {}
                        Err(error) => image.lose(at, error.full()),
                    }
                }
            }
        }
        bar.inc(geometry.fragment_bytes());
    }
    image.out.sync_all().map_err(failed)?;
    bar.finish_and_clear();
    // A part of the index that is gone may have named more of this VDI.
    let damage = looked.damage();
    let whole = image.lost.is_empty() && damage.is_empty() && looked.missing.is_empty();
    if json {
        let lost: Vec<_> = image
            .lost
            .iter()
            .map(|(offset, len, why)| json!({ "offset": offset, "len": len, "why": why }))
            .collect();
        let all = json!({
            "vdi": vdi, "size": record.size, "written": image.written, "whole": whole,
            "lost": lost, "missing": looked.missing, "damage": damage,
        });
        print(&format!("{all:#}\n"));
    } else {
        for line in &looked.missing {
            say(&format!("missing: {line}; what lies there is left as zeros\n"));
        }
        for line in &damage {
            say(&format!("damage: {line}\n"));
        }
        for (offset, len, why) in &image.lost {
            say(&format!("lost: {len} bytes at {offset}, left as zeros: {why}\n"));
        }
    }
    Ok(whole)
}

/// An image has a length and holes, which only a file has.
fn refuse_no_file(file: &Path) -> Result<()> {
    let Ok(found) = file.metadata() else { return Ok(()) };
    if found.is_file() {
        return Ok(());
    }
    let what = if found.is_dir() { "a directory" } else { "a device or a pipe" };
    let line =
        format!("{} is {what}: name a file, there or to be made, for the image", file.display());
    Err(Error::new(ErrorKind::Invalid, line))
}

/// The name is looked up whole first, then split at the last `@`, as at the NBD door.
fn find<'a>(table: &'a Table, vdi: &str) -> Result<&'a VdiRecord> {
    let whole = table.lookup(vdi, Selector::Working);
    match (whole, vdi.rsplit_once('@')) {
        (Err(_), Some((name, tag))) => table.lookup(name, Selector::parse(tag)?),
        (found, _) => found,
    }
    .map_err(|error| Error::new(error.kind(), format!("{vdi:?}: {error}")))
}

/// The image under way.
struct Image {
    out: File,
    size: u64,
    written: u64,
    /// Offset, bytes, why.
    lost: Vec<(u64, u64, String)>,
}

impl Image {
    fn put(&mut self, mut at: u64, pieces: &[Piece]) -> std::io::Result<()> {
        for piece in pieces {
            let bytes = match piece {
                Piece::Data(bytes) => bytes,
                Piece::Reserved(blocks) | Piece::Zero(blocks) | Piece::Hole(blocks) => {
                    at += u64::from(*blocks) * BLOCK_SIZE as u64;
                    continue;
                }
            };
            // The last block may reach beyond the disk's end.
            let len = (bytes.len() as u64).min(self.size.saturating_sub(at)) as usize;
            self.out.write_all_at(&bytes[..len], at)?;
            self.written += len as u64;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn lose(&mut self, at: u64, why: String) {
        let len = (BLOCK_SIZE as u64).min(self.size.saturating_sub(at));
        match self.lost.last_mut() {
            Some((from, lost, _)) if *from + *lost == at => *lost += len,
            _ if len > 0 => self.lost.push((at, len, why)),
            _ => {}
        }
    }
}
