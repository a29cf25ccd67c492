//! What `-h` and `-v` print, and the long help that follows a misused option.

use super::Opt;

pub const DRIVERS: &str = "\
Available cluster drivers:
  local[:FILE]            one file shared by all sheep of this host
                          (default: .sheepdog-local/registry.db beside the store)
";

pub const JOURNAL: &str = "\
Arguments of -j:
  size=SIZE               size of a new store's log, at least 64M
  dir=DIRECTORY           where a new store's log is (default: beside its data);
                          the store remembers it
  skip                    has no effect: the log is always replayed

Example:
  $ sheep -j size=512M,dir=/ssd ...
";

pub const LOG: &str = "\
Arguments of -l:
  level=LEVEL             emerg, alert, crit, err, warning, notice, info or debug
                          (default: info)
  dir=DIR                 directory of sheep.log (default: the store)
  format=FORMAT           server, default or json (default: server)
  dst=DESTINATION         default (the file), syslog or stdout (implies -f)

Example:
  $ sheep -l level=debug,dir=/var/log,format=json ...
";

const NBD: &str = "\
Argument of --nbd:
  --nbd=PORT              serve NBD on 127.0.0.1
  --nbd=ADDR:PORT         serve NBD on ADDR, an IPv6 address in brackets
";

/// The long help of an option that has one.
pub fn long(opt: Opt) -> Option<&'static str> {
    match opt {
        Opt::Cluster => Some(DRIVERS),
        Opt::Journal => Some(JOURNAL),
        Opt::Log => Some(LOG),
        Opt::Nbd => Some(NBD),
        _ => None,
    }
}

/// `-h`.
pub fn usage() -> String {
    format!(
        "\
Sheepdog daemon (version {})
Usage: sheep [OPTION]... [PATH]
PATH is STORE[,DISK1,DISK2,...]: the directory of the store (default: /tmp). With
disks behind it, data is on the disks alone: directories, or whole block devices.
A stopped store is looked at with 'sheep store --help'.
Options:
  -b, --bindaddr IP       listen on this address (default: all)
  -c, --cluster DRIVER    where the cluster's registry is (default: local);
                          local:FILE names its file
  -f, --foreground        do not become a daemon
  -h, --help              display this help and exit
  -j, --journal OPTIONS   size= and dir= of a new store's log, separated by commas
  -l, --log OPTIONS       level=, dir=, format= and dst= of the log, separated by commas
  -n, --nosync            acknowledge writes before they are durable
  -p, --port PORT         port to listen on (default: 7000)
  -P, --pidfile FILE      leave the process id in this file
  -v, --version           print the version and exit
  -y, --myaddr IP         address that other nodes and clients are told
  -z, --zone ID           failure domain (default: from the address)
      --nbd=[ADDR:]PORT   serve NBD over TCP too, on 127.0.0.1 unless ADDR is given
      --nbd-group GROUP   group that may use nbd.sock in the store
      --io ENGINE         auto, ring or blocking (default: auto)
      --scrub RATE        bytes a second that are read to find rot, 0 for never (default: 16M)
      --config FILE       read options from a TOML file; the command line wins
",
        env!("CARGO_PKG_VERSION")
    )
}

/// `-v`.
pub fn version() -> String {
    format!(
        "Sheepdog daemon version {}\n\nCluster drivers:\n  local\n\nMiscellaneous:\n  nbd\n",
        env!("CARGO_PKG_VERSION")
    )
}
