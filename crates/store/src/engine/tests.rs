//! One suite for both engines: bytes, sizes, space, errors, bounds.

use super::*;
use crate::files::StoreLock;
use proptest::prelude::*;
use sheepdog_storelog::io::{DiskError, DiskErrorKind};
use sheepdog_testkit::shown::assert_same;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const PAGE: u64 = 4096;
const LOG_BYTES: u64 = 1 << 20;

/// An engine on a fresh store, and the answers by operation.
struct Bench {
    engine: Box<dyn Engine>,
    areas: Arc<Areas>,
    next: u64,
    dir: tempfile::TempDir,
}

/// `None` only where the kernel refuses the ring; `Auto` must fall back there, which
/// `auto_always_works` checks.
fn engine(choice: EngineChoice, areas: &Arc<Areas>) -> Option<Box<dyn Engine>> {
    match open_engine(areas, choice, DurableMethod::Dsync) {
        Ok(engine) => Some(engine),
        Err(e) if choice == EngineChoice::Ring => {
            eprintln!("SKIPPED: {}", e.full());
            None
        }
        Err(e) => panic!("{}", e.full()),
    }
}

impl Bench {
    fn new(choice: EngineChoice) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let files = StoreLock::take(dir.path()).unwrap().prepare(LOG_BYTES).unwrap();
        Some(Self { engine: engine(choice, &files.areas)?, areas: files.areas, next: 0, dir })
    }

    fn submit(&mut self, what: DiskOp) -> OpId {
        let op = OpId(self.next);
        self.next += 1;
        self.engine.submit(op, what);
        op
    }

    fn drain(&mut self) -> BTreeMap<OpId, Result<Bytes, DiskError>> {
        let mut out = Vec::new();
        drain(&mut *self.engine, &mut out).unwrap();
        let count = out.len();
        let map: BTreeMap<_, _> = out.into_iter().map(|c| (c.op, c.result)).collect();
        assert_eq!(map.len(), count, "an operation completed twice");
        map
    }

    fn run(&mut self, what: DiskOp) -> Result<Bytes, DiskError> {
        let op = self.submit(what);
        let mut done = self.drain();
        assert_eq!(done.len(), 1);
        done.remove(&op).expect("its own completion")
    }

    fn ok(&mut self, what: DiskOp) -> Bytes {
        self.run(what).unwrap()
    }

    fn data_path(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn data_len(&self) -> u64 {
        std::fs::metadata(self.data_path()).unwrap().len()
    }

    fn data_space(&mut self) -> u64 {
        self.ok(DiskOp::Sync { area: Area::Data });
        std::fs::metadata(self.data_path()).unwrap().blocks() * 512
    }
}

fn pages(byte: u8, count: usize) -> Bytes {
    PageBuf::copy_of(&vec![byte; count * PAGE as usize]).freeze()
}

fn read(area: Area, offset: u64, len: u64) -> DiskOp {
    DiskOp::Read { area, offset, len: len as usize }
}

fn write(area: Area, offset: u64, data: Vec<Bytes>) -> DiskOp {
    DiskOp::Write { area, offset, data, durable: false }
}

fn durable(area: Area, offset: u64, data: Vec<Bytes>) -> DiskOp {
    DiskOp::Write { area, offset, data, durable: true }
}

