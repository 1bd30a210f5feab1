//! The configuration: one TOML file for either role, read strictly and as a whole.
//!
//! Every mistake is reported with its line and column, all of them at once, and with any mistake
//! nothing is started.

mod auth;
mod carriage;
mod child;
mod connection;
mod mode;
mod moving;
pub mod proposal;
mod reader;
pub mod report;
pub mod secret;
pub mod uplink;

use bewick_ike::{TrafficSelector, endpoint::HalfOpenLimits};
use bewick_mobike::TcpUse;
use std::{
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};
use tracing_subscriber::EnvFilter;

use self::{
    reader::{TableReader, type_name},
    report::{Problem, Problems, Report, Source},
};
use crate::dns::Means;
pub use connection::{Connection, KillSwitch, Start};
pub use uplink::UplinkTable;

/// A configuration in which everything has been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// the daemon as a whole
    pub daemon: DaemonConfig,
    /// the connections, in the order of the file; never empty
    pub connections: Vec<Connection>,
    /// what is said of interfaces, in the order of the file
    pub uplinks: Vec<UplinkTable>,
}

/// The `[daemon]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonConfig {
    /// which data plane to use
    pub dataplane: PlaneChoice,
    /// the name of the tunnel device
    pub device: String,
    /// what to log, in the words of `tracing_subscriber::EnvFilter`
    pub log: String,
    /// whether the log may show addresses
    pub log_addresses: bool,
    /// the control socket, if the file names one
    pub control: Option<PathBuf>,
    /// where what must outlive the daemon is kept
    pub state_dir: PathBuf,
    /// how questions come to the name servers that gateways tell of
    pub resolver: Means,
    /// the file that names this machine's name servers
    pub resolv_conf: PathBuf,
    /// where the keys of every tunnel are written down for Wireshark, if anywhere
    pub key_log: Option<PathBuf>,
    /// whether peers get a token by which they know that this gateway has lost their IKE_SAs (RFC 6290)
    pub crash_tokens: bool,
    /// the port on which TCP connections are accepted (RFC 9329), if they are
    pub tcp_listen: Option<u16>,
    /// when peers must return a cookie, and how many half-open IKE_SAs there may be
    pub half_open: HalfOpenLimits,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        DaemonConfig {
            dataplane: PlaneChoice::Auto,
            device: "bewick0".into(),
            log: "info".into(),
            log_addresses: false,
            control: None,
            state_dir: "/var/lib/bewick".into(),
            resolver: Means::Auto,
            resolv_conf: "/etc/resolv.conf".into(),
            key_log: None,
            crash_tokens: true,
            tcp_listen: None,
            half_open: HalfOpenLimits::default(),
        }
    }
}

/// Which data plane to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaneChoice {
    /// the kernel's if it can do ESP, else userspace
    Auto,
    /// the kernel's or none
    Kernel,
    /// userspace
    Userspace,
}

/// Reads and checks the configuration in the file at `path`, with the secrets that it names.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let file = path.display().to_string();
    let whole = |text: String| Problems(vec![Problem { file: file.clone(), position: None, text }]);
    let (octets, private) =
        secret::read(path).map_err(|e| whole(format!("the configuration can't be read: {e}")))?;
    let text = std::str::from_utf8(&octets)
        .map_err(|e| whole(format!("not UTF-8 after {} octets", e.valid_up_to())))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(Source { file: &file, text }, folder, private)
}

/// Checks the configuration in `source`; `folder` is what relative names in it start from, and
/// `private` whether nobody but the owner can read it.
pub fn parse(source: Source<'_>, folder: &Path, private: bool) -> Result<Config, Problems> {
    let mut report = Report::new(source);
    let (root, errors) = DeTable::parse_recoverable(source.text);
    for error in &errors {
        let end = source.text.len();
        report.add(&error.span().unwrap_or(end..end), error.message());
    }
    // what a broken file seems to say would only raise false alarms
    if !errors.is_empty() {
        return report.finish(None);
    }
    let mut reader = TableReader::new(root.get_ref(), 0..0, "the file", &mut report);
    let daemon = daemon_table(&mut reader);
    let dataplane = daemon.as_ref().map_or(PlaneChoice::Auto, |daemon| daemon.dataplane);
    let tcp_listen = daemon.as_ref().is_some_and(|daemon| daemon.tcp_listen.is_some());
    let plane = (dataplane, tcp_listen);
    let connections = connection_tables(&mut reader, folder, private, plane);
    let uplinks = uplink::tables(&mut reader);
    reader.finish();
    report.finish(daemon.map(|daemon| Config { daemon, connections, uplinks }))
}

