//! `dog`: see the library.

fn main() {
    std::process::exit(sheepdog_dog::main());
}
