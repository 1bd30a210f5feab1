//! One `[[connection]]` table.

use std::{net::IpAddr, num::NonZeroU32, path::Path, time::Duration};

use bewick_ike::{
    Limits, Mode, TrafficSelector,
    config::{
        ChildConfig, Childless, ConnectionConfig, DEFAULT_FRAGMENT_SIZE, MIN_FRAGMENT_SIZE,
        Retransmission, Role, Selectors, Uniqueness,
    },
    wire::identity::{Identity, IdentityPattern},
};
use bewick_mobike::{ConnectionPolicy, ReturnRoutability};
use ipnet::IpNet;

use crate::config::{
    PlaneChoice, Seen, auth, carriage, child, mode, moving, networks, proposal, reader::TableReader,
};

/// Whether IKE_AUTH makes a CHILD_SA (RFC 6023).
const CHILDLESS: [(&str, Childless); 4] = [
    ("never", Childless::Never),
    ("allow", Childless::Allow),
    ("prefer", Childless::Prefer),
    ("force", Childless::Force),
];

/// Keys that only a responder has.
const RESPONDER_KEYS: [&str; 5] =
    ["pool", "dns", "dns_domains", "uniqueness", "return_routability"];

/// Keys that only an initiator has.
const INITIATOR_KEYS: [&str; 5] =
    ["gateway", "virtual_ip", "start", "reauth_lifetime", "kill_switch"];

/// A connection as the daemon sees it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// what the machines are told
    pub ike: ConnectionConfig,
    /// initiator: names or addresses of the gateway, in the order of the file
    pub gateways: Vec<String>,
    /// initiator: when to connect
    pub start: Start,
    /// initiator: when what belongs in the tunnel goes nowhere else
    pub kill_switch: KillSwitch,
    /// how it moves (RFC 4555)
    pub policy: ConnectionPolicy,
}

impl Connection {
    /// The operator's name for it.
    pub fn name(&self) -> &str {
        &self.ike.name
    }
}

/// When an initiator connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// when the daemon starts, and again whenever the connection is lost
    Auto,
    /// on `bewick up`
    Manual,
    /// when there is a packet for it, each CHILD_SA by itself
    Trap,
}

/// When what belongs in an initiator's tunnel leaves by the tunnel or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KillSwitch {
    /// from the daemon's start, beyond its end, until the operator ends it
    Always,
    /// from the first time that the connection is up until it is taken down
    #[default]
    WhileUp,
    /// never
    Off,
}