/// Each as a test with the ring and as one with blocking threads.
macro_rules! with_both {
    ($($name:ident,)*) => {
        mod ring {
            $(#[test] fn $name() { super::$name(super::EngineChoice::Ring); })*
        }
        mod blocking {
            $(#[test] fn $name() { super::$name(super::EngineChoice::Blocking); })*
        }
    };
}

with_both! {
    what_was_written_is_read_in_the_right_area,
    several_buffers_land_one_behind_the_other,
    more_buffers_than_one_call_takes,
    behind_the_end_there_are_zeros,
    empty_operations_complete,
    punching_gives_space_back_and_zeros,
    allocating_reserves_space_and_keeps_data,
    extending_never_cuts_anything_off,
    durable_writes_by_both_methods,
    many_more_operations_than_fit_the_kernel,
    failures_are_told_and_do_not_spread,
    a_full_disk_is_no_space,
    dropping_waits_for_what_runs_and_frees_all,
    tokio_waits_for_the_ready_fd,
    measuring_leaves_the_log_zero,
    what_waits_for_others_is_not_begun,
    like_a_vector_of_bytes,
}

#[test]
fn auto_always_works() {
    let mut bench = Bench::new(EngineChoice::Auto).unwrap();
    bench.ok(durable(Area::Log, 0, vec![pages(1, 1)]));
    assert!(["io_uring", "blocking threads"].contains(&bench.engine.name()));
}

fn what_was_written_is_read_in_the_right_area(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    b.ok(write(Area::Data, 8 * PAGE, vec![pages(1, 3)]));
    b.ok(write(Area::Log, 9 * PAGE, vec![pages(2, 1)]));
    assert_same(b.ok(read(Area::Data, 8 * PAGE, 3 * PAGE)), pages(1, 3));
    assert_same(b.ok(read(Area::Data, 7 * PAGE, PAGE)), pages(0, 1));
    assert_same(b.ok(read(Area::Log, 9 * PAGE, PAGE)), pages(2, 1));
    assert_same(b.ok(read(Area::Log, 8 * PAGE, PAGE)), pages(0, 1));
    let big = pages(3, 2048);
    b.ok(write(Area::Data, 0, vec![big.clone()]));
    assert_same(b.ok(read(Area::Data, 0, big.len() as u64)), &big);
    assert_eq!(b.data_len(), big.len() as u64);
}

fn several_buffers_land_one_behind_the_other(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    let data =
        vec![Bytes::new(), pages(1, 1), pages(2, 4), Bytes::new(), pages(3, 2), Bytes::new()];
    let whole: Vec<u8> = data.concat();
    b.ok(durable(Area::Log, 2 * PAGE, data));
    assert_same(b.ok(read(Area::Log, 2 * PAGE, 7 * PAGE)), whole);
    assert_same(b.ok(read(Area::Log, 9 * PAGE, PAGE)), pages(0, 1));
}

fn more_buffers_than_one_call_takes(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    let data: Vec<_> = (0..2500).map(|i| pages(i as u8, 1)).collect();
    let whole: Vec<u8> = data.concat();
    for (op, offset) in [(write as fn(_, _, _) -> _, 0), (durable, 3000 * PAGE)] {
        b.ok(op(Area::Data, offset, data.clone()));
        assert_same(b.ok(read(Area::Data, offset, whole.len() as u64)), &whole);
    }
    assert_eq!(b.data_len(), 5500 * PAGE);
}

fn behind_the_end_there_are_zeros(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    assert_same(b.ok(read(Area::Data, 1 << 40, 2 * PAGE)), pages(0, 2));
    b.ok(write(Area::Data, 0, vec![pages(7, 2)]));
    let straddling = b.ok(read(Area::Data, PAGE, 3 * PAGE));
    assert_same(straddling, [&pages(7, 1)[..], &pages(0, 2)[..]].concat());
    // Somebody cut the file at no boundary of ours.
    File::options().write(true).open(b.data_path()).unwrap().set_len(5000).unwrap();
    let odd = b.ok(read(Area::Data, 0, 3 * PAGE));
    assert_eq!(odd.len() as u64, 3 * PAGE);
    assert!(odd[..5000].iter().all(|b| *b == 7));
    assert!(odd[5000..].iter().all(|b| *b == 0));
}

fn empty_operations_complete(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    assert!(b.ok(read(Area::Data, 0, 0)).is_empty());
    b.ok(write(Area::Data, 0, vec![]));
    b.ok(durable(Area::Log, 0, vec![Bytes::new()]));
    b.ok(write(Area::Log, 0, vec![pages(1, 1)]));
    b.ok(durable(Area::Log, 0, vec![]));
    b.ok(DiskOp::Sync { area: Area::Log });
    assert_eq!(b.engine.in_flight(), 0);
    assert_eq!(b.data_len(), 0);
}

fn punching_gives_space_back_and_zeros(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    b.ok(write(Area::Data, 0, vec![pages(5, 512)]));
    let before = b.data_space();
    assert!(before >= 512 * PAGE);
    b.ok(DiskOp::Punch { offset: 128 * PAGE, len: 256 * PAGE });
    let after = b.data_space();
    assert!(after <= before - 200 * PAGE, "{before} -> {after}");
    assert_eq!(b.data_len(), 512 * PAGE);
    assert_same(b.ok(read(Area::Data, 127 * PAGE, PAGE)), pages(5, 1));
    assert_same(b.ok(read(Area::Data, 128 * PAGE, 256 * PAGE)), pages(0, 256));
    assert_same(b.ok(read(Area::Data, 384 * PAGE, PAGE)), pages(5, 1));
    // Over and behind the end: no longer than before.
    b.ok(DiskOp::Punch { offset: 500 * PAGE, len: 1000 * PAGE });
    assert_eq!(b.data_len(), 512 * PAGE);
    assert_same(b.ok(read(Area::Data, 500 * PAGE, 12 * PAGE)), pages(0, 12));
}

fn allocating_reserves_space_and_keeps_data(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    b.ok(DiskOp::Extend { len: 1024 * PAGE });
    b.ok(write(Area::Data, 10 * PAGE, vec![pages(9, 1)]));
    let before = b.data_space();
    b.ok(DiskOp::Allocate { offset: 0, len: 512 * PAGE });
    assert!(b.data_space() >= before.max(512 * PAGE));
    assert_eq!(b.data_len(), 1024 * PAGE);
    assert_same(b.ok(read(Area::Data, 10 * PAGE, PAGE)), pages(9, 1));
    assert_same(b.ok(read(Area::Data, 11 * PAGE, 501 * PAGE)), pages(0, 501));
}

fn extending_never_cuts_anything_off(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    b.ok(DiskOp::Extend { len: 8 * PAGE });
    assert_eq!(b.data_len(), 8 * PAGE);
    b.ok(DiskOp::Extend { len: 4 * PAGE });
    assert_eq!(b.data_len(), 8 * PAGE);
    // All at once, in any order: the writes reach further than the extensions.
    for round in 0..50u64 {
        let base = (16 + 64 * round) * PAGE;
        for i in 0..8 {
            let end = base + i * 4 * PAGE;
            b.submit(write(Area::Data, end, vec![pages(1 + i as u8, 1)]));
            b.submit(DiskOp::Extend { len: end - PAGE });
            b.engine.kick().unwrap();
        }
        assert!(b.drain().values().all(Result::is_ok));
        for i in 0..8 {
            let page = b.ok(read(Area::Data, base + i * 4 * PAGE, PAGE));
            assert_eq!(page, pages(1 + i as u8, 1));
        }
    }
    let text = b.run(DiskOp::Extend { len: u64::MAX }).unwrap_err().text;
    assert!(text.starts_with("extend data: "), "{text}");
}

fn durable_writes_by_both_methods(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    for (i, method) in
        [DurableMethod::Dsync, DurableMethod::Flush, DurableMethod::Dsync].into_iter().enumerate()
    {
        b.engine.set_durable_method(method);
        for area in [Area::Log, Area::Data] {
            let offset = i as u64 * 16 * PAGE;
            b.ok(write(area, offset, vec![pages(1, 1)]));
            b.ok(durable(area, offset + PAGE, vec![pages(2, 1), pages(3, 1)]));
            b.ok(durable(area, offset + 3 * PAGE, vec![pages(4, 1)]));
            let whole = [1, 2, 3, 4].map(|byte| pages(byte, 1)).concat();
            assert_same(b.ok(read(area, offset, 4 * PAGE)), whole);
        }
    }
}

fn many_more_operations_than_fit_the_kernel(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    const COUNT: u64 = 1500;
    for i in 0..COUNT {
        // Every page once, in no order.
        let page = i * 7919 % COUNT;
        b.submit(write(Area::Data, page * PAGE, vec![pages(page as u8, 1)]));
    }
    assert_eq!(b.engine.in_flight(), COUNT as usize);
    let done = b.drain();
    assert_eq!(done.len(), COUNT as usize);
    assert!(done.values().all(Result::is_ok));
    let ops: Vec<_> = (0..COUNT)
        .map(|i| {
            let page = i * 6007 % COUNT;
            (page, b.submit(read(Area::Data, page * PAGE, PAGE)))
        })
        .collect();
    let done = b.drain();
    for (page, op) in ops {
        assert_eq!(done[&op], Ok(pages(page as u8, 1)));
    }
}

/// Areas whose data file may only be written and whose log may only be read.
fn one_way_areas(dir: &Path) -> Arc<Areas> {
    let (data, log) = (dir.join("one-way-data"), dir.join("one-way-log"));
    std::fs::write(&data, [0; 8192]).unwrap();
    std::fs::write(&log, [0; 8192]).unwrap();
    let data = OpenOptions::new().write(true).open(data).unwrap();
    Arc::new(Areas::new(data, File::open(log).unwrap()).unwrap())
}

fn failures_are_told_and_do_not_spread(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    if b.areas.is_direct() {
        let text = b.run(read(Area::Data, 7, PAGE)).unwrap_or_default();
        assert!(text.iter().all(|b| *b == 0), "an empty file may answer before it checks");
        let error = b.run(write(Area::Log, 7, vec![pages(1, 1)])).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::Io);
        assert!(error.text.starts_with("write log at 7: "), "{}", error.text);
    }
    let areas = one_way_areas(b.dir.path());
    b.engine = engine(choice, &areas).unwrap();
    let good = b.submit(write(Area::Data, 0, vec![pages(1, 1)]));
    let bad_read = b.submit(read(Area::Data, PAGE, PAGE));
    let bad_write = b.submit(write(Area::Log, PAGE, vec![pages(1, 1)]));
    let bad_both = b.submit(durable(Area::Log, 0, vec![pages(1, 1), pages(2, 1)]));
    let also_good = b.submit(read(Area::Log, 0, PAGE));
    let done = b.drain();
    assert!(done[&good].is_ok());
    assert_eq!(done[&also_good], Ok(pages(0, 1)));
    for (op, text) in [
        (bad_read, "read data at 4096: "),
        (bad_write, "write log at 4096: "),
        (bad_both, "write log at 0: "),
    ] {
        let error = done[&op].clone().unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::Io);
        assert!(error.text.starts_with(text), "{}", error.text);
    }
    assert_eq!(b.engine.in_flight(), 0);
}

