//! `STORE/table`: the copy of the VDI table that each store keeps (DESIGN 8). Written behind every
//! change of the registry, soon but never in anybody's way: nothing is served from it.

use super::Node;
use crate::regular;
use sheepdog_registry::{Listing, Registry};
use sheepdog_storelog::checksum::crc32c;
use sheepdog_types::kv::Revision;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::table_copy::TableCopy;
use sheepdog_volume::{cluster, table};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

const FILE: &str = "table";
/// What will be [`FILE`]: whole, but a loss of power may still take it.
const NEW_FILE: &str = "table.new";
const UNFINISHED_FILE: &str = "table.tmp";
/// The longest that it stays so while changes follow each other.
const DURABLE_WITHIN: Duration = Duration::from_secs(1);
/// A change is written at once, those that follow soon together, unless somebody waits for them.
const BETWEEN: Duration = Duration::from_millis(200);
/// How long to wait after it could not be written.
const RETRY: Duration = Duration::from_secs(10);
/// How long a change waits for its copy. A disk that is slow or hangs holds up nobody.
const SETTLE_MAX: Duration = Duration::from_millis(100);

/// How far the copies are.
#[derive(Debug, Default)]
pub struct Copies {
    /// The moment of the last attempt that ended, well or not.
    tried: watch::Sender<Revision>,
    /// Somebody waits for a later one.
    wanted: Notify,
}

/// Waits until what this node changed is in the copies, so that whoever was told of a new VDI finds
/// it in the stores whatever happens then; see `SETTLE_MAX`. Where they cannot be written, that is
/// in the log and no error.
pub async fn settled(node: &Node) {
    let changed = node.tables.committed();
    let mut tried = node.copies.tried.subscribe();
    if *tried.borrow() < changed {
        node.copies.wanted.notify_one();
        // The sender is the node's: it cannot be gone.
        let _ = tokio::time::timeout(SETTLE_MAX, tried.wait_for(|tried| *tried >= changed)).await;
    }
}

/// Keeps the copies up to date until the node leaves, and brings them up to date then.
pub async fn run(node: Arc<Node>) {
    tokio::select! {
        () = node.left() => {}
        () = follow(&node) => {}
    }
    let last = async {
        save(&node).await?;
        in_all(&node, make_durable).await
    };
    if let Err(error) = last.await {
        tracing::warn!("{}", error.full());
    }
}

async fn follow(node: &Node) {
    let mut durable = Instant::now();
    loop {
        let changed = async {
            let copied = save(node).await?;
            let wanted = wanted_within(node, BETWEEN).await;
            if wanted && durable.elapsed() < DURABLE_WITHIN {
                return Ok::<_, Error>(());
            }
            in_all(node, make_durable).await?;
            durable = Instant::now();
            if wanted {
                return Ok(());
            }
            let mut changes = node.tables.registry().watch("", copied).await?;
            changes.next().await.map(drop)
        };
        if let Err(error) = changed.await {
            tracing::warn!("{}; trying again", error.full());
            let _ = wanted_within(node, RETRY).await;
        }
    }
}

/// Pauses; `true`, and at once, if somebody waits.
async fn wanted_within(node: &Node, pause: Duration) -> bool {
    tokio::time::timeout(pause, node.copies.wanted.notified()).await.is_ok()
}

/// Writes the copies; the moment they are of.
async fn save(node: &Node) -> Result<Revision> {
    let registry = node.tables.registry();
    let mut listing = registry.list("").await?;
    // Looked at behind the listing: the stores remember their cluster before it is formatted, so
    // whatever was formatted by that moment is not left out.
    let Some(cluster) = super::lock(&node.identities).node.cluster else {
        // An empty store belongs to no cluster yet; its first format is a change too.
        return Ok(listing.revision);
    };
    listing.entries.retain(|entry| is_copied(&entry.key));
    let copy = TableCopy {
        cluster: cluster.into_bytes(),
        revision: listing.revision,
        entries: listing.entries,
    };
    let copy = Arc::new(copy);
    let saved = in_all(node, move |dir| write(dir, &copy)).await;
    node.copies.tried.send_replace(listing.revision);
    saved.map(|()| listing.revision)
}