/// Reads a connection; `None` if so much is missing that there is none. What is wrong is in the
/// reader's report.
pub(super) fn read(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    private: bool,
    seen: &mut Seen,
) -> Option<Connection> {
    let name = name(reader, seen);
    let roles = [("initiator", Role::Initiator), ("responder", Role::Responder)];
    let role = reader.word("role", &roles);
    if role.is_none() && reader.key_span("role").is_none() {
        reader.missing("role is missing; expected role = \"initiator\" or role = \"responder\"");
    }
    let local_id = identity::<Identity>(reader, "local_id", "vpn.example.com");
    let remote_id = identity::<IdentityPattern>(reader, "remote_id", "*@example.com");
    let auth = auth::read(reader, folder, private, local_id.as_ref());
    let ike_proposals =
        proposals(reader, "ike_proposals", &proposal::ike_defaults(), proposal::ike);
    let esp_proposals = proposals(reader, "esp_proposals", &proposal::ESP_DEFAULTS, proposal::esp);
    let transports = seen.transports.len();
    let mode = mode::read(reader, &mut seen.transports);
    let local_ts = traffic(reader, "local_ts");
    let remote_ts = traffic(reader, "remote_ts");
    let mobike = reader.bool("mobike").is_none_or(|field| field.value);
    let force_encap = reader.bool("force_encap").is_some_and(|field| field.value);
    let nat_traversal = nat_traversal(reader, force_encap, seen);
    let liveness = reader.number("liveness", 0..=86_400, "seconds").map_or(30, |field| field.value);

    // Fewer would be a rekey each second or so.
    let (least, most) = (1_000_000, u64::MAX >> 1);
    let child_lifetime =
        reader.number("child_lifetime", 0..=86_400, "seconds").map_or(3600, |field| field.value);

    let child_limits = Limits {
        octets: reader.number("child_octets", least..=most, "octets").map(|field| field.value),
        packets: reader.number("child_packets", 1000..=most, "packets").map(|field| field.value),
    };
    let carriage = carriage::read(reader, seen.dataplane);
    let ike_lifetime =
        reader.number("ike_lifetime", 0..=86_400, "seconds").map_or(14_400, |field| field.value);
    let window = reader.number("window", 1..=16, "requests").map_or(1, |field| field.value as u32);
    let childless = reader.word("childless", &CHILDLESS).unwrap_or_default();
    let more_children = child::tables(reader, role, &esp_proposals, &mut seen.transports);
    let fragment_size = fragment_size(reader);
    let policy = moving::read(reader, role, seen.dataplane);
    let mut initiator = InitiatorPart::default();
    let mut responder = ResponderPart::default();
    match role {
        Some(Role::Initiator) => {
            initiator = InitiatorPart::read(reader, mode, remote_ts.as_deref());
            if initiator.start == Start::Trap {
                let own = (local_ts.as_deref(), remote_ts.as_deref());
                trap(reader, own, &more_children, (name, carriage.if_id), seen);
            }
            for key in RESPONDER_KEYS {
                reader.refuse(key, "is for role = \"responder\"; remove it");
            }
        }
        Some(Role::Responder) => {
            let name = name.unwrap_or_default();
            let has = |ts: &Option<_>| mode == Mode::Transport || ts.is_some();
            responder = ResponderPart::read(reader, name, has(&local_ts), has(&remote_ts), seen);
            for key in INITIATOR_KEYS {
                reader.refuse(key, "is for role = \"initiator\"; remove it");
            }
        }
        // which of these belong here can't be told
        None => {
            for key in INITIATOR_KEYS.into_iter().chain(RESPONDER_KEYS) {
                reader.value(key);
            }
        }
    }
    let beside = mode::Beside {
        mode,
        own: (local_ts.as_deref(), remote_ts.as_deref()),
        more: &more_children,
        trap: initiator.start == Start::Trap,
        kill_switch_always: initiator.kill_switch == KillSwitch::Always,
    };
    mode::check(reader, seen.transports.get(transports..).unwrap_or_default(), &beside, seen);
    let (local_auth, remote_auth) = auth?;
    let ike = ConnectionConfig {
        name: name?.into(),
        role: role?,
        local_id: local_id?,
        remote_id: remote_id?,
        local_auth,
        remote_auth,
        ike_proposals,
        mode,
        esp_proposals,
        ts_local: local_ts.map_or(Selectors::Dynamic, Selectors::List),
        ts_remote: remote_ts.map_or(Selectors::Dynamic, Selectors::List),
        request_ipv4: initiator.ipv4,
        request_ipv6: initiator.ipv6,
        pools: responder.pools,
        dns: responder.dns,
        dns_domains: responder.dns_domains,
        uniqueness: responder.uniqueness,
        mobike,
        nat_traversal,
        force_encap,
        liveness: Duration::from_secs(liveness),
        child_lifetime: Duration::from_secs(child_lifetime),
        child_limits,
        carriage,
        ike_lifetime: Duration::from_secs(ike_lifetime),
        reauth_lifetime: Duration::from_secs(initiator.reauth_lifetime),
        window,
        childless,
        more_children,
        fragment_size,
        retransmission: Retransmission::default(),
    };
    let policy = ConnectionPolicy {
        keep_up: initiator.start == Start::Auto,
        trap: initiator.start == Start::Trap,
        return_routability: responder.return_routability,
        ..policy
    };
    let InitiatorPart { gateways, start, kill_switch, .. } = initiator;
    Some(Connection { ike, gateways, start, kill_switch, policy })
}

/// What only an initiator has.
struct InitiatorPart {
    gateways: Vec<String>,
    start: Start,
    kill_switch: KillSwitch,
    reauth_lifetime: u64,
    ipv4: bool,
    ipv6: bool,
}

impl Default for InitiatorPart {
    fn default() -> Self {
        InitiatorPart {
            gateways: Vec::new(),
            start: Start::Manual,
            kill_switch: KillSwitch::Off,
            reauth_lifetime: 0,
            ipv4: false,
            ipv6: false,
        }
    }
}

