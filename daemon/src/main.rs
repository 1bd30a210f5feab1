//! The bewick daemon.
fn main() {}
