//! `dog node`: list, info.

use super::{Context, cluster};
use crate::failure::{EXIT_SYSTEM, Failure, Result};
use crate::print;
use sheepdog_wire::NodeInfo;

/// Shows the nodes.
pub async fn list(cx: &mut Context<'_>) -> Result<()> {
    let nodes = cluster::nodes(&cx.connect().await?).await?;
    print::node::list(cx.out, cx.mode, &nodes)
}

/// Shows the space of the nodes.
pub async fn info(cx: &mut Context<'_>) -> Result<()> {
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
    print::node::info(cx.out, cx.mode, &nodes, virtual_bytes)
}
