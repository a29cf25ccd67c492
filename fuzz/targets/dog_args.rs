//! dog's command line: grammar, addresses, sizes, names, selectors, redundancy.
#![no_main]

use sheepdog_dog::args;
use sheepdog_dog::definitions::parse::{Parsed, parse};
use sheepdog_dog::definitions::{COMMANDS, Opt, SubcommandDef};
use sheepdog_dog::failure::{EXIT_FAILURE, EXIT_USAGE, Failure};
use sheepdog_fuzz::meter::bounded;
use sheepdog_types::limits::{COPIES_MAX, NAME_BYTES_MAX};
use sheepdog_types::size;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

sheepdog_fuzz::target!(seeds, run);

fn seeds() -> Vec<Vec<u8>> {
    [
        "create\0disk\x0016.5G\0-P\0-y\0-c\x004:2\0-z22\0--address=[fe80::1%eth0]\0-p\x007001",
        "create\0--cop\x003\0--\0-x\x001k\0--json",
        "delete\0disk\0-s\x0012\0-B1\0-I\x002\0-m3",
        "read\0disk\0-stag\x000\x001M",
        "export\0disk\0-\0--format\0qcow2\0-f",
        "import\0disk\0-\0--size=.5T\0-rvT",
        "format\0-c2\0-b\0plain\0-ltVRfF",
        "info\0-d\0-h",
        "resize\0disk\x00.00000000000000088817841970012523233890533447265625P\x001.P",
    ]
    .map(|line| line.as_bytes().to_vec())
    .to_vec()
}

/// Words end with a zero byte, as a process gets them; the first one is a subcommand.
fn run(data: &[u8]) {
    let mut words = data.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let name = words.next().unwrap_or_default();
    let all = COMMANDS.iter().flat_map(|command| command.subcommands);
    let words: Vec<OsString> = words.collect();
    for subcommand in all.filter(|subcommand| name == subcommand.name) {
        // A word of one byte takes two here and 25 in memory, in two lists that double.
        bounded((16 << 10) + 150 * data.len(), || line(subcommand, &words));
    }
    for word in &words {
        exact_size(word);
    }
}

fn line(subcommand: &SubcommandDef, words: &[OsString]) {
    let parsed = match parse(subcommand, words.iter().cloned()) {
        Ok(parsed) => parsed,
        Err(line) => return one_line(&line),
    };
    // Said in another form it means the same.
    let mut again = Vec::new();
    for option in subcommand.options.iter().filter(|option| parsed.has(option.opt)) {
        again.push(OsString::from(format!("--{}", option.long)));
        if option.takes_value {
            again.extend(parsed.value(option.opt).map(OsStr::to_owned));
        }
    }
    again.push("--".into());
    again.extend(parsed.args.iter().cloned());
    assert_eq!(parse(subcommand, again).as_ref(), Ok(&parsed));
    let mut rest = words.iter();
    let kept = parsed.args.iter().all(|arg| rest.any(|word| word == arg));
    assert!(kept, "arguments are words in their order");
    values(subcommand, &parsed);
}

fn values(subcommand: &SubcommandDef, parsed: &Parsed) {
    if let Some(target) = checked(args::target(parsed)) {
        assert!(target.port != 0 && !target.host.is_empty());
        assert!(!target.host.contains(|c: char| c.is_control() || c.is_whitespace()));
    }
    if let Some(Some(shift)) = checked(args::object_shift(parsed)) {
        assert!((20..=31).contains(&shift));
    }
    if let Some(Some(redundancy)) = checked(args::redundancy(parsed)) {
        assert!((1..=u32::from(COPIES_MAX)).contains(&redundancy.data) && redundancy.parity < 16);
    }
    for opt in [Opt::NrBatchedReclamation, Opt::ReclamationInterval, Opt::MaxReclaim] {
        assert_ne!(checked(args::positive(parsed, opt, "number")), Some(Some(0)));
    }
    checked(args::no_more(&parsed.args, subcommand.arguments.len()));
    let Some(name) = checked(args::vdi_name(&parsed.args, 0, "Please specify the VDI name")) else {
        return;
    };
    assert!((1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control));
    if let Some(selector) = checked(args::selector(parsed, name)) {
        assert!(selector.tag.is_empty() || selector.snapshot_id == 0);
        let given = parsed.has(Opt::Snapshot);
        assert_eq!(given, selector.snapshot_id != 0 || !selector.tag.is_empty());
    }
}

/// What was understood; what was refused was refused in order.
fn checked<T>(result: Result<T, Failure>) -> Option<T> {
    let failure = match result {
        Ok(value) => return Some(value),
        Err(failure) => failure,
    };
    assert!([EXIT_FAILURE, EXIT_USAGE].contains(&failure.code()));
    assert!(!failure.lines().is_empty());
    failure.lines().iter().for_each(|line| one_line(line));
    None
}

fn one_line(line: &str) {
    assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
}

/// Compares a size with what long multiplication of its digits gives.
fn exact_size(word: &OsStr) {
    let understood = checked(args::size(word));
    let Some(text) = word.to_str() else {
        assert_eq!(understood, None);
        return;
    };
    assert_eq!(understood, size::parse(text).ok());
    let (number, shift) = match text.bytes().last().map(|unit| unit.to_ascii_lowercase()) {
        Some(b'0'..=b'9' | b'.') => (text, 0),
        Some(unit) => match b"bkmgtp".iter().position(|known| *known == unit) {
            Some(power) => (&text[..text.len() - 1], 10 * power),
            None => return assert_eq!(understood, None, "{text}"),
        },
        None => return assert_eq!(understood, None),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, fraction].concat();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return assert_eq!(understood, None, "{text}");
    }
    // All digits, doubled as often as the unit says; what is left of the point counts.
    let mut digits: Vec<u8> = digits.bytes().rev().map(|digit| digit - b'0').collect();
    for _ in 0..shift {
        let mut carry = 0;
        for digit in &mut digits {
            let double = *digit * 2 + carry;
            *digit = double % 10;
            carry = double / 10;
        }
        digits.push(carry);
    }
    let bytes = digits[fraction.len()..]
        .iter()
        .rev()
        .try_fold(0u64, |bytes, digit| bytes.checked_mul(10)?.checked_add(u64::from(*digit)));
    assert_eq!(understood, bytes, "{}", word.as_bytes().escape_ascii());
}
