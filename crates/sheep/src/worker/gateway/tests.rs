//! The data path of a VDI on real files against a vector of bytes.

use super::*;
use crate::cluster::ShardPack;
use crate::worker::disks::Slot;
use sheepdog_store::{Disk, DiskConfig, EngineChoice, StoreLock};
use sheepdog_storelog::Limits;
use sheepdog_testkit::shown::{assert_same, difference};
use sheepdog_types::{DiskId, Interval};
use std::path::Path;

const SIZE: u64 = 11 << 20;

/// A small seeded generator (splitmix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

const DISKS: [DiskId; 2] = [DiskId([3; 16]), DiskId([4; 16])];

struct Opened {
    _locks: Vec<StoreLock>,
    gateway: Rc<Gateway>,
    drivers: Vec<tokio::task::JoinHandle<()>>,
}

impl Opened {
    async fn checkpoint(&self) {
        for (_, disk) in self.gateway.disks().open() {
            disk.command(Command::Checkpoint).await.expect("checkpoint");
        }
    }

    fn used(&self) -> u64 {
        self.gateway.disks().open().map(|(_, disk)| disk.usage().used).sum()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.drivers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// A node of two disks, or with one of them lost.
fn open(dir: &Path, engine: EngineChoice, interval: u64, lost: Option<usize>) -> Opened {
    let fresh = interval == 1;
    std::fs::create_dir_all(dir).expect("directory");
    let (mut locks, mut slots) = (Vec::new(), Vec::new());
    for (at, id) in DISKS.into_iter().enumerate() {
        let path = dir.join(at.to_string());
        if lost == Some(at) {
            slots.push(Slot::new(id, path, Err("it fell".to_owned())));
            continue;
        }
        let store = StoreLock::take(&path).expect("lock");
        let files = if fresh { store.prepare(32 << 20) } else { store.open() }.expect("files");
        let (disk, _) = Disk::open(DiskConfig {
            dir: path.clone(),
            files,
            engine,
            disk: id,
            cluster: [4; 16],
            fresh,
            log_id: 77 + at as u64,
            limits: Limits { cache_bytes: 20_000, logged_bytes: 1 << 20, ..Limits::STANDARD },
            stamp: 0,
        })
        .expect("opens");
        locks.push(store);
        slots.push(Slot::new(id, path, Ok(disk)));
    }
    let mut shards = ShardPack::spread(None, &DISKS.map(|id| (id, 1 << 30))).expect("spread");
    shards.interval = Interval(interval);
    let disks = Disks::new(slots, shards).expect("all there");
    let drivers =
        disks.open().map(|(_, disk)| tokio::task::spawn_local(disk.clone().run())).collect();
    let gateway = Rc::new(Gateway::new(disks, Primary::new(Interval(interval))));
    Opened { _locks: locks, gateway, drivers }
}

fn vdi(gateway: &Rc<Gateway>) -> Vdi {
    let vid = Vid::new(5).expect("in range");
    let view = View {
        vid,
        lineage: LineageId(9),
        size: SIZE,
        object_shift: 22,
        read_only: false,
        path: Arc::from([vid]),
    };
    Vdi::new(Rc::clone(gateway), Arc::new(view))
}

fn run(future: impl AsyncFnOnce()) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future());
}

fn flat(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Hole(n) | Segment::Zero(n) => bytes.resize(bytes.len() + *n as usize, 0),
        }
    }
    bytes
}

/// A range that likes edges of blocks, chunks and fragments.
fn range(rng: &mut Rng) -> (u64, u64) {
    let unit = [1, 4096, 65_536, 4 << 20][rng.below(4) as usize];
    let mut offset = rng.below(SIZE / unit + 1) * unit;
    if rng.below(3) == 0 {
        offset = (offset + rng.below(9)).saturating_sub(4);
    }
    let offset = offset.min(SIZE - 1);
    let longest = [10, 5000, 140_000, 5 << 20][rng.below(4) as usize];
    let mut len = 1 + rng.below(longest);
    if rng.below(2) == 0 {
        len = len.next_multiple_of(4096);
    }
    (offset, len.min(SIZE - offset))
}

