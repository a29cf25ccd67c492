//! A synchronous client of raw bytes; it checks every byte it is sent.

use super::TestServer;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

pub const ACK: u32 = 1;
pub const ERR: u32 = 1 << 31;
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;

pub const GO: u32 = 7;
pub const STRUCTURED: u32 = 8;
pub const SET_CONTEXT: u32 = 10;

/// A string with its length.
pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// The bytes of an option.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of INFO and GO.
pub fn info(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = text(name);
    data.extend((infos.len() as u16).to_be_bytes());
    for info in infos {
        data.extend(info.to_be_bytes());
    }
    data
}

/// The data of the meta context options.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = text(name);
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend(text(query));
    }
    data
}

/// The header of a request.
pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A write with its data.
pub fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(WRITE, 0, cookie, offset, data.len() as u32);
    bytes.extend(data);
    bytes
}

/// An answer to a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub text: String,
    /// The read bytes, holes filled in.
    pub data: Vec<u8>,
    /// Chunks of a structured read: (is data, bytes).
    pub chunks: Vec<(bool, usize)>,
    pub extents: Vec<(u32, u32)>,
}

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    pub size: u64,
    pub flags: u16,
    next: u64,
}

impl Client {
    /// Past the greeting.
    pub fn greet(server: &TestServer) -> Self {
        Self::greet_with(server, 3)
    }

    pub fn greet_with(server: &TestServer, flags: u32) -> Self {
        let mut client =
            Self { stream: server.connect(), structured: false, size: 0, flags: 0, next: 1 };
        assert_eq!(client.bytes(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(client.bytes(2), [0, 3]);
        client.send(&flags.to_be_bytes());
        client
    }

    /// Connected to an export with simple replies.
    pub fn simple(server: &TestServer, name: &str) -> Self {
        let mut client = Self::greet(server);
        client.go(name).expect("the export is there");
        client
    }

    /// Connected to an export with structured replies and block status.
    pub fn full(server: &TestServer, name: &str) -> Self {
        let mut client = Self::greet(server);
        assert_eq!(client.ask(STRUCTURED, &[]), [(ACK, vec![])]);
        client.structured = true;
        let set = client.ask(SET_CONTEXT, &contexts(name, &["base:allocation"]));
        assert_eq!(set[0], (4, [&[0, 0, 0, 1], &b"base:allocation"[..]].concat()));
        client.go(name).expect("the export is there");
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().expect("two"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().expect("four"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().expect("eight"))
    }

    /// Sends an option and reads the answers to it, up to the acknowledgement or error.
    pub fn ask(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option(number, data));
        self.answers(number)
    }

    pub fn answers(&mut self, number: u32) -> Vec<(u32, Vec<u8>)> {
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
            assert_eq!(self.u32(), number);
            let kind = self.u32();
            let len = self.u32() as usize;
            let data = self.bytes(len);
            answers.push((kind, data));
            if kind == ACK || kind & ERR != 0 {
                return answers;
            }
        }
    }

    /// Goes to an export, or says what the server says.
    pub fn go(&mut self, name: &str) -> Result<(), (u32, String)> {
        self.send(&option(GO, &info(name, &[])));
        self.went()
    }

    /// Reads the answer to GO.
    pub fn went(&mut self) -> Result<(), (u32, String)> {
        let answers = self.answers(GO);
        let (kind, data) = answers.last().expect("one at least");
        if *kind != ACK {
            let text = String::from_utf8(data.clone()).expect("text");
            return Err((*kind - ERR, text));
        }
        let export = answers.iter().find(|(kind, data)| *kind == 3 && data[..2] == [0, 0]);
        let data = &export.expect("the export's size").1;
        self.size = u64::from_be_bytes(data[2..10].try_into().expect("eight"));
        self.flags = u16::from_be_bytes(data[10..12].try_into().expect("two"));
        Ok(())
    }

    /// Sends a request and reads its answer.
    pub fn call(&mut self, kind: u16, flags: u16, offset: u64, len: u32) -> Reply {
        self.call_with(kind, flags, offset, len, &[])
    }

    pub fn call_with(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Reply {
        self.next += 1;
        let cookie = self.next;
        let mut bytes = request(kind, flags, cookie, offset, len);
        bytes.extend(data);
        self.send(&bytes);
        let reply = self.reply(if kind == READ { Some((offset, len)) } else { None });
        assert_eq!(reply.cookie, cookie);
        reply
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Reply {
        self.call_with(WRITE, 0, offset, data.len() as u32, data)
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let reply = self.call(READ, 0, offset, len);
        assert_eq!((reply.error, &*reply.text), (0, ""));
        reply.data
    }

    /// Reads one answer; `read` says what was read, if it answers a read.
    pub fn reply(&mut self, read: Option<(u64, u32)>) -> Reply {
        let mut reply = Reply::default();
        let mut covered = 0;
        let mut first = true;
        loop {
            let magic = self.u32();
            if magic == 0x6744_6698 {
                assert!(first && (!self.structured || read.is_none()));
                reply.error = self.u32();
                reply.cookie = self.u64();
                if let (Some((_, len)), 0) = (read, reply.error) {
                    reply.data = self.bytes(len as usize);
                }
                return reply;
            }
            assert!(self.structured);
            assert_eq!(magic, 0x668e_33ef);
            let (flags, kind, cookie, len) = (self.u16(), self.u16(), self.u64(), self.u32());
            assert!(first || cookie == reply.cookie);
            first = false;
            reply.cookie = cookie;
            match kind {
                0 => assert_eq!((len, flags), (0, 1)),
                1 | 2 => {
                    let (offset, all) = read.expect("only reads have data");
                    assert_eq!(self.u64(), offset + covered as u64);
                    if kind == 1 {
                        let data = self.bytes(len as usize - 8);
                        reply.chunks.push((true, data.len()));
                        reply.data.extend(data);
                    } else {
                        assert_eq!(len, 12);
                        let hole = self.u32() as usize;
                        reply.chunks.push((false, hole));
                        reply.data.resize(covered + hole, 0);
                    }
                    assert!(reply.data.len() > covered && reply.data.len() <= all as usize);
                    covered = reply.data.len();
                }
                5 => {
                    assert_eq!(self.u32(), 1);
                    for _ in 0..(len - 4) / 8 {
                        let extent = (self.u32(), self.u32());
                        reply.extents.push(extent);
                    }
                    assert!(!reply.extents.is_empty());
                }
                0x8001 => {
                    reply.error = self.u32();
                    assert_ne!(reply.error, 0);
                    let len = self.u16();
                    let text = self.bytes(len.into());
                    reply.text = String::from_utf8(text).expect("text");
                    assert!(!reply.text.contains('\n'));
                }
                other => panic!("chunk type {other:#x}"),
            }
            if flags == 1 {
                if let (Some((_, len)), 0) = (read, reply.error) {
                    assert_eq!(covered, len as usize);
                }
                return reply;
            }
            assert_eq!(flags, 0);
        }
    }

    /// The server has closed the connection; what it sent before.
    pub fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut buf = vec![0; 65536];
        loop {
            match self.stream.read(&mut buf) {
                Ok(0) => return rest,
                Ok(count) => rest.extend(&buf[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return rest,
                Err(error) => panic!("the server neither answers nor hangs up: {error}"),
            }
        }
    }

    /// Whether nothing has come that was not read.
    pub fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a mode");
        let result = self.stream.read(&mut [0]);
        self.stream.set_nonblocking(false).expect("a mode");
        matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}
