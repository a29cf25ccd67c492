//! Import and export, raw and qcow2, good and bad images.

mod fake;

use fake::{FakeSheep, Run, dog_command, run};
use sheepdog_types::ErrorKind;
use sheepdog_wire::Request;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

struct Place {
    directory: TempDir,
    sheep: FakeSheep,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("directory"), sheep: FakeSheep::start() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `dog vdi SUB ARGS… FILE`
    fn dog(&self, args: &[&str], file: &str) -> fake::Run {
        let path = self.path(file);
        let mut all: Vec<&OsStr> = vec!["vdi".as_ref()];
        all.extend(args.iter().map(|a| OsStr::new(*a)));
        all.push(path.as_os_str());
        self.sheep.dog(&all)
    }

    /// Files in the directory, by name.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.directory.path())
            .expect("directory")
            .map(|e| e.expect("entry").file_name().into_string().expect("name"))
            .collect();
        names.sort();
        names
    }
}

/// A disk of 20 MiB and a bit with data, zeros and holes at odd places.
fn disk() -> Vec<u8> {
    let mut disk = vec![0u8; (20 << 20) + 513];
    for (at, len) in
        [(0, 512), (5000, 1), (1 << 20, 3 << 20), ((7 << 20) - 100, 200), ((20 << 20) + 512, 1)]
    {
        for (i, byte) in disk[at..at + len].iter_mut().enumerate() {
            *byte = (i % 255) as u8 + 1;
        }
    }
    disk
}

fn sparse(path: &Path, disk: &[u8]) {
    let file = File::create(path).expect("file");
    file.set_len(disk.len() as u64).expect("length");
    for (i, block) in disk.chunks(4096).enumerate() {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, i as u64 * 4096).expect("written");
        }
    }
}

