//! Lines byte for byte, files that move, levels.

use super::sink::LogFile;
use super::*;
use std::fs;

fn logged(options: &LogOptions, dir: &Path, what: impl FnOnce()) -> String {
    let log = Log::open(options, dir).expect("open");
    let subscriber = tracing_subscriber::registry().with(log.with_level(options.level));
    tracing::subscriber::with_default(subscriber, what);
    fs::read_to_string(dir.join(FILE_NAME)).expect("read")
}

#[test]
fn server_lines_are_those_of_old() {
    let dir = tempfile::tempdir().expect("dir");
    let text = logged(&LogOptions::default(), dir.path(), || {
        tracing::info!("sheepdog daemon (version {}) started", "1");
        tracing::debug!("not shown");
        tracing::warn!(port = 7000, name = "a\nb", "evil\r\nJan 01");
    });
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let (time, rest) = lines[0].split_at(15);
    assert!(jiff::fmt::strtime::parse("%b %d %H:%M:%S", time).is_ok(), "{time}");
    let thread = std::thread::current();
    let (head, message) = rest.split_once(") ").expect("place");
    assert_eq!(message, "sheepdog daemon (version 1) started");
    assert!(
        head.starts_with(&format!("   INFO [{}] tests(", thread.name().unwrap_or("?"))),
        "{head}"
    );
    assert!(lines[1].ends_with("evil\\r\\nJan 01 port=7000 name=a\\nb"), "{}", lines[1]);
}

#[test]
fn json_lines_are_objects() {
    let dir = tempfile::tempdir().expect("dir");
    let options = LogOptions { format: Format::Json, level: Level::Debug, ..LogOptions::default() };
    let text = logged(&options, dir.path(), || tracing::debug!(a = 1, "x\"y"));
    let value: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(value["message"], "x\"y");
    assert_eq!(value["level"], "DEBUG");
    assert_eq!(value["a"], "1");
}

#[test]
fn the_file_follows_a_rename_after_reopen() {
    let dir = tempfile::tempdir().expect("dir");
    let options = LogOptions::default();
    let log = Log::open(&options, dir.path()).expect("open");
    log.lock().write(tracing::Level::INFO, "one\n");
    fs::rename(dir.path().join(FILE_NAME), dir.path().join("moved")).expect("rename");
    log.lock().write(tracing::Level::INFO, "two\n");
    log.reopen();
    log.lock().write(tracing::Level::INFO, "three\n");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("read");
    assert_eq!(read("moved"), "one\ntwo\n");
    assert_eq!(read(FILE_NAME), "three\n");
}

#[test]
fn a_full_file_is_moved_aside() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join(FILE_NAME);
    let mut log = LogFile::open(path.clone(), 10).expect("open");
    for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddddddddddddd\n", "e\n"] {
        log.write(line);
    }
    let old = fs::read_to_string(dir.path().join("sheep.log.1")).expect("old");
    assert_eq!(old, "dddddddddddddd\n");
    assert_eq!(fs::read_to_string(path).expect("new"), "e\n");
}

#[test]
fn levels_have_the_names_of_syslog() {
    assert_eq!(Level::from_name("err"), Some(Level::Err));
    assert_eq!(Level::from_name("error"), None);
    assert_eq!(Level::Notice.filter(), LevelFilter::INFO);
}
