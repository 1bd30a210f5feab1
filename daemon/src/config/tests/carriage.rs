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
