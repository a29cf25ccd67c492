//! A data worker that keeps everything in memory, for tests of what is around the real one.

use bytes::Bytes;
use sheepdog_sheep::data::{
    BoxFuture, Capacity, DataPlane, DiskState, FragmentUsage, Progress, ScrubState, View,
};
use sheepdog_types::{BLOCK_SIZE, DiskId, Geometry, LineageId, Result, Vid};
use sheepdog_volume::io::{MapExtent, Segment, ZeroMode};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What a vid owns at a block: bytes, or reserved space.
type Owned = BTreeMap<u64, Option<Vec<u8>>>;

/// The worker.
pub struct MemoryPlane {
    owned: Mutex<BTreeMap<(LineageId, Vid), Owned>>,
    /// Permits that writes and sweeps need; tests take them away.
    pub writes: Semaphore,
    /// The same for sweeps.
    pub sweeps: Semaphore,
    /// Writes that have come in.
    pub begun: AtomicU64,
    /// Every call of `disconnect`.
    pub disconnected: Mutex<Vec<Vid>>,
}

impl Default for MemoryPlane {
    fn default() -> Self {
        Self {
            owned: Mutex::default(),
            writes: Semaphore::new(1 << 20),
            sweeps: Semaphore::new(1 << 20),
            begun: AtomicU64::new(0),
            disconnected: Mutex::default(),
        }
    }
}

impl MemoryPlane {
    /// Whether the vid owns nothing.
    pub fn is_swept(&self, lineage: LineageId, vid: Vid) -> bool {
        let owned = self.owned.lock().expect("lock");
        owned.get(&(lineage, vid)).is_none_or(BTreeMap::is_empty)
    }

    /// The block as a view sees it.
    fn block(&self, view: &View, block: u64) -> Option<Option<Vec<u8>>> {
        let owned = self.owned.lock().expect("lock");
        let of = |vid: &Vid| owned.get(&(view.lineage, *vid))?.get(&block).cloned();
        view.path.iter().find_map(of)
    }

    fn segments(&self, view: &View, offset: u64, len: u64) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut at = offset;
        while at < offset + len {
            let skip = at % BLOCK;
            let take = (BLOCK - skip).min(offset + len - at);
            match self.block(view, at / BLOCK) {
                None => Segment::Hole(take),
                Some(None) => Segment::Zero(take),
                Some(Some(bytes)) => {
                    let part = &bytes[skip as usize..(skip + take) as usize];
                    Segment::Data(Bytes::copy_from_slice(part))
                }
            }
            .push(&mut segments);
            at += take;
        }
        segments
    }

    fn put(&self, view: &View, block: u64, bytes: Option<Option<Vec<u8>>>) {
        let mut owned = self.owned.lock().expect("lock");
        let blocks = owned.entry((view.lineage, view.vid)).or_default();
        match bytes {
            Some(bytes) => blocks.insert(block, bytes),
            None => blocks.remove(&block),
        };
    }

    fn overwrite(&self, view: &View, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut left = data;
        while !left.is_empty() {
            let skip = (at % BLOCK) as usize;
            let take = (BLOCK_SIZE - skip).min(left.len());
            let old = self.block(view, at / BLOCK).flatten();
            let mut bytes = old.unwrap_or_else(|| vec![0; BLOCK_SIZE]);
            bytes[skip..skip + take].copy_from_slice(&left[..take]);
            self.put(view, at / BLOCK, Some(Some(bytes)));
            at += take as u64;
            left = &left[take..];
        }
    }
}

impl DataPlane for MemoryPlane {
    fn read(&self, view: Arc<View>, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Segment>>> {
        Box::pin(async move { Ok(self.segments(&view, offset, len.into())) })
    }

    fn write(&self, view: Arc<View>, offset: u64, data: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let _permit = self.writes.acquire().await.expect("open");
            self.overwrite(&view, offset, &data);
            Ok(())
        })
    }

    fn write_zeroes(
        &self,
        view: Arc<View>,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _permit = self.writes.acquire().await.expect("open");
            for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
                let from = offset.max(block * BLOCK);
                let to = (offset + len).min((block + 1) * BLOCK);
                if to - from < BLOCK {
                    self.overwrite(&view, from, &vec![0; (to - from) as usize]);
                } else {
                    let kept = (mode == ZeroMode::Reserve).then_some(None);
                    self.put(&view, block, kept);
                }
            }
            Ok(())
        })
    }

    fn map(&self, view: Arc<View>, offset: u64, len: u64) -> BoxFuture<'_, Result<Vec<MapExtent>>> {
        Box::pin(async move {
            // Only the beginning of a large range, as a worker may.
            let len = len.min(16 << 20);
            let mut map = Vec::new();
            for segment in self.segments(&view, offset, len) {
                MapExtent { len: segment.len(), kind: segment.kind() }.push(&mut map);
            }
            Ok(map)
        })
    }

    fn sweep(&self, lineage: LineageId, vid: Vid, progress: Progress) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _permit = self.sweeps.acquire().await.expect("open");
            progress(0, 1);
            self.owned.lock().expect("lock").remove(&(lineage, vid));
            progress(1, 1);
            Ok(())
        })
    }

    fn usage(&self, lineage: LineageId, vid: Vid) -> BoxFuture<'_, Result<Vec<FragmentUsage>>> {
        Box::pin(async move {
            let owned = self.owned.lock().expect("lock");
            let mut usage: BTreeMap<u64, FragmentUsage> = BTreeMap::new();
            for block in owned.get(&(lineage, vid)).into_iter().flatten().map(|(b, _)| b) {
                let number = block * BLOCK / Geometry::STANDARD.fragment_bytes();
                let of =
                    usage.entry(number).or_insert(FragmentUsage { number, occupied: 0, stored: 0 });
                of.occupied |= 1 << ((block * BLOCK % Geometry::STANDARD.fragment_bytes()) >> 20);
                of.stored += BLOCK;
            }
            Ok(usage.into_values().collect())
        })
    }

    fn disks(&self) -> BoxFuture<'_, Result<Vec<DiskState>>> {
        Box::pin(async move {
            let owned = self.owned.lock().expect("lock");
            let used = owned.values().map(|o| o.len() as u64 * BLOCK).sum();
            Ok(vec![DiskState {
                id: DiskId([1; 16]),
                path: "/memory".into(),
                lost: None,
                capacity: Capacity { total: 1 << 30, used, free: (1 << 30) - used },
                checksum_errors: 0,
                nosync: false,
                scrub: ScrubState::default(),
            }])
        })
    }

    fn has_disk(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async { Ok(true) })
    }

    fn settle(&self, _vid: Vid) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn connections(&self, _vid: Vid) -> BoxFuture<'_, Result<usize>> {
        Box::pin(async { Ok(0) })
    }

    fn disconnect(&self, vid: Vid) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.disconnected.lock().expect("lock").push(vid) })
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
