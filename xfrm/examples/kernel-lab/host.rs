//! Two hosts in network namespaces, and what they are asked.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use bewick_ike::{Path, TrafficSelector};

use super::pair::Host;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Addresses of the two hosts on each of their two links, inside, and in IPv6.
pub const A0: &str = "192.0.2.1";
pub const B0: &str = "192.0.2.2";
pub const A1: &str = "198.51.100.1";
pub const B1: &str = "198.51.100.2";
pub const A6: &str = "2001:db8::1";
pub const B6: &str = "2001:db8::2";
pub const INNER_A: &str = "10.0.1.1";
pub const INNER_B: &str = "10.0.2.1";

/// Two namespaces with two links between them.
pub fn set_up() -> Result<()> {
    for host in ["a", "b"] {
        ip(&["netns", "add", host])?;
        ip(&["-n", host, "link", "set", "lo", "up"])?;
    }
    for (link, a, b) in [("0", A0, B0), ("1", A1, B1)] {
        let (va, vb) = (format!("va{link}"), format!("vb{link}"));
        let pair = ["link", "add", &va, "netns", "a", "type", "veth", "peer", "name", &vb];
        ip(&[&pair[..], &["netns", "b"]].concat())?;
        for (host, device, address) in [("a", &va, a), ("b", &vb, b)] {
            ip(&["-n", host, "addr", "add", &format!("{address}/24"), "dev", device])?;
            ip(&["-n", host, "link", "set", device, "up"])?;
        }
    }
    for (host, device, address) in [("a", "va0", A6), ("b", "vb0", B6)] {
        let prefix = format!("{address}/64");
        ip(&["-n", host, "addr", "add", &prefix, "dev", device, "nodad"])?;
    }
    thread::sleep(Duration::from_millis(500));
    Ok(())
}

pub fn encap_socket(port: u16) -> Result<UdpSocket> {
    // One socket for both families, as [::] takes IPv4 too.
    let socket = UdpSocket::bind(("::", port))?;
    let on: libc::c_int = 2; // UDP_ENCAP_ESPINUDP
    // SAFETY: the descriptor is open, and the value is as long as is said.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_UDP, 100, (&raw const on).cast(), 4)
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(socket)
}

/// Runs `work` in a thread of its own in the namespace `host`.
pub fn in_host<T: Send + 'static>(
    host: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let namespace: OwnedFd = std::fs::File::open(format!("/run/netns/{host}"))?.into();
    let thread = thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        work()
    });
    thread.join().map_err(|_| "the thread in the namespace ended badly")?
}

/// Pings that run while something else happens.
pub struct Pings {
    child: Child,
    count: u32,
}

impl Pings {
    pub fn start(count: u32) -> Result<Self> {
        Pings::between(INNER_A, INNER_B, count)
    }

    fn between(from: &str, to: &str, count: u32) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "a", "ping", "-n", "-q", "-i", "0.002", "-W", "1"]);
        command.args(["-c", &count.to_string(), "-I", from, to]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Pings { child, count })
    }

    pub fn lost(self) -> Result<u32> {
        let output = self.child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let received = text
            .split(", ")
            .find_map(|part| part.strip_suffix(" received"))
            .and_then(|number| number.parse::<u32>().ok())
            .ok_or_else(|| format!("ping said: {text} {:?}", output.stderr))?;
        Ok(self.count - received)
    }
}

pub fn ping(count: u32) -> Result<u32> {
    Pings::start(count)?.lost()
}

/// How many of `count` pings from one of a's addresses are lost.
pub fn ping_from(from: &str, to: &str, count: u32) -> Result<u32> {
    Pings::between(from, to, count)?.lost()
}

