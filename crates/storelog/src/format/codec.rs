//! Reading and writing little-endian numbers without trusting lengths.

use std::fmt;

/// Bytes that are not what they should be; says which structure and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// For example "fragment page".
    pub what: &'static str,
    /// For example "checksum".
    pub why: &'static str,
    /// It is well-formed but written by a newer version.
    pub newer: bool,
}

impl Malformed {
    pub(crate) const fn new(what: &'static str, why: &'static str) -> Self {
        Self { what, why, newer: false }
    }

    pub(crate) const fn newer(what: &'static str) -> Self {
        Self { what, why: "it was written by a newer version", newer: true }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Malformed {}

/// A cursor over untrusted bytes.
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `what` names the structure in errors.
    #[must_use]
    pub const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or(Malformed::new(self.what, "cut short"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(Malformed::new(self.what, "cut short"))?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end, as for all numbers.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// Sixteen bytes as they are.
    ///
    /// # Errors
    /// At the end.
    pub fn bytes16(&mut self) -> Result<[u8; 16], Malformed> {
        self.array()
    }

    /// An error about this structure.
    #[must_use]
    pub const fn bad(&self, why: &'static str) -> Malformed {
        Malformed::new(self.what, why)
    }
}

/// The other direction.
#[derive(Default)]
pub struct Writer {
    /// What was written so far.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// Appends.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }
    /// Appends.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }
    /// Replaces four bytes written before.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// Bytes of the frame around a checksummed structure of its own pages.
pub const FRAME_BYTES: usize = 16;

/// Frames `body`: magic, version, length, CRC32C of everything else.
#[must_use]
pub fn frame(magic: u32, version: u16, body: &[u8]) -> Vec<u8> {
    let mut w = Writer { bytes: Vec::with_capacity(FRAME_BYTES + body.len()) };
    w.u32(magic);
    w.u16(version);
    w.u16(0);
    w.u32(body.len() as u32);
    w.u32(0);
    w.raw(body);
    let crc = crate::checksum::crc32c(&w.bytes);
    w.set_u32(12, crc);
    w.bytes
}

/// The version of a frame that was read well.
pub(super) fn version(bytes: &[u8]) -> u16 {
    bytes.get(4..6).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Checks a frame made by [`frame`] (bytes behind it are ignored) and gives its body.
///
/// # Errors
/// Wrong magic, newer version, bad length or checksum.
pub fn unframe<'a>(
    what: &'static str,
    magic: u32,
    version: u16,
    bytes: &'a [u8],
) -> Result<&'a [u8], Malformed> {
    let mut r = Reader::new(what, bytes);
    if r.u32()? != magic {
        return Err(r.bad("wrong magic number"));
    }
    let found = r.u16()?;
    let _reserved = r.u16()?;
    let len = r.u32()? as usize;
    let crc = r.u32()?;
    let body = r.take(len)?;
    let mut whole = bytes[..FRAME_BYTES + len].to_vec();
    whole[12..16].fill(0);
    if crate::checksum::crc32c(&whole) != crc {
        return Err(r.bad("wrong checksum"));
    }
    // After the checksum: rot in the version field is rot, not a newer version.
    if found > version {
        return Err(Malformed::newer(what));
    }
    Ok(body)
}