/// `qemu-img`, where it is installed: the other judge of what qcow2 is.
fn qemu_img(args: &[&OsStr]) -> Option<()> {
    let output = Command::new("qemu-img").args(args).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

#[test]
fn a_raw_image_goes_in_and_out_without_its_zeros() {
    let place = Place::new();
    let disk = disk();
    sparse(&place.path("disk.raw"), &disk);
    fs::write(place.path("dense.raw"), &disk).expect("written");
    for (i, file) in ["disk.raw", "dense.raw"].into_iter().enumerate() {
        let name = format!("v{i}");
        place.dog(&["import", &name], file).is_silent();
        let state = place.sheep.state();
        assert!(state.bytes(&name) == disk);
        assert!(!state.vdi(&name).entry.incomplete);
        let kept = disk.chunks(4096).filter(|b| b.iter().any(|b| *b != 0)).count();
        assert_eq!(state.vdi(&name).blocks.len(), kept, "zero blocks were written");
        assert!(state.in_flight.1 <= 16);
    }
    place.dog(&["export", "v0"], "out.raw").is_silent();
    assert!(fs::read(place.path("out.raw")).expect("file") == disk);
    let stored = fs::metadata(place.path("out.raw")).expect("file").blocks() * 512;
    assert!(stored < 4 << 20, "{stored} bytes for 3 MiB of data");
    assert_eq!(place.files(), ["dense.raw", "disk.raw", "out.raw"]);
    let out = place.sheep.dog(&["vdi", "export", "v0", "-"]);
    assert!(out.code == 0 && out.stderr.is_empty() && out.bytes == disk);
}

#[test]
fn qcow2_goes_in_and_out() {
    let place = Place::new();
    let disk = disk();
    sparse(&place.path("disk.raw"), &disk);
    place.dog(&["import", "v"], "disk.raw").is_silent();
    place.dog(&["export", "v"], "out.qcow2").is_silent();
    assert!(fs::read(place.path("out.qcow2")).expect("file").starts_with(b"QFI\xfb"));
    // By its magic, whatever its name.
    fs::rename(place.path("out.qcow2"), place.path("out.img")).expect("renamed");
    place.dog(&["import", "w"], "out.img").is_silent();
    {
        let state = place.sheep.state();
        // The format counts sectors.
        let size = disk.len().div_ceil(512) * 512;
        let bytes = state.bytes("w");
        assert!(bytes.len() == size || bytes.len() == disk.len());
        assert!(bytes[..disk.len()] == disk);
        assert!(bytes[disk.len()..].iter().all(|b| *b == 0));
    }
    // As bytes, when told so.
    place.dog(&["import", "--format", "raw", "x"], "out.img").is_silent();
    assert!(place.sheep.state().bytes("x").starts_with(b"QFI\xfb"));
    place.dog(&["export", "--format=qcow2", "v"], "other").is_silent();
    assert!(fs::read(place.path("other")).expect("file").starts_with(b"QFI\xfb"));
}

/// What `qemu-img` writes is read, compressed too, and what we write passes its check.
#[test]
fn qemu_agrees_about_qcow2() {
    let place = Place::new();
    let mut disk = disk();
    disk.truncate(20 << 20);
    sparse(&place.path("disk.raw"), &disk);
    let path = |name: &str| place.path(name).into_os_string();
    let convert = |options: &[&str], to: &str| {
        let mut args: Vec<&OsStr> = vec![
            "convert".as_ref(),
            "-f".as_ref(),
            "raw".as_ref(),
            "-O".as_ref(),
            "qcow2".as_ref(),
        ];
        args.extend(options.iter().map(|o| OsStr::new(*o)));
        let (from, to) = (path("disk.raw"), path(to));
        args.extend([from.as_os_str(), to.as_os_str()]);
        qemu_img(&args)
    };
    let images: [(&str, &[&str]); 5] = [
        ("plain", &[]),
        ("packed", &["-c"]),
        ("old", &["-o", "compat=0.10"]),
        ("small", &["-o", "cluster_size=4k"]),
        ("full", &["-o", "preallocation=metadata"]),
    ];
    for (name, options) in images {
        let file = format!("{name}.qcow2");
        if convert(options, &file).is_none() {
            eprintln!("qemu-img is not installed: not compared with it");
            return;
        }
        place.dog(&["import", name], &file).is_silent();
        assert!(place.sheep.state().bytes(name) == disk, "{name}");
    }
    place.dog(&["export", "packed"], "ours.qcow2").is_silent();
    let (ours, raw) = (path("ours.qcow2"), path("disk.raw"));
    qemu_img(&["check".as_ref(), ours.as_os_str()]);
    qemu_img(&["compare".as_ref(), ours.as_os_str(), raw.as_os_str()]);
}

/// Compressed clusters that are cut off, or anything else damaged, is an error and never zeros.
#[test]
fn truncated_compressed_images_are_refused() {
    let place = Place::new();
    let mut state = 1u32;
    let noise: Vec<u8> = (0..1 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Half random: compresses, but not to nothing.
            (state >> 28) as u8 + 1
        })
        .collect();
    fs::write(place.path("disk.raw"), &noise).expect("written");
    let (from, to) = (place.path("disk.raw"), place.path("packed.qcow2"));
    let mut args: Vec<&OsStr> =
        ["convert", "-f", "raw", "-O", "qcow2", "-c"].iter().map(|a| OsStr::new(*a)).collect();
    args.extend([from.as_os_str(), to.as_os_str()]);
    if qemu_img(&args).is_none() {
        eprintln!("qemu-img is not installed");
        return;
    }
    place.dog(&["import", "whole"], "packed.qcow2").is_silent();
    assert!(place.sheep.state().bytes("whole") == noise);
    let whole = fs::read(&to).expect("file");
    for cut in [whole.len() / 2, whole.len() - 65536, whole.len() - 4608] {
        fs::write(&to, &whole[..cut]).expect("written");
        let result = place.dog(&["import", "v"], "packed.qcow2");
        assert_eq!((result.code, result.stdout.as_str()), (1, ""), "cut at {cut}");
        assert_eq!(result.stderr.lines().count(), 1, "{}", result.stderr);
        assert_eq!(place.sheep.state().vdis.len(), 1, "cut at {cut}");
    }
}

/// An image that lost a part that matters is refused, and no VDI stays behind.
#[test]
fn truncated_qcow2_images_are_refused() {
    let place = Place::new();
    sparse(&place.path("disk.raw"), &disk());
    place.dog(&["import", "v"], "disk.raw").is_silent();
    place.dog(&["export", "v"], "whole.qcow2").is_silent();
    let whole = fs::read(place.path("whole.qcow2")).expect("file");
    let mut cuts: Vec<usize> = vec![5, 40, 72, 103, 104, 512, 65536, 65537, 3 * 65536];
    cuts.extend([whole.len() / 2, whole.len() - 65536]);
    for cut in cuts {
        fs::write(place.path("cut.qcow2"), &whole[..cut]).expect("written");
        let result = place.dog(&["import", "w"], "cut.qcow2");
        assert_eq!((result.code, result.stdout.as_str()), (1, ""), "cut at {cut}");
        let prefix = format!("Failed to import {}: ", place.path("cut.qcow2").display());
        assert!(result.stderr.starts_with(&prefix), "{}", result.stderr);
        assert_eq!(result.stderr.lines().count(), 1, "{}", result.stderr);
        assert_eq!(place.sheep.state().vdis.len(), 1, "cut at {cut}");
    }
}