/// The last sequence number that `host` sent to `destination`.
pub fn sequence(host: &str, destination: IpAddr) -> Result<u64> {
    let spi = if host == "a" { "0xc0000002" } else { "0xc0000001" };
    let to = destination.to_string();
    let text = ip(&["-n", host, "xfrm", "state", "get", "dst", &to, "proto", "esp", "spi", spi])?;
    let after = text.split("oseq 0x").nth(1).ok_or("no oseq")?;
    let digits: String = after.chars().take_while(char::is_ascii_hexdigit).collect();
    Ok(u64::from_str_radix(&digits, 16)?)
}

/// How many packets more a's state for packets out (`Host::A`) or in (`Host::B`) at `place` may
/// carry.
pub fn left(side: Host, place: Path) -> Result<u64> {
    let (to, spi) = match side {
        Host::A => (place.remote.ip(), "0xc0000002"),
        Host::B => (place.local.ip(), "0xc0000001"),
    };
    let to = to.to_string();
    let get = ["-n", "a", "-s", "xfrm", "state", "get", "dst", &to, "proto", "esp", "spi", spi];
    let text = ip(&get)?;
    let (config, current) = text.split_once("lifetime current").ok_or("no counts")?;
    let number = |text: &str, before: &str, after: &str| -> Option<u64> {
        text.split(after).next()?.rsplit(before).next()?.trim().parse().ok()
    };
    let soft = number(config, "soft ", "(packets), hard").ok_or("no limit of packets")?;
    let used = number(current, ",", "(packets)").ok_or("no count of packets")?;
    Ok(soft.saturating_sub(used))
}

/// How many states `host` has. What does not count: one without SPI that a packet which finds none leaves
/// behind for half a minute, which is the kernel's, and the one for which moves have packets wait.
pub fn states(host: &str) -> Result<usize> {
    let text = ip(&["-n", host, "xfrm", "state", "list", "nokeys"])?;
    let count = |what: &str| text.matches(what).count();
    let none = count("proto esp spi 0x00000000") + count("proto esp spi 0xbe1c0003");
    Ok(count("proto esp spi 0x") - none)
}

/// What the kernel of `host` does with packets whose state is to come: 1 if it drops them.
pub fn larval_drop(host: &str) -> Result<String> {
    let file = "/proc/sys/net/core/xfrm_larval_drop";
    let set = in_host(host, move || Ok(std::fs::read_to_string(file)?))?;
    Ok(set.trim().to_owned())
}

/// How many policies `host` has, but for those of sockets.
pub fn policies(host: &str) -> Result<usize> {
    Ok(ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?.matches("priority").count())
}

pub fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("ip {}: {error}", arguments.join(" ")).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn check(holds: bool, what: &str) -> Result<()> {
    if !holds {
        for host in ["a", "b"] {
            println!("{host}:\n{}", ip(&["-n", host, "-s", "xfrm", "state", "list", "nokeys"])?);
            println!("{host}:\n{}", ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?);
            let stat = Command::new("ip")
                .args(["netns", "exec", host, "cat", "/proc/net/xfrm_stat"])
                .output()?;
            let lines = String::from_utf8_lossy(&stat.stdout).into_owned();
            let nonzero = lines.lines().filter(|line| !line.ends_with("\t0"));
            println!("{}", nonzero.collect::<Vec<_>>().join("\n"));
        }
        return Err(format!("does not hold: {what}").into());
    }
    Ok(())
}

/// The counters of errors of the kernel of `host` (/proc/net/xfrm_stat).
pub fn errors(host: &str) -> Result<BTreeMap<String, u64>> {
    let text = ip(&["netns", "exec", host, "cat", "/proc/net/xfrm_stat"])?;
    let pair = |line: &str| -> Option<(String, u64)> {
        let (what, count) = line.split_once(char::is_whitespace)?;
        Some((what.to_owned(), count.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(pair).collect())
}

pub fn net(text: &str) -> TrafficSelector {
    TrafficSelector::from_net(text.parse().expect("a network"))
}

pub fn path(local: &str, local_port: u16, remote: &str, remote_port: u16) -> Path {
    let socket = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
    Path::new(socket(local, local_port), socket(remote, remote_port))
}
