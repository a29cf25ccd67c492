//! VDIs as the NBD door sees them.

use super::gateway::{Gateway, Vdi};
use crate::data::VdiDirectory;
use sheepdog_nbd::{Exports, Opened};
use sheepdog_types::{Result, Vid};
use std::rc::Rc;
use std::sync::Arc;

/// Opens what the directory knows.
pub struct DirectoryExports {
    directory: Arc<dyn VdiDirectory>,
    gateway: Rc<Gateway>,
}

impl DirectoryExports {
    /// With the VDIs of this directory on this gateway.
    pub const fn new(directory: Arc<dyn VdiDirectory>, gateway: Rc<Gateway>) -> Self {
        Self { directory, gateway }
    }
}

impl Exports for DirectoryExports {
    type Volume = Vdi;

    async fn open(&self, name: &str) -> Result<Opened<Vdi>> {
        let view = self.directory.open(name).await?;
        Ok(Opened {
            key: view.vid.get(),
            name: name.to_owned(),
            description: String::new(),
            read_only: view.read_only,
            volume: Rc::new(Vdi::new(Rc::clone(&self.gateway), view)),
        })
    }

    async fn is_there(&self, key: u32) -> bool {
        match Vid::new(key) {
            Some(vid) => self.directory.is_there(vid).await,
            None => false,
        }
    }

    async fn list(&self) -> Vec<String> {
        self.directory.list().await
    }
}
