//! The streams, as C's stdio has them: stdout fully buffered unless it is a terminal, stderr
//! unbuffered. Golden outputs of `2>&1` depend on it.

use crate::failure::{Failure, Result};
use serde::Serialize;
use std::io::{self, BufWriter, IsTerminal, LineWriter, Write};
use std::os::fd::AsFd;

/// Bytes that gather before stdout is written.
const STDOUT_BUFFER: usize = 4096;

/// Standard output.
pub struct Output {
    stream: Box<dyn Write + Send>,
    terminal: bool,
}

impl Output {
    /// That of this process.
    #[must_use]
    pub fn stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        // The standard library's own handle always buffers by lines.
        let stream: Box<dyn Write + Send> = match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) if terminal => Box::new(LineWriter::new(std::fs::File::from(fd))),
            Ok(fd) => Box::new(BufWriter::with_capacity(STDOUT_BUFFER, std::fs::File::from(fd))),
            // Closed: what is written is lost, as in C.
            Err(_) => Box::new(io::sink()),
        };
        Self { stream, terminal }
    }

    /// Whether a person looks at it: colours and progress bars are allowed.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes text.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Writes a value as one line of JSON.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value)
            .map_err(|e| Failure::failed(format!("Failed to make JSON: {e}")))?;
        self.text(&text)?;
        self.text("\n")
    }

    /// Asks and reads one line. On a terminal the question is flushed, as C does before it reads;
    /// with JSON it goes to stderr, so that stdout stays one document.
    ///
    /// # Errors
    /// When the stream fails; silently with exit code 0 when the answer is not yes.
    pub fn confirm(&mut self, question: &str, json: bool) -> Result<()> {
        if json {
            let _ = io::stderr().write_all(question.as_bytes());
        } else {
            self.text(question)?;
        }
        if self.terminal {
            self.stream.flush()?;
        }
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        let yes =
            answer.as_bytes().get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"yes"));
        if read.is_ok() && yes { Ok(()) } else { Err(Failure::silent(crate::failure::EXIT_OK)) }
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.stream.flush()?)
    }
}

/// Writes a line to stderr, as it is.
pub fn complain(line: &str) {
    // When stderr is gone there is nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether hints may be given: scripts of old expect on stderr what they know and nothing else.
#[must_use]
pub fn person_reads_stderr() -> bool {
    io::stderr().is_terminal()
}
