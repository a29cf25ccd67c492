//! Bytes, limits and hostile input of the frame header.

use super::*;
use proptest::prelude::*;

fn sample() -> Header {
    Header {
        version: 1,
        op: 0x42,
        flags: FLAG_REPLY,
        status: 0x08,
        control_len: 5,
        bulk_len: 4096,
        bulk_align: 512,
        request_id: 0x0102_0304_0506_0708,
        payload_crc: 0xAABB_CCDD,
    }
}

#[test]
fn crc_is_the_castagnoli_one() {
    assert_eq!(crc32c([&b"1234"[..], b"56789"]), 0xE306_9283);
}

/// A sample kept for ever: whoever changes these bytes needs a new protocol version.
#[test]
fn bytes_of_version_one() {
    let bytes = sample().encode();
    assert_eq!(
        bytes[..32],
        [
            0xD0, 0x9D, 0x06, 0xF5, 1, 0, 0x42, 0, 1, 0, 8, 0, 5, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
            0, 8, 7, 6, 5, 4, 3, 2, 1
        ]
    );
    assert_eq!(bytes[32..56], [0; 24]);
    assert_eq!(bytes[56..60], [0xDD, 0xCC, 0xBB, 0xAA]);
    assert_eq!(bytes[60..], crc32c([&bytes[..60]]).to_le_bytes());
    assert_eq!(Header::decode(&bytes).expect("own bytes"), sample());
}

#[test]
fn the_first_byte_is_nobody_elses() {
    let first = sample().encode()[0];
    assert!(![0, 1, 2, 0x0a, 0x16].contains(&first) && !first.is_ascii());
}

#[test]
fn limits_are_kept() {
    let refused = |change: fn(&mut Header)| {
        let mut header = sample();
        change(&mut header);
        Header::decode(&header.encode()).expect_err("refused").kind()
    };
    assert_eq!(refused(|h| h.control_len = CONTROL_MAX as u32 + 1), ErrorKind::Invalid);
    assert_eq!(refused(|h| h.bulk_len = BULK_MAX as u32 + 1), ErrorKind::Invalid);
    assert_eq!(refused(|h| h.bulk_align = 4096), ErrorKind::Invalid);
    assert_eq!(refused(|h| h.flags = 0x8001), ErrorKind::VersionMismatch);
    assert_eq!(refused(|h| h.flags = 0), ErrorKind::Invalid, "status in a request");
    assert_eq!(
        refused(|h| {
            h.flags = 0;
            h.status = 0;
            h.control_len = REQUEST_CONTROL_MAX as u32 + 1;
        }),
        ErrorKind::Invalid
    );
}

#[test]
fn every_flipped_bit_is_seen() {
    let good = sample().encode();
    for bit in 0..HEADER_BYTES * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::decode(&bad).is_err(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes: [u8; HEADER_BYTES], fix: bool) {
        let mut bytes = bytes;
        if fix {
            bytes[..4].copy_from_slice(&MAGIC);
            let crc = own_crc(&bytes);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert!(header.control_len as usize <= CONTROL_MAX);
            prop_assert!(header.bulk_len as usize <= BULK_MAX);
            prop_assert_eq!(header.encode(), bytes);
        }
    }
}
