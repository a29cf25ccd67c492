//! Judges the transmission phase: what a stream of requests must be answered with.

use super::disk::{Disk, SIZE};
use super::protocol::{CHUNK, REQUEST, SIMPLE_REPLY, Said};
use super::{REQUEST_BYTES, SKIP_BYTES};
use sheepdog_volume::io::MapKind;
use std::collections::BTreeMap;

/// Bytes of a request's header.
const HEAD: usize = 28;

/// What was negotiated.
#[derive(Clone, Copy)]
pub struct Agreed {
    /// Replies in chunks.
    pub structured: bool,
    /// Block status.
    pub allocation: bool,
    /// Writes are refused.
    pub read_only: bool,
}

/// One request that is answered.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    flags: u16,
    kind: u16,
    offset: u64,
    len: u32,
    data: &'a [u8],
}

/// Gives each request of a stream its magic and a number of its own, as far as the stream can be
/// followed.
#[must_use]
pub fn numbered(bytes: &[u8]) -> Vec<u8> {
    let mut stream = bytes.to_vec();
    let (mut at, mut cookie) = (0, 0_u64);
    while let Some(head) = stream.get_mut(at..at + HEAD) {
        head[..4].copy_from_slice(&REQUEST.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        let carried = if head[6..8] == [0, 1] { Said::new(&head[24..]).u32() } else { 0 };
        at = at.saturating_add(HEAD + carried as usize);
        cookie += 1;
    }
    stream
}

/// The requests of a numbered stream that the server must answer, in order.
#[must_use]
pub fn asked(stream: &[u8]) -> Vec<Asked<'_>> {
    let mut all = Vec::new();
    let mut rest = stream;
    while let Some((head, behind)) = rest.split_at_checked(HEAD) {
        let mut head = Said::new(&head[4..]);
        let (flags, kind, _) = (head.u16(), head.u16(), head.u64());
        let (offset, len) = (head.u64(), head.u32());
        if kind == 2 {
            break;
        }
        let carried = if kind == 1 { len as usize } else { 0 };
        let request = Asked { flags, kind, offset, len, data: &[] };
        match behind.split_at_checked(carried) {
            Some((data, behind)) => {
                all.push(Asked { data, ..request });
                rest = behind;
            }
            // A write that is refused is answered before its data is there.
            None => {
                all.push(request);
                break;
            }
        }
        if carried > SKIP_BYTES as usize {
            break;
        }
    }
    all
}

/// A whole reply: an error, or success with what a read or a block status brought.
#[derive(Default)]
struct Reply {
    error: u32,
    pieces: Vec<(u64, Vec<u8>)>,
    extents: Vec<(u32, u32)>,
    done: bool,
}

