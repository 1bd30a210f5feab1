//! A tunnel's end in bewick's words.

use std::fmt::Write;
use std::fs;

use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::{Network, Proof};
use crate::peer::{PSK, Place};

/// The connection of this end that starts, or of a gateway the one that answers.
pub const STARTS: &str = "tunnel";
/// The one that answers where either end starts.
pub const ANSWERS: &str = "answers";

/// The configuration of the bewick at `place`.
///
/// # Errors
/// A certificate's chain cannot be put together.
pub fn write(place: &Place<'_>) -> Result<String> {
    let (tunnel, node) = (place.tunnel, place.node);
    let own = tunnel.side(node);
    let is_client = node.is_client();
    let state = place.scratch.join(format!("state-{}", node.name()));
    let keys = std::path::absolute(place.out.join(format!("keys-{}", node.name())));
    let keys = keys.context("where keys go")?;
    let mut text = format!(
        "[daemon]\ndataplane = \"{}\"\nstate_dir = {:?}\n",
        place.plane.word(),
        state.display().to_string(),
    );
    text += &match tunnel.crowd {
        true => "log = \"warn\"\n".to_owned(),
        false => format!("log = \"debug\"\nkey_log = {:?}\n", keys.display().to_string()),
    };
    // Never this machine's own file: namespaces of the network share it.
    text += &match is_client {
        true => {
            let file = std::path::absolute(place.evidence("resolv.conf"));
            let file = file.context("where the client's resolv.conf goes")?;
            format!("resolver = \"file\"\nresolv_conf = {:?}\n", file.display().to_string())
        }
        false => "resolver = \"off\"\n".to_owned(),
    };
    if own.cookies {
        text.push_str("cookie_threshold = 0\n");
    }
    if tunnel.tcp && !is_client {
        text.push_str("tcp_listen = 4500\n");
    }
    let connections: &[(&str, bool)] = match tunnel.mutual {
        true => &[(STARTS, true), (ANSWERS, false)],
        false => &[(STARTS, is_client)],
    };
    for (name, starts) in connections {
        text += &connection(place, name, *starts)?;
    }
    Ok(text)
}

/// A connection of this name, which starts or answers.
fn connection(place: &Place<'_>, name: &str, starts: bool) -> Result<String> {
    let (tunnel, node) = (place.tunnel, place.node);
    let (own, other) = (tunnel.side(node), tunnel.other_side(node));
    let mut text = format!("\n[[connection]]\nname = \"{name}\"\n");
    text.push_str(&match starts {
        true => format!(
            "role = \"initiator\"\ngateway = \"{}\"\nvirtual_ip = {}\nstart = \"{}\"\n{}\n",
            tunnel.goes_to(node),
            tunnel.site.is_empty(),
            match (tunnel.trap, tunnel.at_once || own.keeps_up) {
                (true, _) => "trap",
                (false, true) => "auto",
                (false, false) => "manual",
            },
            match tunnel.tcp {
                true => "tcp = \"fallback\"\nback_after = 1",
                false => "back_after = 0",
            },
        ),
        false if tunnel.site.is_empty() => {
            format!("role = \"responder\"\npool = {:?}\ndns = {:?}\n", tunnel.pools(), tunnel.dns)
        }
        false => "role = \"responder\"\n".to_owned(),
    });
    let mut line = |key: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key} = {value}");
    };
    line("local_id", format!("{:?}", tunnel.id(node)));
    line("remote_id", format!("{:?}", tunnel.expected(node)));
    if let Some(word) = own.unique.filter(|_| !starts) {
        line("uniqueness", format!("{word:?}"));
    }
    if own.stays {
        line("mobike", "false".to_owned());
    }
    if own.patient {
        line("dead_after_ms", "20000".to_owned());
    }
    if own.force_encap {
        line("force_encap", "true".to_owned());
    }
    let limits = [
        ("child_lifetime", own.child_lifetime),
        ("child_octets", own.child_octets),
        ("child_packets", own.child_packets),
        ("ike_lifetime", own.ike_lifetime),
    ];
    for (key, limit) in limits {
        if let Some(limit) = limit {
            line(key, limit.to_string());
        }
    }
    match &own.proof {
        Proof::Psk => {}
        Proof::Certificate(files) => {
            // The chain goes in one file, the certificate first.
            let mut chain =
                fs::read_to_string(&files.certificate).context(files.certificate.display())?;
            if let Some(path) = &files.intermediate {
                chain += &fs::read_to_string(path).context(path.display())?;
            }
            let path = place.evidence("chain.pem");
            fs::write(&path, chain).context(path.display())?;
            line("certificate_file", format!("{path:?}"));
            line("key_file", format!("{:?}", files.key));
        }
    }
    if let Proof::Certificate(files) = &other.proof {
        line("ca_file", format!("{:?}", files.ca));
    }
    if [own, other].iter().any(|side| matches!(side.proof, Proof::Psk)) {
        line("psk", format!("{PSK:?}"));
    }
    if !own.ike.is_empty() {
        line("ike_proposals", format!("{:?}", own.ike));
    }
    if !own.esp.is_empty() {
        line("esp_proposals", format!("{:?}", own.esp));
    }
    if tunnel.crowd && !starts {
        line("uniqueness", format!("{:?}", "never"));
    }
    line("childless", format!("{:?}", own.childless.unwrap_or("allow")));
    if let Some(seconds) = own.reauth_lifetime.filter(|_| starts) {
        line("reauth_lifetime", seconds.to_string());
    }
    if let Some(seconds) = own.liveness {
        line("liveness", seconds.to_string());
    }
    if own.gives_up_soon {
        line("hold", "300".to_owned());
    }
    if let Some(word) = own.kill_switch.filter(|_| starts) {
        line("kill_switch", format!("{word:?}"));
    }
    if own.transport {
        line("mode", "\"transport\"".to_owned());
    }
    if let Some(if_id) = own.if_id {
        line("if_id", if_id.to_string());
    }
    if let Some(window) = own.window {
        line("window", window.to_string());
    }
    if let Some(list) = &own.revoked {
        line("crl_file", format!("{list:?}"));
    }
    if own.strict {
        line("crl_policy", "\"strict\"".to_owned());
    }
    if let Some(size) = own.fragment_size {
        line("fragment_size", size.to_string());
    }
    let (networks, site) =
        if node.is_client() { ("remote_ts", "local_ts") } else { ("local_ts", "remote_ts") };
    let (first, others) =
        tunnel.children.split_first().ok_or_else(|| fail!("a tunnel without CHILD_SAs"))?;
    if !tunnel.unnamed {
        line(networks, prefixes(first.networks));
    }
    if !tunnel.site.is_empty() && !tunnel.unnamed {
        line(site, prefixes(tunnel.site));
    }
    for child in others {
        let (name, behind) = (child.name, prefixes(child.networks));
        text += &format!("\n[[connection.child]]\nname = \"{name}\"\n{networks} = {behind}\n");
        if !tunnel.site.is_empty() {
            text += &format!("{site} = {}\n", prefixes(tunnel.site));
        }
        if own.transport {
            text += "mode = \"transport\"\n";
        }
        if !own.esp.is_empty() {
            // What the connection says is for its own CHILD_SA alone.
            text += &format!("esp_proposals = {:?}\n", own.esp);
        }
    }
    Ok(text)
}

fn prefixes(networks: &[Network]) -> String {
    let prefixes: Vec<&str> = networks.iter().map(|network| network.prefix).collect();
    format!("{prefixes:?}")
}
