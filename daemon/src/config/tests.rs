//! Each mistake, with the exact words that an operator sees.

use bewick_ike::{
    auth::{LocalAuth, RemoteAuth},
    config::{Role, Selectors},
};

use bewick_mobike::{ReturnRoutability, TcpUse};

use super::*;

mod carriage;
mod mode;

const GATEWAY: &str = r#"[[connection]]
name = "road-warriors"
role = "responder"
local_id = "vpn.example.com"
remote_id = "*@example.com"
psk = "swordfish"
local_ts = ["10.1.0.0/16"]
pool = ["10.9.0.0/24"]
"#;

const CLIENT: &str = r#"[[connection]]
name = "office"
role = "initiator"
gateway = "192.0.2.1"
local_id = "laptop@example.com"
remote_id = "vpn.example.com"
psk = "swordfish"
remote_ts = ["10.1.0.0/16"]
virtual_ip = true
"#;

fn read(text: &str) -> Result<Config, Problems> {
    parse(Source { file: "b.toml", text }, Path::new("/nowhere"), true)
}

/// The problems of `text`, one line each.
fn problems(text: &str) -> Vec<String> {
    read(text).expect_err("a problem").0.iter().map(ToString::to_string).collect()
}

/// The one problem of the client's configuration with `from` replaced by `to`.
fn problem(from: &str, to: &str) -> String {
    one(CLIENT, from, to)
}

