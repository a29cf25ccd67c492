//! Images as `dog vdi import` reads them: which format a file has, the tables of a qcow2 image,
//! its pieces.
#![no_main]

use rustix::fs::{MemfdFlags, memfd_create};
use sheepdog_dog::image::source::{self, Piece};
use sheepdog_dog::image::{Format, PROBE_BYTES, Probed, is_encrypted, probe, without_zeros};
use sheepdog_fuzz::input::Input;
use sheepdog_fuzz::meter::bounded;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

sheepdog_fuzz::target!(seeds, run);

/// Bytes of a cluster of the seeds: the smallest there are.
const CLUSTER: u64 = 512;
/// Pieces that are looked at of an image.
const PIECES: usize = 256;

/// A qcow2 image with one data cluster, one of zeros and one that is compressed.
fn qcow2(version: u32) -> Vec<u8> {
    let mut image = vec![0; 5 * CLUSTER as usize];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &(1_u64 << 16).to_be_bytes());
    put(36, &2_u32.to_be_bytes());
    put(40, &CLUSTER.to_be_bytes());
    // Refcounts: one table of one cluster, one block.
    put(48, &(2 * CLUSTER).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    if version == 3 {
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
    }
    put(CLUSTER, &((3 * CLUSTER) | (1 << 63)).to_be_bytes());
    put(3 * CLUSTER, &((4 * CLUSTER) | (1 << 63)).to_be_bytes());
    put(3 * CLUSTER + 8, &(u64::from(version == 3)).to_be_bytes());
    put(3 * CLUSTER + 16, &((4 * CLUSTER) | (1 << 62)).to_be_bytes());
    // One stored block of deflate: 00, length, its complement.
    put(4 * CLUSTER, b"\x01\x04\0\xfb\xff\x01\x02\x03\x04");
    image
}

fn seeds() -> Vec<Vec<u8>> {
    let foreign = [&b"KDMV"[..], b"conectix", b"vhdxfile", b"QED\0", b"QFI\xfb\0\0\0\x01"];
    let mut seeds = vec![
        [&[0, 0], &qcow2(2)[..]].concat(),
        [&[0, 0], &qcow2(3)[..]].concat(),
        [&[1, 0], &qcow2(3)[..]].concat(),
        [&[6, 9], &[7; 5000][..]].concat(),
    ];
    seeds.extend(foreign.map(|start| [&[0, 0], start].concat()));
    seeds
}

/// The first byte chooses the format that is asked for, the second the size.
fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (format, size) = (input.u8(), input.u8());
    let bytes = input.rest();
    let asked = [None, Some(Format::Raw), Some(Format::Qcow2)][usize::from(format) % 3];
    let size = (format & 0x80 != 0).then_some(u64::from(size) << 10);
    let start = &bytes[..bytes.len().min(PROBE_BYTES)];
    let found = probe(start);
    assert_eq!(found, probe(bytes), "the first bytes are enough");
    assert!(!is_encrypted(bytes) || found == Probed::Known(Format::Qcow2) || bytes[7] == 1);
    let fd = memfd_create("image", MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(bytes).expect("it takes bytes");
    // Pieces of 1 MiB, a few read ahead; clusters of up to 2 MiB, some of them cached.
    bounded(64 << 20, || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(read(&file, asked, size, bytes, found));
    });
}

async fn read(file: &File, asked: Option<Format>, size: Option<u64>, bytes: &[u8], found: Probed) {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut source = match source::open(path.as_ref(), asked, size).await {
        Ok(source) => source,
        Err(line) => {
            assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
            return;
        }
    };
    let header = source.header;
    assert!(size.is_none_or(|size| size == header.size));
    assert_eq!(header.format, asked.unwrap_or(header.format));
    assert!(header.format == Format::Raw || found == Probed::Known(Format::Qcow2));
    let (mut at, mut seen) = (0, 0);
    while let Some(piece) = source.pieces.recv().await {
        match piece {
            Ok(Piece::Data(offset, data)) => {
                assert_eq!(offset, at, "no gaps");
                assert!((1..=1 << 20).contains(&data.len()));
                if header.format == Format::Raw {
                    assert_eq!(data, bytes[at as usize..at as usize + data.len()]);
                }
                let kept = without_zeros(offset, &data);
                assert!(kept.iter().all(|(at, run)| *at >= offset && run.len() <= data.len()));
                at += data.len() as u64;
            }
            Ok(Piece::Zeros(len)) => {
                if header.format == Format::Raw {
                    let end = bytes.len().min((at + len) as usize);
                    assert!(bytes[(at as usize).min(end)..end].iter().all(|byte| *byte == 0));
                }
                at += len;
            }
            // Damage that is found late is told.
            Err(line) => {
                assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
                return;
            }
        }
        assert!(at <= header.size, "no more than it said");
        seen += 1;
        if seen == PIECES {
            return;
        }
    }
    // Fewer only when the library panicked, which whoever imports is told.
    assert!(at == header.size || header.format == Format::Qcow2);
}
