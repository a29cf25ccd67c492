//! First layer: which commands, arguments and options there are, and their texts. Tables only;
//! what they mean is in [`crate::verbs`], how results look in [`mod@crate::print`].

pub mod parse;
pub mod usage;

/// An option of any subcommand. The same letter may mean different options in different tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Opt {
    /// Address of the sheep.
    Address,
    /// Port of the sheep.
    Port,
    /// Raw output.
    Raw,
    /// More output.
    Verbose,
    /// Usage.
    Help,
    /// Elapsed time.
    Time,
    /// JSON output.
    Json,
    /// Snapshot id or tag.
    Snapshot,
    /// Preallocation.
    Prealloc,
    /// Hypervolume.
    Hyper,
    /// Object size.
    BlockSizeShift,
    /// Redundancy.
    Copies,
    /// Pace of old deletions.
    NrBatchedReclamation,
    /// Pace of old deletions.
    ReclamationInterval,
    /// Objects to free without deleting the VDI.
    MaxReclaim,
    /// Cached writes of old.
    Writeback,
    /// VDIs that hold an object.
    Oid,
    /// Name of the store.
    Store,
    /// VDI locking.
    Lock,
    /// Writes need all copies.
    Strict,
    /// What changed from epoch to epoch.
    Diff,
    /// Weights set by hand.
    FixedVnodes,
    /// Vids of deleted VDIs are used again.
    RecycleVid,
    /// Every node.
    All,
    /// No questions.
    Force,
    /// No recovery that could fill disks.
    AvoidDiskfull,
    /// Image format.
    Format,
    /// Size of what comes from a pipe.
    Size,
}

/// How an option looks.
#[derive(Debug)]
pub struct OptionDef {
    /// Which.
    pub opt: Opt,
    /// Its letter, if it has one.
    pub short: Option<char>,
    /// Its long name.
    pub long: &'static str,
    /// Whether an argument follows.
    pub takes_value: bool,
    /// Text of the usage.
    pub help: &'static str,
}

/// Everything there is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// `vdi create`
    VdiCreate,
    /// `vdi delete`
    VdiDelete,
    /// `vdi list`
    VdiList,
    /// `vdi resize`
    VdiResize,
    /// `vdi read`
    VdiRead,
    /// `vdi write`
    VdiWrite,
    /// `vdi rename`
    VdiRename,
    /// `vdi info`
    VdiInfo,
    /// `vdi import`
    VdiImport,
    /// `vdi export`
    VdiExport,
    /// `node list`
    NodeList,
    /// `node info`
    NodeInfo,
    /// `node md`
    NodeMd,
    /// `cluster info`
    ClusterInfo,
    /// `cluster format`
    ClusterFormat,
    /// `cluster shutdown`
    ClusterShutdown,
}

impl Verb {
    /// Whether the original tool had it: what it prints is a contract then.
    #[must_use]
    pub const fn is_old(self) -> bool {
        !matches!(self, Self::VdiRename | Self::VdiInfo | Self::VdiImport | Self::VdiExport)
    }
}

/// A subcommand.
#[derive(Debug)]
pub struct SubcommandDef {
    /// Its word.
    pub name: &'static str,
    /// What it does.
    pub verb: Verb,
    /// Its arguments as the usage shows them.
    pub args: &'static str,
    /// The words that may come first among the arguments, and what each does; none if arguments
    /// stand for themselves.
    pub subs: &'static [(&'static str, &'static str)],
    /// Each of them and what it is; there are no more.
    pub arguments: &'static [(&'static str, &'static str)],
    /// Its options, in the order of the usage.
    pub options: &'static [&'static OptionDef],
    /// One line.
    pub about: &'static str,
}

/// A command with its subcommands.
#[derive(Debug)]
pub struct CommandDef {
    /// Its word.
    pub name: &'static str,
    /// In the order of the lists.
    pub subcommands: &'static [SubcommandDef],
}

/// One line per option.
macro_rules! options {
    ($($name:ident = $opt:ident $short:expr, $long:literal, $value:literal, $help:literal;)*) => {
        $(static $name: OptionDef = OptionDef {
            opt: Opt::$opt,
            short: $short,
            long: $long,
            takes_value: $value,
            help: $help,
        };)*
    };
}

