//! The programs the tests need. As root they come by apt, without a service being started and
//! without a package being removed; otherwise we say what is missing. The guest's kernel is only
//! unpacked below the target directory, never installed.

use crate::shell::{cmd, output, step};
use anyhow::{Context, Result, bail};
use sheepdog_testkit::guest::kernel;
use sheepdog_testkit::tools::{TOOLS, find, is_root};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Makes sure that everything is there.
pub fn run() -> Result<()> {
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| find(tool).is_none()).collect();
    let packages: BTreeSet<&str> = missing.iter().map(|(_, package)| *package).collect();
    let kernel_missing = kernel::Kernel::find().is_none();
    if packages.is_empty() && !kernel_missing {
        println!("==> the tests have every program they need");
        return Ok(());
    }
    if find("apt-get").is_none() || (!packages.is_empty() && !is_root()) {
        let tools: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
        let names: Vec<_> = packages.iter().copied().collect();
        if !tools.is_empty() {
            println!("missing programs: {}", tools.join(", "));
            println!("as root: apt-get install --no-install-recommends {}", names.join(" "));
        }
        if find("apt-get").is_none() && kernel_missing {
            println!(
                "missing: a Linux kernel with ext4 and virtio; put it as in {}",
                kernel::dir().display()
            );
        }
        bail!("the tests need these; install them, or run this as root where apt-get is");
    }
    if is_root() {
        // Old lists still work for most packages, so a failed update is not the end.
        if let Err(error) = step("apt-get update", &mut apt(&["update", "-q"])) {
            println!("    going on with the old lists: {error}");
        }
    }
    if !packages.is_empty() {
        install(&packages)?;
    }
    if kernel_missing {
        fetch_kernel()?;
    }
    let still: Vec<_> = TOOLS.iter().filter(|(tool, _)| find(tool).is_none()).collect();
    if !still.is_empty() {
        bail!("installed, and still missing: {still:?}");
    }
    Ok(())
}

fn apt(words: &[&str]) -> Command {
    let mut command = cmd(&["apt-get"]);
    command
        .args(["-o", "Dpkg::Use-Pty=0"])
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    command
}

fn install(packages: &BTreeSet<&str>) -> Result<()> {
    let plan = plan(packages)?;
    let _guard = NoServices::begin()?;
    let words: Vec<&str> = plan.iter().map(String::as_str).collect();
    let mut command = apt(&["install", "-y", "-q"]);
    step("apt-get install", command.args(words))
}

/// The arguments for apt-get install, after a dry run showed that nothing is removed.
fn plan(packages: &BTreeSet<&str>) -> Result<Vec<String>> {
    let mut plan = vec!["--no-install-recommends".to_owned()];
    plan.extend(packages.iter().map(|p| (*p).to_owned()));
    let first = dry_run(&plan);
    if first.is_ok() {
        return Ok(plan);
    }
    // A tool that is here already may be newer than the release's (from backports) and then
    // excludes the release's QEMU: name the release for both, together.
    let release = std::fs::read_to_string("/etc/os-release")?;
    let release = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("no release name in /etc/os-release")?
        .trim_matches('"');
    let mut second = vec![
        "--no-install-recommends".to_owned(),
        "--allow-downgrades".to_owned(),
        format!("qemu-utils/{release}"),
    ];
    second.extend(packages.iter().filter(|p| **p != "qemu-utils").map(|p| (*p).to_owned()));
    dry_run(&second)
        .map_err(|e| e.context(format!("and without naming the release: {}", first.unwrap_err())))
        .context("apt cannot install what the tests need without harm")?;
    Ok(second)
}

fn dry_run(plan: &[String]) -> Result<()> {
    let words: Vec<&str> = plan.iter().map(String::as_str).collect();
    let shown = output(apt(&["install", "-s", "-q"]).args(words))?;
    let removed: Vec<_> = shown.lines().filter(|l| l.starts_with("Remv ")).collect();
    if !removed.is_empty() {
        bail!("it would remove packages: {}", removed.join("; "));
    }
    Ok(())
}

/// While it lives, packages that are being installed start no service.
struct NoServices(bool);

impl NoServices {
    const FILE: &'static str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        if Path::new(Self::FILE).exists() {
            return Ok(Self(false));
        }
        std::fs::write(Self::FILE, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(Self::FILE, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(true))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0 {
            // Nothing to be done about a failure; the next install would only start no service.
            let _ = std::fs::remove_file(Self::FILE);
        }
    }
}

/// Downloads the kernel package and keeps its kernel and the few modules the guest loads.
fn fetch_kernel() -> Result<()> {
    let meta = "linux-image-cloud-amd64";
    let depends = output(cmd(&["apt-cache", "depends", meta]).env("LC_ALL", "C"))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{meta} names no kernel:\n{depends}"))?
        .to_owned();
    let target = sheepdog_testkit::bins::target_dir();
    std::fs::create_dir_all(&target)?;
    let scratch = tempfile::Builder::new().prefix("kernel").tempdir_in(&target)?;
    // apt's own user must be able to write there.
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777))?;
    let mut download = apt(&["download", "-q", &package]);
    step("download the guest's kernel", download.current_dir(scratch.path()))?;
    let deb = std::fs::read_dir(scratch.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get download left no package")?;
    let tree = scratch.path().join("tree");
    step("unpack it", cmd(&["dpkg-deb", "-x"]).arg(&deb).arg(&tree))?;
    kernel::Kernel::take_from(&tree).map_err(|e| anyhow::anyhow!("{package}: {e}"))?;
    Ok(())
}
