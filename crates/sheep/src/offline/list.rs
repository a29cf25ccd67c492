//! `sheep store list`.

use super::{Looked, print};
use sheepdog_types::{BLOCK_SIZE, Result};
use sheepdog_volume::record::{State, VdiRecord};
use std::fmt::Write;

/// Prints the VDIs; whether all is well and all is here.
pub fn run(looked: &Looked, json: bool) -> Result<bool> {
    let table = looked.table()?;
    let mut text = String::new();
    let mut entries = Vec::new();
    for record in table.visible().chain(table.hidden()) {
        // What needs a page to be read is not worth the time here.
        let here = looked.stores.iter().try_fold(0, |sum, looked| {
            let stored = looked.store.store().owner_summaries(record.lineage, record.vid).ok()?;
            let blocks = stored.iter().map(|(_, owner)| u64::from(owner.stored_blocks));
            Some(sum + blocks.sum::<u64>() * BLOCK_SIZE as u64)
        });
        if json {
            entries.push(serde_json::json!({
                "name": record.name, "tag": record.tag, "snapshot_id": record.snap_id,
                "vid": record.vid.get(), "lineage": record.lineage.0, "size": record.size,
                "state": state(record), "stored": here,
            }));
            continue;
        }
        let name = match record.tag.as_str() {
            "" => record.name.clone(),
            tag => format!("{}@{tag}", record.name),
        };
        let here = here.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        let _ = writeln!(
            text,
            "{:06x} {:>15} {here:>15} {:<10} {}",
            record.vid.get(),
            record.size,
            state(record),
            name.escape_debug()
        );
    }
    if json {
        let all = serde_json::json!({ "vdis": entries, "missing": looked.missing, "damage": looked.damage() });
        text = format!("{all:#}\n");
    } else {
        text.insert_str(0, "vid               size     stored here state      name\n");
        for line in &looked.missing {
            let _ = writeln!(text, "missing: {line}");
        }
        for line in looked.damage() {
            let _ = writeln!(text, "damage: {line}");
        }
    }
    print(&text);
    Ok(looked.damage().is_empty() && looked.missing.is_empty())
}

const fn state(record: &VdiRecord) -> &'static str {
    match record.state {
        State::Working => "working",
        State::Snapshot => "snapshot",
        State::Incomplete => "incomplete",
        State::Hidden => "deleted",
    }
}
