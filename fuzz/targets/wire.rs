//! The protocol of dog and sheep: frames, messages, a whole connection at either end.
#![no_main]

use bytes::Bytes;
use prost::Message;
use sheepdog_fuzz::input::Input;
use sheepdog_fuzz::meter::bounded;
use sheepdog_storelog::checksum::crc32c;
use sheepdog_types::{Error, ErrorKind};
use sheepdog_wire::frame::{read_header, read_payload};
use sheepdog_wire::header::{FLAG_REPLY, HEADER_BYTES, Header};
use sheepdog_wire::{
    BULK_MAX, CONTROL_MAX, ClusterInfo, ClusterInfoReply, Connection, Done, Hello, MAGIC, MapReply,
    NodeInfoReply, NodeListReply, Op, REQUEST_CONTROL_MAX, Read, ReadReply, Request, ServerLimits,
    VdiInfoReply, VdiListReply, VdiOpened, Write, accept,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

sheepdog_fuzz::target!(seeds, run);

const HELLO: u16 = 1;
/// Bytes that travel in one direction without the other end having to read.
const PIPE: usize = 1 << 20;

fn frame(op: u16, flags: u16, id: u64, control: &[u8], bulk: &[u8]) -> Vec<u8> {
    let header = Header {
        version: 1,
        op,
        flags,
        status: 0,
        control_len: control.len() as u32,
        bulk_len: bulk.len() as u32,
        bulk_align: 0,
        request_id: id,
        payload_crc: crc32c(&[control, bulk].concat()),
    };
    [&header.encode(), control, bulk].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let hello = Hello::ours("dog").encode_to_vec();
    let read = Read { handle: 1, offset: 512, len: 4096 }.encode_to_vec();
    let write = Write { handle: 1, offset: 8192 }.encode_to_vec();
    let requests = [
        frame(HELLO, 0, 0, &hello, &[]),
        frame(Op::Read as u16, 0, 1, &read, &[]),
        frame(Op::Write as u16, 0, 2, &write, &[7; 100]),
        frame(0x7777, 0, 3, &[], &[]),
        frame(Op::VdiList as u16, 0, 4, &[], &[]),
    ];
    let (whole, bulk) = ReadReply::join([
        sheepdog_wire::ReadSegment::Data(Bytes::from_static(b"abc")),
        sheepdog_wire::ReadSegment::Hole(4093),
    ]);
    let answers = [
        frame(HELLO, FLAG_REPLY, 0, &hello, &[]),
        frame(Op::ClusterInfo as u16, FLAG_REPLY, 0, &[], &[]),
        frame(Op::Read as u16, FLAG_REPLY, 1, &whole.encode_to_vec(), &bulk.concat()),
    ];
    let mut seeds = vec![
        [&[0], &requests[2][..]].concat(),
        [&[2], &requests.concat()[..]].concat(),
        [&[3], &answers.concat()[..]].concat(),
    ];
    seeds.extend(Op::ALL.iter().map(|op| [&[1, *op as u8], &read[..]].concat()));
    seeds
}

/// The first byte: 0 a frame, 1 messages, 2 a client's stream, 3 a server's stream.
fn run(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let sealed = if choice & 0x80 == 0 { sealed(bytes) } else { bytes.to_vec() };
    // One frame of the largest size is always allowed, and the client keeps what it answered.
    let most = 4 * PIPE + BULK_MAX + CONTROL_MAX;
    match choice & 3 {
        0 => bounded(BULK_MAX * 2 + CONTROL_MAX + (4 << 10), || runtime.block_on(one(&sealed))),
        // A message takes two bytes there and up to 300 in memory, in a list that doubles.
        1 => bounded((16 << 10) + 600 * bytes.len(), || messages(bytes)),
        2 => bounded(most, || runtime.block_on(server_end(&sealed))),
        _ => bounded(most + 600 * bytes.len(), || runtime.block_on(client_end(&sealed))),
    }
}

/// Gives each frame of a stream its magic and checksums, as far as its lengths can be followed.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut stream = bytes.to_vec();
    let mut at = 0;
    while let Some(head) = stream.get(at..at + HEADER_BYTES) {
        let len = |field: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[field + i])) as usize;
        let end = len(12).saturating_add(len(16)).saturating_add(at + HEADER_BYTES);
        let payload = stream.get(at + HEADER_BYTES..end).map_or(0, crc32c);
        let head = &mut stream[at..at + HEADER_BYTES];
        head[..4].copy_from_slice(&MAGIC);
        head[56..60].copy_from_slice(&payload.to_le_bytes());
        let crc = crc32c(&head[..60]);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    stream
}

async fn one(bytes: &[u8]) {
    let mut stream = bytes;
    let Ok(Some(header)) = read_header(&mut stream).await else {
        return;
    };
    assert_eq!(header.encode()[..], bytes[..HEADER_BYTES], "the same bytes");
    let control_max = if header.is_reply() { CONTROL_MAX } else { REQUEST_CONTROL_MAX };
    assert!(header.control_len as usize <= control_max);
    assert!(header.bulk_len as usize <= BULK_MAX && header.bulk_align < 4096);
    let Ok(frame) = read_payload(&mut stream, header).await else {
        return;
    };
    let payload = [&frame.control[..], &frame.bulk].concat();
    assert_eq!(payload, bytes[HEADER_BYTES..HEADER_BYTES + payload.len()]);
    if !frame.bulk.is_empty() {
        assert_eq!(frame.bulk.as_ptr() as usize % 4096, usize::from(header.bulk_align));
    }
    let _ = Request::decode(header.op, frame.control);
}

