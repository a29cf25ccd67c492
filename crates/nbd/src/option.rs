//! The data of options, taken apart, and of their answers, put together.

use crate::proto::{self, TEXT_MAX, be16, be32, export, option_reply};

/// Why an option cannot be answered: the error's type and a line.
pub type Refusal = (u32, &'static str);

const MALFORMED: Refusal = (option_reply::INVALID, "the option's lengths do not add up");

/// What INFO and GO ask for.
#[derive(PartialEq, Eq, Debug)]
pub struct InfoRequest<'a> {
    pub name: &'a str,
    pub wants_name: bool,
    pub wants_description: bool,
}

/// Takes INFO or GO apart.
pub fn info_request(data: &[u8]) -> Result<InfoRequest<'_>, Refusal> {
    let (name, rest) = string(data)?;
    let (count, infos) = rest.split_first_chunk::<2>().ok_or(MALFORMED)?;
    if infos.len() != 2 * usize::from(be16(count, 0)) {
        return Err(MALFORMED);
    }
    let wants = |kind: u16| infos.chunks_exact(2).any(|info| be16(info, 0) == kind);
    Ok(InfoRequest {
        name: export_name(name)?,
        wants_name: wants(proto::info::NAME),
        wants_description: wants(proto::info::DESCRIPTION),
    })
}

/// What LIST_META_CONTEXT and SET_META_CONTEXT ask for.
#[derive(PartialEq, Eq, Debug)]
pub struct ContextRequest<'a> {
    pub name: &'a str,
    pub queries: Vec<&'a [u8]>,
}

/// Takes LIST_META_CONTEXT or SET_META_CONTEXT apart.
pub fn context_request(data: &[u8]) -> Result<ContextRequest<'_>, Refusal> {
    let (name, rest) = string(data)?;
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or(MALFORMED)?;
    // The count is the client's word; the bytes that are there bound the list.
    let mut queries = Vec::new();
    for _ in 0..be32(count, 0) {
        let query;
        (query, rest) = string(rest)?;
        queries.push(query);
    }
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    Ok(ContextRequest { name: export_name(name)?, queries })
}

/// A length and so many bytes.
fn string(data: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let (len, rest) = data.split_first_chunk::<4>().ok_or(MALFORMED)?;
    rest.split_at_checked(be32(len, 0) as usize).ok_or(MALFORMED)
}

/// Checks an export name as far as the protocol goes.
pub fn export_name(name: &[u8]) -> Result<&str, Refusal> {
    if name.len() > TEXT_MAX {
        return Err((option_reply::TOO_BIG, "the export name is too long"));
    }
    std::str::from_utf8(name).map_err(|_| (option_reply::INVALID, "the export name is not UTF-8"))
}

/// What an export can do.
pub fn export_flags(read_only: bool, structured: bool) -> u16 {
    let mut flags =
        export::HAS_FLAGS | export::FLUSH | export::FUA | export::MULTI_CONN | export::CACHE;
    flags |= if read_only {
        export::READ_ONLY
    } else {
        export::TRIM | export::WRITE_ZEROES | export::FAST_ZERO
    };
    if structured {
        flags |= export::DF;
    }
    flags
}

/// Appends one answer to an option.
pub fn reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend(proto::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((len as u32).to_be_bytes());
    for part in parts {
        out.extend(*part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text].concat()
    }

    #[test]
    fn info_is_taken_apart() {
        let data = [&text(b"disk")[..], &[0, 2, 0, 3, 0, 1]].concat();
        let want = InfoRequest { name: "disk", wants_name: true, wants_description: false };
        assert_eq!(info_request(&data), Ok(want));
        for cut in 0..data.len() {
            assert_eq!(info_request(&data[..cut]), Err(MALFORMED), "{cut}");
        }
        assert_eq!(info_request(&[&data[..], &[0]].concat()), Err(MALFORMED));
        let bad = [&text(b"\xff")[..], &[0, 0]].concat();
        assert_eq!(info_request(&bad).expect_err("not UTF-8").0, option_reply::INVALID);
        let long = [&text(&[b'a'; 4097])[..], &[0, 0]].concat();
        assert_eq!(info_request(&long).expect_err("too long").0, option_reply::TOO_BIG);
    }

    #[test]
    fn contexts_are_taken_apart() {
        let data = [&text(b"d")[..], &[0, 0, 0, 2], &text(b"base:"), &text(b"")].concat();
        let want = ContextRequest { name: "d", queries: vec![b"base:", b""] };
        assert_eq!(context_request(&data), Ok(want));
        for cut in 0..data.len() {
            assert_eq!(context_request(&data[..cut]), Err(MALFORMED), "{cut}");
        }
        let greedy = [&text(b"d")[..], &[0xff; 4]].concat();
        assert_eq!(context_request(&greedy), Err(MALFORMED));
        let more = [&text(b"d")[..], &[0; 4], &[0]].concat();
        assert_eq!(context_request(&more), Err(MALFORMED));
    }
}