fn a_full_disk_is_no_space(choice: EngineChoice) {
    let full = || OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let areas = Arc::new(Areas::new(full(), full()).unwrap());
    let Some(engine) = engine(choice, &areas) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut b = Bench { engine, areas, next: 0, dir };
    // The device knows no flags of writes.
    b.engine.set_durable_method(DurableMethod::Flush);
    for what in [
        write(Area::Data, 0, vec![pages(1, 1)]),
        durable(Area::Log, 0, vec![pages(1, 1), pages(1, 1)]),
    ] {
        let error = b.run(what).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::NoSpace, "{}", error.text);
    }
}

/// A buffer whose release can be seen.
struct Watched(PageBuf, #[expect(dead_code)] Arc<()>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

fn dropping_waits_for_what_runs_and_frees_all(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    let watch = Arc::new(());
    let old = pages(1, 16);
    for i in 0..400 {
        b.submit(write(Area::Data, i * 16 * PAGE, vec![old.clone()]));
    }
    b.drain();
    for i in 0..400 {
        let mut new = PageBuf::zeroed(old.len());
        new.as_mut().fill(2);
        let new = Bytes::from_owner(Watched(new, Arc::clone(&watch)));
        let pieces = vec![new.slice(..PAGE as usize), new.slice(PAGE as usize..)];
        b.submit(durable(Area::Data, i * 16 * PAGE, pieces));
        b.submit(read(Area::Data, i * 16 * PAGE, 16 * PAGE));
        if i == 200 {
            b.engine.kick().unwrap();
        }
    }
    assert!(Arc::strong_count(&watch) > 1);
    let path = b.data_path();
    let Bench { engine, dir, .. } = b;
    drop(engine);
    assert_eq!(Arc::strong_count(&watch), 1, "a buffer outlived its engine");
    // Nothing writes any more: two looks are the same, and every page is an old or a new one.
    let bytes = std::fs::read(&path).unwrap();
    assert_same(&bytes, std::fs::read(&path).unwrap());
    for page in bytes.chunks(PAGE as usize) {
        assert!(page.iter().all(|b| *b == page[0]) && [1, 2].contains(&page[0]));
    }
    drop(dir);
}

fn tokio_waits_for_the_ready_fd(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let ready = crate::Ready::new(&*b.engine).unwrap();
        let (mut out, mut started) = (Vec::new(), 0u64);
        const COUNT: u64 = 600;
        while out.len() < COUNT as usize {
            // Depth 1 first, then 32.
            let depth = if started < 200 { 1 } else { 32 };
            while started < COUNT && b.engine.in_flight() < depth {
                let offset = started % 256 * PAGE;
                let what = match started % 3 {
                    0 => read(Area::Log, offset, PAGE),
                    1 => durable(Area::Log, offset, vec![pages(4, 1)]),
                    _ => DiskOp::Sync { area: Area::Data },
                };
                b.submit(what);
                started += 1;
            }
            b.engine.kick().unwrap();
            ready.wait().await.unwrap();
            b.engine.reap(&mut out);
        }
        assert!(out.iter().all(|c| c.result.is_ok()));
    });
    assert_eq!(b.engine.in_flight(), 0);
}

