//! What all connections of a sheep share: who it is, the VDI table, the data worker, which VDIs
//! are open, and whether it is leaving.

pub mod directory;
pub mod disk_watch;
pub mod gates;
pub mod sweep;
pub mod table_copy;
pub mod tables;
pub mod usage;

use crate::cluster::Identities;
use crate::data::{DataPlane, View};
use gates::{Gates, Peer};
use sheepdog_registry::Registry;
use sheepdog_types::limits::VNODES_DEFAULT;
use sheepdog_types::{Error, ErrorKind, LineageId, Result, Vid};
use sheepdog_volume::cluster::EpochNode;
use sheepdog_volume::record::{State, VdiRecord};
use sheepdog_volume::table::Table;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use table_copy::Copies;
use tables::{Current, Tables};
use tokio::sync::{Notify, watch};

/// Who this node is, for others.
#[derive(Debug)]
pub struct Me {
    /// Address that others are told.
    pub address: IpAddr,
    /// Of the sheepdog protocol.
    pub port: u16,
    /// Failure domain.
    pub zone: u32,
    /// The registry's driver string.
    pub registry: String,
    /// Whether no disk is left: the node is a gateway.
    no_disk: AtomicBool,
}

impl Me {
    /// A node with disks.
    #[must_use]
    pub const fn new(address: IpAddr, port: u16, zone: u32, registry: String) -> Self {
        Self { address, port, zone, registry, no_disk: AtomicBool::new(false) }
    }

    /// Says whether a disk is left; whether that is news.
    pub fn set_has_disk(&self, has_disk: bool) -> bool {
        self.no_disk.swap(!has_disk, Ordering::Relaxed) == has_disk
    }

    /// Its weight; a gateway has none.
    #[must_use]
    pub fn vnodes(&self) -> u32 {
        if self.no_disk.load(Ordering::Relaxed) { 0 } else { VNODES_DEFAULT }
    }

    /// As the history of the cluster shows it.
    #[must_use]
    pub fn epoch_node(&self) -> EpochNode {
        EpochNode { host: self.address.to_string(), port: self.port, vnodes: self.vnodes() }
    }
}

/// One running sheep.
pub struct Node {
    /// Who it is.
    pub me: Me,
    /// The VDI table and the cluster's record.
    pub tables: Tables,
    /// The copies of that table in the stores.
    pub copies: Copies,
    /// Which VDIs are open here, by control connections.
    pub gates: Gates,
    /// What the store and its disks remember of their cluster.
    pub identities: Mutex<Identities>,
    /// Set once, right after the worker started, before anything is served.
    data: OnceLock<Arc<dyn DataPlane>>,
    /// Unfinished imports that run, and whose they are.
    imports: Mutex<BTreeMap<Vid, Arc<dyn Peer>>>,
    /// Something was hidden.
    pub(crate) sweeps: Notify,
    leaving: watch::Sender<bool>,
}

impl Node {
    /// A node without its data worker.
    #[must_use]
    pub fn new(me: Me, registry: Arc<dyn Registry>, identities: Identities) -> Self {
        Self {
            me,
            tables: Tables::new(registry),
            copies: Copies::default(),
            gates: Gates::default(),
            identities: Mutex::new(identities),
            data: OnceLock::new(),
            imports: Mutex::default(),
            sweeps: Notify::new(),
            leaving: watch::Sender::new(false),
        }
    }

    /// Gives it its data worker.
    pub fn set_data(&self, data: Arc<dyn DataPlane>) {
        let _ = self.data.set(data);
    }

    /// The data worker.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`] before it started.
    pub fn data(&self) -> Result<&Arc<dyn DataPlane>> {
        self.data
            .get()
            .ok_or_else(|| Error::new(ErrorKind::ShuttingDown, "the sheep is still starting"))
    }

    /// Begins to leave: nothing new is accepted.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Whether it is leaving.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    /// Returns when it is leaving.
    pub async fn left(&self) {
        let mut leaving = self.leaving.subscribe();
        // The sender is ours: it cannot be gone.
        let _ = leaving.wait_for(|leaving| *leaving).await;
    }

    /// The table of a formatted cluster, as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::WaitForFormat`], [`ErrorKind::ShuttingDown`] and those of the registry.
    pub async fn table(&self) -> Result<Arc<Current>> {
        if self.is_leaving() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        let current = self.tables.current().await?;
        current.cluster()?;
        Ok(current)
    }

    /// Marks an unfinished import as running.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] when it is.
    pub fn begin_import(self: &Arc<Self>, vid: Vid, peer: Arc<dyn Peer>) -> Result<ImportMark> {
        if self.is_importing(vid) {
            return Err(Error::new(ErrorKind::Locked, "another import is running"));
        }
        lock(&self.imports).insert(vid, peer);
        Ok(ImportMark { node: Arc::clone(self), vid })
    }

    /// Whether an import's client is there. One that is gone holds up nobody, though what it sent
    /// may still be on its way: whoever imports anew waits for that.
    #[must_use]
    pub fn is_importing(&self, vid: Vid) -> bool {
        lock(&self.imports).get(&vid).is_some_and(|peer| !peer.is_gone())
    }

    /// Whether an import's client seems to be there and could be gone.
    #[must_use]
    pub fn is_import_in_doubt(&self, vid: Vid) -> bool {
        let peer = lock(&self.imports).get(&vid).cloned();
        peer.is_some_and(|peer| peer.may_hide_its_end() && !peer.is_gone())
    }
}

/// An import that runs as long as this lives.
pub struct ImportMark {
    node: Arc<Node>,
    vid: Vid,
}

impl Drop for ImportMark {
    fn drop(&mut self) {
        lock(&self.node.imports).remove(&self.vid);
    }
}

/// What a mutex guards stays whole even if a holder panicked: changes under it are single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since 1970, UTC.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// How to reach the blocks of a VDI.
#[must_use]
pub fn view(table: &Table, record: &VdiRecord) -> View {
    View {
        vid: record.vid,
        lineage: record.lineage,
        size: record.size,
        object_shift: record.object_shift,
        read_only: record.state == State::Snapshot,
        path: path(table, record.vid, record.lineage).into(),
    }
}

/// The vids of one lineage whose blocks a vid sees: itself first, the root last.
pub(crate) fn path(table: &Table, vid: Vid, lineage: LineageId) -> Vec<Vid> {
    let mut path = vec![vid];
    let mut next = table.get(vid).and_then(|r| r.parent);
    // A circle would be a damaged table; then each is listed once.
    while let Some(parent) = next.and_then(|vid| table.get(vid)) {
        if parent.lineage != lineage || path.contains(&parent.vid) {
            break;
        }
        path.push(parent.vid);
        next = parent.parent;
    }
    path
}
