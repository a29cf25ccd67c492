//! The public NBD protocol as a client knows it, written from its specification and not from the
//! server: numbers, and a reader of what the server said.

/// First word of the greeting.
pub const GREETING: u64 = 0x4e42_444d_4147_4943;
/// First word of an option.
pub const OPTION: u64 = 0x4948_4156_454f_5054;
/// First word of the answer to one.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST: u32 = 0x2560_9513;
/// First words of replies.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// See [`SIMPLE_REPLY`].
pub const CHUNK: u32 = 0x668e_33ef;

/// Options.
pub const EXPORT_NAME: u32 = 1;
/// See [`EXPORT_NAME`].
pub const ABORT: u32 = 2;
/// See [`EXPORT_NAME`].
pub const LIST: u32 = 3;
/// See [`EXPORT_NAME`].
pub const INFO: u32 = 6;
/// See [`EXPORT_NAME`].
pub const GO: u32 = 7;
/// See [`EXPORT_NAME`].
pub const STRUCTURED_REPLY: u32 = 8;
/// See [`EXPORT_NAME`].
pub const LIST_META_CONTEXT: u32 = 9;
/// See [`EXPORT_NAME`].
pub const SET_META_CONTEXT: u32 = 10;

/// An answer that ends those to one option: success.
pub const ACK: u32 = 1;
/// Bit of answers that end those to one option: failure.
pub const FAILED: u32 = 1 << 31;

/// Reads what the server said, which was cut nowhere.
pub struct Said<'a> {
    rest: &'a [u8],
}

impl<'a> Said<'a> {
    /// All of it.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether that was all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// So many bytes.
    ///
    /// # Panics
    /// When the server said less: it never stops inside something.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at_checked(count).expect("the server stopped half-way");
        self.rest = rest;
        head
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    /// The greeting.
    ///
    /// # Panics
    /// When it is none.
    pub fn greeting(&mut self) {
        assert_eq!((self.u64(), self.u64(), self.u16()), (GREETING, OPTION, 3));
    }

    /// The next answer to an option: its kind and data.
    ///
    /// # Panics
    /// When it is none, to another option, or too long.
    pub fn option_reply(&mut self, option: u32) -> (u32, &'a [u8]) {
        assert_eq!((self.u64(), self.u32()), (OPTION_REPLY, option));
        let (kind, len) = (self.u32(), self.u32());
        assert!(len <= 4096 + 8, "an answer of {len} bytes");
        let data = self.take(len as usize);
        if kind & FAILED != 0 {
            let text = std::str::from_utf8(data).expect("a line for people");
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        (kind, data)
    }
}

/// An option as it is sent.
#[must_use]
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    [&OPTION.to_be_bytes()[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// A length and so many bytes, as options have them.
#[must_use]
pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// A request as it is sent.
#[must_use]
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}
