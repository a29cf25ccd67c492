//! A whole store with changed bytes: opened, looked at and, if only rot was in it, used. Rot is never
//! taken for data.
#![no_main]

use sheepdog_fuzz::disk::{BLOCKS, FRAGMENTS, LIMITS, Made, VID, block, fragment, whole};
use sheepdog_fuzz::input::Input;
use sheepdog_fuzz::meter::bounded;
use sheepdog_storelog::{Answer, Command, Piece};
use sheepdog_types::{BLOCK_SIZE, ErrorKind, Interval, PageBuf, Version};
use std::sync::LazyLock;

sheepdog_fuzz::target!(seeds, run);

static MADE: LazyLock<Made> = LazyLock::new(Made::new);

/// First byte of an input: checksums are made right again; opening goes on over damage.
const SEALED: u8 = 1;
const SALVAGE: u8 = 2;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0], vec![SALVAGE], vec![SEALED]];
    let structures = MADE.places.len() + MADE.batches.len();
    for which in 0..structures as u8 {
        for mode in [SEALED, SALVAGE, SEALED | SALVAGE] {
            // Somewhere in the body.
            seeds.push(vec![mode, which, 20, 0, 1, 9]);
        }
    }
    seeds
}

/// Behind the first byte: which structure, where in it, how many bytes, and those; again and again.
fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let made = &*MADE;
    let mut disk = made.disk.clone();
    // Which batches were touched at all: the newest of them may be taken for torn.
    let mut torn_from = None;
    while !input.is_empty() {
        let which = usize::from(input.u8()) % (made.places.len() + made.batches.len());
        let at = usize::from(input.u16());
        let count = usize::from(input.u8() % 16);
        let bytes = input.take(count);
        let place = if let Some((from, len)) = made.places.get(which) {
            disk.data.get_mut(*from..from + len)
        } else {
            let batch = which - made.places.len();
            torn_from = Some(torn_from.unwrap_or(batch).min(batch));
            let (from, len) = made.batches[batch];
            disk.log.get_mut(from..from + len)
        };
        let Some(place) = place.filter(|place| !place.is_empty()) else {
            continue;
        };
        let at = at % place.len();
        for (byte, new) in place[at..].iter_mut().zip(bytes) {
            *byte = *new;
        }
    }
    let (sealed, salvage) = (mode & SEALED != 0, mode & SALVAGE != 0);
    if sealed {
        disk.reseal(made);
    }
    bounded(48 << 20, || {
        let mut disk = disk;
        let mut store = match disk.open(salvage) {
            Ok((store, _)) => store,
            Err(error) => {
                let kinds = [ErrorKind::Io, ErrorKind::VersionMismatch];
                assert!(kinds.contains(&error.kind()), "{}", error.full());
                assert!(!error.full().contains(char::is_control));
                return;
            }
        };
        let last = made.batches.len() - 1;
        for number in 0..FRAGMENTS {
            let answer = disk.look(&mut store, whole(number)).expect("an answer");
            // A wrong number with a right checksum cannot be told from a right one; rot can.
            if !sealed && let Ok(answer) = answer {
                let exact = torn_from.is_none_or(|from| from > last) && !salvage;
                check(number as usize, &answer, exact);
            }
        }
        // Books with right checksums that contradict each other end a running store: going on could
        // only do harm.
        if !salvage && !sealed {
            work(&mut disk, &mut store);
        }
    });
}

/// Blocks hold what was written last, or, where the end of the log may be torn or damage was left
/// out, something that was written once.
fn check(number: usize, answer: &Answer, exact: bool) {
    let Answer::Data(pieces) = answer else {
        panic!("no answer to a read");
    };
    let mut at = 0;
    for piece in pieces {
        match piece {
            Piece::Data(bytes) => {
                for bytes in bytes.chunks(BLOCK_SIZE) {
                    let history = &MADE.history[number][at];
                    let known = match exact {
                        true => &history[history.len() - 1..],
                        false => &history[..],
                    };
                    assert!(known.iter().any(|value| *bytes == block(*value)), "wrong data");
                    at += 1;
                }
            }
            Piece::Reserved(count) | Piece::Zero(count) | Piece::Hole(count) => {
                for _ in 0..*count {
                    let history = &MADE.history[number][at];
                    assert!(!exact || history.last() == Some(&0), "lost data");
                    at += 1;
                }
            }
        }
    }
    assert_eq!(at, BLOCKS as usize);
}

/// Whatever was in it, an opened store takes writes or refuses them.
fn work(disk: &mut sheepdog_fuzz::disk::Disk, store: &mut sheepdog_storelog::Store) {
    let version = Version { interval: Interval(u64::MAX), seq: 1 };
    let data = vec![PageBuf::copy_of(&block(77).repeat(3)).freeze()];
    let start = LIMITS.extent_blocks_min;
    let (fragment, vid) = (fragment(1), VID);
    let write = Command::Write { fragment, vid, version, start, data, request: None };
    let written = disk.ask(store, write);
    let _ = disk.ask(store, Command::Checkpoint);
    if let Some(Ok(_)) = written
        && let Some(Ok(Answer::Data(pieces))) = disk.ask(store, whole(1))
    {
        let blocks: usize = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Data(bytes) => bytes.len() / BLOCK_SIZE,
                Piece::Reserved(count) | Piece::Zero(count) | Piece::Hole(count) => *count as usize,
            })
            .sum();
        assert_eq!(blocks, BLOCKS as usize);
    }
}
