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
  export    saves what lies here of a VDI or snapshot as a raw image
Options:
  --force   replace FILE
  --json    print the result as JSON
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
        let (verb, dir) = match plain[..] {
            [verb, dir] if verb == "list" && !force => (Verb::List, dir),
            [verb, dir] if verb == "check" && !force => (Verb::Check, dir),
            [verb, dir, vdi, file] if verb == "export" => {
                let vdi = vdi.to_str().ok_or("A VDI's name is UTF-8")?.to_owned();
                (Verb::Export { vdi, file: file.into(), force }, dir)
            }
            _ => return Err("Please say what to do with which store".to_owned()),
        };
        let dirs: Vec<PathBuf> = dir
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(|part| OsStr::from_bytes(part).into())
            .collect();
        if dirs.iter().any(|dir| dir.as_os_str().is_empty()) {
            return Err("A directory's name is empty".to_owned());
        }
        Ok(Some(Self { verb, dirs, json }))
    }
}
