//! `mode`, and what does not go with transport mode.

use bewick_ike::{Mode, config::Selectors};

use super::{CLIENT, GATEWAY, one, problems, read};

/// The client's configuration with `keys` in the place of what is for a tunnel alone.
fn host(keys: &str) -> String {
    let tunnel = "remote_ts = [\"10.1.0.0/16\"]\nvirtual_ip = true\n";
    assert!(CLIENT.contains(tunnel));
    CLIENT.replace(tunnel, &format!("mode = \"transport\"\n{keys}"))
}

#[test]
fn a_child_sa_is_a_tunnel_unless_it_says_transport() {
    let connection = &read(CLIENT).unwrap().connections[0];
    assert_eq!(connection.ike.mode, Mode::Tunnel);
    let connection = &read(&host("")).unwrap().connections[0];
    assert_eq!(connection.ike.mode, Mode::Transport);
    assert_eq!(connection.ike.ts_local, Selectors::Dynamic);
    assert_eq!(connection.ike.ts_remote, Selectors::Dynamic);
    let gre = "local_ts = [\"198.51.100.2[gre]\"]\nremote_ts = [\"192.0.2.1[gre]\"]\n";
    assert!(read(&host(gre)).is_ok());
    // A gateway, and one beside a tunnel.
    let tunnel = "local_ts = [\"10.1.0.0/16\"]\npool = [\"10.9.0.0/24\"]\n";
    let gateway = read(&GATEWAY.replace(tunnel, "mode = \"transport\"\n")).unwrap();
    assert_eq!(gateway.connections[0].ike.mode, Mode::Transport);
    let child = "[[connection.child]]\nname = \"gre\"\nmode = \"transport\"\n";
    let beside = format!("{}{child}", CLIENT.replace("virtual_ip = true\n", ""));
    let connection = &read(&beside).unwrap().connections[0];
    assert_eq!(connection.ike.mode, Mode::Tunnel);
    assert_eq!(connection.ike.more_children[0].mode, Mode::Transport);
    let wrong = one(CLIENT, "virtual_ip = true", "mode = \"beet\"");
    assert!(wrong.contains("mode is \"beet\"; expected \"tunnel\" or \"transport\""), "{wrong}");
}

#[test]
fn what_does_not_go_with_transport_mode_is_told_where_that_is_asked_for() {
    let line = host("").lines().position(|line| line.starts_with("mode")).unwrap() + 1;
    let both = "local_ts = [\"198.51.100.2\"]\nremote_ts = [\"192.0.2.1\"]\n";
    for (keys, text, remedy) in [
        ("virtual_ip = true\n", "virtual_ip does not go with", "let mode be \"tunnel\""),
        ("force_encap = true\n", "force_encap, which has ESP in UDP", "remove one"),
        ("if_id = 7\n", "if_id does not go with", "XFRM interface"),
        ("tcp = \"fallback\"\n", "tcp of \"office\", which needs the userspace", "remove one"),
        ("kill_switch = \"always\"\n", "kill_switch = \"always\" does not go", "\"while-up\""),
        (
            "start = \"trap\"\nlocal_ts = [\"198.51.100.2\"]\nremote_ts = [\"192.0.2.0/24\"]\n",
            "start = \"trap\" with networks",
            "remote_ts = [\"192.0.2.1\"]",
        ),
        (
            "start = \"trap\"\nlocal_ts = [\"198.51.100.2\"]\n",
            "start = \"trap\" with networks, or without remote_ts",
            "remote_ts = [\"192.0.2.1\"]",
        ),
    ] {
        let found = problems(&host(keys));
        let at = format!("b.toml:{line}:");
        let [wrong] = &found[..] else { panic!("{keys}: {found:#?}") };
        assert!(wrong.starts_with(&at) && wrong.contains(text), "{keys}: {wrong}");
        assert!(wrong.contains(remedy), "{keys}: {wrong}");
    }
    assert!(read(&host(&format!("start = \"trap\"\n{both}"))).is_ok());
    for daemon in ["dataplane = \"userspace\"", "tcp_listen = 4500"] {
        let found = problems(&format!("[daemon]\n{daemon}\n{}", host("")));
        let key = daemon.split(' ').next().unwrap();
        assert!(found.len() == 1 && found[0].contains(key), "{found:#?}");
    }
    let wrong = one(GATEWAY, "pool", "mode = \"transport\"\npool");
    assert!(wrong.contains("pool does not go with"), "{wrong}");
    let child = "[[connection.child]]\nname = \"gre\"\nmode = \"transport\"\n";
    let found = problems(&format!("{CLIENT}{child}"));
    assert!(found.len() == 1 && found[0].contains("virtual_ip does not go"), "{found:#?}");
}