fn one(base: &str, from: &str, to: &str) -> String {
    assert!(base.contains(from));
    let problems = problems(&base.replace(from, to));
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn a_gateway_in_eight_lines() {
    let config = read(GATEWAY).unwrap();
    assert_eq!(config.daemon, DaemonConfig::default());
    let connection = &config.connections[0];
    assert_eq!(connection.name(), "road-warriors");
    assert_eq!(connection.ike.role, Role::Responder);
    let LocalAuth::Psk(ours) = &connection.ike.local_auth else { panic!("a pre-shared key") };
    let RemoteAuth::Psk(theirs) = &connection.ike.remote_auth else { panic!("a pre-shared key") };
    assert_eq!((ours.expose(), theirs.expose()), (&b"swordfish"[..], &b"swordfish"[..]));
    assert_eq!(connection.ike.ts_remote, Selectors::Dynamic);
    assert_eq!(connection.ike.pools, ["10.9.0.0/24".parse().unwrap()]);
    assert!(connection.ike.mobike);
    assert_eq!(connection.policy.return_routability, ReturnRoutability::Before);
    assert!(!connection.ike.request_ipv4);
}

#[test]
fn what_waits_for_packets_has_to_know_which() {
    let site =
        CLIENT.replace("virtual_ip = true", "start = \"trap\"\nlocal_ts = [\"10.7.0.0/16\"]");
    let connection = &read(&site).unwrap().connections[0];
    assert_eq!(connection.start, Start::Trap);
    assert!(connection.policy.trap && !connection.policy.keep_up);
    let wrong = problem("virtual_ip = true", "virtual_ip = true\nstart = \"trap\"");
    assert!(
        wrong.starts_with("b.toml:10:1: start is \"trap\" and virtual_ip is true: a packet that"),
        "{wrong}"
    );
    assert!(wrong.contains("let start be \"auto\", or take virtual_ip out and write local_ts"));
    let wrong = problem("virtual_ip = true", "start = \"trap\"");
    assert!(
        wrong.starts_with("b.toml:9:1: start is \"trap\", which needs local_ts: the "),
        "{wrong}"
    );
    let child = "[[connection.child]]\nname = \"lab\"\nremote_ts = [\"10.2.0.0/16\"]\n";
    let wrong = problems(&format!("{site}{child}"));
    assert!(wrong[0].contains("needs local_ts in [[connection.child]] \"lab\" too"), "{wrong:#?}");
    let wrong = problem("virtual_ip = true", "virtual_ip = true\nstart = \"traps\"");
    assert!(wrong.contains("start is \"traps\"; expected \"auto\" or \"manual\" or"), "{wrong}");
    let wrong = one(GATEWAY, "pool", "start = \"trap\"\npool");
    assert!(wrong.contains("is for role = \"initiator\""), "{wrong}");
}

#[test]
fn a_client_in_nine_lines() {
    let config = read(CLIENT).unwrap();
    let connection = &config.connections[0];
    assert_eq!(connection.gateways, ["192.0.2.1"]);
    assert_eq!(connection.start, Start::Auto);
    assert_eq!(connection.ike.fragment_size, Some(1280));
    assert!(connection.ike.request_ipv4 && !connection.ike.request_ipv6);
    assert_eq!(connection.ike.ike_proposals.len(), proposal::ike_defaults().len());
    assert_eq!(connection.ike.esp_proposals.len(), proposal::ESP_DEFAULTS.len());
}

#[test]
fn every_other_key() {
    let text = format!(
        "[daemon]\ndataplane = \"userspace\"\ndevice = \"vpn0\"\nlog = \"info,bewick_ike=debug\"\nlog_addresses = true\n\
         control = \"/tmp/c.sock\"\nresolver = \"file\"\nresolv_conf = \"/run/resolv.conf\"\n{CLIENT}mobike = false\nliveness = 5\nfragment_size = 576\nforce_encap = true\n\
         start = \"manual\"\nike_proposals = [\"aes128-sha256-ecp256\"]\nesp_proposals = [\"aes128-sha256\"]\n\
         {GATEWAY}dns = [\"10.1.0.53\"]\nreturn_routability = \"off\"\nfragment_size = 0\n"
    );
    let text = text.replace("\"192.0.2.1\"", "[\"vpn.example.com\", \"2001:db8::1\"]");
    let config = read(&text).unwrap();
    assert_eq!(config.daemon.dataplane, PlaneChoice::Userspace);
    assert_eq!(config.daemon.device, "vpn0");
    assert!(config.daemon.log_addresses);
    assert_eq!(config.daemon.control, Some("/tmp/c.sock".into()));
    assert_eq!(config.daemon.resolver, Means::File);
    assert_eq!(config.daemon.resolv_conf, std::path::Path::new("/run/resolv.conf"));
    let [client, gateway] = &config.connections[..] else { panic!("two connections") };
    assert_eq!(client.gateways, ["vpn.example.com", "2001:db8::1"]);
    assert!(!client.ike.mobike && client.ike.force_encap);
    assert_eq!(client.ike.liveness.as_secs(), 5);
    assert_eq!(client.ike.fragment_size, Some(576));
    assert_eq!(gateway.ike.fragment_size, None);
    assert_eq!(client.start, Start::Manual);
    assert_eq!(gateway.ike.dns.len(), 1);
    assert_eq!(gateway.policy.return_routability, ReturnRoutability::Off);
}

#[test]
fn the_kill_switch() {
    let with = |text: &str| CLIENT.replace("virtual_ip = true", text);
    let of = |text: &str| read(&with(text)).unwrap().connections[0].kill_switch;
    assert_eq!(of("virtual_ip = true"), KillSwitch::WhileUp);
    assert_eq!(of("kill_switch = \"always\""), KillSwitch::Always);
    assert_eq!(of("kill_switch = \"off\""), KillSwitch::Off);
    let wrong = problem("virtual_ip = true", "kill_switch = \"on\"");
    assert!(wrong.starts_with("b.toml:9:15: kill_switch is \"on\""), "{wrong}");
    let on_a_gateway = one(GATEWAY, "local_ts", "kill_switch = \"always\"\nlocal_ts");
    assert!(on_a_gateway.contains("kill_switch is for role = \"initiator\""), "{on_a_gateway}");
    // before the tunnel is up no name server can be asked
    let all = with("kill_switch = \"always\"").replace("10.1.0.0/16", "0.0.0.0/0");
    assert!(read(&all).is_ok());
    let name = problems(&all.replace("192.0.2.1", "vpn.example.com"));
    assert!(name[0].contains("write the gateway's address"), "{name:?}");
}

#[test]
fn a_fragment_that_is_too_small_or_too_big() {
    let with = |size: &str| format!("virtual_ip = true\nfragment_size = {size}");
    assert_eq!(
        problem("virtual_ip = true", &with("68")),
        "b.toml:10:17: fragment_size is 68; expected at least 256 octets, or 0 for no fragments"
    );
    for size in ["65536", "-1"] {
        assert_eq!(
            problem("virtual_ip = true", &with(size)),
            format!(
                "b.toml:10:17: fragment_size is {size}; expected a number of octets from 0 to 65535"
            )
        );
    }
}

#[test]
fn a_secret_is_not_in_the_debug_output() {
    let shown = format!("{:?}", read(CLIENT).unwrap());
    assert!(!shown.contains("swordfish"));
}

#[test]
fn an_unknown_key_with_its_likely_meaning() {
    assert_eq!(
        problem("virtual_ip = true", "virtualip = true"),
        "b.toml:9:1: unknown key virtualip in [[connection]]; did you mean virtual_ip?"
    );
    assert_eq!(
        problems(&format!("[deamon]\n{CLIENT}")),
        ["b.toml:1:2: unknown key deamon in the file; did you mean daemon?"]
    );
    assert_eq!(
        problems(&format!("[daemon]\ncolour = 1\n{CLIENT}")),
        ["b.toml:2:1: unknown key colour in [daemon]; known here: control, cookie_threshold, \
             crash_tokens, dataplane, device, half_open_limit, half_open_limit_per_address, key_log, log, \
             log_addresses, resolv_conf, resolver, state_dir, tcp_listen"]
    );
}

#[test]
fn child_sas_beside_the_first_have_tables_of_their_own() {
    let child = "[[connection.child]]\nname = \"two\"\nremote_ts = [\"10.2.0.0/16\"]\n\
                 esp_proposals = [\"aes256gcm16-x25519\"]\n";
    let config = read(&format!("{CLIENT}{child}")).unwrap();
    let ike = &config.connections[0].ike;
    assert_eq!(ike.children().count(), 2);
    assert_eq!(ike.more_children[0].name, "two");
    assert!(ike.more_children[0].esp_proposals[0].key_exchange.is_some());
    // What it does not say is as the connection says.
    let silent = child.lines().take(3).collect::<Vec<_>>().join("\n");
    let all = format!("{CLIENT}esp_proposals = [\"aes128gcm16-esn\"]\n{silent}\n");
    let ike = &read(&all).unwrap().connections[0].ike;
    assert_eq!(ike.more_children[0].esp_proposals, ike.esp_proposals);
    let wrong = problems(&format!("{CLIENT}{}", child.replace("remote_ts", "remote_net")));
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong.iter().any(|text| text.contains("did you mean remote_ts?")), "{wrong:?}");
    assert!(wrong.iter().any(|text| text.contains("remote_ts is missing")), "{wrong:?}");
    let twice = problems(&format!("{CLIENT}{child}{child}"));
    assert!(twice[0].contains("a child named \"two\" stands further up"), "{twice:?}");
}

