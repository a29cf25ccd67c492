//! How large VDIs and their objects may be.

use sheepdog_types::limits::{OBJECT_SHIFT_MAX, OBJECT_SHIFT_MIN, VDI_BYTES_MAX, VDI_OBJECTS_MAX};
use sheepdog_types::{Error, ErrorKind, Result};

/// Largest size of a VDI with this object size, to create or to grow to. `hyper` lifts the limit of
/// 2^20 objects.
#[must_use]
pub const fn max_bytes(object_shift: u8, hyper: bool) -> u64 {
    if hyper || object_shift > OBJECT_SHIFT_MAX {
        VDI_BYTES_MAX
    } else {
        VDI_OBJECTS_MAX << object_shift
    }
}

/// Checks the size a VDI is created with. Any number of bytes is fine, 0 too.
///
/// # Errors
/// [`ErrorKind::Invalid`] with one line that says which limit and the way around it.
pub fn check(size: u64, object_shift: u8, hyper: bool) -> Result<()> {
    check_object_shift(object_shift)?;
    let max = max_bytes(object_shift, hyper);
    if size <= max {
        Ok(())
    } else if size > VDI_BYTES_MAX {
        Err(Error::new(
            ErrorKind::Invalid,
            format!("VDI size {size} is too large, the limit is {VDI_BYTES_MAX} bytes"),
        ))
    } else {
        Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "VDI size {size} is larger than {max} bytes, which needs a hyper volume or a larger object size"
            ),
        ))
    }
}

/// Checks an object size, given as a power of two.
///
/// # Errors
/// [`ErrorKind::Invalid`] unless it is 20 to 31.
pub fn check_object_shift(object_shift: u8) -> Result<()> {
    if (OBJECT_SHIFT_MIN..=OBJECT_SHIFT_MAX).contains(&object_shift) {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "object size 2^{object_shift} is not within 2^{OBJECT_SHIFT_MIN} to 2^{OBJECT_SHIFT_MAX}"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_exact_to_the_byte() {
        assert_eq!(max_bytes(22, false), 4 << 40);
        assert_eq!(max_bytes(31, false), 2 << 50);
        assert_eq!(max_bytes(20, false), 1 << 40);
        for shift in 20..=31 {
            assert_eq!(max_bytes(shift, true), 16 << 50);
            for hyper in [false, true] {
                let max = max_bytes(shift, hyper);
                for size in [0, 1, 513, max - 1, max] {
                    check(size, shift, hyper).expect("within");
                }
                for size in [max + 1, VDI_BYTES_MAX + 1, u64::MAX] {
                    let error = check(size, shift, hyper).expect_err("beyond");
                    assert_eq!(error.kind(), ErrorKind::Invalid);
                }
            }
        }
        for shift in [0, 19, 32, 64, 255] {
            check(0, shift, true).expect_err("object size");
        }
    }

    #[test]
    fn the_line_names_the_way_around() {
        assert_eq!(
            check((4 << 40) + 1, 22, false).expect_err("too large").context(),
            "VDI size 4398046511105 is larger than 4398046511104 bytes, which needs a hyper volume or a larger object size"
        );
        assert_eq!(
            check((16 << 50) + 1, 22, false).expect_err("too large").context(),
            "VDI size 18014398509481985 is too large, the limit is 18014398509481984 bytes"
        );
    }
}
