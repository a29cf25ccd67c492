//! A small synchronous NBD client, written from the protocol's text alone: fixed newstyle, GO,
//! structured replies, many requests in flight.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest a server may take for one answer before the client gives it up.
const SILENCE: Duration = Duration::from_secs(120);

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

/// Kinds of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Goodbye.
    Disconnect = 2,
    /// Flush.
    Flush = 3,
    /// Discard.
    Trim = 4,
    /// Prefetch.
    Cache = 5,
    /// Write zeros.
    WriteZeroes = 6,
}

/// Flag: durable before it is answered.
pub const FUA: u16 = 1;
/// Flag of write zeroes: keep the space.
pub const NO_HOLE: u16 = 2;

/// The answer to one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Which request.
    pub cookie: u64,
    /// 0, or the protocol's error number.
    pub error: u32,
    /// What was read.
    pub data: Vec<u8>,
}

/// Offset and length of the data that each unanswered request will get.
type Expected = Arc<Mutex<BTreeMap<u64, (u64, usize)>>>;

/// The sending half of a connection.
#[derive(Debug)]
pub struct Sender {
    stream: UnixStream,
    expected: Expected,
    next: u64,
    size: u64,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    stream: UnixStream,
    expected: Expected,
    parts: BTreeMap<u64, Part>,
}