#[test]
fn the_limits_of_what_strangers_can_do_are_the_operator_s() {
    let text = "[daemon]\ncookie_threshold = 0\nhalf_open_limit = 10\n";
    let limits = read(&format!("{text}{CLIENT}")).unwrap().daemon.half_open;
    assert_eq!((limits.cookies_from, limits.most), (0, 10));
}

/// RFC 9329 §5.
#[test]
fn tcp_is_used_where_it_is_configured_and_the_plane_can_carry_it() {
    let config = read(CLIENT).unwrap();
    let policy = &config.connections[0].policy;
    assert_eq!((policy.tcp, policy.tcp_port, config.daemon.tcp_listen), (TcpUse::Off, 4500, None));
    let policy = read(&format!("{CLIENT}tcp = \"fallback\"\ntcp_port = 443\n")).unwrap();
    let policy = &policy.connections[0].policy;
    assert_eq!((policy.tcp, policy.tcp_port), (TcpUse::Fallback, 443));
    let gateway = read(&format!("[daemon]\ntcp_listen = 4500\n{GATEWAY}")).unwrap();
    assert_eq!(gateway.daemon.tcp_listen, Some(4500));
    let found = problems(&format!("{GATEWAY}tcp = \"always\"\n"));
    assert!(found[0].contains("tcp is for role"), "{found:?}");
    for (daemon, connection, at) in [
        ("tcp_listen = 4500\n", "", "b.toml:2:14: tcp_listen: ESP in TCP needs"),
        ("", "tcp = \"fallback\"\n", "tcp: ESP in TCP needs the userspace data plane"),
    ] {
        let text = format!("[daemon]\n{daemon}dataplane = \"kernel\"\n{CLIENT}{connection}");
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].contains(at), "{found:?}");
    }
    let found = problems(&format!("[daemon]\ntcp_listen = 0\n{CLIENT}"));
    assert!(found[0].contains("a TCP port, usually 4500, from 1 to 65535"), "{found:?}");
}

