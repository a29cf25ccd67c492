//! `sheep store list|check|export`: a store looked at without a cluster, while no sheep uses it.
//! Reads only; works on a copy, on a read-only mount and, as far as it goes, on a damaged disk.

mod check;
mod export;
mod list;
mod words;

use crate::node::table_copy;
use crate::process::{say, told};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sheepdog_store::offline::{Found, OfflineStore};
use sheepdog_types::{Error, ErrorKind, LineageId, Result, Vid};
use sheepdog_volume::table::Table;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use words::{Verb, Words};

/// Damage was found, or something could not be done.
const EXIT_DAMAGE: u8 = 1;
/// The store cannot be looked at at all.
const EXIT_NO_STORE: u8 = 2;
/// Bad usage.
const EXIT_USAGE: u8 = 64;

/// Whether a command line is for here.
#[must_use]
pub fn is_meant(mut arguments: impl Iterator<Item = OsString>) -> bool {
    // `sheep store` alone is a sheep on the directory of that name, as of old.
    arguments.next().is_some_and(|word| word == "store") && arguments.next().is_some()
}

/// Does what the words behind `sheep store` say.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let words = match Words::parse(arguments.skip(1)) {
        Ok(Some(words)) => words,
        Ok(None) => {
            print(words::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(line) => {
            say(&format!("{line}\n{}", words::USAGE));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut looked = match Looked::at(&words.dir) {
        Ok(looked) => looked,
        Err(error) => {
            say(&format!("{}\n", told(&error)));
            return ExitCode::from(EXIT_NO_STORE);
        }
    };
    let ended = match &words.verb {
        Verb::List => list::run(&looked, words.json),
        Verb::Check => check::run(&mut looked, words.json),
        Verb::Export { vdi, file, force } => {
            export::run(&mut looked, vdi, file, *force, words.json)
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DAMAGE),
        Err(error) => {
            say(&format!("{}\n", told(&error)));
            ExitCode::from(EXIT_DAMAGE)
        }
    }
}

/// An opened store with what is known of its VDIs.
struct Looked {
    dir: PathBuf,
    store: OfflineStore,
    found: Found,
    /// The copy of the VDI table, or why there is none.
    table: Result<Table>,
}

impl Looked {
    fn at(dir: &Path) -> Result<Self> {
        let (store, found) = OfflineStore::open(dir)?;
        let table = table_copy::read(dir).and_then(|copy| copy.table());
        Ok(Self { dir: dir.to_owned(), store, found, table })
    }

    /// Damage that is known without looking at any block, a line each.
    fn damage(&self) -> Vec<String> {
        let mut lines = self.found.damage.clone();
        match &self.table {
            // A store that never belonged to a formatted cluster has none, and needs none.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => lines.push(told(error)),
            Ok(_) => {}
        }
        lines
    }

    /// Whose blocks a vid's are, for people.
    fn owner(&self, lineage: LineageId, vid: Vid) -> String {
        let record = self.table.as_ref().ok().and_then(|table| table.get(vid));
        match record.filter(|record| record.lineage == lineage) {
            Some(record) if record.tag.is_empty() => record.name.escape_debug().to_string(),
            Some(record) => format!("{}@{}", record.name, record.tag).escape_debug().to_string(),
            None => {
                format!("vid {vid} of lineage {}, which the VDI table does not know", lineage.0)
            }
        }
    }

    fn table(&self) -> Result<&Table> {
        self.table.as_ref().map_err(|error| {
            let what = "the store's copy of the VDI table is needed to know its VDIs";
            Error::new(error.kind(), format!("{what}: {}", told(error)))
        })
    }
}

/// Prints on standard output; whoever closed it wants no more.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A bar on standard error, if that is a terminal.
fn bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    // The template is ours; if it did not parse, the default one would do.
    if let Ok(style) = ProgressStyle::with_template(
        "{percent:>3} % [{wide_bar}] {binary_bytes} / {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
