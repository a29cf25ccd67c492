//! What a sheep is told: the command line of old, an optional file with the same names, and the
//! lines that refuse what cannot be.

mod config;
pub mod getopt;
mod help;
#[cfg(test)]
mod tests;
mod values;

use crate::log::LogOptions;
use getopt::{Arg, Bad, Getopt, Item, Spec};
use sheepdog_registry::Driver;
use sheepdog_store::EngineChoice;
use sheepdog_types::limits;
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Bytes a second that the scrub reads unless told: a terabyte in 18 hours, and little of one CPU.
const SCRUB_DEFAULT: u64 = 16 << 20;
/// Where a sheep keeps its store if it is not told.
const PATH_DEFAULT: &str = "/tmp";

/// Every option. Those from [`Opt::Gateway`] on belong to later versions and are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opt {
    BindAddr,
    Cluster,
    Foreground,
    Help,
    Journal,
    Log,
    Port,
    PidFile,
    Version,
    MyAddr,
    Zone,
    Nbd,
    NbdGroup,
    Config,
    Io,
    Scrub,
    Daemonized,
    Gateway,
    DirectIo,
    IoAddr,
    NoSync,
    Http,
    Recovery,
    Upgrade,
    Vnodes,
    WqThreads,
    WildcardRecovery,
    MaxDynamicThreads,
}

const fn spec(id: Opt, short: char, long: &'static str, arg: Arg) -> Spec<Opt> {
    Spec { id, short: Some(short), long, arg, hidden: false }
}

const fn long(id: Opt, long: &'static str, arg: Arg) -> Spec<Opt> {
    Spec { id, short: None, long, arg, hidden: false }
}

const SPECS: [Spec<Opt>; 28] = [
    spec(Opt::BindAddr, 'b', "bindaddr", Arg::Yes),
    spec(Opt::Cluster, 'c', "cluster", Arg::Yes),
    spec(Opt::DirectIo, 'D', "directio", Arg::No),
    spec(Opt::Foreground, 'f', "foreground", Arg::No),
    spec(Opt::Gateway, 'g', "gateway", Arg::No),
    spec(Opt::Help, 'h', "help", Arg::No),
    spec(Opt::IoAddr, 'i', "ioaddr", Arg::Yes),
    spec(Opt::Journal, 'j', "journal", Arg::Yes),
    spec(Opt::Log, 'l', "log", Arg::Yes),
    spec(Opt::NoSync, 'n', "nosync", Arg::No),
    spec(Opt::Port, 'p', "port", Arg::Yes),
    spec(Opt::PidFile, 'P', "pidfile", Arg::Yes),
    spec(Opt::Http, 'r', "http", Arg::Yes),
    spec(Opt::Recovery, 'R', "recovery", Arg::Yes),
    spec(Opt::Upgrade, 'u', "upgrade", Arg::No),
    spec(Opt::Version, 'v', "version", Arg::No),
    spec(Opt::Vnodes, 'V', "vnodes", Arg::Yes),
    spec(Opt::WqThreads, 'w', "wq-threads", Arg::Yes),
    spec(Opt::WildcardRecovery, 'W', "wildcard-recovery", Arg::No),
    spec(Opt::MaxDynamicThreads, 'x', "max-dynamic-threads", Arg::Yes),
    spec(Opt::MyAddr, 'y', "myaddr", Arg::Yes),
    spec(Opt::Zone, 'z', "zone", Arg::Yes),
    long(Opt::Nbd, "nbd", Arg::Equals),
    long(Opt::NbdGroup, "nbd-group", Arg::Yes),
    long(Opt::Config, "config", Arg::Yes),
    long(Opt::Io, "io", Arg::Yes),
    long(Opt::Scrub, "scrub", Arg::Yes),
    Spec { id: Opt::Daemonized, short: None, long: DAEMONIZED, arg: Arg::No, hidden: true },
];

/// The option by which a sheep that becomes a daemon tells its child so.
pub const DAEMONIZED: &str = "daemonized";