#[test]
fn how_a_connection_moves_is_the_initiators_choice() {
    let ms = std::time::Duration::from_millis;
    let policy =
        |keys: &str| read(&format!("{CLIENT}{keys}")).unwrap().connections[0].policy.clone();
    let otherwise = policy("");
    assert_eq!((otherwise.dead_after, otherwise.standby), (ms(1000), ms(25_000)));
    assert_eq!((otherwise.standby_metered, otherwise.strict), (false, false));
    assert_eq!(otherwise.hold, ms(3_600_000));
    let said = policy(
        "dead_after_ms = 400\nstandby = 0\nstandby_metered = true\nprobing = \"strict\"\nhold = 300\n",
    );
    assert_eq!((said.dead_after, said.standby), (ms(400), ms(0)));
    let found = read(&format!("{CLIENT}found_within_ms = 2000\n")).unwrap();
    assert_eq!(found.connections[0].policy.dead_after, ms(1200));
    assert_eq!((said.standby_metered, said.strict), (true, true));
    assert_eq!(said.hold, ms(300_000));
    for (key, word) in [
        ("hold = 299", "from 300 to"),
        ("found_within_ms = 1049", "from 1050 to 60000"),
        ("dead_after_ms = 400\nfound_within_ms = 2000", "say the same in two ways"),
        ("dead_after_ms = 60001", "from 0 to 60000"),
        ("standby = \"25 s\"", "standby is a string"),
        ("probing = \"guess\"", "strict"),
    ] {
        let found = problems(&format!("{CLIENT}{key}\n"));
        assert!(found.len() == 1 && found[0].contains(word), "{found:?}");
    }
    let found = problems(&format!("{GATEWAY}dead_after_ms = 400\nhold = 300\n"));
    assert!(found.len() == 1 && found[0].contains("dead_after_ms is for role"), "{found:?}");
}

#[test]
fn esp_without_udp_is_nothing_for_userspace() {
    let text = format!("{CLIENT}nat_traversal = false\n");
    assert!(!read(&text).unwrap().connections[0].ike.nat_traversal);
    let found = problems(&format!("[daemon]\ndataplane = \"userspace\"\n{text}"));
    assert!(found.len() == 1 && found[0].contains("remove nat_traversal"), "{found:?}");
}

#[test]
fn an_uplink_is_what_the_operator_says() {
    let text = "[[uplink]]\ninterface = \"wl*\"\ncost = 10\n\n\
                [[uplink]]\ninterface = \"wwan0\"\nmetered = false\nuse = false\n\n";
    let uplinks = read(&format!("{text}{CLIENT}")).unwrap().uplinks;
    let wlan = super::uplink::of(&uplinks, "wlan0");
    assert_eq!((wlan.cost, wlan.metered, wlan.used), (10, false, true));
    let wwan = super::uplink::of(&uplinks, "wwan0");
    assert_eq!((wwan.cost, wwan.metered, wwan.used), (100, false, false));
    let found = problems(&format!("{}{CLIENT}", text.replace("wl*\"\ncost", "wl*\"\nprice")));
    assert!(found.len() == 1 && found[0].contains("unknown key price in [[uplink]]"), "{found:?}");
    for (name, expected) in [("", "interface is empty"), ("wl*", "an earlier [[uplink]]")] {
        let found = problems(&format!("{}{CLIENT}", text.replace("wwan0", name)));
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
    }
    let found = problems(&format!("[[uplink]]\ncost = 1\n{CLIENT}"));
    assert!(found.len() == 1 && found[0].contains("expected interface = "), "{found:?}");
}

#[test]
fn a_wrong_type() {
    assert_eq!(
        problem("virtual_ip = true", "virtual_ip = \"yes\""),
        "b.toml:9:14: virtual_ip is a string; expected true or false"
    );
    assert_eq!(
        problem("remote_ts = [\"10.1.0.0/16\"]", "remote_ts = \"10.1.0.0/16\""),
        "b.toml:8:13: remote_ts is a string; expected a list such as [\"10.1.0.0/16\"]"
    );
    assert_eq!(
        problem("gateway = \"192.0.2.1\"", "gateway = 7"),
        "b.toml:4:11: gateway is a number; expected a name or an address in quotes"
    );
    assert_eq!(
        problem("virtual_ip = true", "liveness = 100000"),
        "b.toml:9:12: liveness is 100000; expected a number of seconds from 0 to 86400"
    );
    assert_eq!(
        problems(&CLIENT.replace("[[connection]]", "[connection]")),
        ["b.toml:1:1: connection is a table; expected [[connection]]"]
    );
}

