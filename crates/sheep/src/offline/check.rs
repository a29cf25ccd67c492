//! `sheep store check`: every block of every vid is read and compared with its checksum.

use super::{Looked, LookedStore, bar, print};
use crate::process::told;
use serde_json::json;
use sheepdog_storelog::{Answer, BlockKind, Command};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Result, Vid};
use std::fmt::Write;

/// A run of bad blocks.
struct Bad {
    fragment: FragmentId,
    vid: Vid,
    first: u32,
    blocks: u32,
    why: String,
}

/// Reads everything; whether all is well and all is here.
pub fn run(looked: &mut Looked, json: bool) -> Result<bool> {
    let mut lines = looked.damage();
    let geometry = looked.geometry();
    let (mut bad, mut fragments, mut blocks_read) = (Vec::new(), 0, 0);
    let bar = bar(looked.stores.iter().map(|one| one.store.store().usage().used).sum());
    for at in 0..looked.stores.len() {
        let one = &mut looked.stores[at];
        let mut is_damaged = !one.found.damage.is_empty();
        let store = one.store.store();
        let all: Vec<FragmentId> =
            store.lineages().into_iter().flat_map(|lineage| store.fragments(lineage)).collect();
        fragments += all.len();
        for id in all {
            let one = &mut looked.stores[at];
            match vids(one, id) {
                Ok(vids) => {
                    for vid in vids {
                        blocks_read += check_vid(one, id, vid, &mut bad)?;
                        bar.set_position(blocks_read * BLOCK_SIZE as u64);
                    }
                }
                Err(error) => {
                    is_damaged = true;
                    let why = told(&error);
                    // Told once, with its place, also if opening met it.
                    lines.retain(|line| !line.contains(&error.full()));
                    let bytes = geometry.fragment_bytes();
                    let one = &looked.stores[at];
                    lines.push(format!(
                        "{}: nothing of {bytes} bytes at {} of {} can be read: {why}",
                        one.dir.display(),
                        id.number * bytes,
                        looked.owners(one, id)
                    ));
                }
            }
        }
        // With parts of the index left out the books cannot fit.
        let one = &looked.stores[at];
        if !is_damaged && let Err(books) = one.store.store().self_check() {
            lines.push(format!("{}: the books of space: {books}", one.dir.display()));
        }
    }
    bar.finish_and_clear();
    report(looked, &lines, &bad, fragments, blocks_read, json);
    Ok(lines.is_empty() && bad.is_empty() && looked.missing.is_empty())
}

/// The vids that own anything in a fragment.
fn vids(looked: &mut LookedStore, fragment: FragmentId) -> Result<Vec<Vid>> {
    // Asking for its map brings the fragment's page to memory.
    looked.store.ask(Command::Map { fragment, path: [].into(), start: 0, count: 1 })?;
    Ok(looked.store.store().vids(fragment))
}

/// Reads all blocks of a vid in a fragment; how many there are.
fn check_vid(
    looked: &mut LookedStore,
    fragment: FragmentId,
    vid: Vid,
    bad: &mut Vec<Bad>,
) -> Result<u64> {
    let count = looked.store.store().superblock().geometry.blocks_per_fragment();
    let path = || -> std::sync::Arc<[Vid]> { [vid].into() };
    let map = looked.store.ask(Command::Map { fragment, path: path(), start: 0, count })?;
    let Answer::Map(runs) = map else {
        return Ok(0);
    };
    let (mut start, mut read) = (0, 0);
    for (kind, len) in runs {
        if kind == BlockKind::Data {
            read += u64::from(len);
            let whole = Command::Read { fragment, path: path(), start, count: len };
            if looked.store.ask(whole).is_err() {
                // One by one, to know which.
                for first in start..start + len {
                    let one = Command::Read { fragment, path: path(), start: first, count: 1 };
                    if let Err(error) = looked.store.ask(one) {
                        note(bad, fragment, vid, first, error.full());
                    }
                }
            }
        }
        start += len;
    }
    Ok(read)
}

fn note(bad: &mut Vec<Bad>, fragment: FragmentId, vid: Vid, block: u32, why: String) {
    if let Some(last) = bad.last_mut()
        && (last.fragment, last.vid, last.first + last.blocks) == (fragment, vid, block)
    {
        last.blocks += 1;
        return;
    }
    bad.push(Bad { fragment, vid, first: block, blocks: 1, why });
}

fn report(
    looked: &Looked,
    lines: &[String],
    bad: &[Bad],
    fragments: usize,
    blocks: u64,
    as_json: bool,
) {
    let geometry = looked.geometry();
    let place = |bad: &Bad| {
        let from = bad.fragment.number * geometry.fragment_bytes()
            + u64::from(bad.first) * BLOCK_SIZE as u64;
        (from, u64::from(bad.blocks) * BLOCK_SIZE as u64)
    };
    let undamaged = lines.is_empty() && bad.is_empty();
    let good = undamaged && looked.missing.is_empty();
    let torn_tail = looked.stores.iter().any(|one| one.found.report.torn_tail);
    if as_json {
        let bad: Vec<_> = bad
            .iter()
            .map(|bad| {
                let (offset, len) = place(bad);
                json!({
                    "vdi": looked.owner(bad.fragment.lineage, bad.vid), "vid": bad.vid.get(),
                    "lineage": bad.fragment.lineage.0, "offset": offset, "len": len,
                    "why": bad.why,
                })
            })
            .collect();
        let stores: Vec<_> =
            looked.stores.iter().map(|one| one.dir.to_string_lossy().into_owned()).collect();
        let all = json!({
            "stores": stores, "good": good, "fragments": fragments,
            "blocks": blocks, "torn_tail": torn_tail,
            "missing": looked.missing, "damage": lines, "notes": looked.notes(), "bad_blocks": bad,
        });
        return print(&format!("{all:#}\n"));
    }
    let mut text = String::new();
    for line in &looked.missing {
        let _ = writeln!(text, "missing: {line}");
    }
    for line in lines {
        let _ = writeln!(text, "damage: {line}");
    }
    for bad in bad {
        let (offset, len) = place(bad);
        let owner = looked.owner(bad.fragment.lineage, bad.vid);
        let _ = writeln!(text, "bad blocks: {owner}: {len} bytes at {offset}: {}", bad.why);
    }
    for line in looked.notes() {
        let _ = writeln!(text, "note: {line}");
    }
    if torn_tail {
        // Nothing tells which: see the format.
        let _ = writeln!(
            text,
            "note: the log ends with a write that was never acknowledged, or is damaged"
        );
    }
    let verdict = match (undamaged, good) {
        (true, true) => "nothing is wrong",
        (true, false) => "nothing is wrong with what is here, but something is missing",
        (false, _) => "damaged",
    };
    let _ = writeln!(text, "{blocks} blocks of {fragments} fragments read: {verdict}");
    print(&text);
}
