//! What earlier versions wrote is opened: `crates/testkit/samples`.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::process::run;
use sheepdog_testkit::sample::{Held, Sample, all};
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::stamp::crc;
use std::fs;
use std::process::Command;

fn read(sheep: &Sheep, held: &Held) -> Vec<u8> {
    let mut client = Client::connect(sheep.socket(), &held.name).expect("connect");
    assert_eq!(client.sender.size(), held.size as u64, "{}", held.name);
    let mut bytes = Vec::new();
    while bytes.len() < held.size {
        let len = (held.size - bytes.len()).min(4 << 20);
        bytes.extend(client.read(bytes.len() as u64, len as u32).expect("read"));
    }
    bytes
}

#[test]
fn every_kept_node_is_opened_and_holds_what_it_held() {
    let packed = all();
    assert!(packed.len() >= 3, "{packed:?}");
    for packed in packed {
        let Some(mut sample) = Sample::open(&packed) else { continue };
        let offline =
            |words: &[&str]| run(Command::new(bin("sheep")).arg("store").args(words), b"");
        let checked = offline(&["check", &sample.paths]).ok().text();
        assert!(checked.contains("nothing is wrong"), "{checked}");
        let home = tempfile::tempdir().expect("a directory");
        for held in &sample.vdis {
            let image = home.path().join("image").display().to_string();
            let _ = offline(&["export", &sample.paths, &held.name, &image, "--force"]).ok();
            let bytes = fs::read(&image).expect("the image");
            assert_eq!((bytes.len(), crc(&bytes)), (held.size, held.crc), "{}", held.name);
        }
        for round in 0..3_u8 {
            sample.sheep.start();
            let listed = sample.sheep.dog().run(&["vdi", "list", "-r"]).ok().text();
            assert_eq!(listed.lines().count(), sample.vdis.len() + 1, "{listed}");
            for held in &mut sample.vdis {
                let mut bytes = read(&sample.sheep, held);
                assert_eq!(crc(&bytes), held.crc, "{} of {}", held.name, packed.display());
                // It goes on where the earlier version ended.
                bytes[..4096].fill(round);
                let mut client =
                    Client::connect(sample.sheep.socket(), &held.name).expect("connect");
                client.write(0, &bytes[..4096]).expect("write");
                held.crc = crc(&bytes);
            }
            if round == 1 {
                sample.sheep.stop();
            } else {
                sample.sheep.kill();
            }
        }
        let checked = offline(&["check", &sample.paths]).ok().text();
        assert!(checked.contains("nothing is wrong"), "{checked}");
    }
}