#[test]
fn bad_images_have_one_clear_line() {
    let place = Place::new();
    let refused = |file: &str, options: &[&str], why: &str| {
        let mut args = vec!["import"];
        args.extend(options);
        args.push("v");
        let line = format!("Failed to import {}: {why}\n", place.path(file).display());
        place.dog(&args, file).is(1, "", &line);
    };
    refused("missing", &[], "No such file or directory");
    fs::create_dir(place.path("directory")).expect("made");
    refused("directory", &[], "Is a directory");
    fs::write(place.path("vmdk"), b"KDMV and more").expect("written");
    refused(
        "vmdk",
        &[],
        "looks like a VMDK image: convert it with 'qemu-img convert -O qcow2' first, or say '--format raw' to take it as it is",
    );
    fs::write(place.path("raw"), b"no magic at all").expect("written");
    refused("raw", &["--format", "qcow2"], "not a qcow2 image");
    refused("raw", &["--size", "3"], "the image has 15 bytes, more than the 3 asked for");
    assert!(place.sheep.state().vdis.is_empty());
    place
        .dog(&["import", "--format", "vdi", "v"], "raw")
        .is_usage("Invalid image format 'vdi': raw and qcow2 are known\n");
    place.sheep.dog(&["vdi", "import", "v"]).is_usage("Please specify the image file\n");
    // A VDI that is there.
    place.dog(&["import", "v"], "raw").is_silent();
    place.dog(&["import", "v"], "raw").is(1, "", "Failed to import VDI v: VDI exists already\n");
    // Larger than a VDI may be.
    let huge = File::create(place.path("huge")).expect("file");
    if huge.set_len((4 << 40) + 1).is_ok() {
        place.dog(&["import", "w"], "huge").is(
            1,
            "",
            "VDI size is larger than 4.0 TB bytes, please use '-y' to create a hyper volume with size up to 16 PB bytes or use '-z' to create larger object size volume\n",
        );
        place.dog(&["import", "-y", "-v", "-r", "w"], "huge").is(0, "12\n", "");
        assert!(place.sheep.state().vdi("w").blocks.is_empty());
    }
}

/// Files that an image names are never opened.
#[test]
fn what_would_be_taken_for_something_else_is_refused() {
    let place = Place::new();
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    header[35] = 2;
    let secret = place.path("secret.img");
    std::fs::write(&secret, &header).expect("write");
    let page = place.path("page.qcow2");
    std::fs::write(&page, b"<html>not found</html>").expect("write");
    for (path, why) in [
        (&secret, "is encrypted: decrypt it with 'qemu-img convert' first"),
        (&page, "is named like a qcow2 image and is none: say '--format raw' to take it as it is"),
    ] {
        let path = path.to_str().expect("a path");
        let line = format!("Failed to import {path}: {why}\n");
        place.sheep.dog(&["vdi", "import", "v", path]).is(1, "", &line);
    }
    assert!(place.sheep.state().vdis.is_empty());
    let raw = ["vdi", "import", "v", page.to_str().expect("a path"), "--format", "raw"];
    place.sheep.dog(&raw).is_silent();
}

#[test]
fn backing_files_are_refused() {
    let place = Place::new();
    fs::write(place.path("base.raw"), vec![1; 1 << 20]).expect("written");
    let args = ["create", "-f", "qcow2", "-F", "raw", "-b"];
    let mut args: Vec<&OsStr> = args.iter().map(|a| OsStr::new(*a)).collect();
    let (base, top) = (place.path("base.raw"), place.path("top.qcow2"));
    args.extend([base.as_os_str(), top.as_os_str()]);
    if qemu_img(&args).is_none() {
        eprintln!("qemu-img is not installed");
        return;
    }
    let line = format!(
        "Failed to import {}: needs its backing file '{}': merge them with 'qemu-img convert' first\n",
        top.display(),
        base.display()
    );
    place.dog(&["import", "v"], "top.qcow2").is(1, "", &line);
}

