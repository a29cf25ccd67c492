//! What people are told and scripts are not.

mod fake;

use fake::FakeSheep;
use sheepdog_types::ErrorKind;
use sheepdog_wire::VdiEntry;
use std::process::Command;

/// What a terminal shows of a command; `None` where there is no program to make a terminal.
fn on_terminal(sheep: &FakeSheep, words: &str) -> Option<String> {
    let mut script = Command::new("script");
    script
        .arg("-qec")
        .arg(format!("{} {words}", env!("CARGO_BIN_EXE_dog")))
        .arg("/dev/null")
        .env("SHEEPDOG_DOG_PORT", sheep.port.to_string())
        .env("TERM", "dumb");
    let Ok(output) = script.output() else {
        eprintln!("script is not installed: what a terminal shows is not looked at");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n"))
}

#[track_caller]
fn shows(sheep: &FakeSheep, words: &str, text: &str) {
    if let Some(shown) = on_terminal(sheep, words) {
        assert_eq!(shown, text);
    }
}

#[test]
fn fewer_zones_than_copies_are_told() {
    let sheep = FakeSheep::start();
    sheep.dog(&["vdi", "create", "-c", "2", "a", "1M"]).is_silent();
    shows(&sheep, "vdi create -c 1 b 1M", "");
    shows(&sheep, "vdi create -c 3 -r b3 1M", "");
    shows(
        &sheep,
        "vdi create -c 2 c 1M",
        "Reduced redundancy: VDI c with 2 copies takes 2 zones, and there is 1\n",
    );
    shows(
        &sheep,
        "vdi create -c 4:2 -v d 1M",
        "VDI ID of newly created VDI: 15\nReduced redundancy: VDI d with 4:2 takes 6 zones, and there is 1\n",
    );
}

#[test]
fn deleting_what_is_open_is_told() {
    let sheep = FakeSheep::start();
    let open =
        |vid, name: &str, open| VdiEntry { vid, name: name.into(), open, ..VdiEntry::default() };
    for (vid, name, by) in [(1, "a", 0), (2, "b", 1), (3, "c", 2), (4, "d", 3)] {
        sheep.state().add(open(vid, name, by));
    }
    shows(&sheep, "vdi delete a", "");
    shows(&sheep, "vdi delete b", "VDI b was open at 1 connection, which was cut off\n");
    shows(&sheep, "vdi delete c", "VDI c was open at 2 connections, which were cut off\n");
    sheep.dog(&["vdi", "delete", "d"]).is_silent();
}

/// The old sentence stands alone for scripts; people get what it leaves out.
#[test]
fn what_an_old_sentence_leaves_out_is_told() {
    let sheep = FakeSheep::start();
    sheep.state().broken = Some((ErrorKind::TooFewZones, "the cluster is strict"));
    let line = "Failed to create VDI v: Failed to write to requested VDI\n";
    let words = "vdi create -c 2 v 1M";
    sheep.dog(&words.split(' ').collect::<Vec<_>>()).is(1, "", line);
    shows(&sheep, words, &format!("{line}the cluster is strict\n"));
}
