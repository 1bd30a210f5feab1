//! Where the gateways' names have led: while a tunnel is down and everything is closed, nobody can be asked for
//! a name, and the last answer is good. It is kept in a file, for the daemon that comes after a crash.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File},
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use tracing::{debug, info};

use super::whole;

/// More than the names of any configuration take.
const LONGEST: u64 = 1 << 20;

/// The last answer for each gateway's name.
pub(super) struct Gateways {
    path: PathBuf,
    known: BTreeMap<String, Vec<IpAddr>>,
}

impl Gateways {
    /// What the last daemon has left in this folder of these names; what can't be read is not known.
    pub(super) fn open<'a>(folder: &Path, names: impl Iterator<Item = &'a String>) -> Self {
        let path = folder.join("gateways");
        let text = read(&path).unwrap_or_default();
        let mut known: BTreeMap<String, Vec<IpAddr>> = text.lines().filter_map(parse).collect();
        let names: Vec<&String> = names.collect();
        known.retain(|name, _| names.contains(&name));
        Gateways { path, known }
    }

    /// The addresses of `name`, of which the resolver has `found` these.
    pub(super) fn answer(&mut self, name: &str, found: Vec<IpAddr>) -> Vec<IpAddr> {
        if found.is_empty() {
            let known = self.known.get(name).cloned().unwrap_or_default();
            if !known.is_empty() {
                info!("{name} can't be looked up: its last addresses are taken");
            }
            return known;
        }
        if self.known.get(name) != Some(&found) {
            self.known.insert(name.to_owned(), found.clone());
            if let Err(e) = self.write() {
                debug!("keep {}: {e}", self.path.display());
            }
        }
        found
    }

    /// An address needs no name: it is none that is kept.
    fn write(&self) -> io::Result<()> {
        let mut text = String::new();
        for (name, addresses) in &self.known {
            if name.parse::<IpAddr>().is_err() {
                let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                text += &format!("{name} {}\n", addresses.join(" "));
            }
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        whole::put(&self.path, text.as_bytes())
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// A line of the file; `None` if it is not whole.
fn parse(line: &str) -> Option<(String, Vec<IpAddr>)> {
    let (name, rest) = line.split_once(' ')?;
    let addresses = rest.split(' ').map(str::parse).collect::<Result<Vec<IpAddr>, _>>().ok()?;
    Some((name.to_owned(), addresses))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn what_a_name_led_to_is_known_after_a_crash_when_nobody_can_be_asked() {
        let folder = std::env::temp_dir().join(format!("bewick-gateways-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let names = ["vpn.example.com".to_owned(), "192.0.2.9".to_owned()];
        let open = || Gateways::open(&folder, names.iter());
        let mut first = open();
        assert!(first.answer("vpn.example.com", Vec::new()).is_empty(), "never found");
        let found = ips(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(first.answer("vpn.example.com", found.clone()), found);
        assert_eq!(first.answer("192.0.2.9", ips(&["192.0.2.9"])), ips(&["192.0.2.9"]));
        // killed
        drop(first);
        let mut next = open();
        assert_eq!(next.answer("vpn.example.com", Vec::new()), found);
        assert_eq!(next.answer("vpn.example.com", ips(&["192.0.2.7"])), ips(&["192.0.2.7"]));
        assert_eq!(open().answer("vpn.example.com", Vec::new()), ips(&["192.0.2.7"]), "the last");
        let path = folder.join("gateways");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "vpn.example.com 192.0.2.7\n");

        // What others have made of the file harms nobody, and names of another configuration are forgotten.
        fs::write(&path, "vpn.example.com 192.0.2\n\n \nother.example 192.0.2.3\nvpn").unwrap();
        let mut odd = open();
        assert!(odd.answer("vpn.example.com", Vec::new()).is_empty());
        assert!(odd.answer("other.example", Vec::new()).is_empty());
        fs::write(&path, [0xff, b' ', b'\n']).unwrap();
        assert!(open().answer("vpn.example.com", Vec::new()).is_empty());
        fs::remove_dir_all(folder).unwrap();
    }
}
