//! Numbers, samples and hostile input of the messages.

use super::*;
use proptest::prelude::*;
use prost::Message;

/// Samples kept for ever: these bytes must decode to these messages in every version.
#[test]
fn samples_of_version_one() {
    let check = |request: Request, bytes: &[u8]| {
        let decoded = Request::decode(request.op() as u16, Bytes::copy_from_slice(bytes));
        assert_eq!(decoded.expect("decodes"), request);
    };
    check(
        VdiCreate {
            name: "test".into(),
            size: 1 << 30,
            object_shift: 22,
            redundancy: Some(RedundancyInfo { data: 4, parity: 2 }),
            hyper: true,
            preallocated: false,
        }
        .into(),
        b"\x0a\x04test\x10\x80\x80\x80\x80\x04\x18\x16\x22\x04\x08\x04\x10\x02\x28\x01",
    );
    check(
        VdiOpen {
            vdi: Some(VdiSelector { name: "v".into(), tag: "t".into(), snapshot_id: 0 }),
            read_only: true,
        }
        .into(),
        b"\x0a\x06\x0a\x01v\x12\x01t\x10\x01",
    );
    check(
        Read { handle: 1, offset: 1 << 40, len: 4096 }.into(),
        b"\x08\x01\x10\x80\x80\x80\x80\x80\x20\x18\x80\x20",
    );
    check(
        WriteZeroes { handle: 2, offset: 0, len: 512, kind: ZeroKind::Reserve.into() }.into(),
        b"\x08\x02\x18\x80\x04\x20\x01",
    );
    check(ClusterShutdown {}.into(), b"");
    // A field of a later version is skipped.
    check(Close { handle: 5 }.into(), b"\x08\x05\xf8\x06\x2a");
    let reply =
        VdiEntry { vid: 0x7c_2b25, name: "test".into(), size: 1 << 30, ..VdiEntry::default() };
    let bytes = b"\x08\xa5\xd6\xf0\x03\x12\x04test\x30\x80\x80\x80\x80\x04";
    assert_eq!(reply.encode_to_vec(), bytes);
    assert_eq!(VdiEntry::decode(&bytes[..]).expect("decodes"), reply);
}

#[test]
fn numbers_are_fixed() {
    let numbers: Vec<u16> = Op::ALL.iter().map(|op| *op as u16).collect();
    assert_eq!(
        numbers,
        [
            0x10, 0x11, 0x12, 0x20, 0x21, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x40, 0x41,
            0x42, 0x43, 0x44, 0x45, 0x46, 0x50, 0x51
        ]
    );
    let unknown = Request::decode(0x7777, Bytes::new()).expect_err("unknown");
    assert_eq!(unknown.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_name_that_is_not_utf8_does_not_decode() {
    let bytes = Bytes::from_static(b"\x0a\x02\xff\xfe");
    assert!(Request::decode(Op::VdiCreate as u16, bytes).is_err());
}

#[test]
fn writes_ask_for_alignment() {
    let at = |offset| Write { handle: 0, offset }.bulk_align();
    assert_eq!((at(0), at(512), at(8191)), (0, 512, 4095));
}

proptest! {
    #[test]
    fn random_messages_never_panic(
        op in proptest::sample::select(Op::ALL),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Request::decode(op as u16, Bytes::from(bytes));
    }
}
