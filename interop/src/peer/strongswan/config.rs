//! A tunnel's end in strongSwan's words: the daemon's settings, and swanctl's folder.

use std::fs;
use std::path::Path;

use crate::failure::{Context, Result};
use crate::peer::tunnel::{Network, Proof, Signatures};
use crate::peer::{PSK, Place, Plane};
use crate::topology::Node;

/// What the daemon and swanctl need for keys and certificates in files.
const CREDENTIALS: &str = "pem pkcs1 pkcs8 pubkey x509";

/// The proposals of a tunnel that does not care.
const IKE: &str = "aes256gcm16-prfsha256-x25519";
const ESP: &str = "aes256gcm16";

/// The daemon's own settings.
pub fn daemon(place: &Place<'_>, socket: &str) -> String {
    let kernel = match place.plane {
        // kernel-netlink still does addresses and routes.
        Plane::Userspace => "kernel-libipsec kernel-netlink",
        Plane::Kernel | Plane::CloudKernel => "kernel-netlink",
    };
    let side = place.tunnel.side(place.node);
    let mut options = String::new();
    if let Some(size) = side.fragment_size {
        options += &format!("fragment_size = {size}\n");
    }
    if side.cookies {
        options += "cookie_threshold = 1\ncookie_threshold_ip = 1\n";
    }
    if side.reauth_lifetime.is_some() {
        options += "make_before_break = yes\n";
    }
    if side.gives_up_soon {
        // Some six seconds altogether, not three minutes.
        options += "retransmit_tries = 3\n";
    }
    if side.reauth_lifetime.is_some() || side.asks_again_soon || side.gives_up_soon {
        // strongSwan 5.9.8 drops an answer that is there before the new IKE_SA is in its table, or while it
        // handles a request with the same number, and would wait four seconds until it asks again.
        options += "retransmit_timeout = 0.5\n";
    }
    if place.tunnel.crowd {
        // As its documentation has it for many IKE_SAs.
        options += "ikesa_table_size = 4096\nikesa_table_segments = 16\n";
    }
    if matches!(side.signatures, Signatures::Pss) {
        options += "rsa_pss = yes\n";
    }
    let (mut socket_options, mut route_options) = ("", "");
    if place.tunnel.networks().any(|network| network.prefix == "0.0.0.0/0") {
        // Its own packets must not be taken for the tunnel's.
        socket_options = "fwmark = 0x42";
        route_options = "fwmark = !0x42";
    }
    let mut more = "";
    if place.node.is_client() && !place.tunnel.dns.is_empty() {
        more = "resolve";
    }
    DAEMON_SETTINGS
        .replace("@more@", more)
        .replace("@resolv@", &place.evidence("resolv.conf").display().to_string())
        .replace("@socket_options@", socket_options)
        .replace("@route_options@", route_options)
        .replace("@kernel@", kernel)
        .replace("@credentials@", CREDENTIALS)
        .replace("@levels@", if place.tunnel.crowd { QUIET } else { LOUD })
        .replace("@socket@", socket)
        .replace("@log@", &place.evidence("strongswan.log").display().to_string())
        .replace("@options@", &options)
}