fn what_waits_for_others_is_not_begun(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    assert_eq!(b.engine.begun(), None);
    // More than both engines hand over at once.
    let last = (0..1000).map(|_| b.submit(read(Area::Log, 0, PAGE))).last();
    assert_eq!(b.engine.begun(), None, "nothing is handed over yet");
    b.engine.kick().unwrap();
    if choice == EngineChoice::Ring {
        assert_eq!(b.engine.begun(), Some(OpId(255)), "the kernel has as many as it takes");
    }
    assert_eq!(b.drain().len(), 1000);
    assert_eq!(b.engine.begun(), last);
}

fn measuring_leaves_the_log_zero(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    let measured = measure_durable(&mut *b.engine, 4096, LOG_BYTES).unwrap();
    assert!(measured.dsync > Duration::ZERO && measured.flush > Duration::ZERO);
    if measured.method == DurableMethod::Flush {
        assert!(measured.flush < measured.dsync);
    }
    let log = b.ok(read(Area::Log, 0, LOG_BYTES));
    assert!(log.iter().all(|byte| *byte == 0));
    assert_eq!(std::fs::metadata(b.dir.path().join("log")).unwrap().len(), LOG_BYTES);
}

/// Pages the model covers.
const MODEL: u64 = 64;

fn any_op() -> impl Strategy<Value = DiskOp> {
    let area = prop_oneof![Just(Area::Data), Just(Area::Log)];
    let range = (0..MODEL, 0..MODEL).prop_map(|(a, b)| (a.min(b), a.max(b) + 1));
    let offset_len = range.prop_map(|(a, b)| (a * PAGE, (b - a) * PAGE));
    let buffers = proptest::collection::vec((any::<u8>(), 0usize..5), 0..6);
    prop_oneof![
        4 => (area.clone(), 0..MODEL, buffers, any::<bool>()).prop_map(
            |(area, page, buffers, durable)| DiskOp::Write {
                area,
                offset: page * PAGE,
                data: buffers.into_iter().map(|(byte, n)| pages(byte, n)).collect(),
                durable,
            }
        ),
        3 => (area.clone(), offset_len.clone()).prop_map(|(area, (offset, len))| read(area, offset, len)),
        1 => area.prop_map(|area| DiskOp::Sync { area }),
        1 => offset_len.clone().prop_map(|(offset, len)| DiskOp::Punch { offset, len }),
        1 => offset_len.prop_map(|(offset, len)| DiskOp::Allocate { offset, len }),
        1 => (1..MODEL).prop_map(|pages| DiskOp::Extend { len: pages * PAGE }),
    ]
}