/// Why TCP and the kernel's data plane do not go together.
const NO_TCP: &str = "ESP in TCP needs the userspace data plane, and dataplane is \"kernel\"; let that be \
                      \"auto\" or \"userspace\", or remove this";

/// A path that does not depend on where the daemon was started.
fn path(
    reader: &mut TableReader<'_, '_, '_>,
    key: &'static str,
    expected: &str,
) -> Option<PathBuf> {
    let path = reader.string(key, expected)?;
    if !path.value.starts_with('/') {
        let text = format!("{key} is {:?}; expected a path from / on", path.value);
        reader.report.add(&path.span, text);
    }
    Some(path.value.into())
}

fn daemon_table(root: &mut TableReader<'_, '_, '_>) -> Option<DaemonConfig> {
    let mut out = DaemonConfig::default();
    let Some(value) = root.value("daemon") else { return Some(out) };
    let DeValue::Table(table) = value.get_ref() else {
        let found = type_name(value.get_ref());
        root.report.add(&value.span(), format!("daemon is {found}; expected a table [daemon]"));
        return None;
    };
    let mut reader = TableReader::new(table, value.span(), "[daemon]", root.report);
    let planes = [
        ("auto", PlaneChoice::Auto),
        ("kernel", PlaneChoice::Kernel),
        ("userspace", PlaneChoice::Userspace),
    ];
    if let Some(dataplane) = reader.word("dataplane", &planes) {
        out.dataplane = dataplane;
    }
    if let Some(device) = reader.string("device", "the name of the tunnel device") {
        let name = device.value;
        let ok = (1..=15).contains(&name.len())
            && !matches!(name, "." | "..")
            && name.chars().all(|c| c.is_ascii_graphic() && !"/:%".contains(c));
        if !ok {
            let text = format!("device is {name:?}; expected a name of 1 to 15 letters and digits");
            reader.report.add(&device.span, text);
        }
        out.device = name.into();
    }
    if let Some(log) = reader.string("log", "\"info\" or another level") {
        if EnvFilter::builder().parse(log.value).is_err() {
            let text = format!(
                "log is {:?}; expected a level (error, warn, info, debug, trace) or a filter such \
                 as info,bewick_ike=debug",
                log.value
            );
            reader.report.add(&log.span, text);
        }
        out.log = log.value.into();
    }
    out.log_addresses = reader.bool("log_addresses").is_some_and(|field| field.value);
    out.control = path(&mut reader, "control", "the path of the control socket");
    if let Some(folder) = path(&mut reader, "state_dir", "the path of a folder") {
        out.state_dir = folder;
    }
    let means = [
        ("auto", Means::Auto),
        ("resolved", Means::Resolved),
        ("resolvconf", Means::Resolvconf),
        ("file", Means::File),
        ("off", Means::Off),
    ];
    if let Some(resolver) = reader.word("resolver", &means) {
        out.resolver = resolver;
    }
    if let Some(file) = path(&mut reader, "resolv_conf", "the path of a file") {
        out.resolv_conf = file;
    }
    out.key_log = path(&mut reader, "key_log", "the path of a folder");
    out.crash_tokens = reader.bool("crash_tokens").is_none_or(|field| field.value);
    if let Some(port) = reader.number("tcp_listen", 1..=65_535, "a TCP port, usually 4500,") {
        out.tcp_listen = u16::try_from(port.value).ok();
        if out.dataplane == PlaneChoice::Kernel {
            reader.report.add(&port.span, format!("tcp_listen: {NO_TCP}"));
        }
    }
    let limits = &mut out.half_open;
    for (key, least, limit) in [
        ("cookie_threshold", 0, &mut limits.cookies_from),
        ("half_open_limit", 1, &mut limits.most),
        ("half_open_limit_per_address", 1, &mut limits.most_of_one),
    ] {
        if let Some(field) = reader.number(key, least..=1_000_000, "half-open IKE_SAs") {
            *limit = usize::try_from(field.value).unwrap_or(usize::MAX);
        }
    }
    reader.finish();
    Some(out)
}

