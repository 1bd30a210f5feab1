//! A tunnel's end in strongSwan's words: the daemon's settings, and swanctl's folder.

use std::fs;
use std::path::Path;

use crate::failure::{Context, Result};
use crate::peer::tunnel::{Child, Proof, Signatures};
use crate::peer::{CLIENT_ID, GATEWAY_ID, PSK, Place, Plane};
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
        Plane::Kernel => "kernel-netlink",
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
    if side.reauth_lifetime.is_some() || side.asks_again_soon {
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
    DAEMON_SETTINGS
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
    let is_client = node == Node::Client;
    let ends = match is_client {
        true => {
            let any = |v4| tunnel.networks().any(|network| network.host.is_ipv4() == v4);
            let vips = [(any(true), "0.0.0.0"), (any(false), "::")];
            let vips: Vec<&str> =
                vips.iter().filter_map(|(wanted, vip)| wanted.then_some(*vip)).collect();
            format!("remote_addrs = {}\nvips = {}", tunnel.gateway_address(), vips.join(", "))
        }
        false => {
            let names: Vec<String> =
                (1..=tunnel.pools().len()).map(|number| format!("clients-{number}")).collect();
            format!("local_addrs = {}\npools = {}", tunnel.gateway_address(), names.join(", "))
        }
    };
    let (own_id, other_id) =
        if is_client { (CLIENT_ID, GATEWAY_ID) } else { (GATEWAY_ID, "*@example.com") };
    let networks = if is_client { "remote_ts" } else { "local_ts" };
    let esp = words(&own.esp, ESP);
    let children: String = tunnel
        .children
        .iter()
        .map(|child| {
            let prefixes = prefixes(child);
            let name = child.name;
            format!("{name} {{\n{networks} = {prefixes}\nesp_proposals = {esp}\n}}\n")
        })
        .collect();
    let pools: String = tunnel
        .pools()
        .iter()
        .enumerate()
        .map(|(index, pool)| format!("clients-{} {{ addrs = {pool} }}\n", index + 1))
        .collect();
    let text = CONNECTIONS
        .replace("@ends@", &ends)
        .replace("@ike@", &words(&own.ike, IKE))
        .replace("@unique@", if tunnel.crowd { "never" } else { "no" })
        .replace("@encap@", if place.plane == Plane::Userspace { "yes" } else { "no" })
        .replace("@liveness@", &own.liveness.unwrap_or(0).to_string())
        .replace("@childless@", own.childless.unwrap_or("allow"))
        .replace("@local@", &format!("{}\nid = {own_id}", proof(&own.proof, true)))
        .replace("@remote@", &format!("{}\nid = {other_id}", proof(&other.proof, false)))
        .replace("@children@", &children)
        .replace("@pools@", if is_client { "" } else { &pools })
        .replace(
            "@owners@",
            &if tunnel.crowd {
                String::new()
            } else {
                format!("id-a = {CLIENT_ID}\nid-b = {GATEWAY_ID}\n")
            },
        )
        .replace("@psk@", PSK);
    let file = folder.join("swanctl.conf");
    fs::write(&file, text).context(file.display())
}

fn prefixes(child: &Child) -> String {
    let prefixes: Vec<&str> = child.networks.iter().map(|network| network.prefix).collect();
    prefixes.join(", ")
}

/// What goes to the log.
const LOUD: &str = "default = 1\nike = 2\nknl = 2\nenc = 2\ncfg = 2";
const QUIET: &str = "default = 0";

const DAEMON_SETTINGS: &str = "\
charon-systemd {
    load = random nonce openssl kdf @credentials@ constraints revocation @kernel@ socket-default vici
    load_modular = no
    @options@
    plugins {
        vici { socket = @socket@ }
        kernel-libipsec { allow_peer_ts = yes }
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
        mobike = yes
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