/// Each operation alone, against what two vectors of bytes would do.
fn like_a_vector_of_bytes(choice: EngineChoice) {
    let Some(mut b) = Bench::new(choice) else {
        return;
    };
    let config =
        ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    let ops = proptest::collection::vec(any_op(), 1..40);
    let bench = std::cell::RefCell::new(&mut b);
    proptest!(config, |(ops in ops)| {
        let b = &mut **bench.borrow_mut();
        // A clean disk for every case.
        let room = (MODEL + 32) * PAGE;
        let data = File::options().write(true).open(b.data_path()).unwrap();
        data.set_len(0).unwrap();
        b.engine = engine(choice, &b.areas).unwrap();
        b.ok(write(Area::Log, 0, vec![pages(0, room as usize / 4096)]));
        let mut model = [vec![0u8; room as usize], vec![0u8; room as usize]];
        let mut data_len = 0;
        for what in ops {
            let result = b.ok(what.clone());
            match what {
                DiskOp::Read { area, offset, len } => {
                    let at = offset as usize;
                    assert_same(&result, &model[area as usize][at..at + len]);
                    continue;
                }
                DiskOp::Write { area, offset, data, .. } => {
                    let bytes = data.concat();
                    let at = offset as usize;
                    model[area as usize][at..at + bytes.len()].copy_from_slice(&bytes);
                    if area == Area::Data && !bytes.is_empty() {
                        data_len = data_len.max(offset + bytes.len() as u64);
                    }
                }
                DiskOp::Punch { offset, len } => {
                    model[0][offset as usize..(offset + len) as usize].fill(0);
                }
                DiskOp::Extend { len } => data_len = data_len.max(len),
                DiskOp::Allocate { .. } | DiskOp::Sync { .. } => {}
            }
            prop_assert!(result.is_empty());
            prop_assert_eq!(b.data_len(), data_len);
        }
        for area in [Area::Data, Area::Log] {
            assert_same(b.ok(read(area, 0, room)), &model[area as usize]);
        }
        // And what the file says without us.
        let mut file = vec![0; data_len as usize];
        b.ok(DiskOp::Sync { area: Area::Data });
        File::open(b.data_path()).unwrap().read_exact_at(&mut file, 0).unwrap();
        assert_same(&file, &model[0][..data_len as usize]);
    });
}