/// Everything a sheep needs to know to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Directory of the store, absolute.
    pub store: PathBuf,
    /// Its disks if they are elsewhere, absolute.
    pub disks: Vec<PathBuf>,
    /// Address to listen on; `None` for all.
    pub bind: Option<IpAddr>,
    /// Port of the sheepdog protocol and of dog.
    pub port: u16,
    /// Address that others are told.
    pub address: IpAddr,
    /// Failure domain.
    pub zone: u32,
    /// Registry engine; `None` for the one the store remembers, or `local`.
    pub cluster: Option<Driver>,
    /// Stay in the foreground.
    pub foreground: bool,
    /// This process is the child that serves.
    pub daemonized: bool,
    /// Where and what to log.
    pub log: LogOptions,
    /// Where to leave the process id, absolute.
    pub pid_file: Option<PathBuf>,
    /// Where to serve NBD over TCP, besides the unix socket.
    pub nbd: Option<SocketAddr>,
    /// Group that may use the unix socket of NBD: its number.
    pub nbd_group: Option<u32>,
    /// How to reach the disk.
    pub io: EngineChoice,
    /// What `-j` says of the store's log; `None` for what the store thinks right.
    pub journal: Option<LogPlace>,
    /// Acknowledge before the flush.
    pub nosync: bool,
    /// Bytes a second that the scrub may read; 0 is never.
    pub scrub: u64,
    /// What was said and has no effect, a line each.
    pub notices: Vec<&'static str>,
}

/// A store's log, as `-j` names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPlace {
    /// Bytes of a new store's log; `None` for what the store thinks right.
    pub bytes: Option<u64>,
    /// The directory it is in, absolute, if not the store's.
    pub dir: Option<PathBuf>,
    /// Do not replay it: accepted, and not done.
    pub skip: bool,
}

/// What to do after the options were read.
#[derive(Debug)]
pub enum Action {
    /// Serve.
    Run(Box<Options>),
    /// Print this on stdout and leave with success.
    Print(String),
}

/// Why the options were refused.
#[derive(PartialEq, Eq, Debug)]
pub struct Refusal {
    /// One line for the user.
    pub line: String,
    /// The long help of the option, if it has one and the user seems to need it.
    pub help: Option<&'static str>,
}

impl Refusal {
    fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), help: None }
    }
}

/// What was said, on the command line or in the file; each may be silent.
#[derive(Default, Debug)]
struct Settings {
    path: Option<OsString>,
    bind: Option<IpAddr>,
    address: Option<IpAddr>,
    port: Option<u16>,
    zone: Option<u32>,
    cluster: Option<Driver>,
    foreground: Option<bool>,
    daemonized: bool,
    log: Option<LogOptions>,
    pid_file: Option<PathBuf>,
    nbd: Option<SocketAddr>,
    nbd_group: Option<u32>,
    io: Option<EngineChoice>,
    journal: Option<LogPlace>,
    nosync: Option<bool>,
    scrub: Option<u64>,
    directio: Option<bool>,
    config: Option<PathBuf>,
}

/// Reads a command line (without the program's name) and the file it may name.
///
/// # Errors
/// The line that tells what is wrong; the program then exits 1.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Action, Refusal> {
    let mut said = Settings::default();
    let mut getopt = Getopt::new(&SPECS, words.into_iter());
    while let Some(item) = getopt.next_item().map_err(|bad| misuse(&bad))? {
        match item {
            Item::Opt(Opt::Help, _) => return Ok(Action::Print(help::usage())),
            Item::Opt(Opt::Version, _) => return Ok(Action::Print(help::version())),
            Item::Opt(opt, value) => said.set(opt, value.as_deref())?,
            Item::Word(word) if said.path.is_none() => said.path = Some(word),
            Item::Word(word) => {
                return Err(Refusal::new(format!(
                    "only one PATH can be given, not also '{}'",
                    shown(&word)
                )));
            }
        }
    }
    let said = match said.config.take() {
        Some(file) => said.or(config::read(&file)?),
        None => said,
    };
    Ok(Action::Run(Box::new(said.finish()?)))
}

fn misuse(bad: &Bad<Opt>) -> Refusal {
    Refusal { line: bad.line.clone(), help: bad.id.and_then(help::long) }
}

/// User input as it may be shown: one line, no control characters.
fn shown(text: &OsStr) -> String {
    text.to_string_lossy().escape_debug().to_string()
}

