//! `collie`, the old name of `dog`: see the library.

fn main() {
    std::process::exit(sheepdog_dog::main());
}
