//! What the machine must have before a scenario can run, and the Debian packages that bring it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::fail;
use crate::failure::Result;
use crate::peer::{Plane, Program, strongswan};
use crate::place;

/// Programs that the runner itself needs, with their packages.
const RUNNER: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("iptables-legacy", "iptables"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("iperf3", "iperf3"),
];

/// What strongSwan scenarios need besides.
const STRONGSWAN: &[(&str, &str)] = &[
    (strongswan::DAEMON, "charon-systemd"),
    ("swanctl", "strongswan-swanctl"),
    ("/usr/lib/ipsec/plugins/libstrongswan-openssl.so", "libstrongswan-standard-plugins"),
    ("/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so", "libcharon-extra-plugins"),
];

/// What the guest kernel needs.
const GUEST: &[(&str, &str)] = &[("linux.uml", "user-mode-linux"), ("modprobe", "kmod")];

/// What the guest with Debian's cloud kernel needs.
const CLOUD_GUEST: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("xzcat", "xz-utils"),
];

/// Where virtiofsd may be: what QEMU brings along in Debian 12, and the package of its own from 13 on.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

fn missing_for_cloud_guest() -> BTreeSet<&'static str> {
    let mut packages = missing(CLOUD_GUEST);
    if !VIRTIOFSD.into_iter().any(is_there) {
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let is_12 = release.lines().any(|line| line == "VERSION_ID=\"12\"");
        packages.insert(if is_12 { "qemu-system-common" } else { "virtiofsd" });
    }
    packages
}

/// How to get the kernel of that guest, if it is not there.
pub fn missing_kernel() -> Option<String> {
    let fetch = || format!("{} --fetch", place::guest(Plane::CloudKernel).display());
    (!place::cloud_kernel().is_file()).then(fetch)
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') {
        return Path::new(what).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|folder| folder.join(what).is_file())
}

fn missing<'a>(needs: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> BTreeSet<&'a str> {
    needs.into_iter().filter(|(what, _)| !is_there(what)).map(|(_, package)| *package).collect()
}

/// The Debian packages that are missing for all scenarios and benches.
pub fn missing_packages() -> BTreeSet<&'static str> {
    let mut packages = missing(RUNNER.iter().chain(STRONGSWAN).chain(GUEST));
    packages.append(&mut missing_for_cloud_guest());
    packages
}

/// Fails with what to install or allow if these programs cannot meet on this plane here.
///
/// # Errors
/// Not root, packages missing, or no TUN device.
pub fn require(programs: &[Program], plane: Plane) -> Result<()> {
    require_root()?;
    let mut packages = missing(RUNNER);
    if programs.contains(&Program::Strongswan) {
        packages.extend(missing(STRONGSWAN));
    }
    if plane == Plane::Kernel {
        packages.extend(missing(GUEST));
    }
    if plane == Plane::CloudKernel {
        packages.extend(missing_for_cloud_guest());
    }
    if !packages.is_empty() {
        return Err(fail!("programs are missing: {}", install_line(&packages)));
    }
    if let Some(fetch) = missing_kernel().filter(|_| plane == Plane::CloudKernel) {
        return Err(fail!("the guest's kernel is missing: {fetch}"));
    }
    if plane == Plane::Userspace && !is_there("/dev/net/tun") {
        return Err(fail!("/dev/net/tun is missing: modprobe tun, or allow it in this container"));
    }
    Ok(())
}

/// Fails if this is not root.
///
/// # Errors
/// It is not.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(fail!("network namespaces, TUN devices and XFRM need root: run this as root"))
}

/// The command that installs these packages.
pub fn install_line(packages: &BTreeSet<&str>) -> String {
    let names: Vec<&str> = packages.iter().copied().collect();
    format!("apt-get install -y --no-install-recommends {}", names.join(" "))
}