impl InitiatorPart {
    fn read(
        reader: &mut TableReader<'_, '_, '_>,
        mode: Mode,
        remote_ts: Option<&[TrafficSelector]>,
    ) -> Self {
        let mut gateways = Vec::new();
        let fields = reader.one_or_more("gateway", "a name or an address");
        if fields.is_none() && reader.key_span("gateway").is_none() {
            reader.missing("gateway is missing; expected gateway = \"a name or an address\"");
        }
        for field in fields.unwrap_or_default() {
            if is_host(field.value) {
                gateways.push(field.value.to_owned());
            } else {
                let text = format!("gateway {:?} is neither a name nor an address", field.value);
                reader.report.add(&field.span, text);
            }
        }
        let needs = mode == Mode::Tunnel && remote_ts.is_none();
        if needs && reader.key_span("remote_ts").is_none() {
            reader.missing(
                "remote_ts is missing; expected the networks behind the gateway, such as \
                 remote_ts = [\"10.1.0.0/16\"] or [\"0.0.0.0/0\"]",
            );
        }
        let reauth_lifetime = reader
            .number("reauth_lifetime", 0..=31_536_000, "seconds")
            .map_or(0, |field| field.value);
        let starts = [("auto", Start::Auto), ("manual", Start::Manual), ("trap", Start::Trap)];
        let start = reader.word("start", &starts).unwrap_or(Start::Auto);
        let kill_switch = kill_switch(reader, &gateways, remote_ts.unwrap_or_default());
        let wanted = reader.bool("virtual_ip").is_some_and(|field| field.value);
        // of the families in which there is something to reach
        let any = |v4: bool| remote_ts.unwrap_or_default().iter().any(|ts| ts.is_ipv4() == v4);
        InitiatorPart {
            gateways,
            start,
            kill_switch,
            reauth_lifetime,
            ipv4: wanted && any(true),
            ipv6: wanted && any(false),
        }
    }
}

/// What waits for packets has to know which, before a gateway tells anything.
fn trap(
    reader: &mut TableReader<'_, '_, '_>,
    (local_ts, remote_ts): (Option<&[TrafficSelector]>, Option<&[TrafficSelector]>),
    more: &[ChildConfig],
    connection: (Option<&str>, Option<NonZeroU32>),
    seen: &mut Seen,
) {
    let Some(span) = reader.key_span("start") else { return };
    let virtual_ip = reader.bool("virtual_ip").is_some_and(|field| field.value);
    let without = more.iter().find(|child| child.ts_local == Selectors::Dynamic);
    let problem = match (virtual_ip, local_ts.is_some(), without) {
        (true, ..) => {
            "start is \"trap\" and virtual_ip is true: a packet that comes before the tunnel can't have \
             the address that the gateway assigns with it; let start be \"auto\", or take virtual_ip out \
             and write local_ts"
                .to_owned()
        }
        (_, false, _) => {
            "start is \"trap\", which needs local_ts: the networks on this side whose packets bring the \
             tunnel up, such as local_ts = [\"10.7.0.0/16\"]"
                .to_owned()
        }
        (.., Some(child)) => format!(
            "start is \"trap\", which needs local_ts in [[connection.child]] {:?} too",
            child.name
        ),
        _ => {
            let mut all = local_ts.zip(remote_ts).into_iter().chain(more.iter().filter_map(networks_of));
            let twice = all.find_map(|packets| caught_twice(packets, connection, seen));
            let Some(problem) = twice else { return };
            problem
        }
    };
    reader.report.add(&span, problem);
}

/// What is on this side and on the other, if both are written down.
fn networks_of(child: &ChildConfig) -> Option<(&[TrafficSelector], &[TrafficSelector])> {
    match (&child.ts_local, &child.ts_remote) {
        (Selectors::List(local), Selectors::List(remote)) => Some((local, remote)),
        _ => None,
    }
}

/// Why a packet that brings up this connection brings up another one already.
fn caught_twice(
    (locals, remotes): (&[TrafficSelector], &[TrafficSelector]),
    (name, if_id): (Option<&str>, Option<NonZeroU32>),
    seen: &mut Seen,
) -> Option<String> {
    for (local, remote) in locals.iter().flat_map(|local| remotes.iter().map(move |it| (local, it)))
    {
        let packets = (*local, *remote, if_id);
        if let Some((_, owner)) = seen.traps.iter().find(|(other, _)| *other == packets) {
            return Some(format!(
                "start is \"trap\", and {owner:?} waits for packets from {local:?} to {remote:?} too; let one \
                 of the two start otherwise, or give each its own local_ts, remote_ts or if_id"
            ));
        }
        seen.traps.push((packets, name.unwrap_or_default().to_owned()));
    }
    None
}