/// Opens an export.
///
/// # Errors
/// When the server is not there, refuses, or breaks the protocol.
pub fn connect(socket: &Path, export: &str) -> Result<(Sender, Receiver)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    if &hello[..8] != b"NBDMAGIC" || u64_at(&hello, 8) != IHAVEOPT || hello[17] & 1 == 0 {
        return Err(broken("greeting"));
    }
    // No zeroes, fixed newstyle.
    stream.write_all(&(u32::from(hello[17]) & 3).to_be_bytes())?;
    option(&mut stream, OPT_STRUCTURED, &[])?;
    let (kind, text) = option_reply(&mut stream, OPT_STRUCTURED)?;
    if kind != REP_ACK {
        return Err(refusal(kind, &text));
    }
    let mut body = Vec::new();
    body.extend_from_slice(&u32::try_from(export.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(export.as_bytes());
    body.extend_from_slice(&0u16.to_be_bytes());
    option(&mut stream, OPT_GO, &body)?;
    let mut size = None;
    loop {
        match option_reply(&mut stream, OPT_GO)? {
            (REP_ACK, _) => break,
            (REP_INFO, info) if info.len() == 12 && info[..2] == [0, 0] => {
                size = Some(u64_at(&info, 2));
            }
            (REP_INFO, _) => {}
            (kind, text) => return Err(refusal(kind, &text)),
        }
    }
    let size = size.ok_or_else(|| broken("GO without a size"))?;
    let expected = Arc::new(Mutex::new(BTreeMap::new()));
    let receiver = Receiver {
        stream: stream.try_clone()?,
        expected: Arc::clone(&expected),
        parts: BTreeMap::new(),
    };
    let sender = Sender { stream, expected, next: 1, size };
    Ok((sender, receiver))
}

impl Sender {
    /// Bytes of the export.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The cookie of the request that is sent next.
    #[must_use]
    pub const fn next_cookie(&self) -> u64 {
        self.next
    }

    /// Sends a request and says by which cookie its answer is known.
    ///
    /// # Errors
    /// When the connection is gone.
    ///
    /// # Panics
    /// When the other half panicked.
    pub fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<u64> {
        let cookie = self.next;
        self.next += 1;
        let data = if command == Command::Read { len as usize } else { 0 };
        let mut expected = self.expected.lock().expect("no panic");
        expected.insert(cookie, (offset, data));
        drop(expected);
        let mut request = Vec::with_capacity(28 + payload.len());
        request.extend_from_slice(&REQUEST.to_be_bytes());
        request.extend_from_slice(&flags.to_be_bytes());
        request.extend_from_slice(&(command as u16).to_be_bytes());
        request.extend_from_slice(&cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        request.extend_from_slice(payload);
        self.stream.write_all(&request)?;
        Ok(cookie)
    }

    /// Sends bytes as they are, for clients that misbehave.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)
    }

    /// Closes the connection, both halves, now.
    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Receiver {
    /// The next answer that is complete, whichever request it is to.
    ///
    /// # Errors
    /// When the connection is gone; of kind `InvalidData` when the server breaks the protocol.
    ///
    /// # Panics
    /// When the other half panicked.
    pub fn receive(&mut self) -> Result<Reply> {
        loop {
            let mut magic = [0; 4];
            self.stream.read_exact(&mut magic)?;
            match u32::from_be_bytes(magic) {
                SIMPLE_REPLY => return self.simple(),
                STRUCTURED_REPLY => {
                    if let Some(reply) = self.chunk()? {
                        return Ok(reply);
                    }
                }
                other => return Err(broken(&format!("reply magic {other:#x}"))),
            }
        }
    }

    fn take(&self, cookie: u64) -> Result<(u64, usize)> {
        let mut expected = self.expected.lock().expect("no panic");
        let data = expected.remove(&cookie);
        data.ok_or_else(|| broken("an answer nobody asked for"))
    }

    fn simple(&mut self) -> Result<Reply> {
        let mut rest = [0; 12];
        self.stream.read_exact(&mut rest)?;
        let error = u32_at(&rest, 0);
        let cookie = u64_at(&rest, 4);
        // Reads must be answered by structured replies once those are agreed on.
        if self.take(cookie)?.1 > 0 {
            return Err(broken("a simple reply to a read"));
        }
        Ok(Reply { cookie, error, data: Vec::new() })
    }

    /// One chunk of a structured reply; the reply if it was the last. Chunks of several replies
    /// may come mixed.
    fn chunk(&mut self) -> Result<Option<Reply>> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let (flags, kind) = (u16_at(&header, 0), u16_at(&header, 2));
        let cookie = u64_at(&header, 4);
        let mut body = vec![0; u32_at(&header, 12) as usize];
        self.stream.read_exact(&mut body)?;
        let mut part = match self.parts.remove(&cookie) {
            Some(part) => part,
            None => Part::new(self.take(cookie)?),
        };
        part.add(kind, &body)?;
        if flags & 1 == 0 {
            self.parts.insert(cookie, part);
            return Ok(None);
        }
        if part.error == 0 && part.covered != part.data.len() {
            return Err(broken("a read answered in part"));
        }
        Ok(Some(Reply { cookie, error: part.error, data: part.data }))
    }
}

/// A structured reply in the making.
#[derive(Debug)]
struct Part {
    offset: u64,
    covered: usize,
    error: u32,
    data: Vec<u8>,
}

impl Part {
    fn new((offset, len): (u64, usize)) -> Self {
        Self { offset, covered: 0, error: 0, data: vec![0; len] }
    }

    fn add(&mut self, kind: u16, body: &[u8]) -> Result<()> {
        match kind {
            // Nothing to say.
            0 => {}
            // Offset data, offset hole.
            1 | 2 if body.len() >= 8 => {
                let size = match kind {
                    1 => body.len() - 8,
                    _ if body.len() == 12 => u32_at(body, 8) as usize,
                    _ => return Err(broken("the length of a hole")),
                };
                // In order and without gaps: stricter than the protocol, true of the servers here.
                let begin = u64_at(body, 0).wrapping_sub(self.offset);
                let begin = usize::try_from(begin).unwrap_or(usize::MAX);
                if begin != self.covered || size > self.data.len() - begin {
                    return Err(broken("a chunk out of place"));
                }
                if kind == 1 {
                    self.data[begin..begin + size].copy_from_slice(&body[8..]);
                }
                self.covered += size;
            }
            kind if kind & 0x8000 != 0 && body.len() >= 4 => self.error = u32_at(body, 0),
            other => return Err(broken(&format!("chunk type {other}"))),
        }
        Ok(())
    }
}

/// One request at a time, for tests that need no more.
#[derive(Debug)]
pub struct Client {
    /// For requests that are sent without waiting.
    pub sender: Sender,
    /// For their answers.
    pub receiver: Receiver,
}

impl Client {
    /// Opens an export.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let (sender, receiver) = connect(socket, export)?;
        Ok(Self { sender, receiver })
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Reply> {
        let cookie = self.sender.send(command, flags, offset, len, payload)?;
        let reply = self.receiver.receive()?;
        if reply.cookie == cookie { Ok(reply) } else { Err(broken("another request's answer")) }
    }

    /// Reads.
    ///
    /// # Errors
    /// When the connection is gone or the server reports an error.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>> {
        let reply = self.call(Command::Read, 0, offset, len, &[])?;
        done(&reply)?;
        Ok(reply.data)
    }

    /// Writes; durable when it returns.
    ///
    /// # Errors
    /// When the connection is gone or the server reports an error.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len()).map_err(Error::other)?;
        done(&self.call(Command::Write, 0, offset, len, data)?)
    }
}

fn done(reply: &Reply) -> Result<()> {
    match reply.error {
        0 => Ok(()),
        error => Err(Error::other(format!("the server reports error {error}"))),
    }
}

fn option(stream: &mut UnixStream, option: u32, body: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend_from_slice(&IHAVEOPT.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

fn option_reply(stream: &mut UnixStream, asked: u32) -> Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    if u64_at(&header, 0) != OPTION_REPLY || u32_at(&header, 8) != asked {
        return Err(broken("option reply"));
    }
    let mut body = vec![0; u32_at(&header, 16) as usize];
    stream.read_exact(&mut body)?;
    Ok((u32_at(&header, 12), body))
}

fn refusal(kind: u32, text: &[u8]) -> Error {
    let text = String::from_utf8_lossy(text);
    Error::other(format!("refused ({:#x}): {text}", kind))
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("broken protocol: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}