/// Fills the folder that swanctl reads: `swanctl.conf`, keys, certificates.
///
/// # Errors
/// The file system's own.
pub fn connections(place: &Place<'_>, folder: &Path) -> Result<()> {
    let (tunnel, node) = (place.tunnel, place.node);
    let (own, other) = (tunnel.side(node), tunnel.other_side(node));
    let put = |part: &str, from: &Path| -> Result<()> {
        let to = folder.join(part);
        fs::create_dir_all(&to).context(to.display())?;
        let name = from.file_name().unwrap_or(from.as_os_str());
        fs::copy(from, to.join(name)).context(from.display()).map(drop)
    };
    fs::create_dir_all(folder).context(folder.display())?;
    let (signs, takes) = match own.signatures {
        Signatures::These(signs, takes) => (signs, format!("ike:{takes}")),
        Signatures::Usual | Signatures::Pss => ("pubkey", "pubkey".to_owned()),
    };
    let proof = |proof: &Proof, certificate: bool| match proof {
        Proof::Psk => "auth = psk".to_owned(),
        Proof::Certificate(files) if certificate => {
            format!("auth = {signs}\ncerts = {}", files.certificate.display())
        }
        Proof::Certificate(files) => format!("auth = {takes}\ncacerts = {}", files.ca.display()),
    };
    if let Proof::Certificate(files) = &own.proof {
        put("private", &files.key)?;
        if let Some(intermediate) = &files.intermediate {
            put("x509", intermediate)?;
        }
    }
    if let Some(list) = &own.revoked {
        put("x509crl", list)?;
    }
    let words = |words: &[&str], otherwise: &str| match words {
        [] => otherwise.to_owned(),
        words => words.join(", "),
    };
    let is_client = node.is_client();
    let ends = match is_client {
        true => {
            let any = |v4| tunnel.networks().any(|network| network.host.is_ipv4() == v4);
            let vips = [(any(true), "0.0.0.0"), (any(false), "::")];
            let vips: Vec<&str> = match (tunnel.asks_for, tunnel.site) {
                (Some(address), _) => vec![address],
                (None, []) => {
                    vips.iter().filter_map(|(wanted, vip)| wanted.then_some(*vip)).collect()
                }
                (None, _) => Vec::new(),
            };
            let vips = match vips.as_slice() {
                [] => String::new(),
                vips => format!("\nvips = {}", vips.join(", ")),
            };
            format!("remote_addrs = {}{vips}", tunnel.gateway_address())
        }
        false => {
            let names: Vec<String> =
                (1..=tunnel.pools().len()).map(|number| format!("clients-{number}")).collect();
            let pools = match names.as_slice() {
                [] => String::new(),
                names => format!("\npools = {}", names.join(", ")),
            };
            let to = match tunnel.mutual {
                true => format!("\nremote_addrs = {}", tunnel.goes_to(node)),
                false => String::new(),
            };
            format!("local_addrs = {}{to}{pools}", tunnel.listens_at())
        }
    };
    let (own_id, other_id) = (tunnel.id(node), tunnel.expected(node));
    let (networks, site) =
        if is_client { ("remote_ts", "local_ts") } else { ("local_ts", "remote_ts") };
    let mut more = String::new();
    if !tunnel.site.is_empty() && !tunnel.unnamed {
        more += &format!("{site} = {}\n", prefixes(tunnel.site));
    }
    if own.transport {
        more += "mode = transport\n";
    }
    if tunnel.trap && is_client {
        more += "start_action = trap\n";
    }
    if tunnel.at_once && (tunnel.mutual || is_client) {
        more += "start_action = start\n";
    }
    if own.keeps_up && is_client {
        more += "dpd_action = start\nclose_action = start\n";
    }
    if let Some(seconds) = own.child_lifetime {
        more += &format!("rekey_time = {seconds}s\nrand_time = 0s\nlife_time = 60s\n");
    }
    if let Some(octets) = own.child_octets {
        more += &format!("rekey_bytes = {octets}\nrand_bytes = 0\nlife_bytes = 100000000\n");
    }
    let esp = words(&own.esp, ESP);
    let children: String = tunnel
        .children
        .iter()
        .map(|child| {
            let named = match tunnel.unnamed {
                true => String::new(),
                false => format!("{networks} = {}\n", prefixes(child.networks)),
            };
            let name = child.name;
            format!("{name} {{\n{named}esp_proposals = {esp}\n{more}}}\n")
        })
        .collect();
    let pools: String = tunnel
        .pools()
        .iter()
        .enumerate()
        .map(|(index, pool)| {
            let dns = match tunnel.dns {
                [] => String::new(),
                dns => format!("dns = {}\n", dns.join(", ")),
            };
            format!("clients-{} {{\naddrs = {pool}\n{dns}}}\n", index + 1)
        })
        .collect();
    let second = tunnel.second.map(|id| format!("id-c = {id}")).unwrap_or_default();
    let encap = place.plane == Plane::Userspace || own.force_encap;
    let lifetime = match own.ike_lifetime {
        Some(seconds) => format!("rekey_time = {seconds}s\nrand_time = 0s\nover_time = 60s"),
        None => String::new(),
    };
    let revocation = if own.strict { "revocation = strict\n" } else { "" };
    let text = CONNECTIONS
        .replace("@ends@", &ends)
        .replace("@ike@", &words(&own.ike, IKE))
        .replace("@encap@", if encap { "yes" } else { "no" })
        .replace("@mobike@", if own.stays { "no" } else { "yes" })
        .replace("@lifetime@", &lifetime)
        .replace("@unique@", if tunnel.crowd { "never" } else { own.unique.unwrap_or("no") })
        .replace("@liveness@", &own.liveness.unwrap_or(0).to_string())
        .replace("@childless@", own.childless.unwrap_or("allow"))
        .replace("@local@", &format!("{}\nid = {own_id}", proof(&own.proof, true)))
        .replace(
            "@remote@",
            &format!("{}\n{revocation}id = {other_id}", proof(&other.proof, false)),
        )
        .replace("@children@", &children)
        .replace("@pools@", if is_client { "" } else { &pools })
        .replace(
            "@owners@",
            &if tunnel.crowd {
                String::new()
            } else {
                let [a, b] = [Node::Client, Node::Gateway].map(|node| tunnel.id(node));
                format!("id-a = {a}\nid-b = {b}\n{second}\n")
            },
        )
        .replace("@psk@", PSK);
    let file = folder.join("swanctl.conf");
    fs::write(&file, text).context(file.display())
}

fn prefixes(networks: &[Network]) -> String {
    let prefixes: Vec<&str> = networks.iter().map(|network| network.prefix).collect();
    prefixes.join(", ")
}

/// What goes to the log.
const LOUD: &str = "default = 1\nike = 2\nknl = 2\nenc = 2\ncfg = 2";
const QUIET: &str = "default = 0";

const DAEMON_SETTINGS: &str = "\
charon-systemd {
    load = random nonce openssl kdf @credentials@ constraints revocation @kernel@ socket-default @more@ vici
    load_modular = no
    @options@
    plugins {
        vici { socket = @socket@ }
        kernel-libipsec { allow_peer_ts = yes }
        kernel-netlink { @route_options@ }
        socket-default { @socket_options@ }
        resolve { file = @resolv@ }
    }
    filelog {
        main {
            path = @log@
            time_format = %H:%M:%S
            time_add_ms = yes
            flush_line = yes
            @levels@
        }
    }
    journal { default = -1 }
}
swanctl { load = random openssl @credentials@ }
";

const CONNECTIONS: &str = "\
connections {
    tunnel {
        version = 2
        @ends@
        proposals = @ike@
        encap = @encap@
        mobike = @mobike@
        @lifetime@
        unique = @unique@
        dpd_delay = @liveness@
        childless = @childless@
        local { @local@ }
        remote { @remote@ }
        children {
            @children@
        }
    }
}
pools {
    @pools@
}
secrets {
    ike-1 { @owners@
        secret = \"@psk@\" }
}
";
