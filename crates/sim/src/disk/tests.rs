use super::*;
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_SIZE as u64;
const HOST: Host = Host(0);

struct Bench {
    queue: Queue<Step>,
    disk: Disk,
    next: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let disk = Disk::new(0, HOST, Rng::new(seed));
        Self { queue: Queue::new(), disk, next: 0 }
    }

    fn submit(&mut self, op: DiskOp) -> OpId {
        self.next += 1;
        self.disk.submit(&mut self.queue, OpId(self.next), op);
        OpId(self.next)
    }

    fn drain(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        while let Some(due) = self.queue.next() {
            done.extend(self.disk.complete(due.event));
        }
        done
    }

    fn run(&mut self, op: DiskOp) -> Result<Bytes, DiskErrorKind> {
        let id = self.submit(op);
        let done = self.drain();
        let completion = done.into_iter().find(|completion| completion.op == id);
        completion.expect("it completes").result.map_err(|error| error.kind)
    }

    fn write(&mut self, area: Area, block: u64, fill: u8) -> Result<Bytes, DiskErrorKind> {
        self.run(write(area, block, fill, false))
    }

    fn byte(&self, block: u64) -> u8 {
        self.disk.peek(Area::Data, block * BLOCK, BLOCK_SIZE)[0]
    }
}

fn write(area: Area, block: u64, fill: u8, durable: bool) -> DiskOp {
    let data = vec![Bytes::from(vec![fill; BLOCK_SIZE])];
    DiskOp::Write { area, offset: block * BLOCK, data, durable }
}

fn sync(area: Area) -> DiskOp {
    DiskOp::Sync { area }
}

#[test]
fn only_what_was_flushed_survives_a_power_loss_for_sure() {
    let mut fates = BTreeMap::<&str, u32>::new();
    for seed in 0..300 {
        let mut bench = Bench::new(seed);
        bench.write(Area::Data, 0, 1).expect("written");
        bench.write(Area::Log, 0, 2).expect("written");
        bench.run(sync(Area::Data)).expect("flushed");
        bench.write(Area::Data, 1, 3).expect("written");
        bench.run(write(Area::Data, 2, 4, true)).expect("written");
        bench.submit(write(Area::Data, 3, 5, true));
        bench.disk.power_loss();
        assert!(bench.drain().is_empty(), "what was in flight is over");
        assert_eq!((bench.byte(0), bench.byte(2)), (1, 4), "seed {seed}");
        for (area, block, fill) in [(Area::Log, 0, 2), (Area::Data, 1, 3), (Area::Data, 3, 5)] {
            let bytes = bench.disk.peek(area, block * BLOCK, BLOCK_SIZE);
            for sector in bytes.chunks(SECTOR) {
                let fate = match sector {
                    s if s.iter().all(|byte| *byte == fill) => "new",
                    s if s.iter().all(|byte| *byte == 0) => "old",
                    _ => "garbage",
                };
                *fates.entry(fate).or_default() += 1;
            }
        }
    }
    assert!(fates["new"] > 1000 && fates["old"] > 1000 && fates["garbage"] > 50, "{fates:?}");
}

#[test]
fn something_older_does_not_come_over_a_durable_write() {
    for seed in 0..200 {
        let mut bench = Bench::new(seed);
        bench.write(Area::Data, 0, 1).expect("written");
        bench.run(write(Area::Data, 0, 2, true)).expect("written");
        bench.run(sync(Area::Log)).expect("flushed");
        if seed % 2 == 0 {
            bench.run(sync(Area::Data)).expect("flushed");
        }
        bench.disk.power_loss();
        assert_eq!(bench.byte(0), 2, "seed {seed}");
    }
}

#[test]
fn a_flush_covers_what_ended_before_it_began() {
    let mut lost = false;
    for seed in 0..200 {
        let mut bench = Bench::new(seed);
        bench.disk.settings.sync = Delay::exactly(1_000_000_000);
        bench.submit(sync(Area::Data));
        bench.write(Area::Data, 0, 1).expect("written, and the flush after it");
        bench.disk.power_loss();
        lost |= bench.byte(0) == 0;
    }
    assert!(lost);
}

