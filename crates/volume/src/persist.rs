//! What all values in the registry share: protobuf fields that may be added to, and a format
//! number as field 1 that is raised when an older program must not touch the value.
//!
//! A field may be added without a new format number only if nothing is lost when an older program
//! reads the value without it and writes it back.

use prost::Message;
use sheepdog_types::{Error, ErrorKind, Result};

/// The part every format keeps for ever.
#[derive(Clone, PartialEq, Message)]
struct Stamp {
    #[prost(uint32, tag = "1")]
    format: u32,
}

/// Decodes a value of at most format `known`. `what` names it in messages.
pub(crate) fn decode<M: Message + Default>(what: &str, known: u32, bytes: &[u8]) -> Result<M> {
    // The number first: a newer format may have changed the meaning of every other field.
    let format = Stamp::decode(bytes)
        .map_err(|e| Error::with_source(ErrorKind::Internal, format!("{what} is damaged"), e))?
        .format;
    if format > known {
        return Err(newer(what, &format!("format {format}")));
    }
    if format == 0 {
        return Err(damaged(what, "it has no format number"));
    }
    M::decode(bytes)
        .map_err(|e| Error::with_source(ErrorKind::Internal, format!("{what} is damaged"), e))
}

/// Something this program does not know but a newer one may.
pub(crate) fn newer(what: &str, which: &str) -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        format!("{what} was written by a newer version ({which}), upgrade this node"),
    )
}

/// Something no version writes.
pub(crate) fn damaged(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("{what} is damaged: {why}"))
}

/// As [`damaged`], for what a check of the value found.
pub(crate) fn damaged_by(what: &str, error: &Error) -> Error {
    damaged(what, error.context())
}
