//! The name servers that gateways tell of (RFC 7296 §3.15.1, RFC 8598) in this machine's resolver, as
//! long as their tunnels are up.
//!
//! By systemd-resolved, on the tunnel's device; or by `resolvconf`; or in `/etc/resolv.conf` itself. It
//! is done beside everything else, so that no packet waits for it. What a killed daemon has left the
//! next one takes back when it starts.

mod file;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions},
    io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    sync::watch::{Receiver, Sender, channel},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, info, warn};

use self::{file::ResolvConf, watch::Watch};
use crate::tool::{self, ToolError};

/// How long the end of the daemon waits for the resolver to be as it was.
const FAREWELL: Duration = Duration::from_secs(5);

/// Another program that writes the file again and again is given way this often.
const BREATH: Duration = Duration::from_secs(1);

/// What is done to have questions asked of the tunnel's servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Means {
    /// the first of the following that looks after this machine's `resolv.conf`
    #[default]
    Auto,
    /// systemd-resolved is told, by `resolvectl`
    Resolved,
    /// `resolvconf` is told
    Resolvconf,
    /// the file is replaced
    File,
    /// nothing
    Off,
}

/// Where all of it is.
#[derive(Clone, Debug)]
pub struct Place {
    /// the tunnel device
    pub device: String,
    /// `/etc/resolv.conf`
    pub resolv_conf: PathBuf,
    /// where the file's contents are kept
    pub state: PathBuf,
    /// where systemd-resolved has its files
    pub resolved: PathBuf,
    /// where programs are
    pub path: OsString,
}

impl Place {
    /// This machine's own.
    pub fn of_this_machine(device: &str, resolv_conf: &Path, state: &Path) -> Self {
        Place {
            device: device.into(),
            resolv_conf: resolv_conf.into(),
            state: state.into(),
            resolved: "/run/systemd/resolve".into(),
            path: tool::path(),
        }
    }
}

/// What all tunnels together ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// the servers, each once; none: everything is as without tunnels
    pub servers: Vec<IpAddr>,
    /// what they are asked for; none: everything
    pub domains: Vec<String>,
}

impl Asked {
    /// Adds what a tunnel's gateway has told: `carried` says whether the tunnel leads to a server, for
    /// what goes to another one would leave in clear. Returns what was left out, for the operator.
    pub fn add(
        &mut self,
        servers: &[IpAddr],
        domains: &[String],
        carried: impl Fn(IpAddr) -> bool,
    ) -> Vec<String> {
        let mut out = Vec::new();
        let first = self.servers.is_empty();
        let mut any = false;
        for server in servers {
            if !carried(*server) {
                out.push(format!("the name server {server}, to which the tunnel does not lead"));
                continue;
            }
            any = true;
            if !self.servers.contains(server) {
                self.servers.push(*server);
            }
        }
        let (good, bad): (Vec<_>, Vec<_>) = domains.iter().partition(|domain| is_domain(domain));
        out.extend(bad.iter().map(|domain| format!("{domain:?}, which is no domain")));
        if !any {
            return out;
        }
        // one that is for everything makes all of them so
        if good.is_empty() || !first && self.domains.is_empty() {
            self.domains.clear();
        } else {
            for domain in good {
                if !self.domains.contains(domain) {
                    self.domains.push(domain.clone());
                }
            }
        }
        out
    }
}

/// Whether it can be written into a file or a command as it is: a peer has said it.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// Has done what is asked for, until it is closed.
pub struct Resolver {
    /// none once it is closed
    asked: Option<Sender<Asked>>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Takes back what an earlier run has left, and waits for what is asked for.
    pub fn start(means: Means, place: Place) -> Self {
        let (asked, wanted) = channel(Asked::default());
        Resolver { asked: Some(asked), task: tokio::spawn(work(means, place, wanted)) }
    }

    /// From now on this is what is asked for.
    pub fn ask(&self, asked: Asked) {
        let Some(sender) = &self.asked else { return };
        sender.send_if_modified(|old| {
            let changed = *old != asked;
            *old = asked;
            changed
        });
    }

    /// Makes everything as it was without tunnels.
    pub async fn close(&mut self) {
        self.asked = None;
        if timeout(FAREWELL, &mut self.task).await.is_err() {
            warn!("the resolver is not as it was: it took too long");
        }
    }
}

