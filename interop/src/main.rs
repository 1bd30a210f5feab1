//! The interop runner.
fn main() {}