#[test]
fn a_missing_secret() {
    assert_eq!(
        problem("psk = \"swordfish\"\n", ""),
        "b.toml:1:1: no secret; expected psk_file = \"a file with the pre-shared key\" or psk = \"…\", \
         or certificates: certificate_file, key_file and ca_file"
    );
    assert_eq!(
        problem("psk = \"swordfish\"", "psk = \"\""),
        "b.toml:7:7: psk is empty; expected the pre-shared key"
    );
    assert_eq!(
        problem("psk = \"swordfish\"", "psk_file = \"psk\""),
        "b.toml:7:12: psk_file /nowhere/psk does not exist"
    );
    assert_eq!(
        problem("psk = \"swordfish\"", "psk = \"a\"\npsk_file = \"b\""),
        "b.toml:8:12: both psk and psk_file are there; expected one of them"
    );
}

#[test]
fn an_inline_secret_in_a_file_that_others_can_read() {
    let problems = parse(Source { file: "b.toml", text: CLIENT }, Path::new(""), false);
    assert_eq!(
        problems.unwrap_err().to_string(),
        "b.toml:7:7: psk is in a file that others than its owner can read; do `chmod 0600 b.toml`, \
         or use psk_file"
    );
}

#[test]
fn a_bad_network() {
    assert_eq!(
        problem("10.1.0.0/16", "10.1.0.0/33"),
        "b.toml:8:14: remote_ts: \"10.1.0.0/33\" is not a network; expected one such as \
         \"10.1.0.0/16\", \"10.1.0.5-10.1.0.9\" or \"10.1.0.0/16[tcp/443]\""
    );
    assert_eq!(
        problem("10.1.0.0/16", "10.1.2.3/16"),
        "b.toml:8:14: remote_ts: \"10.1.2.3/16\" has bits set beyond its prefix; did you mean \
         \"10.1.0.0/16\"?"
    );
    assert_eq!(
        problem("[\"10.1.0.0/16\"]", "[]"),
        "b.toml:8:1: remote_ts is empty; expected at least one network"
    );
}

#[test]
fn selectors_with_protocols_and_ports() {
    let text = CLIENT.replace(
        "[\"10.1.0.0/16\"]",
        "[\"10.1.0.0/16[tcp/443]\", \"10.1.0.5-10.1.0.9\", \"2001:db8::/64[udp/1000-2000]\"]",
    );
    let config = read(&text).unwrap();
    let Selectors::List(list) = &config.connections[0].ike.ts_remote else { panic!("a list") };
    assert_eq!(list[0].ports(), (443, 443));
    assert_eq!(list[1].last().to_string(), "10.1.0.9");
    assert!(config.connections[0].ike.request_ipv6);
    assert_eq!(
        problem("10.1.0.0/16", "10.1.0.0/16[tcp/https]"),
        "b.toml:8:14: remote_ts: \"https\" is no port; expected one such as 443, a range such as \
         1000-2000, or opaque"
    );
}

#[test]
fn domains_and_uniqueness_of_a_gateway() {
    let more =
        "dns = [\"10.1.0.53\"]\ndns_domains = [\"corp.example.com\"]\nuniqueness = \"never\"\n";
    let config = read(&format!("{GATEWAY}{more}")).unwrap();
    let ike = &config.connections[0].ike;
    assert_eq!(ike.dns_domains, ["corp.example.com"]);
    assert_eq!(ike.uniqueness, bewick_ike::config::Uniqueness::Never);
    assert_eq!(
        problems(&format!("{GATEWAY}dns_domains = [\"corp.example.com\"]\n")),
        ["b.toml:9:1: dns_domains needs servers for them; add dns = [\"10.1.0.53\"]"]
    );
    assert_eq!(
        problem("virtual_ip = true", "uniqueness = \"keep\""),
        "b.toml:9:1: uniqueness is for role = \"responder\"; remove it"
    );
}

#[test]
fn a_bad_proposal() {
    assert_eq!(
        problem("virtual_ip = true", "ike_proposals = [\"3des-sha1-modp1024\"]"),
        "b.toml:9:18: ike_proposals: \"3des\" is not an encryption; known: aes256gcm16, aes192gcm16, \
         aes128gcm16, chacha20poly1305, aes256, aes192, aes128"
    );
    assert_eq!(
        problem("virtual_ip = true", "esp_proposals = []"),
        "b.toml:9:1: esp_proposals is empty; expected a list such as [\"aes256gcm16\"]"
    );
}

#[test]
fn a_bad_identity() {
    assert_eq!(
        problem("\"laptop@example.com\"", "\"*@example.com\""),
        "b.toml:5:12: local_id: \"*@example.com\" is no identity: '*' can't be in a name or address"
    );
    assert_eq!(
        problem("local_id = \"laptop@example.com\"\n", ""),
        "b.toml:1:1: local_id is missing; expected an identity such as vpn.example.com"
    );
}

