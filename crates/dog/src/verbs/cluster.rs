//! `dog cluster`: info, format, shutdown.

use super::{Context, Mode};
use crate::args;
use crate::definitions::Opt;
use crate::failure::{EXIT_SYSTEM, Failure, Result, code_of, reason};
use crate::print;
use sheepdog_wire::{
    ClusterFormat, ClusterInfo, ClusterInfoReply, ClusterShutdown, Connection, NodeEntry, NodeList,
};
use std::collections::BTreeSet;

/// Names of the one store there is; format accepts both, as scripts of old pass either.
const STORES: [&str; 2] = ["tree", "plain"];

/// State and all epochs of the cluster.
async fn state(sheep: &Connection) -> Result<ClusterInfoReply> {
    let failed = |e| Failure::answered("Failed to get cluster information", &e);
    let mut info = sheep.call(&ClusterInfo::default()).await.map_err(failed)?;
    while info.more {
        let Some(epochs_below) = info.epochs.last().map(|e| e.epoch) else {
            break;
        };
        let page = sheep.call(&ClusterInfo { epochs_below }).await.map_err(failed)?;
        info.more = page.more && page.epochs.last().is_some_and(|e| e.epoch < epochs_below);
        info.epochs.extend(page.epochs);
    }
    Ok(info)
}

/// Shows the state of the cluster.
pub async fn info(cx: &mut Context<'_>) -> Result<()> {
    let info = state(&cx.connect().await?).await?;
    let show =
        print::cluster::Show { verbose: cx.has(Opt::Verbose), differences: cx.has(Opt::Diff) };
    print::cluster::info(cx.out, cx.mode, show, &info)
}

/// All nodes, page by page.
pub async fn nodes(sheep: &Connection) -> Result<Vec<NodeEntry>> {
    let mut nodes = Vec::new();
    loop {
        let skip = nodes.len() as u32;
        let page = sheep
            .call(&NodeList { skip })
            .await
            .map_err(|e| Failure::new(EXIT_SYSTEM, "Failed to get node list").and(reason(&e)))?;
        let empty = page.nodes.is_empty();
        nodes.extend(page.nodes);
        if !page.more || empty {
            break;
        }
    }
    if nodes.is_empty() {
        return Err(Failure::failed("There are no active sheep daemons"));
    }
    Ok(nodes)
}

/// Formats the cluster, after asking where something could be lost.
pub async fn format(cx: &mut Context<'_>) -> Result<()> {
    let redundancy = args::redundancy(&cx.parsed)?;
    let object_shift = args::object_shift(&cx.parsed)?.unwrap_or(0);
    let store = match cx.parsed.value(Opt::Store) {
        Some(text) => args::shown(text),
        None => "plain".to_owned(),
    };
    let sheep = cx.connect().await?;
    let nodes = nodes(&sheep).await?;
    let members = redundancy.map_or(0, |r| r.data + r.parity);
    let zones: BTreeSet<u32> = nodes.iter().filter(|n| n.vnodes > 0).map(|n| n.zone).collect();
    let json = cx.mode == Mode::Json;
    if members as usize > zones.len() {
        let question = format!(
            "Number of copies ({members}) is larger than number of zones ({}).\nAre you sure you want to continue? [yes/no]: ",
            zones.len()
        );
        cx.out.confirm(&question, json)?;
    }
    if !cx.has(Opt::Force) && state(&sheep).await?.vdis > 0 {
        cx.out.confirm(print::cluster::CAUTION_NOT_EMPTY, json)?;
    }
    let fixed_vnodes = cx.has(Opt::FixedVnodes);
    if nodes.iter().any(|n| n.vnodes > 0 && n.fixed_vnodes != fixed_vnodes) {
        return Err(Failure::failed(if fixed_vnodes {
            "Can not apply the option of '-V', because there are vnode strategy of sheep is auto in the cluster"
        } else {
            "Need to specify the option of '-V', because there are vnode strategy of sheep is fixed in the cluster"
        }));
    }
    print::cluster::using_store(cx.out, cx.mode, &store)?;
    if !STORES.contains(&store.as_str()) {
        print::cluster::stores(cx.out, cx.mode, &STORES)?;
        return Err(Failure::new(
            EXIT_SYSTEM,
            "Format failed: Targeted backend store is not found",
        ));
    }
    let request = ClusterFormat {
        store,
        redundancy,
        object_shift: object_shift.into(),
        lock: cx.has(Opt::Lock),
        strict: cx.has(Opt::Strict),
        fixed_vnodes,
        recycle_vids: cx.has(Opt::RecycleVid),
        avoid_diskfull: cx.has(Opt::AvoidDiskfull),
        // Whoever came here was asked or said force.
        force: true,
    };
    let made = sheep
        .call(&request)
        .await
        .map_err(|e| Failure::answered("Format failed", &e).with_code(EXIT_SYSTEM))?;
    print::cluster::formatted(cx.out, cx.mode, &made)
}

/// Makes all sheep leave.
pub async fn shutdown(cx: &mut Context<'_>) -> Result<()> {
    let sheep = cx.connect().await?;
    sheep
        .call(&ClusterShutdown {})
        .await
        .map_err(|e| Failure::new(code_of(&e), "failed to execute request").and(reason(&e)))?;
    print::cluster::shut_down(cx.out, cx.mode)
}
