//! The administrator's tool, `dog` (and `collie`, its old name): a command line whose text, raw
//! output, streams and exit codes are contracts with ten years of scripts. New things are behind
//! new options or on terminals only.
//!
//! Three layers: [`definitions`] says which commands and options there are, [`verbs`] does what
//! they mean, [`mod@print`] shows the results.

pub mod args;
pub mod definitions;
pub mod failure;
pub mod image;
pub mod log;
pub mod output;
pub mod pipeline;
pub mod print;
pub mod progress;
pub mod session;
pub mod verbs;

use definitions::{Opt, parse::parse, usage};
use failure::{EXIT_OK, EXIT_USAGE, Failure};
use output::{Output, complain};
use std::ffi::OsString;
use std::time::Instant;

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> i32 {
    let words: Vec<OsString> = std::env::args_os().collect();
    log::invocation(&words);
    let mut out = Output::stdout();
    let code = run(words.get(1..).unwrap_or_default(), &mut out);
    match out.finish() {
        Ok(()) => code.into(),
        Err(failure) => {
            failure.complain();
            failure.code().into()
        }
    }
}

/// Runs a command line without the program's name.
fn run(words: &[OsString], out: &mut Output) -> u8 {
    let first = words.first().map(|w| w.to_string_lossy());
    if matches!(first.as_deref(), None | Some("help" | "--help" | "-h")) {
        return finish(out.text(&usage::overview()));
    }
    let first = first.unwrap_or_default();
    let Some(command) = definitions::command(&first) else {
        complain(&format!("Invalid command '{}'", first.escape_debug()));
        complain("Try 'dog --help' for more information.");
        return EXIT_USAGE;
    };
    let second = words.get(1).map(|w| w.to_string_lossy()).unwrap_or_default();
    let Some(subcommand) = command.subcommand(&second) else {
        if !matches!(&*second, "help" | "--help" | "-h") {
            complain(&format!("Invalid command '{first} {}'", second.escape_debug()));
        }
        complain(usage::subcommands(command).trim_end());
        return EXIT_USAGE;
    };
    let parsed = match parse(subcommand, words[2..].iter().cloned()) {
        Ok(parsed) => parsed,
        Err(line) => {
            complain(&line);
            complain("Try 'dog --help' for more information.");
            return EXIT_USAGE;
        }
    };
    if parsed.has(Opt::Help) {
        let text = usage::usage(command, subcommand, out.is_terminal());
        return finish(out.text(&text));
    }
    let target = match args::target(&parsed) {
        Ok(target) => target,
        Err(failure) => {
            failure.complain();
            return failure.code();
        }
    };
    let (timed, json) = (parsed.has(Opt::Time), parsed.has(Opt::Json));
    let begun = Instant::now();
    let words = subcommand.arguments.len() + usize::from(!subcommand.subs.is_empty());
    let result = args::sub(subcommand, &parsed)
        .and_then(|()| args::no_more(&parsed.args, words))
        .and_then(|()| verbs::run(subcommand.verb, parsed, target, out));
    let code = match &result {
        Ok(()) => EXIT_OK,
        Err(failure) => {
            failure.complain();
            let text = usage::usage(command, subcommand, out.is_terminal());
            if failure.wants_usage() && out.text(&text).is_err() {
                return EXIT_USAGE;
            }
            failure.code()
        }
    };
    if timed && code != EXIT_USAGE {
        let line = format!("\nElapsed time: {:.3} seconds\n", begun.elapsed().as_secs_f64());
        // JSON output stays one document.
        if json {
            complain(line.trim());
        } else if out.text(&line).is_err() {
            return code;
        }
    }
    code
}

fn finish(result: Result<(), Failure>) -> u8 {
    match result {
        Ok(()) => EXIT_OK,
        Err(failure) => {
            failure.complain();
            failure.code()
        }
    }
}
