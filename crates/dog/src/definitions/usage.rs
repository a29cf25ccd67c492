//! Usage and help texts, made from the tables.

use super::{COMMANDS, CommandDef, OptionDef, SubcommandDef};
use std::fmt::Write as _;

/// What `dog` and `dog --help` print.
#[must_use]
pub fn overview() -> String {
    let mut text = format!(
        "Sheepdog administrator utility (version {})\nUsage: dog <command> <subcommand> [options]\n\nAvailable commands:\n",
        env!("CARGO_PKG_VERSION")
    );
    for command in &COMMANDS {
        rows(&mut text, command);
    }
    text.push_str("\nFor more information, run 'dog <command> <subcommand> --help'.\n");
    text
}

/// What is printed when a subcommand is missing or unknown.
#[must_use]
pub fn subcommands(command: &CommandDef) -> String {
    let mut text = format!("Available {} commands:\n", command.name);
    for subcommand in command.subcommands {
        let _ = writeln!(text, "  {} {}", command.name, subcommand.name);
    }
    text
}

/// What `--help` of a subcommand prints, and every usage error of its own. The arguments are
/// explained to people; what scripts get of an old subcommand has the old form.
#[must_use]
pub fn usage(command: &CommandDef, subcommand: &SubcommandDef, on_terminal: bool) -> String {
    let mut text = format!("Usage: dog {} {}", command.name, subcommand.name);
    let subs: Vec<&str> = subcommand.subs.iter().map(|(word, _)| *word).collect();
    if !subs.is_empty() {
        let _ = write!(text, " {{{}}}", subs.join("|"));
    }
    for option in subcommand.options {
        let _ = match (option.short, option.takes_value) {
            (Some(short), true) => write!(text, " [-{short} {}]", option.long),
            (Some(short), false) => write!(text, " [-{short}]"),
            (None, true) => write!(text, " [--{0} {0}]", option.long),
            (None, false) => write!(text, " [--{}]", option.long),
        };
    }
    if !subcommand.args.is_empty() {
        let _ = write!(text, " {}", subcommand.args);
    }
    text.push('\n');
    if !subs.is_empty() {
        text.push_str("Available subcommands:\n");
        for (word, does) in subcommand.subs {
            let _ = writeln!(text, "  {word:<24}{does}");
        }
    }
    if !subcommand.arguments.is_empty() && (on_terminal || !subcommand.verb.is_old()) {
        text.push_str("Arguments:\n");
        for (name, help) in subcommand.arguments {
            let _ = writeln!(text, "  {:<24}{help}", format!("<{name}>"));
        }
    }
    text.push_str("Options:\n");
    for option in subcommand.options {
        let _ = writeln!(text, "  {:<24}{}", names(option), option.help);
    }
    text
}

fn names(option: &OptionDef) -> String {
    match option.short {
        Some(short) => format!("-{short}, --{}", option.long),
        None => format!("    --{}", option.long),
    }
}

fn rows(text: &mut String, command: &CommandDef) {
    for subcommand in command.subcommands {
        let words = format!("{} {}", command.name, subcommand.name);
        let _ = writeln!(text, "  {words:<24}{}", subcommand.about);
    }
}
