//! Structures on disk, all little-endian, each with a magic, a version and a checksum.
//! `docs/on-disk-format.md` draws them.

pub mod batch;
pub mod codec;
pub mod fragment_page;
pub mod index;
pub mod record;
pub mod shard_record;
pub mod shards;
pub mod superblock;