options! {
    ADDRESS = Address Some('a'), "address", true, "specify the daemon address (default: localhost)";
    PORT = Port Some('p'), "port", true, "specify the daemon port";
    RAW = Raw Some('r'), "raw", false,
        "raw output mode: omit headers, separate fields with single spaces and print all sizes in decimal bytes";
    VERBOSE = Verbose Some('v'), "verbose", false, "print more information than default";
    HELP = Help Some('h'), "help", false, "display this help and exit";
    TIME = Time Some('T'), "time", false, "show elapsed time";
    JSON = Json None, "json", false, "print the result as JSON";
    SNAPSHOT = Snapshot Some('s'), "snapshot", true, "specify a snapshot id or tag name";
    PREALLOC = Prealloc Some('P'), "prealloc", false, "preallocate all the data objects";
    HYPER = Hyper Some('y'), "hyper", false, "create a hyper volume of up to 16 PB";
    SHIFT = BlockSizeShift Some('z'), "block_size_shift", true,
        "specify the shift num of default data object size";
    COPIES = Copies Some('c'), "copies", true, "specify the level of data redundancy";
    BATCHED = NrBatchedReclamation Some('B'), "nr-batched-reclamation", true,
        "specify the number of objects freed at once (accepted for compatibility)";
    INTERVAL = ReclamationInterval Some('I'), "reclamation-interval", true,
        "specify the seconds between freeing objects (accepted for compatibility)";
    MAX_RECLAIM = MaxReclaim Some('m'), "max-reclaim", true,
        "free at most this many objects and keep the VDI";
    WRITEBACK = Writeback Some('w'), "writeback", false, "accepted for compatibility";
    OID = Oid Some('o'), "oid", true, "list only the VDIs that hold this data object";
    STORE = Store Some('b'), "store", true, "specify backend store";
    FORMAT_LOCK = Lock Some('l'), "lock", false, "lock a VDI while it is open for writing";
    STRICT = Strict Some('t'), "strict", false,
        "do not serve write requests if there are not enough nodes for all copies";
    DIFF = Diff Some('d'), "diff", false, "show the difference to the previous epoch";
    FIXED_VNODES = FixedVnodes Some('V'), "fixedvnodes", false, "weights of nodes are set by hand";
    RECYCLE = RecycleVid Some('R'), "recyclevid", false, "ids of deleted VDIs may be used again";
    FORCE = Force Some('f'), "force", false, "do not prompt for confirmation";
    AVOID_DISKFULL = AvoidDiskfull Some('F'), "avoid-diskfull", false,
        "refuse recovery that could fill the disks";
    IMPORT_FORMAT = Format None, "format", true,
        "specify the image format: raw or qcow2 (default: as the file begins)";
    EXPORT_FORMAT = Format None, "format", true,
        "specify the image format: raw or qcow2 (default: qcow2 if the file is named *.qcow2)";
    IMPORT_SIZE = Size None, "size", true,
        "specify the size of the image: needed for a pipe, otherwise at least that of the file";
    ALL = All Some('A'), "all", false, "show all nodes";
    REPLACE = Force Some('f'), "force", false, "replace an existing file";
}

/// One line per argument.
macro_rules! arguments {
    ({$($name:literal: $help:expr;)*}) => { &[$(($name, $help)),*] };
}

/// One line per subcommand.
macro_rules! command {
    ($name:literal: $($sub:literal $verb:ident $args:literal $arguments:tt [$($opt:ident)*] $about:literal
        $({$($word:literal $does:literal,)*})?;)*) => {
        CommandDef {
            name: $name,
            subcommands: &[$(SubcommandDef {
                name: $sub,
                verb: Verb::$verb,
                args: $args,
                subs: &[$($(($word, $does)),*)?],
                arguments: arguments!($arguments),
                options: &[$(&$opt),*],
                about: $about,
            }),*],
        }
    };
}

const NAME: &str = "name of the image";
const NEW_NAME: &str = "name for the image; no image has it yet";
const SIZE: &str = "bytes, or a number with K, M, G, T or P behind it";