/// What only a responder has.
#[derive(Default)]
struct ResponderPart {
    pools: Vec<IpNet>,
    dns: Vec<IpAddr>,
    dns_domains: Vec<String>,
    uniqueness: Uniqueness,
    return_routability: ReturnRoutability,
}

impl ResponderPart {
    fn read(
        reader: &mut TableReader<'_, '_, '_>,
        name: &str,
        has_local_ts: bool,
        has_remote_ts: bool,
        seen: &mut Seen,
    ) -> Self {
        if !has_local_ts && reader.key_span("local_ts").is_none() {
            reader.missing(
                "local_ts is missing; expected the networks that clients may reach, such as \
                 local_ts = [\"10.1.0.0/16\"]",
            );
        }
        let pools = networks(reader, "pool");
        if pools.is_none() && !has_remote_ts && reader.key_span("pool").is_none() {
            reader.missing(
                "pool is missing; expected addresses for clients, such as pool = \
                 [\"10.9.0.0/24\"], or remote_ts for a peer that brings its own",
            );
        }
        let pools = pools.unwrap_or_default();
        for (pool, span) in &pools {
            let other = seen.pools.iter().find(|(other, _)| overlap(pool, other));
            if let Some((other, owner)) = other {
                let text = format!(
                    "pool {pool} overlaps {other} of {owner}; expected addresses of its own"
                );
                reader.report.add(span, text);
            }
            seen.pools.push((*pool, format!("connection {name:?}")));
        }
        let dns = reader.list("dns", "an address", "\"10.1.0.53\"").unwrap_or_default();
        let dns_domains = domains(reader);
        let uniqueness = [
            ("replace", Uniqueness::Replace),
            ("keep", Uniqueness::Keep),
            ("never", Uniqueness::Never),
        ];
        let checks = [
            ("before", ReturnRoutability::Before),
            ("after", ReturnRoutability::After),
            ("off", ReturnRoutability::Off),
        ];
        ResponderPart {
            pools: pools.into_iter().map(|(pool, _)| pool).collect(),
            dns: dns.into_iter().map(|field| field.value).collect(),
            dns_domains,
            uniqueness: reader.word("uniqueness", &uniqueness).unwrap_or_default(),
            return_routability: reader.word("return_routability", &checks).unwrap_or_default(),
        }
    }
}

fn name<'a>(reader: &mut TableReader<'a, '_, '_>, seen: &mut Seen) -> Option<&'a str> {
    let Some(field) = reader.string("name", "a name for the connection") else {
        if reader.key_span("name").is_none() {
            reader.missing("name is missing; expected a name for `bewick up NAME`");
        }
        return None;
    };
    let ok = (1..=64).contains(&field.value.len())
        && !field.value.starts_with('-')
        && field.value.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if !ok {
        let text = format!("name is {:?}; expected 1 to 64 characters without spaces", field.value);
        reader.report.add(&field.span, text);
    }
    if seen.names.iter().any(|name| name == field.value) {
        let text = format!(
            "a connection named {:?} stands further up; expected a name of its own",
            field.value
        );
        reader.report.add(&field.span, text);
    }
    seen.names.push(field.value.into());
    Some(field.value)
}

/// Whether NATs are allowed for (RFC 7296 §2.23, RFC 4555 §3.9).
fn nat_traversal(reader: &mut TableReader<'_, '_, '_>, force_encap: bool, seen: &Seen) -> bool {
    let on = reader.bool("nat_traversal").is_none_or(|field| field.value);
    let problem = match (on, force_encap, seen.dataplane == PlaneChoice::Userspace) {
        (false, true, _) => "nat_traversal is false and force_encap is true; one of them has to go",
        (false, _, true) => {
            "nat_traversal is false and dataplane is \"userspace\", which sends ESP in UDP alone; remove \
             nat_traversal, or let dataplane be \"kernel\""
        }
        _ => return on,
    };
    if let Some(span) = reader.key_span("nat_traversal") {
        reader.report.add(&span, problem);
    }
    on
}

/// When what belongs in the tunnel goes nowhere else.
fn kill_switch(
    reader: &mut TableReader<'_, '_, '_>,
    gateways: &[String],
    remote_ts: &[TrafficSelector],
) -> KillSwitch {
    let words = [
        ("always", KillSwitch::Always),
        ("while-up", KillSwitch::WhileUp),
        ("off", KillSwitch::Off),
    ];
    let kill_switch = reader.word("kill_switch", &words).unwrap_or_default();
    let all = remote_ts.iter().flat_map(|ts| ts.nets()).any(|net| net.prefix_len() == 0);
    let name = gateways.iter().find(|gateway| gateway.parse::<IpAddr>().is_err());
    if let (KillSwitch::Always, true, Some(name), Some(span)) =
        (kill_switch, all, name, reader.key_span("kill_switch"))
    {
        let text = format!(
            "kill_switch is \"always\" and the tunnel is for everything, so that nobody can be asked \
             for the address of {name} before it is up; write the gateway's address"
        );
        reader.report.add(&span, text);
    }
    kill_switch
}