async fn one_step(vdi: &Vdi, model: &mut [u8], rng: &mut Rng) {
    let (offset, len) = range(rng);
    let (from, to) = (offset as usize, (offset + len) as usize);
    match rng.below(10) {
        0..4 => {
            let fill = rng.below(256) as u8;
            let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add((i / 512) as u8)).collect();
            model[from..to].copy_from_slice(&data);
            vdi.write(offset, Bytes::from(data)).await.expect("written");
        }
        4..6 => {
            let mode = [ZeroMode::Discard, ZeroMode::Reserve][rng.below(2) as usize];
            model[from..to].fill(0);
            vdi.write_zeroes(offset, len, mode).await.expect("zeroed");
        }
        6 => {
            let map = vdi.map(offset, len).await.expect("map");
            assert_eq!(map.iter().map(|extent| extent.len).sum::<u64>(), len);
            let mut at = from;
            for extent in map {
                let end = at + extent.len as usize;
                if extent.kind != MapKind::Data {
                    assert!(model[at..end].iter().all(|b| *b == 0), "{at}..{end} is not zero");
                }
                at = end;
            }
        }
        _ => {
            let read = vdi.read(offset, len as u32).await.expect("read");
            assert_same(flat(&read), &model[from..to]);
        }
    }
}

fn against_a_vector(engine: EngineChoice) {
    let dir = tempfile::tempdir().expect("directory");
    let dir = dir.path().join("store");
    let mut rng = Rng(42);
    let mut model = vec![0; SIZE as usize];
    for interval in 1..5 {
        run(async || {
            let opened = open(&dir, engine, interval, None);
            let vdi = vdi(&opened.gateway);
            let read = vdi.read(0, SIZE as u32).await.expect("read");
            let read = flat(&read);
            assert!(
                read == model,
                "opened for the {interval}. time: {}",
                difference(&read, &model)
            );
            for _ in 0..150 {
                one_step(&vdi, &mut model, &mut rng).await;
            }
            if interval == 2 {
                opened.checkpoint().await;
            }
        });
    }
}

#[test]
fn a_vdi_is_a_vector_of_bytes_with_the_ring() {
    against_a_vector(EngineChoice::Auto);
}

#[test]
fn a_vdi_is_a_vector_of_bytes_with_blocking_threads() {
    against_a_vector(EngineChoice::Blocking);
}

#[test]
fn writes_of_parts_of_one_block_do_not_lose_each_other() {
    let dir = tempfile::tempdir().expect("directory");
    run(async || {
        let opened = open(&dir.path().join("store"), EngineChoice::Auto, 1, None);
        let gateway = &opened.gateway;
        let vdi = vdi(gateway);
        // 64 writers of 64 bytes each into the same block, all at once.
        all((0..64).map(|i| vdi.write(8192 + i * 64, Bytes::from(vec![i as u8 + 1; 64]))))
            .await
            .expect("written");
        let bytes = flat(&vdi.read(8192, 4096).await.expect("read"));
        for (i, part) in bytes.chunks(64).enumerate() {
            assert_eq!(part, [i as u8 + 1; 64], "part {i}");
        }
    });
}