#[test]
fn standard_input_can_be_imported() {
    let place = Place::new();
    let disk = disk();
    let size = disk.len().to_string();
    let sheep = &place.sheep;
    sheep.dog_with(&["vdi", "import", "v", "-", "--size", &size], &disk).is_silent();
    assert!(sheep.state().bytes("v") == disk);
    sheep.dog_with(&["vdi", "import", "w", "-", "--size", "1M"], b"abc").is_silent();
    assert_eq!(sheep.state().bytes("w")[..4], *b"abc\0");
    assert_eq!(sheep.state().vdi("w").entry.size, 1 << 20);
    sheep
        .dog_with(&["vdi", "import", "x", "-"], &disk)
        .is_usage("Please specify the size of what comes from a pipe with '--size'\n");
    // Nobody will ever write to this one.
    let fifo = place.path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).expect("a pipe");
    sheep
        .dog(&["vdi", "import", "x", fifo.to_str().expect("a path")])
        .is_usage("Please specify the size of what comes from a pipe with '--size'\n");
    sheep.dog_with(&["vdi", "import", "x", "-", "--size", "2"], b"abc").is(
        1,
        "",
        "Failed to import -: the image has more than the 2 bytes asked for\n",
    );
    sheep.dog_with(&["vdi", "import", "x", "-", "--size", "1M"], b"QFI\xfb\0\0\0\x03").is(
        1,
        "",
        "Failed to import -: a qcow2 image cannot be read from a pipe\n",
    );
    // What was begun is taken back when the image turns out bad.
    let late = vec![1; (1 << 20) + 1];
    sheep.dog_with(&["vdi", "import", "x", "-", "--size", "1M"], &late).is(
        1,
        "",
        "Failed to import -: the image has more than the 1048576 bytes asked for\n",
    );
    assert_eq!(sheep.state().vdis.len(), 2);
    // A file on stdin has a size of its own.
    fs::write(place.path("file"), b"from a file").expect("written");
    let output = dog_command()
        .args(["vdi", "import", "y", "-"])
        .env("SHEEPDOG_DOG_PORT", sheep.port.to_string())
        .stdin(File::open(place.path("file")).expect("file"))
        .output()
        .expect("runs");
    Run::from(output).is_silent();
    assert_eq!(sheep.state().bytes("y"), b"from a file");
}

/// The connection breaks half-way: the VDI is incomplete, doors refuse it, importing again works.
#[test]
fn an_interrupted_import_stays_incomplete_until_it_is_repeated() {
    let place = Place::new();
    let disk = vec![5; 40 << 20];
    fs::write(place.path("disk"), &disk).expect("written");
    place.sheep.state().cut_at_write = Some(20);
    let cut = place.dog(&["import", "v"], "disk");
    let prefix = "Failed to import VDI v: Network error between sheep: connection ";
    assert_eq!((cut.code, cut.stdout.as_str()), (2, ""));
    assert!(cut.stderr.starts_with(prefix) && cut.stderr.lines().count() == 1);
    assert!(place.sheep.state().vdi("v").entry.incomplete);
    let refused = "Failed to open VDI v (snapshot id: 0 snapshot tag: ): VDI is incomplete\n";
    place.sheep.dog(&["vdi", "read", "v"]).is(1, "", refused);
    place.dog(&["export", "v"], "out").is(1, "", refused);
    let listed = place.sheep.dog(&["vdi", "info", "v", "-r"]);
    assert!(listed.stdout.contains("\nstate incomplete\n"));
    place.sheep.state().cut_at_write = None;
    place.dog(&["import", "v"], "disk").is_silent();
    let state = place.sheep.state();
    assert!(!state.vdi("v").entry.incomplete && state.bytes("v") == disk);
    assert_eq!(state.vdis.len(), 1);
}

#[test]
fn a_full_cluster_is_told() {
    let place = Place::new();
    fs::write(place.path("disk"), vec![5; 40 << 20]).expect("written");
    place.sheep.state().fail_writes = Some((10, ErrorKind::NoSpace));
    place.dog(&["import", "v"], "disk").is(
        1,
        "",
        "Failed to import VDI v: Server has no space for new objects: as told\n\
         VDI v stays incomplete: delete it, or import it again\n",
    );
    assert!(place.sheep.state().vdi("v").entry.incomplete);
    assert!(place.sheep.state().in_flight.1 <= 16);
}