#[test]
fn the_death_of_a_process_keeps_what_ended() {
    let mut parts = BTreeMap::<usize, u32>::new();
    for seed in 0..200 {
        let mut bench = Bench::new(seed);
        bench.write(Area::Data, 0, 1).expect("written");
        bench.submit(write(Area::Data, 1, 2, false));
        bench.disk.process_dies();
        assert!(bench.drain().is_empty());
        assert_eq!(bench.byte(0), 1);
        let bytes = bench.disk.peek(Area::Data, BLOCK, BLOCK_SIZE);
        let written = bytes.chunks(SECTOR).filter(|sector| sector[0] == 2).count();
        *parts.entry(written).or_default() += 1;
    }
    assert!(parts[&0] > 20 && parts[&8] > 50 && parts.len() > 5, "{parts:?}");
}

#[test]
fn faults_meet_what_they_say() {
    let planned = |wrong, reach| {
        let mut bench = Bench::new(9);
        for block in 0..40 {
            bench.write(Area::Data, block, 1).expect("no fault yet");
        }
        let at = bench.disk.ended() + 1;
        bench.disk.faults.planned = Some(Planned { at, wrong, reach });
        bench
    };
    let io = Wrong::Error(DiskErrorKind::Io);
    let mut once = planned(io, Reach::Once);
    let ends: Vec<bool> = (0..3).map(|_| once.write(Area::Data, 9, 2).is_ok()).collect();
    assert_eq!(ends, [true, false, true]);

    let mut always = planned(io, Reach::Always);
    always.write(Area::Log, 0, 2).expect("before");
    assert_eq!(always.write(Area::Log, 0, 2), Err(DiskErrorKind::Io));
    assert_eq!(always.run(sync(Area::Data)), Err(DiskErrorKind::Io));

    let mut region = planned(io, Reach::Region(Area::Data, 20 * BLOCK));
    region.write(Area::Log, 0, 2).expect("before");
    region.write(Area::Data, 3, 2).expect("elsewhere");
    region.write(Area::Log, 20, 2).expect("elsewhere");
    assert!(region.write(Area::Data, 17, 2).is_err() && region.write(Area::Data, 31, 2).is_err());
    region.write(Area::Data, 32, 2).expect("elsewhere");
    assert_eq!(region.disk.happened.of("disk: I/O error"), 2);

    let mut phantom = planned(Wrong::Phantom, Reach::Once);
    phantom.run(sync(Area::Data)).expect("before");
    phantom.write(Area::Data, 9, 2).expect("a lie");
    assert_eq!(phantom.byte(9), 1);

    let mut elsewhere = planned(Wrong::Misdirected, Reach::Once);
    elsewhere.run(sync(Area::Data)).expect("before");
    elsewhere.write(Area::Data, 9, 2).expect("a lie");
    assert_eq!(elsewhere.byte(9), 1);
    let landed = (0..41).filter(|block| elsewhere.byte(*block) == 2).count();
    assert_eq!(landed, 1);
}

#[test]
fn a_full_disk_refuses_what_is_new() {
    let mut bench = Bench::new(1);
    bench.write(Area::Data, 5, 1).expect("written");
    bench.disk.fill();
    assert_eq!(bench.disk.free_bytes(), 0);
    bench.write(Area::Data, 5, 2).expect("it has its place");
    bench.write(Area::Log, 5, 2).expect("the log has its place");
    assert_eq!(bench.write(Area::Data, 6, 2), Err(DiskErrorKind::NoSpace));
    bench.run(DiskOp::Punch { offset: 5 * BLOCK, len: BLOCK }).expect("punched");
    assert_eq!((bench.disk.held_bytes(), bench.byte(5)), (0, 0));
    bench.write(Area::Data, 6, 2).expect("there is room now");
}

#[test]
fn a_disk_that_hangs_goes_on_when_released() {
    let mut bench = Bench::new(1);
    bench.submit(write(Area::Data, 0, 1, false));
    bench.disk.hang();
    bench.submit(write(Area::Data, 1, 2, false));
    assert!(bench.drain().is_empty());
    assert_eq!((bench.byte(0), bench.disk.in_flight()), (0, 2));
    bench.disk.release(&mut bench.queue);
    assert_eq!(bench.drain().len(), 2);
    assert_eq!((bench.byte(0), bench.byte(1)), (1, 2));
}