/// The cluster's record and settings, and the VDI table.
fn is_copied(key: &str) -> bool {
    key.starts_with(cluster::CLUSTER_KEY) || key.starts_with(table::PREFIX)
}

/// Does something in all directories of the node at the same time: with many disks, waiting for each
/// in turn would take long.
async fn in_all(
    node: &Node,
    work: impl Fn(&Path) -> Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let mut working: Vec<_> = super::lock(&node.identities)
        .dirs()
        .map(|dir| {
            let (dir, work) = (dir.to_owned(), work.clone());
            tokio::task::spawn_blocking(move || work(&dir))
        })
        .collect();
    // The store's own comes last.
    let own = working.pop();
    for disk in working {
        // It may be lost; the next change tries it again.
        if let Err(error) = ended(disk.await) {
            tracing::warn!("{}", error.full());
        }
    }
    match own {
        Some(own) => ended(own.await),
        None => Err(ErrorKind::Internal.into()),
    }
}

fn ended(written: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    written.map_err(|e| Error::with_source(ErrorKind::Internal, "write the VDI table", e))?
}

/// There when it returns, even if the process is killed. Not yet durable: whoever waits for it does
/// not wait for the disk.
fn write(dir: &Path, copy: &TableCopy) -> Result<()> {
    let (path, new) = (dir.join(NEW_FILE), dir.join(UNFINISHED_FILE));
    // What knows more of the cluster than its registry is all there is of that.
    if let Ok(there) = read(dir)
        && there.cluster == copy.cluster
        && there.revision > copy.revision
    {
        let line = format!(
            "{} is newer (revision {}) than the registry (revision {}): it is kept",
            path.display(),
            there.revision.0,
            copy.revision.0
        );
        return Err(Error::new(ErrorKind::Conflict, line));
    }
    let bytes = copy.encode();
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o640).open(&new)?;
        file.write_all(&bytes)?;
        file.write_all(&crc32c(&bytes).to_le_bytes())?;
        std::fs::rename(&new, &path)
    };
    write().map_err(|e| cannot_copy(&path, e))
}

