//! The data path of a VDI on real files against a vector of bytes.

use super::*;
use sheepdog_store::{DiskConfig, EngineChoice, StoreLock};
use sheepdog_storelog::Limits;
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

fn open(dir: &Path, engine: EngineChoice, interval: u64, fresh: bool) -> (StoreLock, Rc<Gateway>) {
    let store = StoreLock::take(dir).expect("lock");
    let files = if fresh { store.prepare(32 << 20) } else { store.open() }.expect("files");
    let (disk, _) = Disk::open(DiskConfig {
        dir: dir.to_owned(),
        files,
        engine,
        disk: DiskId([3; 16]),
        cluster: [4; 16],
        fresh,
        log_id: 77,
        limits: Limits { cache_bytes: 20_000, logged_bytes: 1 << 20, ..Limits::STANDARD },
    })
    .expect("opens");
    let gateway = Gateway::new(disk, Primary::new(Interval(interval)));
    (store, Rc::new(gateway))
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
            assert!(flat(&read) == model[from..to], "{from}..{to} differs");
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
            let (_lock, gateway) = open(&dir, engine, interval, interval == 1);
            let driver = tokio::task::spawn_local(gateway.disk().clone().run());
            let vdi = vdi(&gateway);
            let read = vdi.read(0, SIZE as u32).await.expect("read");
            assert!(flat(&read) == model, "after opening for the {interval}. time");
            for _ in 0..150 {
                one_step(&vdi, &mut model, &mut rng).await;
            }
            if interval == 2 {
                gateway.disk().command(Command::Checkpoint).await.expect("checkpoint");
            }
            driver.abort();
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
        let (_lock, gateway) = open(&dir.path().join("store"), EngineChoice::Auto, 1, true);
        let driver = tokio::task::spawn_local(gateway.disk().clone().run());
        let vdi = vdi(&gateway);
        // 64 writers of 64 bytes each into the same block, all at once.
        all((0..64).map(|i| vdi.write(8192 + i * 64, Bytes::from(vec![i as u8 + 1; 64]))))
            .await
            .expect("written");
        let bytes = flat(&vdi.read(8192, 4096).await.expect("read"));
        for (i, part) in bytes.chunks(64).enumerate() {
            assert_eq!(part, [i as u8 + 1; 64], "part {i}");
        }
        driver.abort();
    });
}

#[test]
fn a_sweep_gives_everything_back() {
    let dir = tempfile::tempdir().expect("directory");
    run(async || {
        let (_lock, gateway) = open(&dir.path().join("store"), EngineChoice::Auto, 1, true);
        let driver = tokio::task::spawn_local(gateway.disk().clone().run());
        let vdi = vdi(&gateway);
        // The first checkpoint gets the space that is kept for the index.
        gateway.disk().command(Command::Checkpoint).await.expect("checkpoint");
        let empty = gateway.disk().usage().used;
        vdi.write(1 << 20, Bytes::from(vec![7; 9 << 20])).await.expect("written");
        assert!(gateway.disk().usage().used >= empty + (9 << 20));
        let seen = RefCell::new(Vec::new());
        let (lineage, vid) = (LineageId(9), Vid::new(5).expect("in range"));
        gateway
            .sweep(lineage, vid, |done, total| {
                seen.borrow_mut().push((done, total));
            })
            .await
            .expect("swept");
        assert_eq!(*seen.borrow(), [(0, 3), (3, 3)]);
        assert_eq!(gateway.disk().fragments(lineage), []);
        // Twice: the second checkpoint gives back the pages of the first.
        for _ in 0..2 {
            gateway.disk().command(Command::Checkpoint).await.expect("checkpoint");
        }
        let used = gateway.disk().usage().used;
        assert!(used <= empty + (512 << 10), "{used} bytes are still held");
        let read = vdi.read(0, SIZE as u32).await.expect("read");
        assert_eq!(read, [Segment::Hole(SIZE)]);
        driver.abort();
    });
}
