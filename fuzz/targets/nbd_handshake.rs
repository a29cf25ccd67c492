//! The handshake of the NBD door: the whole door, judged by a client that knows which options it
//! sent.
#![no_main]

use sheepdog_fuzz::meter::bounded;
use sheepdog_fuzz::nbd::protocol::{
    ABORT, ACK, EXPORT_NAME, FAILED, GO, INFO, LIST, LIST_META_CONTEXT, OPTION, SET_META_CONTEXT,
    STRUCTURED_REPLY, Said, option, string,
};
use sheepdog_fuzz::nbd::{MEMORY, OPTION_BYTES, OPTIONS, disk, talk};

sheepdog_fuzz::target!(seeds, run);

const HEAD: usize = 16;

fn seeds() -> Vec<Vec<u8>> {
    let name = string("disk");
    let stream = |options: &[(u32, Vec<u8>)]| {
        let options = options.iter().map(|(number, data)| option(*number, data));
        [vec![1, 0, 0, 0, 3], options.collect::<Vec<_>>().concat()].concat()
    };
    let contexts = [&name[..], &[0, 0, 0, 2], &string("base:allocation"), &string("x:")].concat();
    let all = [&name[..], &[0, 0, 0, 0]].concat();
    let ask = [&name[..], &[0, 3, 0, 1, 0, 2, 0, 3]].concat();
    let snap = [&string("disk@snap")[..], &[0, 1, 0, 2]].concat();
    let none = [&string("half")[..], &[0, 0]].concat();
    vec![
        stream(&[(LIST, vec![]), (INFO, snap), (INFO, none), (GO, ask.clone())]),
        stream(&[
            (SET_META_CONTEXT, contexts.clone()),
            (STRUCTURED_REPLY, vec![]),
            (LIST_META_CONTEXT, all),
            (SET_META_CONTEXT, contexts),
            (GO, ask),
        ]),
        stream(&[(5, vec![]), (99, vec![1, 2, 3]), (LIST, vec![0; 700]), (ABORT, vec![])]),
        stream(&[(EXPORT_NAME, b"disk".to_vec())]),
        [vec![1, 0, 0, 0, 0], option(EXPORT_NAME, b"disk@snap")].concat(),
    ]
}

/// An option that the client sent.
struct Sent<'a> {
    number: u32,
    /// Its data, if it was sent whole.
    data: Option<&'a [u8]>,
    len: usize,
}

/// The first byte says whether options get their magic; the rest is the client's stream.
fn run(data: &[u8]) {
    let Some((repair, bytes)) = data.split_first() else {
        return;
    };
    let mut stream = bytes.to_vec();
    if *repair != 0 {
        let mut at = 4;
        while let Some(head) = stream.get_mut(at..at + HEAD) {
            head[..8].copy_from_slice(&OPTION.to_be_bytes());
            at = at.saturating_add(HEAD + Said::new(&head[12..]).u32() as usize);
        }
    }
    let (said, after) = bounded(MEMORY, || talk(&stream));
    assert!(after.bytes.iter().all(|byte| *byte == 0), "nothing was written");
    let mut said = Said::new(&said);
    said.greeting();
    let Some((flags, rest)) = stream.split_first_chunk::<4>() else {
        return assert!(said.is_empty());
    };
    let flags = u32::from_be_bytes(*flags);
    if flags & !3 != 0 {
        return assert!(said.is_empty(), "unknown flags");
    }
    let mut structured = false;
    for (count, sent) in options(rest).iter().enumerate() {
        let fixed = flags & 1 != 0;
        if count == OPTIONS || !fixed && sent.number != EXPORT_NAME {
            break;
        }
        if sent.number == EXPORT_NAME {
            return export_name(sent, flags, said);
        }
        if sent.data.is_none() && sent.len <= OPTION_BYTES {
            break;
        }
        if answers(sent, &mut said) {
            match sent.number {
                ABORT => break,
                // What follows are requests.
                GO => return,
                STRUCTURED_REPLY => structured = true,
                LIST_META_CONTEXT | SET_META_CONTEXT => assert!(structured),
                _ => {}
            }
        }
        if sent.data.is_none() || sent.len > 16 * OPTION_BYTES {
            break;
        }
    }
    assert!(said.is_empty(), "more than was asked for");
}

fn options(mut rest: &[u8]) -> Vec<Sent<'_>> {
    let mut all = Vec::new();
    while let Some((head, behind)) = rest.split_at_checked(HEAD) {
        let mut head = Said::new(head);
        if head.u64() != OPTION {
            break;
        }
        let (number, len) = (head.u32(), head.u32() as usize);
        let data = behind.split_at_checked(len);
        all.push(Sent { number, data: data.map(|(data, _)| data), len });
        match data {
            Some((_, behind)) => rest = behind,
            None => break,
        }
    }
    all
}

/// Reads all answers to one option; whether it was granted.
fn answers(sent: &Sent<'_>, said: &mut Said<'_>) -> bool {
    let mut size = None;
    let mut seen = 0;
    loop {
        let (kind, data) = said.option_reply(sent.number);
        if kind & FAILED != 0 {
            assert_eq!(seen, 0, "it is refused at once");
            return false;
        }
        assert!(sent.len <= OPTION_BYTES, "too long, and not refused");
        if kind == ACK {
            assert!(data.is_empty());
            assert_eq!(size.is_some(), matches!(sent.number, INFO | GO));
            return true;
        }
        seen += 1;
        assert!(seen <= 8, "answers without end");
        let mut data = Said::new(data);
        match (sent.number, kind) {
            (LIST, 2) => {
                let len = data.u32() as usize;
                assert!(std::str::from_utf8(data.take(len)).is_ok());
            }
            (INFO | GO, 3) => match data.u16() {
                0 => {
                    size = Some(data.u64());
                    assert_eq!(size, Some(disk::SIZE as u64));
                    assert_eq!(data.u16() & 1, 1, "flags");
                }
                1 | 2 => continue,
                3 => assert_eq!((data.u32(), data.u32()), (1, 4096)),
                other => panic!("information of kind {other}"),
            },
            (LIST_META_CONTEXT | SET_META_CONTEXT, 4) => {
                data.u32();
                assert_eq!(data.take(15), b"base:allocation");
                assert!(data.is_empty());
            }
            (number, kind) => panic!("answer {kind} to option {number}"),
        }
    }
}

/// The old way has no answer but an export or the end.
fn export_name(sent: &Sent<'_>, flags: u32, mut said: Said<'_>) {
    let there = [&b"disk"[..], b"disk@snap"];
    if !sent.data.is_some_and(|name| there.contains(&name)) {
        return assert!(said.is_empty(), "there is no such export");
    }
    assert_eq!(said.u64(), disk::SIZE as u64);
    assert_eq!(said.u16() & 1, 1, "flags");
    if flags & 2 == 0 {
        assert!(said.take(124).iter().all(|byte| *byte == 0));
    }
}
