//! `STORE/table`: the copy of the VDI table that each store keeps (DESIGN 8). Written behind every
//! change of the registry, soon but never in anybody's way: nothing is served from it.

use super::Node;
use crate::regular;
use sheepdog_storelog::checksum::crc32c;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::table_copy::TableCopy;
use sheepdog_volume::{cluster, table};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const FILE: &str = "table";
const NEW_FILE: &str = "table.new";
/// A change is written at once, those that follow soon together.
const BETWEEN: Duration = Duration::from_millis(200);
/// How long to wait after it could not be written.
const RETRY: Duration = Duration::from_secs(10);

/// Keeps the copies up to date until the node leaves, and brings them up to date then.
pub async fn run(node: Arc<Node>) {
    tokio::select! {
        () = node.left() => {}
        () = follow(&node) => {}
    }
    if let Err(error) = save(&node).await {
        tracing::warn!("{}", error.full());
    }
}

async fn follow(node: &Node) {
    loop {
        let changed = async {
            let copied = save(node).await?;
            tokio::time::sleep(BETWEEN).await;
            let mut watch = node.tables.registry().watch("", copied).await?;
            watch.next().await
        };
        match changed.await {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("{}; trying again", error.full());
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Writes the copies; the moment they are of.
async fn save(node: &Node) -> Result<sheepdog_types::kv::Revision> {
    let Some(cluster) = super::lock(&node.identities).node.cluster else {
        // An empty store belongs to no cluster yet; its first format is a change too.
        return Ok(node.tables.registry().list(cluster::CLUSTER_KEY).await?.revision);
    };
    let registry = node.tables.registry();
    let mut listing = registry.list("").await?;
    listing.entries.retain(|entry| {
        entry.key.starts_with(cluster::CLUSTER_KEY) || entry.key.starts_with(table::PREFIX)
    });
    let copy = TableCopy {
        cluster: cluster.into_bytes(),
        revision: listing.revision,
        entries: listing.entries,
    };
    let dirs: Vec<PathBuf> = super::lock(&node.identities).dirs().map(Path::to_owned).collect();
    let write_all = move || {
        let (own, disks) = dirs.split_last().ok_or(ErrorKind::Internal)?;
        for dir in disks {
            // It may be lost; the next change tries it again.
            if let Err(error) = write(dir, &copy) {
                tracing::warn!("{}", error.full());
            }
        }
        write(own, &copy)
    };
    let written = tokio::task::spawn_blocking(write_all).await;
    written.map_err(|e| Error::with_source(ErrorKind::Internal, "write the VDI table", e))??;
    Ok(listing.revision)
}

fn write(dir: &Path, copy: &TableCopy) -> Result<()> {
    let (path, new) = (dir.join(FILE), dir.join(NEW_FILE));
    let bytes = copy.encode();
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o640).open(&new)?;
        file.write_all(&bytes)?;
        file.write_all(&crc32c(&bytes).to_le_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| {
        let what = format!("cannot copy the VDI table to {}", path.display());
        Error::with_source(ErrorKind::Io, what, e)
    })
}

/// The copy in a store.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Io`] when it is damaged or cannot be
/// read, [`ErrorKind::VersionMismatch`].
pub fn read(dir: &Path) -> Result<TableCopy> {
    let path = dir.join(FILE);
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        regular::open(&path, File::options().read(true))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| {
        let kind = match e.kind() {
            // A device or a copy of one holds none.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, format!("cannot read {}", path.display()), e)
    })?;
    match bytes.split_last_chunk::<4>() {
        Some((bytes, crc)) if crc32c(bytes) == u32::from_le_bytes(*crc) => TableCopy::decode(bytes),
        _ => Err(Error::new(ErrorKind::Io, format!("{} is damaged", path.display()))),
    }
}
