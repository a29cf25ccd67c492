//! `dog node`: list, info, md.

use super::{Context, cluster};
use crate::args;
use crate::definitions::Opt;
use crate::failure::{EXIT_SYSTEM, Failure, Result};
use crate::print;
use sheepdog_wire::{NodeInfo, NodeSpace};

/// Shows the nodes.
pub async fn list(cx: &mut Context<'_>) -> Result<()> {
    let nodes = cluster::nodes(&cx.connect().await?).await?;
    print::node::list(cx.out, cx.mode, &nodes)
}

/// Shows the space of the nodes.
pub async fn info(cx: &mut Context<'_>) -> Result<()> {
    let (nodes, virtual_bytes) = space(cx).await?;
    print::node::info(cx.out, cx.mode, &nodes, virtual_bytes)
}

/// Shows the disks of the node that is asked, or of all.
pub async fn md(cx: &mut Context<'_>) -> Result<()> {
    if cx.parsed.args.first().is_none_or(|word| word != "info") {
        return Err(Failure::failed(
            "Disks cannot be added or taken away while sheep runs: not supported by this version",
        ));
    }
    args::no_more(&cx.parsed.args, 1)?;
    let all = cx.has(Opt::All);
    let (mut nodes, _) = space(cx).await?;
    nodes.retain(|node| all || node.here);
    print::node::disks(cx.out, cx.mode, &nodes, all)
}

async fn space(cx: &Context<'_>) -> Result<(Vec<NodeSpace>, u64)> {
    let sheep = cx.connect().await?;
    let mut nodes = Vec::new();
    let virtual_bytes = loop {
        let skip = nodes.len() as u32;
        let page = sheep.call(&NodeInfo { skip }).await.map_err(|e| {
            Failure::answered("Cannot get information from any nodes", &e).with_code(EXIT_SYSTEM)
        })?;
        let empty = page.nodes.is_empty();
        nodes.extend(page.nodes);
        if !page.more || empty {
            break page.virtual_bytes;
        }
    };
    if !nodes.iter().any(|node| node.reachable) {
        return Err(Failure::new(EXIT_SYSTEM, "Cannot get information from any nodes"));
    }
    Ok((nodes, virtual_bytes))
}
