//! The `bewick` binary: see the library of the same package.

use std::process::ExitCode;

fn main() -> ExitCode {
    bewick::cli::main()
}