impl Settings {
    /// Takes one option; a later one replaces an earlier one.
    fn set(&mut self, opt: Opt, value: Option<&OsStr>) -> Result<(), Refusal> {
        let os = value.unwrap_or_default();
        let text = shown(os);
        match opt {
            Opt::BindAddr => self.bind = Some(values::address(&text)?),
            Opt::MyAddr => self.address = Some(values::address(&text)?),
            Opt::Port => self.port = Some(values::port(&text)?),
            Opt::Zone => self.zone = Some(values::zone(&text)?),
            Opt::Cluster => self.cluster = Some(values::cluster(os)?),
            Opt::Foreground => self.foreground = Some(true),
            Opt::Daemonized => self.daemonized = true,
            Opt::Log => self.log = Some(values::log(os)?),
            Opt::PidFile => self.pid_file = Some(values::path("pidfile", os)?),
            Opt::Nbd => self.nbd = Some(values::nbd(&text)?),
            Opt::NbdGroup => self.nbd_group = Some(values::group(&text)?),
            Opt::Io => self.io = Some(values::io(&text)?),
            Opt::Journal => self.journal = Some(values::journal(os)?),
            Opt::Scrub => self.scrub = Some(values::rate(&text)?),
            Opt::NoSync => self.nosync = Some(true),
            Opt::DirectIo => self.directio = Some(true),
            Opt::Config => self.config = Some(values::path("config", os)?),
            Opt::Help | Opt::Version => {}
            Opt::Gateway
            | Opt::IoAddr
            | Opt::Http
            | Opt::Recovery
            | Opt::Upgrade
            | Opt::Vnodes
            | Opt::WqThreads
            | Opt::WildcardRecovery
            | Opt::MaxDynamicThreads => return Err(not_yet(opt)),
        }
        Ok(())
    }

    /// What `self` is silent about is taken from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            path: self.path.or(other.path),
            bind: self.bind.or(other.bind),
            address: self.address.or(other.address),
            port: self.port.or(other.port),
            zone: self.zone.or(other.zone),
            cluster: self.cluster.or(other.cluster),
            foreground: self.foreground.or(other.foreground),
            daemonized: self.daemonized,
            log: self.log.or(other.log),
            pid_file: self.pid_file.or(other.pid_file),
            nbd: self.nbd.or(other.nbd),
            nbd_group: self.nbd_group.or(other.nbd_group),
            io: self.io.or(other.io),
            journal: self.journal.or(other.journal),
            nosync: self.nosync.or(other.nosync),
            scrub: self.scrub.or(other.scrub),
            directio: self.directio.or(other.directio),
            config: None,
        }
    }

    fn finish(self) -> Result<Options, Refusal> {
        let (store, disks) =
            values::store(self.path.as_deref().unwrap_or(OsStr::new(PATH_DEFAULT)))?;
        // With the one engine there is, all nodes are on one host: loopback reaches them.
        let address = self
            .address
            .or(self.bind.filter(|ip| !ip.is_unspecified()))
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let log = self.log.unwrap_or_default();
        let mut notices = Vec::new();
        if self.directio == Some(true) {
            notices.push("-D has no effect: direct I/O is used wherever the file system has it");
        }
        if self.journal.as_ref().is_some_and(|journal| journal.skip) {
            notices.push("-j skip has no effect: the log is always replayed");
        }
        if self.nosync == Some(true) {
            notices.push(
                "-n: writes are acknowledged before they are durable; a power failure loses them",
            );
        }
        Ok(Options {
            store,
            disks,
            bind: self.bind.filter(|ip| *ip != IpAddr::V6([0; 16].into())),
            port: self.port.unwrap_or(limits::PORT_DEFAULT),
            address,
            zone: self.zone.unwrap_or_else(|| values::zone_of(address)),
            cluster: self.cluster,
            foreground: self.foreground.unwrap_or(false) || log.to_stdout(),
            daemonized: self.daemonized,
            log,
            pid_file: self.pid_file,
            nbd: self.nbd,
            nbd_group: self.nbd_group,
            io: self.io.unwrap_or_default(),
            nosync: self.nosync.unwrap_or(false),
            scrub: self.scrub.unwrap_or(SCRUB_DEFAULT),
            notices,
            journal: self.journal,
        })
    }
}

fn not_yet(opt: Opt) -> Refusal {
    let spec = SPECS.iter().find(|s| s.id == opt);
    let (short, long) = spec.map_or((' ', ""), |s| (s.short.unwrap_or(' '), s.long));
    Refusal::new(format!("option '-{short}' (--{long}) is not supported by this version"))
}