/// What can't be done, with the remedy.
#[derive(Debug, thiserror::Error)]
enum DnsError {
    #[error("the program {0} is missing: install the package {1}, or set resolver to another word")]
    Missing(&'static str, &'static str),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("{0}: {1}")]
    File(String, io::Error),
    #[error("another daemon uses {0}: give each a state_dir of its own")]
    Shared(String),
}

async fn work(means: Means, place: Place, mut wanted: Receiver<Asked>) {
    let file = ResolvConf::new(&place.resolv_conf, &place.state);
    let mut lock = None;
    if file.is_kept() || place.noted().is_some() {
        match place.lock() {
            Ok(locked) => lock = Some(locked),
            Err(e) => return warn!("the tunnel's name servers are not asked: {e}"),
        }
        place.mend(&file).await;
    }
    if means == Means::Off {
        return;
    }
    let mut made: Option<Means> = None;
    let mut watch: Option<Watch> = None;
    loop {
        let asked = wanted.borrow_and_update().clone();
        if !asked.servers.is_empty() {
            let way = made.unwrap_or_else(|| place.choose(means));
            if lock.is_none() {
                match place.lock() {
                    Ok(locked) => lock = Some(locked),
                    Err(e) => return warn!("the tunnel's name servers are not asked: {e}"),
                }
            }
            match place.make(way, &file, &asked).await {
                Ok(()) => {
                    debug!(?way, ?asked, "the resolver asks the tunnel's servers");
                    made = Some(way);
                }
                Err(e) => warn!("the tunnel's name servers are not asked: {e}"),
            }
            if way == Means::File && watch.is_none() {
                let opened = Watch::open(&place.resolv_conf);
                watch = opened.inspect_err(|e| debug!("watch the file: {e}")).ok();
            }
        } else if let Some(way) = made.take() {
            watch = None;
            if let Err(e) = place.unmake(way, &file).await {
                warn!("the resolver is not as it was: {e}");
            }
        }
        loop {
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => {
                        if let Some(way) = made.take()
                            && let Err(e) = place.unmake(way, &file).await
                        {
                            warn!("the resolver is not as it was: {e}");
                        }
                        return;
                    }
                },
                Some(()) = watch::next(&mut watch) => {
                    if !file.is_ours() {
                        debug!("another program has written resolv.conf");
                        tokio::time::sleep(BREATH).await;
                        break;
                    }
                }
            }
        }
    }
}

/// Other programs that are told, and how that is noted.
const TOLD: [(Means, &str); 2] = [(Means::Resolved, "resolved"), (Means::Resolvconf, "resolvconf")];

impl Place {
    /// Takes back what a killed daemon has left, whichever way it went.
    async fn mend(&self, file: &ResolvConf) {
        let path = self.resolv_conf.display();
        match file.restore() {
            Ok(true) => info!(file = %path, "put back what a killed daemon had replaced"),
            Ok(false) => {}
            Err(e) => warn!("{path}: {e}"),
        }
        if let Some(way) = self.noted()
            && let Err(e) = self.unmake(way, file).await
        {
            // after a new start of the machine there is nothing left
            debug!("{e}");
        }
    }

