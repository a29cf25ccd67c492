//! Limits of the product, in one place. Those of the old system are facts its users rely on.

/// Bytes of a VDI name, tag or attribute key.
pub const NAME_BYTES_MAX: usize = 255;
/// Smallest and largest object size, as powers of two.
pub const OBJECT_SHIFT_MIN: u8 = 20;
/// See [`OBJECT_SHIFT_MIN`].
pub const OBJECT_SHIFT_MAX: u8 = 31;
/// Object size unless said otherwise: 4 MiB.
pub const OBJECT_SHIFT_DEFAULT: u8 = 22;
/// Objects of a VDI that is not a hypervolume.
pub const VDI_OBJECTS_MAX: u64 = 1 << 20;
/// Bytes of a hypervolume: 16 PiB.
pub const VDI_BYTES_MAX: u64 = 16 << 50;
/// Copies of replicated data.
pub const COPIES_MAX: u8 = 31;
/// Copies unless said otherwise.
pub const COPIES_DEFAULT: u8 = 3;
/// Port of the sheepdog protocol and of dog.
pub const PORT_DEFAULT: u16 = 7000;
/// Weight of an average node.
pub const VNODES_DEFAULT: u32 = 128;
