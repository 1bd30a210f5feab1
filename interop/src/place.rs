//! Where things are: this workspace, the `bewick` binary, the guest's launcher, the evidence.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::Plane;

/// The `interop` folder of the workspace that this runner was built in.
pub fn interop() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program that runs a script in a kernel with ESP.
pub fn guest(plane: Plane) -> PathBuf {
    interop().join(if plane == Plane::CloudKernel { "lab/guest-qemu" } else { "lab/guest" })
}

/// A file that is there if Debian's cloud kernel has been fetched for the guest.
pub fn cloud_kernel() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| interop().join("../target"));
    target.join("guest-kernel/initrd")
}

/// The `bewick` binary: `$BEWICK` if set, else the one built beside the runner.
///
/// When the runner was started by cargo it has that binary built first, so that a verdict is never
/// one on yesterday's code.
///
/// # Errors
/// It does not build, or is not there.
pub fn bewick() -> Result<PathBuf> {
    FOUND.get_or_init(find_bewick).clone()
}

static FOUND: OnceLock<Result<PathBuf>> = OnceLock::new();

/// Takes this binary from now on, as the runner outside the guest has found it.
pub fn use_bewick(path: PathBuf) {
    let _ = FOUND.set(Ok(path));
}

fn find_bewick() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BEWICK") {
        let path = PathBuf::from(path);
        return path.canonicalize().context(format!("BEWICK={}", path.display()));
    }
    let own = std::env::current_exe().context("own path")?;
    let folder = own.parent().ok_or_else(|| fail!("{} is in no folder", own.display()))?;
    let target = folder.parent().unwrap_or(folder);
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.current_dir(interop()).args(["build", "--quiet", "--package", "bewick"]);
        build.arg("--target-dir").arg(target);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().context("cargo build --package bewick")?;
        if !status.success() {
            return Err(fail!("bewick does not build: cargo build ended with {status}"));
        }
    }
    let path = folder.join("bewick");
    if path.is_file() {
        return Ok(path);
    }
    Err(fail!("{} is not there: cargo build --package bewick, or set BEWICK", path.display()))
}
