//! Second layer: what the subcommands do. Each reads its arguments, talks to the sheep and hands
//! typed results to [`mod@crate::print`].

mod cluster;
mod export;
mod hint;
mod import;
mod node;
mod read;
mod vdi;
mod write;

use crate::args::Target;
use crate::definitions::{Opt, Verb, parse::Parsed};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::session;
use sheepdog_wire::{Connection, VdiOpen, VdiOpened, VdiSelector};

/// How results are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Tables for people.
    Human,
    /// `-r`: for scripts of old.
    Raw,
    /// `--json`: for scripts.
    Json,
}

/// What a subcommand works with.
pub struct Context<'a> {
    /// Options and arguments.
    pub parsed: Parsed,
    /// Where the sheep is.
    pub target: Target,
    /// How to show results.
    pub mode: Mode,
    /// Where to show them.
    pub out: &'a mut Output,
}

impl Context<'_> {
    /// Connects to the sheep.
    async fn connect(&self) -> Result<Connection> {
        session::connect(&self.target).await
    }

    fn has(&self, opt: Opt) -> bool {
        self.parsed.has(opt)
    }
}

/// Does it.
///
/// # Errors
/// The exit code and what to say.
pub fn run(verb: Verb, parsed: Parsed, target: Target, out: &mut Output) -> Result<()> {
    let mode = if parsed.has(Opt::Json) {
        Mode::Json
    } else if parsed.has(Opt::Raw) {
        Mode::Raw
    } else {
        Mode::Human
    };
    let mut context = Context { parsed, target, mode, out };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(crate::failure::EXIT_SYSTEM, format!("Failed to start: {e}")))?;
    let cx = &mut context;
    runtime.block_on(async {
        match verb {
            Verb::VdiCreate => vdi::create(cx).await,
            Verb::VdiDelete => vdi::delete(cx).await,
            Verb::VdiList => vdi::list(cx).await,
            Verb::VdiResize => vdi::resize(cx).await,
            Verb::VdiRename => vdi::rename(cx).await,
            Verb::VdiInfo => vdi::info(cx).await,
            Verb::VdiRead => read::read(cx).await,
            Verb::VdiWrite => write::write(cx).await,
            Verb::VdiImport => import::import(cx).await,
            Verb::VdiExport => export::export(cx).await,
            Verb::NodeList => node::list(cx).await,
            Verb::NodeInfo => node::info(cx).await,
            Verb::NodeMd => node::md(cx).await,
            Verb::ClusterInfo => cluster::info(cx).await,
            Verb::ClusterFormat => cluster::format(cx).await,
            Verb::ClusterShutdown => cluster::shutdown(cx).await,
        }
    })
}

/// The old sentence for a VDI that cannot be opened, up to the colon.
fn open_failed(vdi: &VdiSelector) -> String {
    format!(
        "Failed to open VDI {} (snapshot id: {} snapshot tag: {})",
        vdi.name, vdi.snapshot_id, vdi.tag
    )
}

/// Opens a VDI for reading or writing.
async fn open(sheep: &Connection, vdi: &VdiSelector, read_only: bool) -> Result<VdiOpened> {
    let request = VdiOpen { vdi: Some(vdi.clone()), read_only };
    sheep.call(&request).await.map_err(|e| Failure::answered(open_failed(vdi), &e))
}
