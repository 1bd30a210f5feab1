//! What holds the kill switch for those that know better than the routes: rules of the kernel's packet
//! filter that see each packet when it has its way, whichever socket, route or mark has led it there.
//!
//! Routes that lead nowhere refuse ordinary programs at once. A socket that names its interface
//! (SO_BINDTODEVICE) or wants no router (SO_DONTROUTE) passes them by, and so does what looks like an
//! outer packet where the kernel checks the way back (`OUTER_PRIORITY`): such packets get no further
//! than here. So does what this machine forwards for others.
//!
//! The rules outlive the daemon, and are replaced at once: what is closed is never open in between. They
//! are a table of nftables, or where the kernel has none a chain of iptables' `mangle`.

mod nft;
mod xtables;

use std::collections::BTreeSet;

use ipnet::IpNet;
use tracing::debug;

pub(super) use self::nft::TABLE_NAME;
use crate::{net::NetError, tool::ToolError};

/// The rules, as far as they are known to be there.
pub(super) struct Guard {
    /// which are tried, in this order
    means: &'static [Means],
    /// the tunnel device's name, if there is one
    device: Option<String>,
    exits: Exits,
    closed: BTreeSet<IpNet>,
    /// the exits are others than those that the rules know
    outdated: bool,
    /// something may be there that is to be gone
    left: bool,
    /// by which means, and what that lists, if all is as it should be
    made: Option<(Means, String)>,
}

/// Which packets may leave whatever is closed, besides those with our mark, DHCP's and what IPv6's
/// links are made of.
struct Exits {
    /// those by devices of these names, which lead into tunnels alone
    devices: BTreeSet<String>,
    /// those that the kernel encrypts
    kernel_esp: bool,
}

/// Who keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    Nft,
    Xtables,
}

impl Means {
    /// All of them, best first.
    pub(super) const ALL: &'static [Means] = &[Means::Nft, Means::Xtables];
}

impl Guard {
    /// For the tunnel device of this name; nothing is done yet.
    pub(super) fn new(device: &str, kernel_esp: bool, means: &'static [Means]) -> Self {
        let device = Some(device.to_owned()).filter(|name| !name.is_empty());
        let exits = Exits { devices: device.iter().cloned().collect(), kernel_esp };
        Guard {
            means,
            device,
            exits,
            closed: BTreeSet::new(),
            outdated: false,
            left: false,
            made: None,
        }
    }

    /// Lets packets pass by these interfaces besides the tunnel device, from the next [`Guard::set`] on; whether
    /// that is news.
    pub(super) fn let_pass(&mut self, interfaces: BTreeSet<String>) -> bool {
        let (mut devices, odd): (BTreeSet<String>, BTreeSet<String>) =
            interfaces.into_iter().partition(|name| is_plain(name));
        devices.extend(self.device.clone());
        if devices != self.exits.devices {
            for name in odd {
                tracing::warn!(
                    "the packet filter can't be told to let {name:?} pass: give it a plain name"
                );
            }
            self.exits.devices = devices;
            self.outdated = true;
        }
        self.outdated
    }

    /// Whether all that is to be closed is, and nothing else.
    fn holds(&self) -> bool {
        if self.closed.is_empty() { !self.left } else { self.made.is_some() }
    }

    /// Asks whether this machine could close these networks, without closing them.
    pub(super) async fn probe(&self, nets: &BTreeSet<IpNet>) -> Result<(), NetError> {
        self.exits.check_name()?;
        let mut reasons = Vec::new();
        for means in self.means {
            let result = match means {
                Means::Nft => nft::probe(&self.exits, nets).await,
                Means::Xtables => xtables::probe(&self.exits, nets).await,
            };
            match result {
                Ok(()) => return Ok(()),
                Err(e) => reasons.push(e),
            }
        }
        Err(none(&reasons))
    }

    /// Closes these networks and no other ones.
    pub(super) async fn set(&mut self, nets: BTreeSet<IpNet>) -> Result<(), NetError> {
        if self.closed == nets && self.holds() && !self.outdated {
            return Ok(());
        }
        if nets.is_empty() {
            (self.closed, self.outdated) = (nets, false);
            return self.remove().await;
        }
        self.exits.check_name()?;
        self.closed = nets;
        let was = self.made.take().map(|(means, _)| means);
        let mut reasons = Vec::new();
        for means in was.iter().chain(self.means.iter().filter(|means| was != Some(**means))) {
            match self.close_by(*means).await {
                Ok(listed) => {
                    self.made = Some((*means, listed));
                    self.outdated = false;
                    if was != Some(*means) {
                        remove_others(*means).await;
                    }
                    return Ok(());
                }
                Err(e) => reasons.push(e),
            }
        }
        Err(none(&reasons))
    }