/// Reads all replies and compares them with what the disk must have answered. Requests take effect
/// in the order they came, because the disk never waits.
///
/// # Panics
/// When anything is not as the protocol has it.
pub fn judge(asked: &[Asked<'_>], agreed: Agreed, said: Said<'_>, after: &Disk) {
    let mut replies = replies(asked, agreed, said);
    let mut disk = Disk::default();
    for (cookie, request) in (0..).zip(asked) {
        let last = cookie as usize + 1 == asked.len();
        let Some(reply) = replies.remove(&cookie) else {
            let cut = request.kind == 1 && request.data.len() < request.len as usize;
            assert!(last && cut, "request {cookie} has no answer");
            continue;
        };
        assert!(reply.done, "the answer to request {cookie} has no end");
        if reply.error != 0 {
            assert!([1, 5, 22, 28, 108].contains(&reply.error), "error {}", reply.error);
            assert!(!is_plain(request, agreed), "request {cookie} was refused: {}", reply.error);
        } else {
            assert!(is_possible(request, agreed), "request {cookie} was not refused");
            succeed(request, &reply, agreed, &mut disk);
        }
    }
    assert!(disk.bytes == after.bytes, "the disk holds something else");
    assert_eq!(disk.kinds, after.kinds);
}

fn inside(request: &Asked<'_>) -> bool {
    request.offset.checked_add(request.len.into()).is_some_and(|end| end <= SIZE as u64)
}

fn writes(request: &Asked<'_>) -> bool {
    matches!(request.kind, 1 | 4 | 6)
}

/// A request that no server may refuse.
fn is_plain(request: &Asked<'_>, agreed: Agreed) -> bool {
    request.flags & !1 == 0
        && (request.kind == 3 || inside(request))
        && !(agreed.read_only && writes(request))
        && match request.kind {
            0 => request.len <= REQUEST_BYTES,
            1 => request.len <= REQUEST_BYTES && request.data.len() == request.len as usize,
            3..=6 => true,
            7 => agreed.allocation && request.len > 0,
            _ => false,
        }
}

/// A request that a server may carry out.
fn is_possible(request: &Asked<'_>, agreed: Agreed) -> bool {
    (request.kind == 3 || inside(request))
        && !(agreed.read_only && writes(request))
        && request.kind <= 7
        && (request.kind > 1 || request.len <= REQUEST_BYTES)
        && (request.kind != 7 || agreed.allocation)
        && request.flags & !0x1f == 0
}

fn succeed(request: &Asked<'_>, reply: &Reply, agreed: Agreed, disk: &mut Disk) {
    let (offset, len) = (request.offset, u64::from(request.len));
    match request.kind {
        0 => {
            let mut at = offset;
            let mut pieces: Vec<_> = reply.pieces.iter().collect();
            pieces.sort_by_key(|(at, _)| *at);
            for (offset, bytes) in pieces {
                assert_eq!(*offset, at, "each byte once");
                assert!(*bytes == disk.bytes[at as usize..at as usize + bytes.len()]);
                at += bytes.len() as u64;
            }
            assert_eq!(at, offset + len, "every byte");
            let whole = request.flags & 4 != 0 && agreed.structured;
            assert!(!whole || reply.pieces.len() <= 1, "what must not be fragmented was");
        }
        1 => disk.write(offset, request.data),
        4 => disk.zero(offset, len, MapKind::Hole),
        6 => {
            let kind = if request.flags & 2 == 0 { MapKind::Hole } else { MapKind::Zero };
            disk.zero(offset, len, kind);
        }
        7 => {
            let map = disk.map(offset, len);
            assert!(request.flags & 8 == 0 || reply.extents.len() == 1, "one was asked for");
            assert!(!reply.extents.is_empty());
            for ((len, state), want) in reply.extents.iter().zip(&map) {
                let kind = match want.kind {
                    MapKind::Data => 0,
                    MapKind::Zero => 2,
                    MapKind::Hole => 3,
                };
                assert_eq!((u64::from(*len), *state), (want.len, kind));
            }
        }
        _ => {}
    }
}

fn replies(asked: &[Asked<'_>], agreed: Agreed, mut said: Said<'_>) -> BTreeMap<u64, Reply> {
    let mut all: BTreeMap<u64, Reply> = BTreeMap::new();
    while !said.is_empty() {
        let magic = said.u32();
        let simple = magic == SIMPLE_REPLY;
        assert!(simple || magic == CHUNK && agreed.structured, "{magic:x} is no reply");
        // An error, or flags and type.
        let (head, cookie) = (said.u32(), said.u64());
        let request = asked.get(cookie as usize).expect("a reply to a request");
        let reply = all.entry(cookie).or_default();
        assert!(!reply.done, "request {cookie} is answered twice");
        if simple {
            assert!(!agreed.structured || request.kind != 0, "a read is answered in chunks");
            (reply.error, reply.done) = (head, true);
            if head == 0 && request.kind == 0 {
                reply.pieces.push((request.offset, said.take(request.len as usize).to_vec()));
            }
            continue;
        }
        let (flags, kind, len) = ((head >> 16) as u16, head as u16, said.u32() as usize);
        assert_eq!(flags & !1, 0, "unknown flags of a chunk");
        reply.done = flags & 1 != 0;
        chunk(request, reply, kind, Said::new(said.take(len)), len);
    }
    all
}

fn chunk(request: &Asked<'_>, reply: &mut Reply, kind: u16, mut body: Said<'_>, len: usize) {
    match kind {
        0 => assert!(reply.done && len == 0),
        1 => {
            assert!(request.kind == 0 && len > 8);
            let offset = body.u64();
            reply.pieces.push((offset, body.take(len - 8).to_vec()));
        }
        2 => {
            assert!(request.kind == 0 && len == 12);
            let (offset, zeros) = (body.u64(), body.u32());
            assert!((1..=request.len).contains(&zeros));
            reply.pieces.push((offset, vec![0; zeros as usize]));
        }
        5 => {
            assert!(request.kind == 7 && len % 8 == 4 && reply.extents.is_empty());
            assert_eq!(body.u32(), 1, "the id of the one context there is");
            reply.extents.extend((0..len / 8).map(|_| (body.u32(), body.u32())));
        }
        0x8001 => {
            reply.error = body.u32();
            assert_ne!(reply.error, 0);
            let text = usize::from(body.u16());
            let text = std::str::from_utf8(body.take(text)).expect("a line for people");
            assert!(!text.contains(char::is_control));
        }
        other => panic!("a chunk of type {other}"),
    }
    assert!(body.is_empty() || kind == 0, "bytes behind a chunk's own");
}