#[test]
fn disks_rot_go_back_in_time_and_are_replaced() {
    let mut bench = Bench::new(1);
    for block in 0..4 {
        bench.write(Area::Data, block, 1).expect("written");
    }
    assert_eq!(bench.disk.rot(Area::Data, BLOCK..2 * BLOCK, 3), 3);
    let damaged = |bench: &Bench, block: u64| {
        let bytes = bench.disk.peek(Area::Data, block * BLOCK, BLOCK_SIZE);
        bytes.chunks(SECTOR).filter(|sector| sector.iter().any(|byte| *byte != 1)).count()
    };
    assert_eq!([0, 1, 2, 3].map(|block| damaged(&bench, block)), [0, 3, 0, 0]);
    let image = bench.disk.snapshot();
    bench.write(Area::Data, 0, 7).expect("written");
    bench.disk.restore(&image);
    assert_eq!((bench.byte(0), damaged(&bench, 1)), (1, 3));
    bench.disk.power_loss();
    assert_eq!(bench.byte(0), 1);
    bench.disk.wipe();
    assert_eq!((bench.byte(0), bench.disk.held_bytes()), (0, 0));
    assert_eq!(bench.disk.rot(Area::Data, 0..8 * BLOCK, 1), 0);
}

/// Reads of any size see the last bytes written, and after a power loss each sector holds what some
/// write since the last flush left, or what was there at that flush.
#[test]
fn bytes_are_those_of_a_plain_array() {
    const SECTORS: usize = 64;
    let mut garbage = 0;
    for seed in 0..200 {
        let mut rng = Rng::new(seed).fork("test");
        let mut bench = Bench::new(seed);
        let mut plain = [0_u8; SECTORS];
        let mut possible = [(); SECTORS].map(|()| BTreeSet::from([0]));
        for step in 0..150_u64 {
            let first = rng.index(SECTORS);
            let count = 1 + rng.index((SECTORS - first).min(20));
            let offset = (first * SECTOR) as u64;
            match rng.below(10) {
                0 => {
                    bench.run(sync(Area::Data)).expect("flushed");
                    possible = plain.map(|byte| BTreeSet::from([byte]));
                }
                1 => {
                    bench.disk.power_loss();
                    for sector in 0..SECTORS {
                        let bytes = bench.disk.peek(Area::Data, (sector * SECTOR) as u64, SECTOR);
                        let same = bytes.iter().all(|byte| *byte == bytes[0]);
                        if same {
                            assert!(possible[sector].contains(&bytes[0]), "seed {seed}");
                        } else {
                            garbage += 1;
                            bench.disk.damage(
                                Area::Data,
                                (sector * SECTOR) as u64,
                                vec![plain[sector]; SECTOR],
                            );
                        }
                        plain[sector] = if same { bytes[0] } else { plain[sector] };
                    }
                    possible = plain.map(|byte| BTreeSet::from([byte]));
                }
                2..5 => {
                    let len = count * SECTOR;
                    let read = DiskOp::Read { area: Area::Data, offset, len };
                    let bytes = bench.run(read).expect("read");
                    let seen: Vec<u8> = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
                    assert_eq!(seen, plain[first..first + count], "seed {seed}");
                }
                _ => {
                    let fill = step as u8 + 1;
                    let durable = rng.chance(30);
                    // In pieces, as the log writes.
                    let cut = rng.index(count + 1) * SECTOR;
                    let whole = Bytes::from(vec![fill; count * SECTOR]);
                    let data = vec![whole.slice(..cut), whole.slice(cut..)];
                    bench
                        .run(DiskOp::Write { area: Area::Data, offset, data, durable })
                        .expect("written");
                    for sector in first..first + count {
                        plain[sector] = fill;
                        if durable {
                            possible[sector].clear();
                        }
                        possible[sector].insert(fill);
                    }
                }
            }
        }
    }
    assert!(garbage > 50, "{garbage}");
}
