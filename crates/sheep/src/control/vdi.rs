//! Requests about the VDI table, and opening.

use super::connection::{Open, Session};
use super::convert;
use crate::node::table_copy;
use crate::node::tables::Current;
use crate::node::usage::occupied;
use crate::node::{ImportMark, lock, now, view};
use sheepdog_types::{Error, ErrorKind, Result, Vid};
use sheepdog_volume::record::{State, VdiRecord};
use sheepdog_volume::table::{Decision, NewVdi, Selector};
use sheepdog_wire::{
    Done, ImportBegin, ImportFinish, VDI_PAGE_MAX, VdiChanged, VdiCreate, VdiDelete, VdiInfo,
    VdiInfoReply, VdiList, VdiListReply, VdiLookup, VdiOpen, VdiOpened, VdiRename, VdiResize,
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long an import waits to learn whether the client of another one is there.
const DOUBT: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Session {
    pub(super) async fn vdi_list(&self, list: VdiList) -> Result<VdiListReply> {
        let current = self.node.table().await?;
        let data = self.node.data()?;
        let wanted = |record: &&VdiRecord| {
            record.vid.get() > list.above && (list.name.is_empty() || record.name == list.name)
        };
        let mut records = current.table.visible().filter(wanted);
        let mut vdis = Vec::new();
        for record in records.by_ref().take(VDI_PAGE_MAX) {
            let occupied = occupied(data.as_ref(), &current.table, record).await?;
            let open = self.open_count(record.vid).await?;
            vdis.push(convert::counted(record, occupied, open));
        }
        Ok(VdiListReply { more: records.next().is_some(), vdis })
    }

    pub(super) async fn vdi_lookup(&self, lookup: VdiLookup) -> Result<VdiInfoReply> {
        let (name, selector) = convert::selector(lookup.vdi.as_ref())?;
        let current = self.node.table().await?;
        let record = current.table.lookup(name, selector)?;
        Ok(VdiInfoReply { vdi: Some(convert::entry(record)) })
    }

    pub(super) async fn vdi_info(&self, info: VdiInfo) -> Result<VdiInfoReply> {
        let (name, selector) = convert::selector(info.vdi.as_ref())?;
        let current = self.node.table().await?;
        let record = current.table.lookup(name, selector)?;
        let data = self.node.data()?;
        let occupied = occupied(data.as_ref(), &current.table, record).await?;
        let open = self.open_count(record.vid).await?;
        Ok(VdiInfoReply { vdi: Some(convert::counted(record, occupied, open)) })
    }

    pub(super) async fn vdi_create(&self, create: VdiCreate) -> Result<VdiChanged> {
        self.change(|current| {
            let new = new_vdi(current, &create)?;
            let decision = current.table.create(&new)?;
            self.all_copies_have_zones(current, &new)?;
            Ok(decision)
        })
        .await
    }

    pub(super) async fn vdi_resize(&self, resize: VdiResize) -> Result<VdiChanged> {
        self.change(|current| {
            let record = current.table.lookup(&resize.name, Selector::Working)?;
            current.table.resize(record.vid, resize.size)
        })
        .await
    }

    pub(super) async fn vdi_rename(&self, rename: VdiRename) -> Result<VdiChanged> {
        self.change(|current| current.table.rename(&rename.name, &rename.new_name)).await
    }

    /// The name is free when it returns and nobody reaches the VDI any more; its space follows.
    pub(super) async fn vdi_delete(&self, delete: VdiDelete) -> Result<Done> {
        let (name, selector) = convert::selector(delete.vdi.as_ref())?;
        let record = self
            .decide(|current| {
                let vid = current.table.lookup(name, selector)?.vid;
                current.table.hide(vid)
            })
            .await?;
        self.cut_off(record.vid).await?;
        table_copy::settled(&self.node).await;
        Ok(Done {})
    }

    pub(super) async fn vdi_open(&self, open: VdiOpen) -> Result<VdiOpened> {
        let (name, selector) = convert::selector(open.vdi.as_ref())?;
        let current = self.node.table().await?;
        let record = current.table.open(name, selector)?;
        if record.state == State::Snapshot && !open.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "a snapshot can only be opened read-only"));
        }
        self.open_vid(record.vid, open.read_only, None).await
    }

    pub(super) async fn import_begin(&self, begin: ImportBegin) -> Result<VdiOpened> {
        let create = begin
            .create
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "no VDI to import was named"))?;
        self.find_out_about_import(&create.name).await?;
        let mut replaced = None;
        let record = self
            .decide(|current| {
                let new = new_vdi(current, &create)?;
                replaced = current
                    .table
                    .lookup(&new.name, Selector::Working)
                    .ok()
                    .filter(|record| record.state == State::Incomplete)
                    .map(|record| record.vid);
                if replaced.is_some_and(|vid| self.node.is_importing(vid)) {
                    return Err(Error::new(ErrorKind::Locked, "another import is running"));
                }
                let decision = current.table.begin_import(&new)?;
                self.all_copies_have_zones(current, &new)?;
                Ok(decision)
            })
            .await?;
        let mark = self.node.begin_import(record.vid, Arc::clone(&self.peer))?;
        if let Some(vid) = replaced {
            self.cut_off(vid).await?;
        }
        self.open_vid(record.vid, false, Some(mark)).await
    }

    /// Before an import of that name is refused because another runs: the client of that one may
    /// be gone, and this side learns it only when it has read or answered something of what the
    /// client sent before. Whoever kills an import and begins it anew is not to try twice.
    async fn find_out_about_import(&self, name: &str) -> Result<()> {
        let current = self.node.table().await?;
        let Ok(record) = current.table.lookup(name, Selector::Working) else {
            return Ok(());
        };
        let begin = Instant::now();
        while self.node.is_import_in_doubt(record.vid)
            && begin.elapsed() < DOUBT
            && !self.peer.is_gone()
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    pub(super) async fn import_finish(&self, finish: ImportFinish) -> Result<VdiChanged> {
        let open = self.handle(finish.handle)?;
        if lock(&open.import).is_none() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the handle is not of an unfinished import",
            ));
        }
        // Writes that are under way belong to the import.
        open.gate.drained().await;
        open.gate.check()?;
        let changed = self.change(|current| current.table.finish_import(open.view.vid)).await?;
        lock(&open.import).take();
        Ok(changed)
    }

    /// A strict cluster takes no VDI that it could not write; any other keeps fewer copies.
    fn all_copies_have_zones(&self, current: &Current, new: &NewVdi) -> Result<()> {
        // There is one node.
        let zones = u8::from(self.node.me.vnodes() > 0);
        if current.cluster()?.options.strict && new.redundancy.members() > zones {
            let why = format!(
                "the cluster is strict: redundancy {} takes {} zones, and there is {zones}",
                new.redundancy,
                new.redundancy.members()
            );
            return Err(Error::new(ErrorKind::TooFewZones, why));
        }
        Ok(())
    }

    /// By how many it is open, over all doors.
    async fn open_count(&self, vid: Vid) -> Result<usize> {
        let by_nbd = self.node.data()?.connections(vid).await?;
        Ok(self.node.gates.count(vid) + by_nbd)
    }

    /// Opens a visible VDI by its id.
    async fn open_vid(
        &self,
        vid: Vid,
        read_only: bool,
        import: Option<ImportMark>,
    ) -> Result<VdiOpened> {
        self.node.data()?.settle(vid).await;
        self.node.gates.settle(vid).await;
        let gate = self.node.gates.open(vid, Some(Arc::clone(&self.peer)));
        // Looked at again behind the gate: a deletion either finds the gate or is seen here.
        let current = self.node.table().await?;
        let record = current.table.get(vid).filter(|record| record.is_visible());
        let record = record.ok_or(ErrorKind::NotFound)?;
        let mut view = view(&current.table, record);
        view.read_only |= read_only;
        let (size, read_only) = (view.size, view.read_only);
        let handle = self.keep(Open { view: Arc::new(view), gate, import: Mutex::new(import) })?;
        Ok(VdiOpened { handle, size, read_only, vdi: Some(convert::entry(record)) })
    }

    /// After a VDI was hidden: whoever has it open gets errors, and its space is swept.
    pub(super) async fn cut_off(&self, vid: Vid) -> Result<()> {
        self.node.gates.close(vid).await;
        self.node.data()?.disconnect(vid).await;
        self.node.sweeps.notify_one();
        Ok(())
    }

    /// A change of the table within the present cluster.
    pub(super) async fn decide(
        &self,
        mut decide: impl FnMut(&Current) -> Result<Decision> + Send,
    ) -> Result<VdiRecord> {
        if self.node.is_leaving() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        self.node
            .tables
            .change(|current| {
                let same_cluster = current.same_cluster()?;
                let Decision { record, mut txn } = decide(current)?;
                txn.compares.push(same_cluster);
                Ok((txn, record))
            })
            .await
    }

    async fn change(
        &self,
        decide: impl FnMut(&Current) -> Result<Decision> + Send,
    ) -> Result<VdiChanged> {
        let record = self.decide(decide).await?;
        table_copy::settled(&self.node).await;
        Ok(VdiChanged { vdi: Some(convert::entry(&record)) })
    }
}

fn new_vdi(current: &Current, create: &VdiCreate) -> Result<NewVdi> {
    let cluster = current.cluster()?;
    Ok(NewVdi {
        name: create.name.clone(),
        size: create.size,
        redundancy: convert::asked_redundancy(create.redundancy, cluster.redundancy)?,
        object_shift: convert::asked_shift(create.object_shift, cluster.object_shift)?,
        hyper: create.hyper,
        preallocated: create.preallocated,
        created: now(),
    })
}