/// All commands. Old subcommands and options come first and in the old order.
pub static COMMANDS: [CommandDef; 3] = [
    command! { "vdi":
        "create" VdiCreate "<vdiname> <size>" {"vdiname": NEW_NAME; "size": SIZE;}
            [PREALLOC HYPER COPIES ADDRESS PORT HELP RAW VERBOSE SHIFT TIME JSON]
            "create an image";
        "delete" VdiDelete "<vdiname>" {"vdiname": NAME;}
            [SNAPSHOT ADDRESS PORT HELP TIME BATCHED INTERVAL MAX_RECLAIM JSON]
            "delete an image";
        "list" VdiList "[vdiname]" {"vdiname": "show only this image and its snapshots";}
            [ADDRESS PORT RAW HELP OID TIME JSON]
            "list images";
        "resize" VdiResize "<vdiname> <new size>" {"vdiname": NAME; "new size": SIZE;}
            [ADDRESS PORT HELP TIME JSON]
            "resize an image";
        "read" VdiRead "<vdiname> [<offset> [<len>]]" {
                "vdiname": NAME;
                "offset": "where to begin (default: 0)";
                "len": "bytes to read to STDOUT (default: to the end)";
            }
            [SNAPSHOT ADDRESS PORT HELP TIME JSON]
            "read data from an image";
        "write" VdiWrite "<vdiname> [<offset> [<len>]]" {
                "vdiname": NAME;
                "offset": "where to begin (default: 0)";
                "len": "bytes to write from STDIN (default: to the end)";
            }
            [ADDRESS PORT WRITEBACK HELP TIME JSON]
            "write data to an image";
        "rename" VdiRename "<vdiname> <new name>" {"vdiname": NAME; "new name": NEW_NAME;}
            [ADDRESS PORT HELP TIME JSON]
            "rename an image and its snapshots";
        "info" VdiInfo "<vdiname>" {"vdiname": NAME;}
            [SNAPSHOT ADDRESS PORT RAW HELP TIME JSON]
            "show everything known about an image";
        "import" VdiImport "<vdiname> <file>" {
                "vdiname": NEW_NAME;
                "file": "the raw or qcow2 image, or '-' for raw data from STDIN";
            }
            [HYPER COPIES ADDRESS PORT HELP RAW VERBOSE SHIFT TIME IMPORT_FORMAT IMPORT_SIZE JSON]
            "make an image from a raw or qcow2 file, or from raw data in STDIN ('-')";
        "export" VdiExport "<vdiname> <file>" {
                "vdiname": NAME;
                "file": "the raw or qcow2 image to make, or '-' for raw data to STDOUT";
            }
            [SNAPSHOT ADDRESS PORT HELP REPLACE RAW VERBOSE TIME EXPORT_FORMAT JSON]
            "save an image as a raw or qcow2 file, or as raw data to STDOUT ('-')";
    },
    command! { "node":
        "list" NodeList "" {}
            [ADDRESS PORT RAW HELP TIME JSON]
            "list nodes";
        "info" NodeInfo "" {}
            [ADDRESS PORT RAW HELP TIME JSON]
            "show information about each node";
        "md" NodeMd "[disks]" {"disks": "paths on the node, separated by commas";}
            [ADDRESS PORT RAW ALL FORCE HELP TIME JSON]
            "See 'dog node md' for more information"
            {
                "info" "show the disks of a node",
                "plug" "add disks to a node",
                "unplug" "take disks from a node",
            };
    },
    command! { "cluster":
        "info" ClusterInfo "" {}
            [ADDRESS PORT RAW HELP VERBOSE TIME DIFF JSON]
            "show cluster information";
        "format" ClusterFormat "" {}
            [STORE COPIES FORMAT_LOCK STRICT ADDRESS PORT HELP SHIFT TIME FIXED_VNODES RECYCLE FORCE
             AVOID_DISKFULL JSON]
            "create a Sheepdog store";
        "shutdown" ClusterShutdown "" {}
            [ADDRESS PORT HELP TIME JSON]
            "stop Sheepdog";
    },
];

/// The command of a word.
#[must_use]
pub fn command(name: &str) -> Option<&'static CommandDef> {
    COMMANDS.iter().find(|c| c.name == name)
}

impl CommandDef {
    /// The subcommand of a word.
    #[must_use]
    pub fn subcommand(&self, name: &str) -> Option<&SubcommandDef> {
        self.subcommands.iter().find(|s| s.name == name)
    }
}

#[cfg(test)]
#[path = "definitions/tests.rs"]
mod tests;