#[test]
fn what_a_role_needs() {
    assert_eq!(
        problem("gateway = \"192.0.2.1\"\n", ""),
        "b.toml:1:1: gateway is missing; expected gateway = \"a name or an address\""
    );
    assert_eq!(
        problem("192.0.2.1", "192.0.2.1:500"),
        "b.toml:4:11: gateway \"192.0.2.1:500\" is neither a name nor an address"
    );
    assert!(problem("remote_ts = [\"10.1.0.0/16\"]\n", "").starts_with("b.toml:1:1: remote_ts is"));
    assert!(
        one(GATEWAY, "pool = [\"10.9.0.0/24\"]\n", "").starts_with("b.toml:1:1: pool is missing;")
    );
    assert!(
        one(GATEWAY, "local_ts = [\"10.1.0.0/16\"]\n", "").starts_with("b.toml:1:1: local_ts is")
    );
    assert_eq!(
        problem("role = \"initiator\"", "role = \"inititator\""),
        "b.toml:3:8: role is \"inititator\"; expected \"initiator\" or \"responder\"; did you mean \
         \"initiator\"?"
    );
    assert!(problem("role = \"initiator\"\n", "").starts_with("b.toml:1:1: role is missing;"));
}

#[test]
fn what_a_role_does_not_have() {
    assert_eq!(
        problem("virtual_ip = true", "pool = [\"10.9.0.0/24\"]"),
        "b.toml:9:1: pool is for role = \"responder\"; remove it"
    );
    assert_eq!(
        one(GATEWAY, "pool =", "gateway = \"192.0.2.1\"\npool ="),
        "b.toml:8:1: gateway is for role = \"initiator\"; remove it"
    );
}

#[test]
fn what_two_connections_can_not_share() {
    assert_eq!(
        problems(&format!("{CLIENT}{CLIENT}")),
        [
            "b.toml:11:8: a connection named \"office\" stands further up; expected a name of its own"
        ]
    );
    let other = GATEWAY.replace("road-warriors", "b").replace("10.9.0.0/24", "10.9.0.128/25");
    assert_eq!(
        problems(&format!("{GATEWAY}{other}")),
        ["b.toml:16:9: pool 10.9.0.128/25 overlaps 10.9.0.0/24 of connection \"road-warriors\"; \
          expected addresses of its own"]
    );
}

#[test]
fn all_mistakes_at_once_and_in_order() {
    let text = CLIENT.replace("name = ", "nam = ").replace("virtual_ip = true", "virtual_ip = 1");
    assert_eq!(
        problems(&text),
        [
            "b.toml:1:1: name is missing; expected a name for `bewick up NAME`",
            "b.toml:2:1: unknown key nam in [[connection]]; did you mean name?",
            "b.toml:9:14: virtual_ip is a number; expected true or false",
        ]
    );
}

#[test]
fn what_is_no_toml() {
    let found = problems("[[connection]]\nname = office\n");
    assert!(found[0].starts_with("b.toml:2:8: "), "{found:#?}");
    assert_eq!(
        problems(""),
        ["b.toml:1:1: no connection is configured; expected at least one table [[connection]]"]
    );
}

#[test]
fn the_daemon_table() {
    let with = |line: &str| problems(&format!("[daemon]\n{line}\n{CLIENT}"));
    assert_eq!(
        with("dataplane = \"kernal\""),
        [
            "b.toml:2:13: dataplane is \"kernal\"; expected \"auto\" or \"kernel\" or \"userspace\"; \
          did you mean \"kernel\"?"
        ]
    );
    assert_eq!(
        with("device = \"a/b\""),
        ["b.toml:2:10: device is \"a/b\"; expected a name of 1 to 15 letters and digits"]
    );
    assert!(with("log = \"loud=very=much\"")[0].starts_with("b.toml:2:7: log is"));
    assert_eq!(
        with("control = \"c.sock\""),
        ["b.toml:2:11: control is \"c.sock\"; expected a path from / on"]
    );
    assert_eq!(
        with("resolv_conf = \"resolv.conf\""),
        ["b.toml:2:15: resolv_conf is \"resolv.conf\"; expected a path from / on"]
    );
    let resolver = &with("resolver = \"resolve\"")[0];
    assert!(
        resolver.starts_with("b.toml:2:12: resolver is \"resolve\"; expected \"auto\""),
        "{resolver}"
    );
}
