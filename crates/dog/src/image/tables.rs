//! Whether a qcow2 file still has the tables its header names. The library reads what lies behind
//! the end of a file as zeros, which in a truncated image would be an empty disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the header that are looked at; version 2 has 72 and then something else.
const HEADER: usize = 80;
/// Incompatible feature of version 3: second-level entries are twice as long.
const EXTENDED_L2: u64 = 1 << 4;
/// A second-level entry names compressed data.
const COMPRESSED: u64 = 1 << 62;
/// Unit of the length of compressed data.
const SECTOR: u64 = 512;
/// Bytes of the first-level table that QEMU accepts.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Bits of a table entry that are an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Checks that the first-level table, all second-level tables and all compressed clusters lie
/// inside a file of `len` bytes. (Plain clusters are checked where they are read.)
///
/// # Errors
/// One line.
pub fn check(file: &File, len: u64) -> Result<(), String> {
    let truncated =
        || "the qcow2 image is truncated: data lies behind the end of the file".to_owned();
    let broken = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => crate::failure::strerror(&e),
    };
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(broken)?;
    let word = |at: usize| {
        u64::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
    };
    let long = |at: usize| word(at) << 32 | word(at + 4);
    let (cluster_bits, l1_entries, l1_offset) = (word(20), word(36), long(40));
    if !(9..=21).contains(&cluster_bits) || l1_entries * 8 > L1_BYTES_MAX {
        return Err("not a usable qcow2 image: its header makes no sense".to_owned());
    }
    let cluster = 1u64 << cluster_bits;
    // What the first-level table cannot reach, the library would look for all the same.
    let reach = u128::from(l1_entries) * u128::from(cluster / 8) * u128::from(cluster);
    if u128::from(long(24)) > reach || long(24) > sheepdog_types::limits::VDI_BYTES_MAX {
        return Err("not a usable qcow2 image: its size makes no sense".to_owned());
    }
    let inside = |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= len);
    if !inside(l1_offset, l1_entries * 8) {
        return Err(truncated());
    }
    if word(4) >= 3 && long(72) & EXTENDED_L2 != 0 {
        return Err(
            "uses extended qcow2 entries: convert it with 'qemu-img convert' first".to_owned()
        );
    }
    let mut l1 = vec![0; l1_entries as usize * 8];
    file.read_exact_at(&mut l1, l1_offset).map_err(broken)?;
    let mut l2 = vec![0; cluster as usize];
    for entry in l1.as_chunks::<8>().0 {
        let offset = u64::from_be_bytes(*entry) & OFFSET_MASK;
        if offset == 0 {
            continue;
        }
        file.read_exact_at(&mut l2, offset).map_err(broken)?;
        for entry in l2.as_chunks::<8>().0 {
            let entry = u64::from_be_bytes(*entry);
            if entry & COMPRESSED != 0
                && compressed_end(entry, cluster_bits) > len.next_multiple_of(SECTOR)
            {
                return Err(truncated());
            }
        }
    }
    Ok(())
}

/// Where the last sector ends that a compressed cluster may use.
fn compressed_end(entry: u64, cluster_bits: u64) -> u64 {
    let length_at = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << length_at) - 1);
    let further_sectors = (entry & (COMPRESSED - 1)) >> length_at;
    (offset / SECTOR + 1 + further_sectors) * SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_clusters_end_where_the_format_says() {
        // 64 KiB clusters: 54 bits of offset, 8 of length.
        assert_eq!(compressed_end(COMPRESSED | 1000, 16), 1024);
        assert_eq!(compressed_end(COMPRESSED | 1024 | 3 << 54, 16), 3072);
        // 512 byte clusters: 61 bits of offset, 1 of length.
        assert_eq!(compressed_end(COMPRESSED | 1 << 61 | 5, 9), 1024);
        assert_eq!(compressed_end(u64::MAX >> 1, 16), ((1 << 54) / 512 + 255) * 512);
    }
}
