use super::*;

#[test]
fn how_the_data_plane_carries_a_connection() {
    let client = |keys: &str| read(&format!("{CLIENT}{keys}")).unwrap().connections.remove(0).ike;
    let usual = client("").carriage;
    assert_eq!((usual.replay_window, usual.offload), (4096, false));
    let said = client("replay_window = 64\noffload = true\n").carriage;
    assert_eq!((said.replay_window, said.offload), (64, true));
    assert_eq!(
        problem("virtual_ip = true", "virtual_ip = true\nreplay_window = 5000"),
        "b.toml:10:17: replay_window is 5000; expected a number of packets from 64 to 4096"
    );
}

#[test]
fn no_network_card_helps_the_userspace_plane() {
    let text = format!("[daemon]\ndataplane = \"userspace\"\n{CLIENT}offload = true\n");
    let problems = problems(&text);
    assert_eq!(
        problems,
        [
            "b.toml:12:11: offload is true and dataplane is \"userspace\", which no network card can help; \
          remove offload, or let dataplane be \"kernel\""
        ]
    );
}

#[test]
fn two_connections_that_wait_for_one_packet_are_a_mistake() {
    let client = |name: &str| {
        CLIENT.replace("\"office\"", &format!("{name:?}")).replace("virtual_ip = true\n", "")
    };
    let waits = "start = \"trap\"\nlocal_ts = [\"10.7.0.0/16\"]\n";
    let text = format!("{}{waits}{}{waits}", client("one"), client("two"));
    assert_eq!(
        problems(&text),
        [
            "b.toml:19:1: start is \"trap\", and \"one\" waits for packets from 10.7.0.0/16 to 10.1.0.0/16 \
          too; let one of the two start otherwise, or give each its own local_ts, remote_ts or if_id"
        ]
    );
    let bad = problems(&format!("{}{waits}if_id = 0\n", client("one")));
    assert_eq!(bad.len(), 1, "a mistake is told once: {bad:#?}");
    read(&text.replacen("10.7.0.0/16", "10.8.0.0/16", 1)).expect("each has its own");
    read(&text.replacen(waits, &format!("{waits}if_id = 7\n"), 1)).expect("each has its own");
}

#[test]
fn an_xfrm_interface_is_the_kernels() {
    let text = format!("{CLIENT}if_id = 42\n");
    let if_id =
        |text: &str| read(text).unwrap().connections[0].ike.carriage.if_id.map(|id| id.get());
    assert_eq!((if_id(&text), if_id(CLIENT)), (Some(42), None));
    assert_eq!(if_id(&format!("[daemon]\ndataplane = \"kernel\"\n{text}")), Some(42));
    assert_eq!(if_id(&format!("{GATEWAY}if_id = 0xffffffff\n")), Some(u32::MAX));
    let found = problems(&format!("[daemon]\ndataplane = \"userspace\"\n{text}"));
    let line = CLIENT.lines().count() + 3;
    assert!(found.len() == 1 && found[0].starts_with(&format!("b.toml:{line}:")), "{found:?}");
    assert!(found[0].contains("remove if_id, or let dataplane be \"kernel\""), "{found:?}");
    let found = problems(&text.replace("42", "0"));
    assert!(found.len() == 1 && found[0].contains("if_id is 0"), "{found:?}");
}
