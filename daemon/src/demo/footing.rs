//! The right to make network namespaces: as root, or as root of a user namespace of our own.

use std::{fmt, fs, io};

use rustix::{
    io::Errno,
    process::{getegid, geteuid},
    thread::{UnshareFlags, unshare_unsafe},
};

/// On what footing the demo stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footing {
    /// The process has the rights itself.
    Root,
    /// The process is root only inside a user namespace that it made.
    UserNamespace,
}

/// Why no namespaces can be made, and what to allow.
#[derive(Debug)]
pub struct Refusal {
    error: io::Error,
    as_root: bool,
    remedies: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.as_root { "network" } else { "user" };
        writeln!(f, "this machine does not let us make a {kind} namespace: {}", self.error)?;
        write!(f, "one of these helps:")?;
        for remedy in &self.remedies {
            write!(f, "\n  - {remedy}")?;
        }
        Ok(())
    }
}

/// Moves this process into an empty network namespace, and first into a user namespace if it has
/// no right to the former; fails with a [`Refusal`] that says what to allow.
///
/// To be called while the process has one thread: the kernel refuses a user namespace otherwise.
pub fn obtain() -> Result<Footing, Refusal> {
    let root = geteuid().is_root();
    if root && unshare(UnshareFlags::NEWNET).is_ok() {
        return Ok(Footing::Root);
    }
    // Root without CAP_SYS_ADMIN, as in a container, still gets this far.
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)
        .and_then(|()| map_ids(uid, gid))
        .map(|()| Footing::UserNamespace)
        .map_err(|error| {
            let knobs = Knobs::read();
            Refusal { remedies: remedies(&error, root, &knobs), error, as_root: root }
        })
}

/// Says what is missing if `/dev/net/tun`, which the userspace data plane needs, can't be opened.
pub fn missing_tun() -> Option<String> {
    let error = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").err()?;
    Some(match error.kind() {
        io::ErrorKind::NotFound => "there is no /dev/net/tun, which ESP in userspace needs: \
             `sudo modprobe tun`, or in a container start it with --device /dev/net/tun"
            .to_owned(),
        io::ErrorKind::PermissionDenied => "/dev/net/tun, which ESP in userspace needs, can't be \
             opened by this user: `sudo chmod 0666 /dev/net/tun`, or run the demo as root"
            .to_owned(),
        _ => format!(
            "/dev/net/tun, which ESP in userspace needs, can't be opened ({error}): `sudo \
             modprobe tun`"
        ),
    })
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: without FILES in the flags no file descriptor table is unshared, which is the only
    // thing that makes this call unsafe.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Makes the user that we were root of the new user namespace.
fn map_ids(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    // A group map may be written only by someone who can't use it to drop a group.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))
}

/// What the machine says about namespaces; `None` where it has no such knob.
#[derive(Default)]
struct Knobs {
    userns_clone: Option<u64>,
    max_user: Option<u64>,
    max_net: Option<u64>,
    apparmor: Option<u64>,
}

impl Knobs {
    fn read() -> Self {
        let knob = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        Knobs {
            userns_clone: knob("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user: knob("/proc/sys/user/max_user_namespaces"),
            max_net: knob("/proc/sys/user/max_net_namespaces"),
            apparmor: knob("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        }
    }
}

fn remedies(error: &io::Error, root: bool, knobs: &Knobs) -> Vec<String> {
    let mut remedies = Vec::new();
    let forbidden = [knobs.max_user, knobs.max_net].contains(&Some(0));
    let full = error.raw_os_error() == Some(Errno::NOSPC.raw_os_error());
    if knobs.userns_clone == Some(0) {
        remedies.push("allow them: `sudo sysctl kernel.unprivileged_userns_clone=1`".to_owned());
    }
    if knobs.apparmor == Some(1) && !full {
        remedies.push(
            "let AppArmor allow them: `sudo sysctl \
             kernel.apparmor_restrict_unprivileged_userns=0`"
                .to_owned(),
        );
    }
    for (name, value) in
        [("max_user_namespaces", knobs.max_user), ("max_net_namespaces", knobs.max_net)]
    {
        match value {
            Some(0) => {
                remedies.push(format!("allow them: `sudo sysctl user.{name}=15000`"));
            }
            Some(limit) if full && !forbidden => remedies.push(format!(
                "raise the limit of {limit}: `sudo sysctl user.{name}={}`",
                limit.saturating_mul(2).max(15000)
            )),
            Some(_) | None => {}
        }
    }
    if root || remedies.is_empty() {
        remedies.push(
            "in a container: start it with --privileged (the default seccomp profile forbids \
             namespaces)"
                .to_owned(),
        );
    }
    if !root {
        remedies.push("run it as root: `sudo bewick demo`".to_owned());
    }
    remedies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(knobs: Knobs) -> String {
        let error = io::Error::from(Errno::PERM);
        let remedies = remedies(&error, false, &knobs);
        Refusal { error, as_root: false, remedies }.to_string()
    }

    #[test]
    fn a_refusal_names_the_knob_that_forbids() {
        let text = refused(Knobs { userns_clone: Some(0), ..Knobs::default() });
        assert!(text.contains("sudo sysctl kernel.unprivileged_userns_clone=1"), "{text}");
        assert!(!text.contains("AppArmor"), "{text}");
        let text = refused(Knobs { apparmor: Some(1), max_user: Some(9), ..Knobs::default() });
        assert!(text.contains("kernel.apparmor_restrict_unprivileged_userns=0"), "{text}");
        assert!(!text.contains("max_user_namespaces"), "{text}");
        let text = refused(Knobs { max_user: Some(0), ..Knobs::default() });
        assert!(text.contains("sudo sysctl user.max_user_namespaces=15000"), "{text}");
    }

    #[test]
    fn a_refusal_without_a_knob_blames_the_container() {
        assert!(refused(Knobs::default()).contains("--privileged"));
    }

    #[test]
    fn a_full_table_asks_for_a_higher_limit() {
        let error = io::Error::from(Errno::NOSPC);
        let knobs = Knobs { max_user: Some(20000), ..Knobs::default() };
        let remedies = remedies(&error, false, &knobs);
        assert!(remedies.iter().any(|r| r.contains("user.max_user_namespaces=40000")));
    }
}