/// What was written is found after a loss of power, too.
fn make_durable(dir: &Path) -> Result<()> {
    let (path, new) = (dir.join(FILE), dir.join(NEW_FILE));
    let make_durable = || -> io::Result<()> {
        match File::open(&new) {
            Ok(file) => file.sync_all()?,
            // It is already.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    make_durable().map_err(|e| cannot_copy(&path, e))
}

fn cannot_copy(path: &Path, e: io::Error) -> Error {
    let what = format!("cannot copy the VDI table to {}", path.display());
    Error::with_source(ErrorKind::Io, what, e)
}

/// Refuses a registry that went back in time: vids and lineages would be given a second time, and
/// new VDIs show what others wrote. A copy may lag behind the registry, be damaged or missing; none
/// is ever ahead of it.
///
/// # Errors
/// [`ErrorKind::Invalid`] when one of the copies in `dirs` is, and those of the registry.
pub async fn refuse_older(
    registry: &dyn Registry,
    cluster: Uuid,
    file: &Path,
    dirs: Vec<PathBuf>,
) -> Result<()> {
    let listing = registry.list("").await?;
    for dir in dirs {
        let Ok(copy) = read(&dir) else {
            continue;
        };
        if copy.cluster != cluster.into_bytes() || !is_ahead(&copy, &listing) {
            continue;
        }
        let (file, dir) = (file.display(), dir.display());
        let (ours, copied) = (listing.revision.0, copy.revision.0);
        let what = if copied > ours {
            format!(
                "registry {file} is older (revision {ours}) than the copy of the VDI table in {dir} (revision {copied})"
            )
        } else {
            format!(
                "registry {file} lacks changes (revision {ours}) that the copy of the VDI table in {dir} has (revision {copied})"
            )
        };
        let line = format!(
            "{what}: it was restored from an older copy. Put the newer one back; what the disks \
             hold can be read with 'sheep store export'"
        );
        return Err(Error::new(ErrorKind::Invalid, line));
    }
    Ok(())
}

/// Whether a copy holds what never was in this registry's past. Revisions alone do not tell once an
/// older registry went on by itself.
fn is_ahead(copy: &TableCopy, listing: &Listing) -> bool {
    let now = |key: &str| {
        let at = listing.entries.binary_search_by(|entry| entry.key.as_str().cmp(key));
        at.ok().and_then(|at| listing.entries.get(at))
    };
    copy.revision > listing.revision
        || copy.entries.iter().any(|entry| match now(&entry.key) {
            Some(now) => {
                now.modified < entry.modified
                    || (now.modified == entry.modified && now.value != entry.value)
            }
            // VDIs go; these two never do.
            None => matches!(entry.key.as_str(), cluster::CLUSTER_KEY | table::LINEAGE_KEY),
        })
}

/// The copy in a store.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Io`] when it is damaged or cannot be
/// read, [`ErrorKind::VersionMismatch`].
pub fn read(dir: &Path) -> Result<TableCopy> {
    match (read_file(&dir.join(FILE)), read_file(&dir.join(NEW_FILE))) {
        // One of them was left behind.
        (Ok(one), Ok(new)) if one.cluster == new.cluster && one.revision > new.revision => Ok(one),
        (_, Ok(new)) => Ok(new),
        (one, Err(_)) => one,
    }
}

fn read_file(path: &Path) -> Result<TableCopy> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        regular::open(path, File::options().read(true))?.read_to_end(&mut bytes)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use sheepdog_types::kv::Entry;

    fn entry(key: &str, value: &'static [u8], modified: u64) -> Entry {
        let value = Bytes::from_static(value);
        Entry { key: key.to_owned(), value, modified: Revision(modified) }
    }

    fn copy(cluster: u8, revision: u64, entries: &[Entry]) -> TableCopy {
        TableCopy {
            cluster: [cluster; 16],
            revision: Revision(revision),
            entries: entries.to_vec(),
        }
    }

    #[test]
    fn a_newer_copy_of_the_same_cluster_is_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let there = || read(dir.path()).expect("a copy");
        for next in [copy(1, 5, &[]), copy(1, 5, &[]), copy(1, 6, &[])] {
            write(dir.path(), &next).expect("write");
            assert_eq!(there(), next);
            make_durable(dir.path()).expect("rename");
            make_durable(dir.path()).expect("nothing to do");
            assert_eq!(there(), next);
        }
        let error = write(dir.path(), &copy(1, 5, &[])).expect_err("older");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(there(), copy(1, 6, &[]));
        // Revisions of different registries are not to be compared.
        write(dir.path(), &copy(2, 1, &[])).expect("write");
        std::fs::write(dir.path().join(FILE), b"nonsense").expect("damage");
        write(dir.path(), &copy(2, 1, &[])).expect("write");
        assert_eq!(there(), copy(2, 1, &[]));
    }

    #[test]
    fn a_copy_is_ahead_when_it_has_what_the_registry_never_had() {
        let entries = [entry("cluster", b"c", 2), entry("vdi/1", b"v", 4)];
        let listing = Listing { revision: Revision(6), entries: entries.to_vec() };
        let ahead = |revision, entries: &[Entry]| is_ahead(&copy(1, revision, entries), &listing);
        // It lags behind, or the registry went on: changed, added, removed.
        assert!(!ahead(6, &entries));
        assert!(!ahead(3, &[entry("cluster", b"c", 2), entry("vdi/1", b"older", 3)]));
        assert!(!ahead(1, &[]));
        assert!(!ahead(5, &[entry("cluster", b"c", 2), entry("vdi/2", b"gone", 5)]));
        // It does not.
        assert!(ahead(7, &entries));
        assert!(ahead(6, &[entry("cluster", b"c", 2), entry("vdi/1", b"v", 5)]));
        assert!(ahead(6, &[entry("cluster", b"d", 2)]));
        assert!(ahead(6, &[entry(table::LINEAGE_KEY, b"l", 3)]));
    }
}
