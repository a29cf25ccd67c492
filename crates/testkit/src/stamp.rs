//! What a written block holds: its own number and the write it belongs to, all of it.

use crate::rng::Rng;

/// The unit of writing and of checking.
pub const BLOCK: usize = 4096;

const MAGIC: &[u8; 8] = b"verified";

/// Which write a block's content belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Content {
    /// All zeros: never written, discarded, or zeros written.
    Zero,
    /// The whole content that write `.0` gives this block.
    Write(u64),
}

/// Fills a block with what write `seq` of the run `run` puts there.
///
/// # Panics
/// When `out` is not one block.
pub fn stamp(out: &mut [u8], run: u64, block: u64, seq: u64) {
    assert_eq!(out.len(), BLOCK, "one block");
    out[..8].copy_from_slice(MAGIC);
    for (i, word) in [run, block, seq].into_iter().enumerate() {
        out[8 * (i + 1)..8 * (i + 2)].copy_from_slice(&word.to_le_bytes());
    }
    // Not compressible, and different in every 512-byte sector: a torn block cannot pass.
    Rng::new(run ^ block.rotate_left(40) ^ seq.rotate_left(20)).fill(&mut out[32..BLOCK - 8]);
    let sum = crc(&out[..BLOCK - 8]);
    out[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
}

/// Recognises a block's content; the error says what is wrong with it.
///
/// # Errors
/// When it is neither zero nor wholly one write's content of this block in this run.
///
/// # Panics
/// When `data` is not one block.
pub fn recognise(data: &[u8], run: u64, block: u64) -> Result<Content, String> {
    assert_eq!(data.len(), BLOCK, "one block");
    if data.iter().all(|b| *b == 0) {
        return Ok(Content::Zero);
    }
    let word = |i: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&data[8 * i..8 * (i + 1)]);
        u64::from_le_bytes(bytes)
    };
    let (its_run, its_block, seq) = (word(1), word(2), word(3));
    let mut expected = vec![0; BLOCK];
    stamp(&mut expected, its_run, its_block, seq);
    let wrong = data.iter().zip(&expected).filter(|(a, b)| a != b).count();
    if &data[..8] != MAGIC {
        Err(format!("foreign content, begins {:02x?}", &data[..16]))
    } else if wrong > 0 {
        Err(format!(
            "torn: begins as write {seq} of block {its_block}, {wrong} bytes differ from it"
        ))
    } else if its_run != run || its_block != block {
        Err(format!("misplaced: write {seq} of block {its_block} in run {its_run}"))
    } else {
        Ok(Content::Write(seq))
    }
}

/// CRC-64/NVME.
#[must_use]
pub fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_pass_and_nothing_else() {
        let mut data = vec![0; BLOCK];
        assert_eq!(recognise(&data, 1, 2), Ok(Content::Zero));
        stamp(&mut data, 1, 2, 3);
        assert_eq!(recognise(&data, 1, 2), Ok(Content::Write(3)));
        assert!(recognise(&data, 1, 5).unwrap_err().contains("misplaced"));
        assert!(recognise(&data, 7, 2).unwrap_err().contains("misplaced"));
        let mut newer = vec![0; BLOCK];
        stamp(&mut newer, 1, 2, 4);
        for sector in 0..8 {
            let range = 512 * sector..512 * (sector + 1);
            let mut torn = data.clone();
            torn[range.clone()].copy_from_slice(&newer[range]);
            assert!(recognise(&torn, 1, 2).unwrap_err().contains("torn"), "{sector}");
        }
        data[..512].fill(0);
        assert!(recognise(&data, 1, 2).unwrap_err().contains("foreign"));
    }
}