fn connection_tables(
    root: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    private: bool,
    (dataplane, tcp_listen): (PlaneChoice, bool),
) -> Vec<Connection> {
    let Some(value) = root.value("connection") else {
        root.missing("no connection is configured; expected at least one table [[connection]]");
        return Vec::new();
    };
    let tables = match value.get_ref() {
        DeValue::Array(array) => array,
        other => {
            let text = format!("connection is {}; expected [[connection]]", type_name(other));
            root.report.add(&value.span(), text);
            return Vec::new();
        }
    };
    let mut out: Vec<Connection> = Vec::new();
    let (names, pools, traps, transports) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut seen = Seen { dataplane, tcp_listen, names, pools, traps, transports };
    for item in tables.iter() {
        let DeValue::Table(table) = item.get_ref() else {
            let found = type_name(item.get_ref());
            root.report.add(&item.span(), format!("connection has {found} in it; expected tables"));
            continue;
        };
        let mut reader = TableReader::new(table, item.span(), "[[connection]]", root.report);
        out.extend(connection::read(&mut reader, folder, private, &mut seen));
        reader.finish();
    }
    let tcp = out.iter().find(|connection| connection.policy.tcp != TcpUse::Off);
    if let Some(tcp) = tcp {
        for span in &seen.transports {
            let text = format!(
                "tcp of {:?}, which needs the userspace data plane, does not go with mode = \"transport\": \
                 remove one of them",
                tcp.name()
            );
            root.report.add(span, text);
        }
    }
    out
}

/// Packets from here to there, by the XFRM interface of this number if there is one.
type Caught = (TrafficSelector, TrafficSelector, Option<NonZeroU32>);

/// What connections have to fit: the data plane, and what must differ from one to the next.
struct Seen {
    /// the data plane that the operator wants
    dataplane: PlaneChoice,
    /// TCP connections are accepted
    tcp_listen: bool,
    names: Vec<String>,
    pools: Vec<(IpNet, String)>,
    /// the packets that bring a connection up, and its name
    traps: Vec<(Caught, String)>,
    /// where transport mode is asked for
    transports: Vec<Range<usize>>,
}

/// A network as the operator may write it: with a prefix length, or one address.
struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Ok(Network(address.into()));
        }
        let net: IpNet = text.parse().map_err(|_| {
            format!("{text:?} is not a network; expected one such as \"10.1.0.0/16\"")
        })?;
        match net.trunc() {
            trunc if trunc == net => Ok(Network(net)),
            trunc => {
                Err(format!("{text:?} has bits set beyond its prefix; did you mean \"{trunc}\"?"))
            }
        }
    }
}

/// The networks of a list; `None` if `key` is not there.
fn networks(
    reader: &mut TableReader<'_, '_, '_>,
    key: &'static str,
) -> Option<Vec<(IpNet, Range<usize>)>> {
    let fields = reader.strings(key, "\"10.1.0.0/16\"")?;
    let mut out = Vec::new();
    for field in &fields {
        match field.value.parse::<Network>() {
            Ok(Network(net)) => out.push((net, field.span.clone())),
            Err(text) => reader.report.add(&field.span, format!("{key}: {text}")),
        }
    }
    if fields.is_empty() {
        let span = reader.key_span(key).unwrap_or(reader.span.clone());
        reader.report.add(&span, format!("{key} is empty; expected at least one network"));
    }
    Some(out)
}

#[cfg(test)]
mod tests;
