//! Reads that fail: by block, and the disk goes on.

use sheepdog_testkit::Server;
use sheepdog_testkit::broken::{EIO, Patient, patient};
use sheepdog_testkit::brokenfs::{BrokenFs, Fault, Mode, Op};
use sheepdog_testkit::nbd::Command;
use sheepdog_testkit::rng::Rng;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;

/// A sheep with a VDI full of bytes that are only on its disk.
fn full_patient(mode: Mode) -> Option<(BrokenFs, Patient, Vec<u8>)> {
    let (disk, mut patient) = patient(mode, BLOCKS)?;
    let mut content = vec![0; BLOCKS as usize * BLOCK];
    Rng::new(7).fill(&mut content);
    let mut client = patient.client();
    for (at, part) in content.chunks(1 << 20).enumerate() {
        client.write((at as u64) << 20, part).expect("write");
    }
    // Everything home, nothing in memory.
    assert!(patient.end().success());
    patient.sheep.start();
    Some((disk, patient, content))
}

#[test]
fn an_error_of_a_read_is_told_once_and_passes() {
    for mode in Mode::ALL {
        let Some((disk, mut patient, content)) = full_patient(mode) else {
            return;
        };
        let mut client = patient.client();
        // The page of the index that says where the bytes are is wanted first.
        for spared in [0, 1] {
            let fault = Fault::eio().on("data").ops(&[Op::Read]).after(spared).times(1);
            let broken = disk.inject(fault);
            let at = 17 * BLOCK + spared as usize * (BLOCKS as usize / 2) * BLOCK;
            let mut told = 0;
            for tries in 0.. {
                if broken.hits() > 0 {
                    break;
                }
                assert!(tries < 10, "{mode:?}: the fault never comes");
                disk.forget("store/data");
                let read = client.call(Command::Read, 0, at as u64, 4096, &[]).expect("an answer");
                match read.error {
                    0 => assert!(read.data == content[at..at + BLOCK], "wrong bytes"),
                    error => {
                        assert_eq!(error, EIO);
                        told += 1;
                    }
                }
            }
            // The page cache tries a single page again.
            assert!(told == 1 || mode == Mode::Cached, "{mode:?}: told {told} times");
            drop(broken);
            let len = content.len() as u32;
            assert!(client.read(0, len).expect("it has passed") == content);
            if told == 1 {
                patient.wait_for_word("Input/output error");
            }
        }
        client.write(0, &content[..BLOCK]).expect("the disk goes on");
        assert!(!patient.said().contains("failed"), "{}", patient.said());
        patient.assert_alive();
        assert!(patient.end().success());
    }
}

#[test]
fn a_bad_region_costs_its_blocks_and_no_others() {
    for mode in Mode::ALL {
        let Some((disk, mut patient, content)) = full_patient(mode) else {
            return;
        };
        let bytes = std::fs::read(disk.backing().join("store/data")).expect("the data file");
        let home = |block: usize| {
            let wanted = &content[block * BLOCK..][..BLOCK];
            let found = bytes.chunks(BLOCK).position(|there| there == wanted);
            (found.expect("it is at home") * BLOCK) as u64
        };
        let bad: Vec<usize> = vec![3, 16, 700];
        let broken: Vec<_> = bad
            .iter()
            .map(|block| {
                let region = home(*block)..home(*block) + 1;
                disk.inject(Fault::eio().on("data").ops(&[Op::Read]).region(region))
            })
            .collect();
        let mut client = patient.client();
        disk.forget("store/data");
        for pass in 0..2 {
            for (block, wanted) in content.chunks(BLOCK).enumerate() {
                let at = (block * BLOCK) as u64;
                let read = client.call(Command::Read, 0, at, BLOCK as u32, &[]).expect("an answer");
                if bad.contains(&block) {
                    assert_eq!(read.error, EIO, "{mode:?}, pass {pass}, block {block}");
                } else {
                    assert_eq!(read.error, 0, "{mode:?}, pass {pass}, block {block}");
                    assert!(read.data == wanted, "{mode:?}, pass {pass}, block {block}");
                }
            }
        }
        // A part of a bad block cannot be replaced, as the rest of it is not known; all of it can.
        let part =
            client.call(Command::Write, 0, 3 * BLOCK as u64, 7, b"partial").expect("an answer");
        assert_eq!(part.error, EIO, "{mode:?}");
        client.write(3 * BLOCK as u64, &content[..BLOCK]).expect("write");
        assert!(client.read(3 * BLOCK as u64, BLOCK as u32).expect("read") == content[..BLOCK]);
        let dog = patient.sheep.dog().run(&["vdi", "read", "disk"]);
        assert_ne!(dog.code, 0, "dog read bad blocks");
        assert!(broken.iter().all(|broken| broken.hits() > 0));
        patient.assert_alive();
        drop(broken);
        assert!(patient.end().success());
        patient.sheep.start();
        let mut wanted = content.clone();
        wanted.copy_within(..BLOCK, 3 * BLOCK);
        let found = patient.client().read(0, content.len() as u32).expect("read");
        assert!(found == wanted, "{mode:?}: the partial write or something else happened");
    }
}
