//! Serves one disk in memory on a unix socket, to try clients against the door:
//! `cargo run -p sheepdog-nbd --example memory -- /tmp/nbd.sock 64` (MiB), then for instance
//! `nbdinfo 'nbd+unix:///disk?socket=/tmp/nbd.sock'`. `disk@ro` is the same disk, read-only.

#[path = "../tests/common/memory.rs"]
mod memory;

use memory::Memory;
use sheepdog_nbd::{Exports, Limits, Opened, Server, listen_unix, look_up};
use sheepdog_types::{Error, ErrorKind, Result};
use std::path::Path;
use std::rc::Rc;

struct OneDisk(Rc<Memory>);

impl Exports for OneDisk {
    type Volume = Memory;

    async fn open(&self, name: &str) -> Result<Opened<Memory>> {
        look_up(name, async |vdi, tag| match (vdi, tag) {
            ("disk", None | Some("ro")) => Ok(Opened {
                volume: Rc::clone(&self.0),
                key: 1,
                name: name.to_owned(),
                description: "a disk in memory".to_owned(),
                read_only: tag.is_some(),
            }),
            ("disk", Some(_)) => Err(ErrorKind::NoTag.into()),
            _ => Err(ErrorKind::NotFound.into()),
        })
        .await
    }

    async fn is_there(&self, _key: u32) -> bool {
        true
    }

    async fn list(&self) -> Vec<String> {
        vec!["disk".to_owned(), "disk@ro".to_owned()]
    }
}

fn main() -> Result<()> {
    let usage = || Error::new(ErrorKind::Invalid, "usage: memory SOCKET MEBIBYTES");
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or_else(usage)?;
    let mebibytes: u64 = args.next().and_then(|n| n.parse().ok()).ok_or_else(usage)?;
    let listener = listen_unix(Path::new(&path), None)?;
    let io = |error| Error::with_source(ErrorKind::Io, "start", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let disk = Rc::new(Memory::new(mebibytes << 20));
        let server = Server::new(Rc::new(OneDisk(disk)), Limits::default());
        server.listen(listener)?;
        println!("serving on {path}");
        tokio::signal::ctrl_c().await.map_err(io)?;
        server.shutdown().await;
        Ok(())
    })
}