#[test]
fn export_replaces_nothing_unasked() {
    let place = Place::new();
    place.sheep.dog(&["vdi", "create", "v", "1M"]).is_silent();
    place.sheep.dog_with(&["vdi", "write", "v", "0", "3"], b"abc").is_silent();
    fs::write(place.path("out"), b"precious").expect("written");
    let failed =
        |why: &str| format!("Failed to export to {}: {why}\n", place.path("out").display());
    place.dog(&["export", "v"], "out").is(
        1,
        "",
        &failed("the file exists already, use '-f' to replace it"),
    );
    assert_eq!(fs::read(place.path("out")).expect("file"), b"precious");
    // A failure half-way leaves the old file, with -f too.
    place.sheep.state().broken = Some((ErrorKind::Io, "bad disk"));
    assert_eq!(place.dog(&["export", "-f", "v"], "out").code, 1);
    place.sheep.state().broken = None;
    assert_eq!(fs::read(place.path("out")).expect("file"), b"precious");
    place.dog(&["export", "--force", "v"], "out").is_silent();
    assert_eq!(fs::read(place.path("out")).expect("file")[..4], *b"abc\0");
    fs::create_dir(place.path("directory")).expect("made");
    let line =
        format!("Failed to export to {}: Is a directory\n", place.path("directory").display());
    place.dog(&["export", "-f", "v"], "directory").is(1, "", &line);
    let line = format!(
        "Failed to export to {}: No such file or directory\n",
        place.path("no/out").display()
    );
    place.dog(&["export", "v"], "no/out").is(1, "", &line);
    place.sheep.dog(&["vdi", "export", "-f", "v", "/dev/null"]).is(
        1,
        "",
        "Failed to export to /dev/null: not a regular file\n",
    );
    assert_eq!(place.files(), ["directory", "out"]);
    place.dog(&["export", "v"], "json").is_silent();
    fs::remove_file(place.path("json")).expect("there");
    let json = place.dog(&["export", "--json", "v"], "json");
    assert_eq!(json.code, 0);
    assert!(json.stdout.ends_with(",\"format\":\"raw\",\"size\":1048576,\"written\":4096}\n"));
    place
        .sheep
        .dog(&["vdi", "export", "--json", "v", "-"])
        .is_usage("Standard output cannot take both the image and JSON\n");
}

/// Holes are not read: a thin VDI of terabytes is exported in an instant.
#[test]
fn a_huge_thin_vdi_is_exported_by_its_map() {
    let place = Place::new();
    place.sheep.dog(&["vdi", "create", "-y", "v", "64T"]).is_silent();
    place.sheep.dog_with(&["vdi", "write", "v", "32T", "1"], b"x").is_silent();
    place.dog(&["export", "v"], "out.qcow2").is_silent();
    let reads =
        place.sheep.state().requests.iter().filter(|r| matches!(r, Request::Read(_))).count();
    assert_eq!(reads, 1);
    place.dog(&["import", "-y", "w"], "out.qcow2").is_silent();
    let state = place.sheep.state();
    assert_eq!(state.vdi("w").entry.size, 64 << 40);
    assert_eq!(state.vdi("w").blocks.keys().copied().collect::<Vec<_>>(), [(32u64 << 40) / 4096]);
}

/// A snapshot is exported like any VDI.
#[test]
fn snapshots_are_exported() {
    let place = Place::new();
    place.sheep.dog(&["vdi", "create", "v", "1M"]).is_silent();
    for vdi in place.sheep.state().vdis.values_mut() {
        vdi.entry.snapshot = true;
        vdi.entry.tag = "t".into();
    }
    place.dog(&["export", "-s", "t", "v"], "out").is_silent();
    assert_eq!(fs::metadata(place.path("out")).expect("file").len(), 1 << 20);
    assert_eq!(place.dog(&["export", "v"], "more").code, 1);
}

/// Told to go, the command takes its temporary file with it.
#[test]
fn an_interrupted_export_leaves_no_file() {
    let place = Place::new();
    place.sheep.dog(&["vdi", "create", "v", "1G"]).is_silent();
    let mut command = Command::new("sh");
    // The sheep never answers, so the file under its temporary name is there to be seen.
    command
        .arg("-c")
        .arg("\"$DOG\" vdi export v \"$OUT\" & pid=$!; while ! ls -A \"$DIR\" | grep -q part; do sleep 0.02; done; kill -TERM $pid; wait $pid")
        .env("DOG", env!("CARGO_BIN_EXE_dog"))
        .env("OUT", place.path("out"))
        .env("DIR", place.directory.path())
        .env("SHEEPDOG_DOG_PORT", place.sheep.port.to_string());
    place.sheep.state().stall_maps = true;
    let result = run(command, b"");
    assert_eq!(result.code, 1);
    assert!(result.stderr.ends_with("out: interrupted\n"), "{}", result.stderr);
    assert!(place.files().is_empty());
}
