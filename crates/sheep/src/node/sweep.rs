//! The second half of each deletion: in the background, what a hidden VDI owns is freed, then its
//! record goes. Begins anew after a restart, and ends only when nothing is hidden.

use super::Node;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::record::VdiRecord;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long to wait after a sweep failed.
const RETRY: Duration = Duration::from_secs(10);
/// A line of progress for each of so many hundredths.
const STEP: u64 = 10;

/// Sweeps until the node leaves.
pub async fn run(node: Arc<Node>) {
    tokio::select! {
        () = node.left() => {}
        () = sweep_for_ever(&node) => {}
    }
}

async fn sweep_for_ever(node: &Node) {
    loop {
        match sweep_all(node).await {
            Ok(()) => node.sweeps.notified().await,
            Err(error) => {
                tracing::warn!("sweeping deleted VDIs: {}; trying again", error.full());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Returns when nothing that can be swept is hidden.
async fn sweep_all(node: &Node) -> Result<()> {
    let mut kept = 0;
    loop {
        let current = node.tables.current().await?;
        // Those kept are still somebody's base; they go when that goes.
        let Some(record) = current.table.hidden().nth(kept) else {
            return Ok(());
        };
        match sweep_one(node, record).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Locked => kept += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn sweep_one(node: &Node, record: &VdiRecord) -> Result<()> {
    let (vid, lineage) = (record.vid, record.lineage);
    let name = record.name.escape_debug().to_string();
    // Someone else may have hidden it: whoever has it open here must stop first.
    node.gates.close(vid).await;
    let data = node.data()?;
    data.disconnect(vid).await;
    let said = AtomicU64::new(0);
    let shown = name.clone();
    let progress = Box::new(move |done: u64, total: u64| {
        let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(100);
        let step = percent / STEP;
        if step > said.fetch_max(step, Ordering::Relaxed) && done < total {
            tracing::info!("deleting VDI {shown} (vid {vid}): {percent} %");
        }
    });
    data.sweep(lineage, vid, progress).await?;
    node.tables
        .change(|current| match current.table.remove_swept(vid) {
            Ok(txn) => Ok((txn, ())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok((Default::default(), ())),
            Err(error) => {
                Err(Error::with_source(error.kind(), format!("remove VDI {name}"), error))
            }
        })
        .await?;
    tracing::info!("deleted VDI {name} (vid {vid})");
    Ok(())
}