#[test]
fn a_sweep_gives_everything_back() {
    let dir = tempfile::tempdir().expect("directory");
    run(async || {
        let opened = open(&dir.path().join("store"), EngineChoice::Auto, 1, None);
        let gateway = &opened.gateway;
        let vdi = vdi(gateway);
        // The first checkpoint gets the space that is kept for the index.
        opened.checkpoint().await;
        let empty = opened.used();
        vdi.write(1 << 20, Bytes::from(vec![7; 9 << 20])).await.expect("written");
        assert!(opened.used() >= empty + (9 << 20));
        let seen = RefCell::new(Vec::new());
        let (lineage, vid) = (LineageId(9), Vid::new(5).expect("in range"));
        gateway
            .sweep(lineage, vid, |done, total| {
                seen.borrow_mut().push((done, total));
            })
            .await
            .expect("swept");
        assert_eq!(*seen.borrow(), [(0, 3), (3, 3)]);
        assert_eq!(gateway.disks().fragments(lineage), []);
        // Twice: the second checkpoint gives back the pages of the first.
        for _ in 0..2 {
            opened.checkpoint().await;
        }
        let used = opened.used();
        assert!(used <= empty + (512 << 10), "{used} bytes are still held");
        let read = vdi.read(0, SIZE as u32).await.expect("read");
        let kinds: Vec<_> = read.iter().map(|s| (s.kind(), s.len())).collect();
        assert_eq!(kinds, [(MapKind::Hole, SIZE)]);
    });
}

/// What lies on the lost disk is an error and never a hole; the rest is served.
#[test]
fn a_lost_disk_takes_only_its_fragments() {
    let dir = tempfile::tempdir().expect("directory");
    let dir = dir.path().join("store");
    let bytes = |fragment: u64| Bytes::from(vec![fragment as u8 + 1; 4 << 20]);
    let all_of = |n: u64| (n << 22, (4 << 20).min(SIZE - (n << 22)) as u32);
    let place = |opened: &Opened, number| {
        let id = FragmentId { lineage: LineageId(9), number };
        opened.gateway.disks().of(id).is_ok()
    };
    run(async || {
        let opened = open(&dir, EngineChoice::Auto, 1, None);
        let vdi = vdi(&opened.gateway);
        for number in 0..3 {
            let (offset, len) = all_of(number);
            vdi.write(offset, bytes(number).slice(..len as usize)).await.expect("written");
        }
    });
    let mut lost_fragments = 0;
    for (interval, lost) in [(2, 0), (3, 1)] {
        run(async || {
            let opened = open(&dir, EngineChoice::Auto, interval, Some(lost));
            let vdi = vdi(&opened.gateway);
            for number in 0..3 {
                let (offset, len) = all_of(number);
                if place(&opened, number) {
                    let read = vdi.read(offset, len).await.expect("there");
                    assert!(flat(&read) == bytes(number)[..len as usize]);
                    let map = vdi.map(offset, u64::from(len)).await.expect("there");
                    assert_eq!(map, [MapExtent { len: len.into(), kind: MapKind::Data }]);
                    continue;
                }
                lost_fragments += 1;
                let path = dir.join(lost.to_string());
                let want = format!("I/O error: the disk {} is lost: it fell", path.display());
                let errors = [
                    vdi.read(offset, 4096).await.expect_err("lost"),
                    vdi.write(offset, Bytes::from(vec![9; 4096])).await.expect_err("lost"),
                    vdi.write_zeroes(offset, 4096, ZeroMode::Discard).await.expect_err("lost"),
                    vdi.map(offset, u64::from(len)).await.expect_err("lost"),
                ];
                for error in errors {
                    assert_eq!(error.full(), want);
                }
            }
            let sweep =
                opened.gateway.sweep(LineageId(9), Vid::new(77).expect("in range"), |_, _| {});
            assert_eq!(sweep.await.expect_err("not all").kind(), ErrorKind::Io);
        });
    }
    assert_eq!(lost_fragments, 3, "each fragment is on one of the two");
    run(async || {
        let opened = open(&dir, EngineChoice::Auto, 4, None);
        let read = vdi(&opened.gateway).read(0, SIZE as u32).await.expect("read");
        let want: Vec<u8> =
            (0..3).flat_map(|n| bytes(n)[..all_of(n).1 as usize].to_vec()).collect();
        assert!(flat(&read) == want, "both are back, and nothing was changed meanwhile");
    });
}