/// One message read as every kind there is.
fn messages(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let op = input.u8().into();
    let control = Bytes::copy_from_slice(input.rest());
    match Request::decode(op, control.clone()) {
        Ok(request) => {
            assert_eq!(request.op() as u16, op);
            let again = encode(&request);
            assert_eq!(Request::decode(op, again.into()).ok(), Some(request));
        }
        Err(error) => {
            let unknown = !Op::ALL.iter().any(|known| *known as u16 == op);
            assert_eq!(error.kind() == ErrorKind::Unsupported, unknown);
        }
    }
    same::<ClusterInfoReply>(&control);
    same::<NodeListReply>(&control);
    same::<NodeInfoReply>(&control);
    same::<VdiListReply>(&control);
    same::<VdiInfoReply>(&control);
    same::<VdiOpened>(&control);
    same::<MapReply>(&control);
    same::<Done>(&control);
    if let Ok(hello) = Hello::decode(control.clone())
        && let Ok(agreed) = Hello::ours("sheep").agree(&hello)
    {
        assert_eq!(agreed.version, sheepdog_wire::VERSION);
    }
    if let Ok(reply) = ReadReply::decode(control) {
        let len = reply.segments.iter().fold(0u64, |sum, info| sum.wrapping_add(info.len));
        if let Ok(pieces) = reply.split(Bytes::from_static(&[7; 64]), len) {
            let (again, bulk) = ReadReply::join(pieces);
            assert_eq!(again, reply);
            assert_eq!(bulk.concat(), [7; 64]);
        }
    }
}

fn same<M: Message + Default + PartialEq>(control: &Bytes) {
    if let Ok(message) = M::decode(control.clone()) {
        let again = M::decode(&message.encode_to_vec()[..]);
        assert!(again.is_ok_and(|again| again == message));
    }
}

fn encode(request: &Request) -> Vec<u8> {
    macro_rules! any {
        ($($name:ident)*) => {
            match request {
                $(Request::$name(message) => message.encode_to_vec(),)*
            }
        };
    }
    any!(ClusterInfo ClusterFormat ClusterShutdown NodeList NodeInfo VdiList VdiLookup VdiInfo
        VdiCreate VdiDelete VdiResize VdiRename VdiOpen Read Write WriteZeroes Map Flush Close
        ImportBegin ImportFinish)
}

/// A server that hears these bytes; each request is refused.
async fn server_end(bytes: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (mut from_server, mut to_server) = tokio::io::split(ours);
    let limits = ServerLimits { in_flight: 2, bytes: 16 << 20 };
    let serve = async {
        let Ok((mut requests, replies, _)) = accept(theirs, Hello::ours("sheep"), limits).await
        else {
            return 0;
        };
        let mut seen = 1;
        while let Ok(Some(incoming)) = requests.next().await {
            assert!(incoming.bulk.len() <= BULK_MAX);
            let writes = matches!(incoming.request, Request::Write(_));
            assert!(writes || incoming.bulk.is_empty());
            assert!(incoming.request.reply_bytes() <= BULK_MAX as u64);
            let refusal = Error::new(ErrorKind::Unsupported, "");
            if replies.refuse(incoming.ticket, &refusal).await.is_err() {
                break;
            }
            seen += 1;
        }
        seen
    };
    let send = async {
        let sent = to_server.write_all(bytes).await;
        // The server may have left already.
        let _ = sent.and(to_server.shutdown().await);
    };
    let listen = async {
        let mut answers = Vec::new();
        let _ = from_server.read_to_end(&mut answers).await;
        answers
    };
    let (seen, (), answers) = tokio::join!(serve, send, listen);
    let mut stream = &answers[..];
    let mut count = 0;
    while let Ok(Some(header)) = read_header(&mut stream).await {
        assert!(header.is_reply());
        read_payload(&mut stream, header).await.expect("a whole answer");
        count += 1;
    }
    assert!(stream.is_empty(), "only frames");
    assert!(count >= seen, "{seen} requests, {count} answers");
}

/// A client that hears these bytes.
async fn client_end(bytes: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (mut from_client, mut to_client) = tokio::io::split(ours);
    let sent = to_client.write_all(bytes).await.and(to_client.shutdown().await);
    assert!(sent.is_ok() || bytes.len() > PIPE);
    let call = async {
        let Ok((connection, driver)) = Connection::open(theirs, Hello::ours("dog")).await else {
            return;
        };
        let calls = async {
            let _ = connection.call(&ClusterInfo::default()).await;
            let read = Read { handle: 1, offset: 0, len: 4096 };
            if let Ok((reply, bulk)) = connection.exchange(&read, Vec::new()).await
                && let Ok(pieces) = reply.split(bulk, 4096)
            {
                assert_eq!(pieces.iter().map(sheepdog_wire::ReadSegment::len).sum::<u64>(), 4096);
            }
            drop(connection);
        };
        tokio::join!(driver.run(), calls);
    };
    let listen = async {
        let mut said = Vec::new();
        let _ = from_client.read_to_end(&mut said).await;
    };
    tokio::join!(call, listen);
}
