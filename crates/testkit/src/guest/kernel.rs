//! The guest's kernel: taken from a distribution's package, with the modules a disk needs.

use crate::bins::target_dir;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a disk needs, where the kernel does not have it built in.
const WANTED: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// A kernel that boots a guest from a virtio disk.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel image.
    pub image: PathBuf,
    /// Modules in the order they are loaded.
    pub modules: Vec<PathBuf>,
}

/// Where it is kept: a file `vmlinuz`, and `*.ko` that are loaded in the order of their names.
#[must_use]
pub fn dir() -> PathBuf {
    target_dir().join("guest-kernel")
}

impl Kernel {
    /// The kernel in [`dir`], if there is one.
    #[must_use]
    pub fn find() -> Option<Self> {
        let image = dir().join("vmlinuz");
        if !image.is_file() {
            return None;
        }
        let mut modules: Vec<PathBuf> = fs::read_dir(dir())
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "ko"))
            .collect();
        modules.sort();
        Some(Self { image, modules })
    }

    /// Takes kernel and modules out of an unpacked kernel package into [`dir`].
    ///
    /// # Errors
    /// When the package is not laid out as kernels are.
    pub fn take_from(tree: &Path) -> Result<()> {
        let lost = |what: &str| Error::new(ErrorKind::NotFound, format!("no {what} in it"));
        let image = children(&tree.join("boot"))?
            .into_iter()
            .find(|path| name_of(path).starts_with("vmlinuz-"))
            .ok_or_else(|| lost("boot/vmlinuz"))?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|dir| children(&tree.join(dir)).ok()?.pop())
            .ok_or_else(|| lost("lib/modules"))?;
        let built_in = fs::read_to_string(modules.join("modules.builtin"))?;
        let built_in: BTreeSet<String> =
            built_in.lines().map(|line| module_name(Path::new(line))).collect();
        let mut files = Vec::new();
        collect_modules(&modules, &mut files)?;

        let new = dir().with_extension("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        let mut loaded = Vec::new();
        for name in WANTED {
            load(name, &files, &built_in, &new, &mut loaded)?;
        }
        fs::copy(image, new.join("vmlinuz"))?;
        let _ = fs::remove_dir_all(dir());
        fs::rename(new, dir())
    }
}

/// Copies a module behind everything it depends on.
fn load(
    name: &str,
    files: &[PathBuf],
    built_in: &BTreeSet<String>,
    into: &Path,
    loaded: &mut Vec<String>,
) -> Result<()> {
    if loaded.iter().any(|done| done == name) || built_in.contains(name) {
        return Ok(());
    }
    let file = files
        .iter()
        .find(|file| module_name(file) == name)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no module {name} in it")))?;
    let bytes = decompressed(file)?;
    for needed in dependencies(&bytes) {
        load(&needed, files, built_in, into, loaded)?;
    }
    fs::write(into.join(format!("{:02}-{name}.ko", loaded.len())), bytes)?;
    loaded.push(name.to_owned());
    Ok(())
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn collect_modules(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for path in children(dir)? {
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect_modules(&path, into)?;
        } else if name_of(&path).contains(".ko") {
            into.push(path);
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// `drivers/block/virtio-blk.ko.xz` is the module `virtio_blk`.
fn module_name(path: &Path) -> String {
    let name = name_of(path);
    let stem = name.split(".ko").next().unwrap_or_default();
    stem.replace('-', "_")
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file),
    };
    let output = Command::new(tool).arg("-dc").arg(file).output()?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::other(format!("{tool} cannot read {}", file.display())))
    }
}

/// The `depends=` line of a module's information.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else {
        return Vec::new();
    };
    let rest = &module[at + key.len()..];
    let line = rest.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(line)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF\0license=GPL\0depends=virtio-ring,virtio\0name=x\0";
        assert_eq!(dependencies(module), ["virtio_ring", "virtio"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert_eq!(module_name(Path::new("kernel/a/virtio-blk.ko.xz")), "virtio_blk");
    }
}
