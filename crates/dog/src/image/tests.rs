//! Probing and zeros.

use super::*;
use proptest::prelude::*;

#[test]
fn magics_are_told_apart() {
    let vdi = [&[0; 64][..], b"\x7f\x10\xda\xbe"].concat();
    let cases: [(&[u8], Probed); 10] = [
        (b"QFI\xfb\0\0\0\x03", Probed::Known(Format::Qcow2)),
        (b"QFI\xfb\0\0\0\x02", Probed::Known(Format::Qcow2)),
        (b"QFI\xfb\0\0\0\x01", Probed::Foreign("qcow")),
        (b"QFI\xfb", Probed::Known(Format::Qcow2)),
        (b"KDMV", Probed::Foreign("VMDK")),
        (b"vhdxfile", Probed::Foreign("VHDX")),
        (&vdi, Probed::Foreign("VirtualBox VDI")),
        (b"QF", Probed::Known(Format::Raw)),
        (b"", Probed::Known(Format::Raw)),
        (b"\xeb\x63\x90", Probed::Known(Format::Raw)),
    ];
    for (start, want) in cases {
        assert_eq!(probe(start), want, "{start:?}");
    }
}

#[test]
fn extensions_choose_what_is_written() {
    let format = |path: &str| Format::for_path(Path::new(path));
    assert_eq!(format("a.qcow2"), Format::Qcow2);
    assert_eq!(format("a.QCOW2"), Format::Qcow2);
    assert_eq!(format("a.qcow2.bak"), Format::Raw);
    assert_eq!(format("qcow2"), Format::Raw);
    assert_eq!(Format::from_name("qcow2".as_ref()), Some(Format::Qcow2));
    assert_eq!(Format::from_name("vmdk".as_ref()), None);
}

proptest! {
    /// What is cut out is zero, what is left is in place, and no zero block is left.
    #[test]
    fn only_zero_blocks_are_cut_out(
        offset in 0u64..10_000,
        blocks in proptest::collection::vec(0u8..3, 0..12),
        tail in 0usize..5000,
    ) {
        let mut disk = vec![0u8; 10_000];
        for kind in blocks {
            // One non-zero byte somewhere is enough to keep a block.
            let mut block = vec![0u8; BLOCK_SIZE];
            block[usize::from(kind) * 2047] = kind;
            disk.extend(block);
        }
        disk.extend(vec![7; tail]);
        let data = Bytes::copy_from_slice(&disk[offset as usize..]);
        let mut rebuilt = vec![0u8; disk.len()];
        for (at, run) in without_zeros(offset, &data) {
            prop_assert!(!run.is_empty());
            let at = at as usize;
            let mut begin = at;
            while begin < at + run.len() {
                let end = (begin / BLOCK_SIZE + 1) * BLOCK_SIZE;
                let end = end.min(at + run.len());
                prop_assert!(!is_zero(&run[begin - at..end - at]));
                begin = end;
            }
            rebuilt[at..at + run.len()].copy_from_slice(&run);
        }
        disk[..offset as usize].fill(0);
        prop_assert!(rebuilt == disk, "what was rebuilt differs");
    }
}
