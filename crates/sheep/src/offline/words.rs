//! The command line of `sheep store`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

pub const USAGE: &str = "\
Usage: sheep store list DIR[,DIR...] [--json]
       sheep store check DIR[,DIR...] [--json]
       sheep store export DIR[,DIR...] VDI[@TAG] FILE [--force] [--json]
Looks at the store in DIR while no sheep uses it, and never writes to it. For a
node with several disks name the store and its disks with commas, as for sheep
itself, or those disks that are left. A disk is a directory, a block device, or
a copy of one; a device does not tell the names of its VDIs nor where its log is
if that is not on it, the store does: name it too.
  list      its VDIs, and what of them lies here
  check     reads every block and says what is wrong, where, and whose it is
  export    saves what lies here of a VDI or snapshot as a raw image; FILE is a
            file, not a device nor '-'
Options:
  --force   replace FILE
  --json    print the result as JSON, a failure too (its line as 'error')
Exit status: 0 if all is there and nothing wrong was found, 1 for damage, for
missing disks and for what could not be done, 2 if there is no store to look at
or a sheep uses it, 64 for bad usage.
";

pub enum Verb {
    List,
    Check,
    Export { vdi: String, file: PathBuf, force: bool },
}

pub struct Words {
    pub verb: Verb,
    pub dirs: Vec<PathBuf>,
    pub json: bool,
}

impl Words {
    /// Of the words behind `store`; `None` when help was asked for.
    pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let (mut json, mut force, mut plain) = (false, false, Vec::new());
        for word in words {
            match word.to_str() {
                Some("--json") => json = true,
                Some("--force") => force = true,
                Some("-h" | "--help") => return Ok(None),
                Some(option) if option.starts_with("--") => {
                    return Err(format!("Unknown option '{}'", option.escape_debug()));
                }
                _ => plain.push(word),
            }
        }
        let plain: Vec<&OsStr> = plain.iter().map(OsString::as_os_str).collect();
        let Some((verb, rest)) = plain.split_first() else {
            return Err("Please say what to do: list, check or export".to_owned());
        };
        let shown = |word: &OsStr| word.to_string_lossy().escape_debug().to_string();
        let verb_shown = shown(verb);
        let wanted = match verb.to_str() {
            Some("list" | "check") => &["DIR[,DIR...]"][..],
            Some("export") => &["DIR[,DIR...]", "VDI[@TAG]", "FILE"],
            _ => {
                return Err(format!("Unknown command '{verb_shown}': it is list, check or export"));
            }
        };
        if let Some(missing) = wanted.get(rest.len()) {
            return Err(format!("'{verb_shown}' needs {missing}"));
        }
        if let Some(more) = rest.get(wanted.len()) {
            return Err(format!("Unexpected '{}' behind '{verb_shown}'", shown(more)));
        }
        let (verb, dir) = match *rest {
            [dir, vdi, file] => {
                if file == "-" {
                    return Err("'-' is not supported: the image goes to a file, for one of that \
                                name say ./-"
                        .to_owned());
                }
                let vdi = vdi.to_str().ok_or("A VDI's name is UTF-8")?.to_owned();
                (Verb::Export { vdi, file: file.into(), force }, dir)
            }
            _ if force => return Err(format!("'{verb_shown}' has no --force, only export has")),
            [dir] if verb_shown == "list" => (Verb::List, dir),
            [dir] => (Verb::Check, dir),
            _ => return Err(format!("'{verb_shown}' needs DIR")),
        };
        if dir.is_empty() {
            return Err("the path of the store is empty".to_owned());
        }
        let dirs: Vec<PathBuf> = dir
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(|part| OsStr::from_bytes(part).into())
            .collect();
        if dirs.iter().any(|dir| dir.as_os_str().is_empty()) {
            return Err(format!("PATH '{}' has an empty part", shown(dir)));
        }
        Ok(Some(Self { verb, dirs, json }))
    }
}
