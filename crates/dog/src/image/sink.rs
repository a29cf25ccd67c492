//! Writes an image: what is not written reads as zeros. The file gets its name when it is whole
//! and durable.

use super::Format;
use crate::failure::strerror;
use bytes::Bytes;
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder,
    StorageOpenOptions,
};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Pieces that wait to be written.
const QUEUE: usize = 4;

/// An image that is being written.
pub struct Sink {
    /// Takes non-zero bytes with their offset, in any order.
    pub pieces: mpsc::Sender<(u64, Bytes)>,
    /// Says how it ended once all senders are gone.
    pub ended: oneshot::Receiver<Result<(), String>>,
}

/// Begins an image of `size` bytes in a new, empty file.
#[must_use]
pub fn begin(file: File, format: Format, size: u64) -> Sink {
    let (pieces, receiver) = mpsc::channel(QUEUE);
    let (sender, ended) = oneshot::channel();
    super::on_thread(move || {
        let result = match format {
            Format::Raw => raw(&file, size, receiver),
            Format::Qcow2 => qcow2(file, size, receiver),
        };
        let _ = sender.send(result.map_err(|e| strerror(&e)));
    });
    Sink { pieces, ended }
}

fn raw(file: &File, size: u64, mut pieces: mpsc::Receiver<(u64, Bytes)>) -> io::Result<()> {
    file.set_len(size)?;
    while let Some((offset, data)) = pieces.blocking_recv() {
        file.write_all_at(&data, offset)?;
    }
    file.sync_all()
}

fn qcow2(file: File, size: u64, mut pieces: mpsc::Receiver<(u64, Bytes)>) -> io::Result<()> {
    let synced = file.try_clone()?;
    // The library is asynchronous by its interface; file I/O inside it blocks this thread.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let storage = ImageFile::from_open_file(file, StorageOpenOptions::new().write(true))?;
        let image = Qcow2::<ImageFile>::create_builder(storage)
            .size(size)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::builder(image).backing(None).write(true))
            })
            .await?;
        let image = FormatAccess::new(image);
        while let Some((offset, data)) = pieces.recv().await {
            image.write(data.as_ref(), offset).await?;
        }
        image.flush().await?;
        image.sync().await
    })?;
    synced.sync_all()
}

/// A file under a temporary name beside its final one. Dropped without [`Pending::publish`], it is
/// removed.
pub struct Pending {
    temporary: PathBuf,
    path: PathBuf,
    replace: bool,
    published: bool,
}

impl Pending {
    /// Makes the temporary file. An existing file is an error unless it may be replaced.
    ///
    /// # Errors
    /// One line without the name of the file.
    pub fn create(path: &Path, replace: bool) -> Result<(Self, File), String> {
        let path = match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err("Is a directory".to_owned()),
            Ok(found) if !found.is_file() => return Err("not a regular file".to_owned()),
            Ok(_) if !replace => {
                return Err("the file exists already, use '-f' to replace it".to_owned());
            }
            // Behind a symbolic link the file it names is replaced, not the link.
            Ok(_) => fs::canonicalize(path).map_err(|e| strerror(&e))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(strerror(&error)),
        };
        let temporary = path.with_file_name(format!(".dog-export-{}.part", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| strerror(&e))?;
        let pending = Self { temporary, path, replace, published: false };
        Ok((pending, file))
    }

    /// Gives the file its name, durably.
    ///
    /// # Errors
    /// One line without the name of the file; an existing file that may not be replaced is kept.
    pub fn publish(mut self) -> Result<(), String> {
        let renamed = if self.replace {
            fs::rename(&self.temporary, &self.path)
        } else {
            // A link fails where a rename would replace what appeared in the meantime.
            fs::hard_link(&self.temporary, &self.path)
                .and_then(|()| fs::remove_file(&self.temporary))
                .or_else(|e| match e.kind() {
                    io::ErrorKind::AlreadyExists => Err(e),
                    // File systems without hard links.
                    _ => fs::rename(&self.temporary, &self.path),
                })
        };
        renamed.map_err(|e| strerror(&e))?;
        self.published = true;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(|e| strerror(&e))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