/// The biggest IP packet with an IKE message; 0 stands for no fragments at all.
fn fragment_size(reader: &mut TableReader<'_, '_, '_>) -> Option<u16> {
    let least = MIN_FRAGMENT_SIZE;
    let Some(field) = reader.number("fragment_size", 0..=u16::MAX.into(), "octets") else {
        return Some(DEFAULT_FRAGMENT_SIZE);
    };
    if (1..u64::from(least)).contains(&field.value) {
        let text = format!(
            "fragment_size is {}; expected at least {least} octets, or 0 for no fragments",
            field.value
        );
        reader.report.add(&field.span, text);
    }
    u16::try_from(field.value).ok().filter(|size| *size != 0)
}

fn identity<T: std::str::FromStr<Err: std::fmt::Display>>(
    reader: &mut TableReader<'_, '_, '_>,
    key: &'static str,
    example: &str,
) -> Option<T> {
    let expected = format!("an identity such as {example}");
    let Some(field) = reader.string(key, &expected) else {
        if reader.key_span(key).is_none() {
            reader.missing(format!("{key} is missing; expected {expected}"));
        }
        return None;
    };
    match field.value.parse() {
        Ok(identity) => Some(identity),
        Err(e) => {
            reader.report.add(&field.span, format!("{key}: {e}"));
            None
        }
    }
}

/// The proposals of `key`, or the defaults.
pub(super) fn proposals<T>(
    reader: &mut TableReader<'_, '_, '_>,
    key: &'static str,
    defaults: &[impl AsRef<str>],
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let example = format!("{:?}", defaults.first().map_or("", |text| text.as_ref()));
    let Some(fields) = reader.strings(key, &example) else {
        return defaults.iter().filter_map(|text| parse(text.as_ref()).ok()).collect();
    };
    if fields.is_empty() {
        let span = reader.key_span(key).unwrap_or(reader.span.clone());
        reader.report.add(&span, format!("{key} is empty; expected a list such as [{example}]"));
    }
    let mut out = Vec::new();
    for field in fields {
        match parse(field.value) {
            Ok(suite) => out.push(suite),
            Err(text) => reader.report.add(&field.span, format!("{key}: {text}")),
        }
    }
    out
}

/// The selectors of `key`; `None` if it is not there.
pub(super) fn traffic(
    reader: &mut TableReader<'_, '_, '_>,
    key: &'static str,
) -> Option<Vec<TrafficSelector>> {
    let fields = reader.strings(key, "\"10.1.0.0/16\"")?;
    if fields.is_empty() {
        let span = reader.key_span(key).unwrap_or(reader.span.clone());
        reader.report.add(&span, format!("{key} is empty; expected at least one network"));
    }
    let mut out = Vec::new();
    for field in fields {
        match field.value.parse() {
            Ok(selector) => out.push(selector),
            Err(e) => reader.report.add(&field.span, format!("{key}: {e}")),
        }
    }
    Some(out)
}

/// The domains that go to servers of the tunnel (RFC 8598).
fn domains(reader: &mut TableReader<'_, '_, '_>) -> Vec<String> {
    let fields = reader.strings("dns_domains", "\"corp.example.com\"").unwrap_or_default();
    let mut out = Vec::new();
    for field in fields {
        if is_host(field.value) && field.value.parse::<IpAddr>().is_err() {
            out.push(field.value.to_owned());
        } else {
            let text = format!(
                "dns_domains: {:?} is not a domain; expected one such as \"corp.example.com\"",
                field.value
            );
            reader.report.add(&field.span, text);
        }
    }
    if let (false, Some(span), None) =
        (out.is_empty(), reader.key_span("dns_domains"), reader.key_span("dns"))
    {
        let text = "dns_domains needs servers for them; add dns = [\"10.1.0.53\"]";
        reader.report.add(&span, text);
    }
    out
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether `text` can be an address or a name of the DNS.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    text.parse::<IpAddr>().is_ok()
        || (text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label))
}
