//! How an error crosses the network: its kind is a byte of the header, its words a control message.

use crate::message::Failure;
use sheepdog_types::{Error, ErrorKind};
use std::error::Error as _;

/// Bytes of an error's words that travel.
const CONTEXT_MAX: usize = 4096;

/// What an error's words are on the wire: the context and all causes, in one line.
pub(crate) fn encode(error: &Error) -> Failure {
    let mut context = error.context().to_owned();
    let mut cause = error.source();
    while let Some(next) = cause {
        if !context.is_empty() {
            context.push_str(": ");
        }
        context.push_str(&next.to_string());
        cause = next.source();
    }
    Failure { context: printable(&context) }
}

/// The error a peer sent. A peer's words are shown to people, so they cannot hold control
/// characters.
pub(crate) fn decode(status: u8, failure: &Failure) -> Error {
    Error::new(ErrorKind::from_code(status), printable(&failure.context))
}

fn printable(text: &str) -> String {
    let mut end = text.len().min(CONTEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_and_words_survive() {
        let error = Error::with_source(
            ErrorKind::NoSpace,
            "write the log",
            std::io::Error::other("quota\u{1b}[31m"),
        );
        let back = decode(error.kind().code(), &encode(&error));
        assert_eq!(back.kind(), ErrorKind::NoSpace);
        assert_eq!(back.context(), "write the log: quota [31m");
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let error = Error::new(ErrorKind::Io, "é".repeat(CONTEXT_MAX));
        assert_eq!(encode(&error).context.len(), CONTEXT_MAX);
        let odd = Error::new(ErrorKind::Io, format!("x{}", "é".repeat(CONTEXT_MAX)));
        assert_eq!(encode(&odd).context.len(), CONTEXT_MAX - 1);
    }
}