    /// Keeps another daemon from taking what is there for the leavings of a dead one.
    fn lock(&self) -> Result<File, DnsError> {
        let path = self.state.join("resolver.lock");
        let failed = |e| DnsError::File(format!("open {}", path.display()), e);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.state).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| DnsError::Shared(self.state.display().to_string()))?;
        Ok(lock)
    }

    /// Notes who is about to be told something, for the daemon that comes after a crash.
    fn note(&self, way: Means) -> Result<(), DnsError> {
        let Some((_, word)) = TOLD.iter().find(|(means, _)| *means == way) else { return Ok(()) };
        let path = self.state.join("resolver-told");
        let failed = |e| DnsError::File(format!("write {}", path.display()), e);
        std::fs::write(&path, word).map_err(failed)
    }

    /// Who was told something, and perhaps not yet the opposite.
    fn noted(&self) -> Option<Means> {
        let word = std::fs::read_to_string(self.state.join("resolver-told")).ok()?;
        TOLD.iter().find(|(_, known)| *known == word).map(|(means, _)| *means)
    }

    fn find(&self, name: &'static str, package: &'static str) -> Result<PathBuf, DnsError> {
        tool::find(&self.path, name).ok_or(DnsError::Missing(name, package))
    }

    /// Who looks after this machine's resolver.
    fn choose(&self, means: Means) -> Means {
        if means != Means::Auto {
            return means;
        }
        let leads_to = |folder: &Path| {
            let to = std::fs::canonicalize(&self.resolv_conf);
            let folder = std::fs::canonicalize(folder);
            to.is_ok_and(|to| folder.is_ok_and(|folder| to.starts_with(folder)))
        };
        // resolved listens at 127.0.0.53 and .54 (systemd-resolved.service(8))
        let stub = file::servers(&self.resolv_conf)
            .iter()
            .any(|server| [[127, 0, 0, 53], [127, 0, 0, 54]].map(IpAddr::from).contains(server));
        if self.resolved.is_dir()
            && (stub || leads_to(&self.resolved))
            && tool::find(&self.path, "resolvectl").is_some()
        {
            return Means::Resolved;
        }
        // systemd's program of the same name is for resolved alone
        let other = |program: PathBuf| {
            std::fs::canonicalize(program).is_ok_and(|to| !to.ends_with("resolvectl"))
        };
        match tool::find(&self.path, "resolvconf").is_some_and(other) {
            true => Means::Resolvconf,
            false => Means::File,
        }
    }

    async fn make(&self, way: Means, file: &ResolvConf, asked: &Asked) -> Result<(), DnsError> {
        self.note(way)?;
        match way {
            Means::Resolved => {
                let program = self.find("resolvectl", "systemd-resolved")?;
                let device = self.device.as_str();
                let servers: Vec<String> = asked.servers.iter().map(IpAddr::to_string).collect();
                let domains: Vec<String> = match asked.domains.is_empty() {
                    true => vec!["~.".into()],
                    false => asked.domains.iter().map(|domain| format!("~{domain}")).collect(),
                };
                let all = if asked.domains.is_empty() { "yes" } else { "no" };
                for (verb, words) in
                    [("dns", servers), ("domain", domains), ("default-route", vec![all.to_owned()])]
                {
                    let mut arguments = vec![verb, device];
                    arguments.extend(words.iter().map(String::as_str));
                    tool::run(&program, &arguments, "").await?;
                }
                Ok(())
            }
            Means::Resolvconf => {
                let program = self.find("resolvconf", "resolvconf or openresolv")?;
                let mut text = String::new();
                for server in &asked.servers {
                    text += &format!("nameserver {server}\n");
                }
                if !asked.domains.is_empty() {
                    text += &format!("search {}\n", asked.domains.join(" "));
                }
                let name = self.resolvconf_name();
                // -m 0: before all others; -x: instead of them; -p: for these domains alone
                let how = if asked.domains.is_empty() { "-x" } else { "-p" };
                let best = tool::run(&program, &["-a", &name, "-m", "0", how], &text).await;
                // Debian's knows no options, and puts tunnels first by their name
                if best.is_err() {
                    tool::run(&program, &["-a", &name], &text).await?;
                }
                Ok(())
            }
            Means::File => {
                if !asked.domains.is_empty() {
                    debug!(
                        "resolv.conf can't tell domains apart: the tunnel's servers get all questions"
                    );
                }
                let failed =
                    |e| DnsError::File(format!("replace {}", self.resolv_conf.display()), e);
                file.replace(asked).map_err(failed)
            }
            Means::Auto | Means::Off => Ok(()),
        }
    }

    async fn unmake(&self, way: Means, file: &ResolvConf) -> Result<(), DnsError> {
        self.untell(way, file).await?;
        // what stays is only tried again
        let _ = std::fs::remove_file(self.state.join("resolver-told"));
        Ok(())
    }

    async fn untell(&self, way: Means, file: &ResolvConf) -> Result<(), DnsError> {
        match way {
            Means::Resolved => {
                let program = self.find("resolvectl", "systemd-resolved")?;
                // the device of the userspace's plane takes it along when it goes
                let device = Path::new("/sys/class/net").join(&self.device);
                match tool::run(&program, &["revert", &self.device], "").await {
                    Err(e) if device.exists() => Err(e.into()),
                    _ => Ok(()),
                }
            }
            Means::Resolvconf => {
                let program = self.find("resolvconf", "resolvconf or openresolv")?;
                let name = self.resolvconf_name();
                tool::run(&program, &["-d", &name], "").await.map(|_| ()).map_err(Into::into)
            }
            Means::File => {
                let failed =
                    |e| DnsError::File(format!("put back {}", self.resolv_conf.display()), e);
                file.restore().map(|_| ()).map_err(failed)
            }
            Means::Auto | Means::Off => Ok(()),
        }
    }

    /// Under `tun` Debian's resolvconf has what comes before all uplinks.
    fn resolvconf_name(&self) -> String {
        format!("tun.{}", self.device)
    }
}
