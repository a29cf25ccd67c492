//! Nodes, their space and their disks.

use super::{endpoint, json, left, percent};
use crate::failure::Result;
use crate::output::Output;
use crate::verbs::Mode;
use sheepdog_types::size::human;
use sheepdog_wire::{NodeEntry, NodeSpace};

/// `node list`.
///
/// # Errors
/// When stdout fails.
pub fn list(out: &mut Output, mode: Mode, nodes: &[NodeEntry]) -> Result<()> {
    if mode == Mode::Json {
        return out.json(&json::NodeList {
            nodes: nodes.iter().enumerate().map(json::Node::from).collect(),
        });
    }
    if mode == Mode::Human {
        out.text("  Id   Host:Port         V-Nodes       Zone\n")?;
    }
    for (id, node) in nodes.iter().enumerate() {
        let host = endpoint(&node.address, node.port);
        out.text(&if mode == Mode::Raw {
            format!("{id} {host} {} {}\n", node.vnodes, node.zone)
        } else {
            format!("{id:4}   {}\t{:2}{:11}\n", left(&host, 20), node.vnodes, node.zone)
        })?;
    }
    Ok(())
}

/// `node info`.
///
/// # Errors
/// When stdout fails.
pub fn info(out: &mut Output, mode: Mode, nodes: &[NodeSpace], virtual_bytes: u64) -> Result<()> {
    let answered = || nodes.iter().filter(|n| n.reachable);
    let used = answered().map(|n| n.used).fold(0, u64::saturating_add);
    let available = answered().map(|n| n.available).fold(0, u64::saturating_add);
    let size = used.saturating_add(available);
    match mode {
        Mode::Json => out.json(&json::NodeInfo {
            nodes: nodes.iter().map(json::Space::from).collect(),
            size,
            used,
            available,
            virtual_size: virtual_bytes,
        }),
        Mode::Raw => {
            for (id, node) in answered().enumerate() {
                let size = node.used.saturating_add(node.available);
                let percent = percent(node.used, size);
                out.text(&format!("{id} {size} {} {} {percent}%\n", node.used, node.available))?;
            }
            let percent = percent(used, size);
            out.text(&format!("Total {size} {used} {available} {percent}% {virtual_bytes}\n"))
        }
        Mode::Human => {
            out.text("Id\tSize\tUsed\tAvail\tUse%\n")?;
            for (id, node) in answered().enumerate() {
                let size = node.used.saturating_add(node.available);
                out.text(&format!(
                    "{id:2}\t{}\t{}\t{}\t{:3}%\n",
                    human(size),
                    human(node.used),
                    human(node.available),
                    percent(node.used, size)
                ))?;
            }
            out.text(&format!(
                "Total\t{}\t{}\t{}\t{:3}%\n\nTotal virtual image size\t{}\n",
                human(size),
                human(used),
                human(available),
                percent(used, size),
                human(virtual_bytes)
            ))
        }
    }
}

/// `node md info`.
///
/// # Errors
/// When stdout fails.
pub fn disks(out: &mut Output, mode: Mode, nodes: &[NodeSpace], all: bool) -> Result<()> {
    if mode == Mode::Json {
        return out.json(&json::NodeDisks { nodes: nodes.iter().map(json::Disks::from).collect() });
    }
    if mode == Mode::Human {
        out.text("Id\tSize\tUsed\tAvail\tUse%\tPath\n")?;
    }
    for (number, node) in nodes.iter().filter(|node| node.reachable).enumerate() {
        if all && mode == Mode::Human {
            out.text(&format!("Node {number}:\n"))?;
        }
        // As of old a row is a disk that works.
        let (good, lost): (Vec<_>, Vec<_>) =
            node.disks.iter().partition(|disk| disk.lost.is_empty());
        for (id, disk) in good.iter().enumerate() {
            let size = disk.used.saturating_add(disk.available);
            let percent = percent(disk.used, size);
            let path = disk.path.escape_debug();
            out.text(&if mode == Mode::Raw {
                let host = endpoint(&node.address, node.port);
                let (used, available) = (disk.used, disk.available);
                format!("{host} {id} {size} {used} {available} {percent}% {path}\n")
            } else {
                format!(
                    "{id:2}\t{}\t{}\t{}\t{percent:3}%\t{path}\n",
                    human(size),
                    human(disk.used),
                    human(disk.available)
                )
            })?;
        }
        for disk in lost.iter().filter(|_| mode == Mode::Human) {
            let (path, why) = (disk.path.escape_debug(), disk.lost.escape_debug());
            out.text(&format!("lost: {path}: {why}\n"))?;
        }
        for disk in node.disks.iter().filter(|disk| disk.bad > 0 && mode == Mode::Human) {
            let (path, bad) = (disk.path.escape_debug(), disk.bad);
            let places = if bad == 1 { "place" } else { "places" };
            // The others are in the JSON.
            let first = disk.findings.first().map_or_else(String::new, |first| {
                let which = if bad == 1 { "" } else { "the first: " };
                format!(": {which}{}", first.escape_debug())
            });
            out.text(&format!("bad: {path}: {bad} bad {places}{first}\n"))?;
        }
    }
    Ok(())
}
