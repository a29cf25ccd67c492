//! Tables and grammar.

use super::parse::{Parsed, parse};
use super::*;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

fn sub(command_name: &str, name: &str) -> &'static SubcommandDef {
    command(command_name).and_then(|c| c.subcommand(name)).expect("defined")
}

fn parsed(command_name: &str, name: &str, words: &[&str]) -> Result<Parsed, String> {
    parse(sub(command_name, name), words.iter().map(OsString::from))
}

#[test]
fn no_table_uses_a_letter_or_name_twice() {
    for command in &COMMANDS {
        for subcommand in command.subcommands {
            for (i, a) in subcommand.options.iter().enumerate() {
                for b in &subcommand.options[i + 1..] {
                    assert!(a.short.is_none() || a.short != b.short, "{}", subcommand.name);
                    assert!(a.long != b.long && a.opt != b.opt, "{}", subcommand.name);
                }
            }
            assert!(subcommand.options.iter().any(|o| o.opt == Opt::Help));
            assert!(subcommand.options.iter().any(|o| o.opt == Opt::Json));
        }
    }
}

/// What the usage line shows is explained, and nothing else is taken.
#[test]
fn every_argument_of_a_usage_line_is_explained() {
    for subcommand in COMMANDS.iter().flat_map(|c| c.subcommands) {
        let shown = subcommand.args.split(['<', '>', '[', ']']);
        let shown: Vec<&str> = shown.map(str::trim).filter(|word| !word.is_empty()).collect();
        let explained: Vec<&str> = subcommand.arguments.iter().map(|(name, _)| *name).collect();
        assert_eq!(shown, explained, "{}", subcommand.name);
    }
}

/// The old letters, in the old order, begin every usage.
#[test]
fn letters_of_old_come_first_and_in_order() {
    for (command_name, name, letters) in [
        ("vdi", "create", "PycaphrvzT"),
        ("vdi", "delete", "saphTBIm"),
        ("vdi", "list", "aprhoT"),
        ("vdi", "resize", "aphT"),
        ("vdi", "read", "saphT"),
        ("vdi", "write", "apwhT"),
        ("node", "list", "aprhT"),
        ("node", "info", "aprhT"),
        ("node", "md", "aprAfhT"),
        ("cluster", "info", "aprhvTd"),
        ("cluster", "format", "bcltaphzTVRfF"),
        ("cluster", "shutdown", "aphT"),
    ] {
        let ours: String = sub(command_name, name).options.iter().filter_map(|o| o.short).collect();
        assert_eq!(ours, letters, "{command_name} {name}");
    }
}

#[test]
fn options_may_stand_anywhere() {
    let orders: [&[&str]; 6] = [
        &["-s", "tag", "-a", "h", "-p", "7001", "-r", "name"],
        &["name", "-stag", "-ah", "-p7001", "-r"],
        &["-s", "tag", "name", "--address=h", "--port", "7001", "--raw"],
        &["-rs", "tag", "name", "-a", "h", "-p", "7001"],
        &["--snap", "tag", "--ad=h", "--po=7001", "--ra", "name"],
        &["-s", "first", "-s", "tag", "-a", "h", "-r", "-r", "-p", "7001", "--", "name"],
    ];
    for words in orders {
        let parsed = parsed("vdi", "info", words).expect("good");
        assert_eq!(parsed.args, ["name"]);
        assert_eq!(parsed.value(Opt::Snapshot), Some("tag".as_ref()));
        assert_eq!(parsed.value(Opt::Address), Some("h".as_ref()));
        assert_eq!(parsed.value(Opt::Port), Some("7001".as_ref()));
        assert!(parsed.has(Opt::Raw) && !parsed.has(Opt::Time));
    }
}

#[test]
fn what_is_no_option_is_an_argument() {
    let parsed = parsed("vdi", "export", &["-", "--", "-r", "--raw", "--"]).expect("good");
    assert_eq!(parsed.args, ["-", "-r", "--raw", "--"]);
    let bytes = OsString::from_vec(vec![0xff, 0xfe]);
    let parsed = parse(sub("vdi", "list"), [bytes.clone()]).expect("good");
    assert_eq!(parsed.args, [bytes]);
}

#[test]
fn every_mistake_has_a_line() {
    for (words, line) in [
        (&["-x"][..], "dog: invalid option -- 'x'"),
        (&["-rx"], "dog: invalid option -- 'x'"),
        (&["-a"], "dog: option requires an argument -- 'a'"),
        (&["--address"], "dog: option '--address' requires an argument"),
        (&["--raw=1"], "dog: option '--raw' doesn't allow an argument"),
        (&["--nonsense"], "dog: unrecognized option '--nonsense'"),
        (&["--=x"], "dog: unrecognized option '--'"),
    ] {
        assert_eq!(parsed("vdi", "list", words), Err(line.to_owned()));
    }
    assert_eq!(parsed("vdi", "import", &["--s", "1"]).map(|p| p.has(Opt::Size)), Ok(true));
    assert_eq!(parsed("vdi", "import", &["--h"]), Err("dog: option '--h' is ambiguous".to_owned()));
}

#[test]
fn usage_of_old() {
    let command_def = command("vdi").expect("vdi");
    let text = usage::usage(command_def, sub("vdi", "resize"), false);
    assert_eq!(
        text,
        "Usage: dog vdi resize [-a address] [-p port] [-h] [-T] [--json] <vdiname> <new size>\n\
         Options:\n\
         \x20 -a, --address           specify the daemon address (default: localhost)\n\
         \x20 -p, --port              specify the daemon port\n\
         \x20 -h, --help              display this help and exit\n\
         \x20 -T, --time              show elapsed time\n\
         \x20     --json              print the result as JSON\n"
    );
    let on_terminal = usage::usage(command_def, sub("vdi", "resize"), true);
    assert!(on_terminal.contains("\nArguments:\n  <vdiname>               name of the image\n"));
    assert!(on_terminal.contains("\n  <new size>              bytes, or"));
    assert!(on_terminal.ends_with(&text[text.find("Options:").expect("there")..]));
    let new = usage::usage(command_def, sub("vdi", "info"), false);
    assert!(new.contains("<vdiname>\nArguments:\n  <vdiname>"));
    assert!(usage::overview().contains("\n  vdi create              create an image\n"));
    assert!(usage::subcommands(command_def).starts_with("Available vdi commands:\n  vdi create\n"));
}

proptest::proptest! {
    /// Any words are sorted or refused, and no argument is lost or made up.
    #[test]
    fn any_words_are_sorted_or_refused(words: Vec<Vec<u8>>) {
        let words: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
        for command in &COMMANDS {
            for subcommand in command.subcommands {
                if let Ok(parsed) = parse(subcommand, words.iter().cloned()) {
                    proptest::prop_assert!(parsed.args.len() <= words.len());
                    proptest::prop_assert!(parsed.args.iter().all(|a| words.contains(a)));
                }
            }
        }
    }
}
