//! Structures on disk: their samples, and checksums for what a fuzzer made of them.

use sheepdog_storelog::checksum::crc32c;
use sheepdog_storelog::format::codec::{FRAME_BYTES, frame};
use sheepdog_types::Geometry;

/// Set in the first byte of an input: the bytes are read as they are, wrong checksum and all.
pub const AS_IT_IS: u8 = 0x80;

/// Gives a framed structure its length and checksum.
#[must_use]
pub fn reframed(bytes: &[u8]) -> Vec<u8> {
    match bytes.split_at_checked(FRAME_BYTES) {
        Some((head, body)) => {
            let magic = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            frame(magic, u16::from_le_bytes([head[4], head[5]]), body)
        }
        None => bytes.to_vec(),
    }
}

/// Gives a batch of the log the length of header and records and their checksum.
#[must_use]
pub fn resealed_batch(mut bytes: Vec<u8>, log_unit: u32) -> Vec<u8> {
    if bytes.len() < 64 {
        return bytes;
    }
    bytes.resize(bytes.len().next_multiple_of(log_unit as usize), 0);
    let len = bytes.len() as u32;
    bytes[28..32].copy_from_slice(&len.to_le_bytes());
    bytes[48..52].fill(0);
    let crc = crc32c(&bytes);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// One of the geometries there can be, the product's first.
#[must_use]
pub fn geometry(choice: u8) -> Geometry {
    let (blocks, chunks) = [(16, 64), (4, 8), (1, 1), (16, 1), (2, 64)][usize::from(choice) % 5];
    Geometry::new(blocks, chunks).unwrap_or(Geometry::STANDARD)
}

/// The bytes of a sample in `crates/storelog/tests/samples`: lines of hexadecimal digits, then
/// `and N zeros`.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn sample(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        if let Some(zeros) = line.strip_prefix("and ").and_then(|rest| rest.strip_suffix(" zeros"))
        {
            let zeros: usize = zeros.parse().expect("a number of zeros");
            bytes.resize(bytes.len() + zeros, 0);
            continue;
        }
        for digits in line.as_bytes().chunks(2) {
            let digits = std::str::from_utf8(digits).expect("digits");
            bytes.push(u8::from_str_radix(digits, 16).expect("digits"));
        }
    }
    bytes
}

/// A seed: a choice and a structure.
#[must_use]
pub fn seed(choice: u8, bytes: &[u8]) -> Vec<u8> {
    [&[choice], bytes].concat()
}

/// Makes the checksum of a framed structure right again, if its length can be followed.
pub fn resealed(bytes: &mut [u8]) {
    let Some(head) = bytes.first_chunk::<FRAME_BYTES>() else {
        return;
    };
    let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    if let Some(whole) = bytes.get_mut(..FRAME_BYTES.saturating_add(len)) {
        whole[12..16].fill(0);
        let crc = crc32c(whole);
        whole[12..16].copy_from_slice(&crc.to_le_bytes());
    }
}
