//! Requests to the NBD door: the whole door with a disk in memory, judged by a client that keeps a
//! disk of its own.
#![no_main]

use sheepdog_fuzz::meter::bounded;
use sheepdog_fuzz::nbd::protocol::{
    ACK, EXPORT_NAME, FAILED, GO, SET_META_CONTEXT, STRUCTURED_REPLY, Said, option, request, string,
};
use sheepdog_fuzz::nbd::transmission::{Agreed, asked, judge, numbered};
use sheepdog_fuzz::nbd::{MEMORY, disk, talk};

sheepdog_fuzz::target!(seeds, run);

/// First byte of an input: what is negotiated.
const STRUCTURED: u8 = 1;
const ALLOCATION: u8 = 2;
const READ_ONLY: u8 = 4;
const OLD_WAY: u8 = 8;

fn seeds() -> Vec<Vec<u8>> {
    let stream = [
        &request(0, 1, 0, 5000, 9000)[..],
        &[7; 9000],
        &request(0, 6, 0, 4096, 8192),
        &request(2, 6, 0, 12_288, 4096),
        &request(1, 4, 0, 0, 100),
        &request(0, 0, 0, 1000, 20_000),
        &request(4, 0, 0, 0, 4096),
        &request(0, 7, 0, 0, 80_000),
        &request(8, 7, 0, 10_000, 5000),
        &request(0, 3, 0, 0, 0),
        &request(0, 5, 0, 0, 512),
        &request(0, 1, 0, 1 << 40, 3),
        b"abc",
        &request(0, 9, 0, 0, 0),
        &request(0, 2, 0, 0, 0),
    ]
    .concat();
    let choices = [0, STRUCTURED, STRUCTURED | ALLOCATION, READ_ONLY, OLD_WAY, 7];
    choices.map(|choice| [&[choice], &stream[..]].concat()).to_vec()
}

fn run(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let has = |flag: u8| choice & flag != 0;
    let agreed = Agreed {
        structured: has(STRUCTURED),
        allocation: has(STRUCTURED) && has(ALLOCATION),
        read_only: has(READ_ONLY),
    };
    let name =
        if agreed.read_only { format!("{}@snap", disk::NAME) } else { disk::NAME.to_owned() };
    let mut stream = 3_u32.to_be_bytes().to_vec();
    let mut options = Vec::new();
    if agreed.structured {
        options.push((STRUCTURED_REPLY, Vec::new()));
    }
    if agreed.allocation {
        let query = [string(&name), vec![0, 0, 0, 1], string("base:allocation")].concat();
        options.push((SET_META_CONTEXT, query));
    }
    if has(OLD_WAY) {
        options.push((EXPORT_NAME, name.into_bytes()));
    } else {
        options.push((GO, [string(&name), vec![0, 0]].concat()));
    }
    options.iter().for_each(|(number, data)| stream.extend(option(*number, data)));
    let requests = numbered(bytes);
    stream.extend(&requests);
    let asked = asked(&requests);
    // What was said is kept here until it is judged; a vector doubles.
    let most = MEMORY + 2 * stream.len();
    let (said, after) = bounded(most + 3 * answers_at_most(asked.len()), || talk(&stream));
    let mut said = Said::new(&said);
    said.greeting();
    for (number, _) in &options {
        if *number == EXPORT_NAME {
            assert_eq!(said.u64(), disk::SIZE as u64);
            said.u16();
            continue;
        }
        loop {
            let (kind, _) = said.option_reply(*number);
            assert_eq!(kind & FAILED, 0);
            if kind == ACK {
                break;
            }
        }
    }
    judge(&asked, agreed, said, &after);
}

fn answers_at_most(requests: usize) -> usize {
    requests * (sheepdog_fuzz::nbd::REQUEST_BYTES as usize + 4096)
}