    async fn close_by(&self, means: Means) -> Result<String, ToolError> {
        match means {
            Means::Nft => {
                nft::load(&self.exits, &self.closed).await?;
                nft::list().await
            }
            Means::Xtables => {
                xtables::load(&self.exits, &self.closed).await?;
                xtables::list().await
            }
        }
    }

    /// Removes the rules, also those of an earlier run, by whatever means they were made. What can't be removed
    /// is tried again with the next [`Guard::set`].
    pub(super) async fn remove(&mut self) -> Result<(), NetError> {
        self.made = None;
        let (nft, xtables) = (nft::remove().await, xtables::remove().await);
        let result = nft.and(xtables).map_err(|e| NetError {
            operation: "open what the kill switch closed".into(),
            message: e.to_string(),
            errno: None,
        });
        self.left = result.is_err();
        result
    }

    /// Puts the rules back if they are not as they were made, for a firewall that is loaded anew begins
    /// with `flush ruleset`. Says whether it had to.
    pub(super) async fn check(&mut self) -> Result<bool, NetError> {
        let now = match &self.made {
            Some((Means::Nft, _)) => nft::list().await.ok(),
            Some((Means::Xtables, _)) => xtables::list().await.ok(),
            None => None,
        };
        let intact = self.made.as_ref().is_some_and(|(_, made)| now.as_ref() == Some(made));
        if self.closed.is_empty() || intact {
            return Ok(false);
        }
        if let Some((_, made)) = &mut self.made {
            made.clear();
        }
        let closed = std::mem::take(&mut self.closed);
        self.set(closed).await.map(|()| true)
    }
}

impl Exits {
    /// The device's name goes into the rules, where more than letters would mean something.
    fn check_name(&self) -> Result<(), NetError> {
        match self.devices.iter().find(|device| !is_plain(device)) {
            None => Ok(()),
            Some(device) => Err(refused(format!(
                "the packet filter can't be told of a device with the name {device:?}"
            ))),
        }
    }
}

/// Whether a device's name means nothing else to the packet filter.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
    name.chars().all(plain) && !name.starts_with('-')
}

/// Removes what an earlier run has made by others than these means.
async fn remove_others(means: Means) {
    let result = match means {
        Means::Nft => xtables::remove().await,
        Means::Xtables => nft::remove().await,
    };
    if let Err(e) = result {
        debug!("what an earlier run has closed by other means stays closed: {e}");
    }
}

fn refused(message: String) -> NetError {
    let operation = "close by the packet filter what is not the tunnel".into();
    NetError { operation, message, errno: None }
}

/// None of the means does it.
fn none(reasons: &[ToolError]) -> NetError {
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    refused(format!(
        "{}: install the package nftables (or iptables, for a kernel that has no nf_tables), and run as root \
         or with CAP_NET_ADMIN",
        reasons.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_whose_name_means_something_to_the_packet_filter_is_refused() {
        for name in ["eth*", "a\"b", "a b", "-j"] {
            let exits = Exits { devices: [name.into()].into(), kernel_esp: false };
            assert!(exits.check_name().is_err(), "{name}");
        }
        let none = Exits { devices: BTreeSet::new(), kernel_esp: false };
        assert!(none.check_name().is_ok());
    }

    #[test]
    fn interfaces_that_are_gone_pass_no_more_and_odd_names_never() {
        let mut guard = Guard::new("bewick0", true, Means::ALL);
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        assert!(!guard.let_pass(names(&[])) && !guard.let_pass(names(&["a+b#\""])));
        assert!(guard.let_pass(names(&["ipsec0", "a+b#\""])));
        assert_eq!(guard.exits.devices, names(&["bewick0", "ipsec0"]));
        guard.outdated = false;
        assert!(!guard.let_pass(names(&["ipsec0"])));
        assert!(guard.let_pass(names(&[])));
        assert_eq!(guard.exits.devices, names(&["bewick0"]));
    }
}
