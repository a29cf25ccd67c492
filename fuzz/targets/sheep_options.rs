//! sheep's command line and its file of options.
#![no_main]

use rustix::fs::{MemfdFlags, memfd_create};
use sheepdog_fuzz::meter::bounded;
use sheepdog_sheep::options::{Action, Options, Refusal, parse};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt;

sheepdog_fuzz::target!(seeds, run);

fn seeds() -> Vec<Vec<u8>> {
    let words = [
        "-b\x00127.0.0.2\0-p7001\0-z\x004294967295\0-c\0local:/r/db\0-f\0-P\0/run/s.pid\0/s//",
        "-l\0level=debug,dir=/l,format=json,dst=default\0--nbd=[::1]:10809\0--nbd-group=0",
        "--io\0blocking\0-j\0size=1g,dir=/j,skip\0--scrub=1.5M\0-nD\0-y\0::1\0--\0-x",
        "-h",
        "-v",
        "--gateway",
    ];
    let file = "path = '/s'\nport = 7001\nforeground = true\nscrub = '8M'\n\
                [log]\nlevel = 'info'\n[journal]\nsize = '64M'\nskip = true\n";
    let words = words.map(|line| [b"w", line.as_bytes()].concat());
    words.into_iter().chain([[b"f", file.as_bytes()].concat()]).collect()
}

/// The first byte says whether the rest is a file or words that end with a zero byte.
fn run(data: &[u8]) {
    match data.split_first() {
        Some((b'f', text)) => {
            let file = file_of(text);
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let most = (256 << 10) + 400 * text.len();
            let words = ["--config".into(), path.into()];
            bounded(most, || judge(parse(words)));
        }
        Some((_, line)) => {
            let words = line.split(|byte| *byte == 0).map(<[u8]>::to_vec).map(OsString::from_vec);
            let words: Vec<OsString> = words.collect();
            // A target reads no files of the machine it runs on.
            if words.iter().any(|word| word.as_encoded_bytes().starts_with(b"--co")) {
                return;
            }
            bounded((256 << 10) + 150 * line.len(), || judge(parse(words)));
        }
        None => {}
    }
}

/// A file in memory.
fn file_of(text: &[u8]) -> File {
    let fd = memfd_create("options", MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(text).expect("it takes bytes");
    file
}

fn judge(result: Result<Action, Refusal>) {
    match result {
        Ok(Action::Run(options)) => sound(&options),
        Ok(Action::Print(text)) => assert!(text.ends_with('\n')),
        Err(refusal) => {
            let line = refusal.line;
            assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
        }
    }
}

fn sound(options: &Options) {
    let paths = [Some(&options.store), options.pid_file.as_ref(), options.log.dir.as_ref()];
    let journal = options.journal.as_ref();
    let paths = paths.into_iter().chain([journal.and_then(|journal| journal.dir.as_ref())]);
    assert!(paths.flatten().all(|path| path.is_absolute()), "a daemon leaves its directory");
    assert!(options.port != 0 && options.nbd.is_none_or(|nbd| nbd.port() != 0));
    let size = journal.and_then(|journal| journal.bytes);
    assert!(size.is_none_or(|bytes| bytes >= 64 << 20));
    assert!(!options.address.is_unspecified() || options.bind.is_none() || options.zone == 0);
    assert!(options.notices.iter().all(|notice| !notice.contains(char::is_control)));
}
