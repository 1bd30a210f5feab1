//! The binary as an operator meets it: what it prints, where, and its exit status.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const CLIENT: &str = r#"[[connection]]
name = "office"
role = "initiator"
gateway = "192.0.2.1"
local_id = "laptop@example.com"
remote_id = "vpn.example.com"
psk_file = "psk"
remote_ts = ["10.1.0.0/16"]
virtual_ip = true
"#;

/// A folder of its own, with a configuration and a secret in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, config: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("bewick-command-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("b.toml"), config).unwrap();
        fs::write(folder.join("psk"), "swordfish\n").unwrap();
        fs::set_permissions(folder.join("psk"), fs::Permissions::from_mode(0o600)).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bewick(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bewick"))
        .args(arguments)
        .env_remove("BEWICK_CONTROL")
        .current_dir(folder)
        .output()
        .unwrap()
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

#[test]
fn a_right_configuration_passes_the_check() {
    let folder = Folder::new("right", CLIENT);
    let output = bewick(&folder.0, &["run", "--config", "b.toml", "--check"]);
    assert_eq!(text(&output.stdout), "b.toml: 1 connection, no mistakes\n");
    assert_eq!(output.status.code(), Some(0));
    let output = bewick(&folder.0, &["run", "--config", "b.toml", "--check", "--json"]);
    assert_eq!(text(&output.stdout), "{\"connections\":1,\"ok\":true}\n");
}

#[test]
fn with_a_mistake_nothing_is_started() {
    let folder = Folder::new("wrong", &CLIENT.replace("gateway", "gatewya"));
    let control = folder.0.join("run/control.sock");
    let arguments = ["run", "--config", "b.toml", "--control", control.to_str().unwrap()];
    let output = bewick(&folder.0, &arguments);
    assert_eq!(
        text(&output.stderr),
        "b.toml:1:1: gateway is missing; expected gateway = \"a name or an address\"\n\
         b.toml:4:1: unknown key gatewya in [[connection]]; did you mean gateway?\n\
         bewick: mistakes in b.toml; nothing was started\n"
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty() && !folder.0.join("run").exists());
}

#[test]
fn a_secret_that_others_can_read_is_a_mistake() {
    let folder = Folder::new("open", CLIENT);
    fs::set_permissions(folder.0.join("psk"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = bewick(&folder.0, &["run", "--config", "b.toml"]);
    assert_eq!(
        text(&output.stderr),
        "b.toml:7:12: psk_file psk can be read by others than its owner; do `chmod 0600 psk`\n\
         bewick: one mistake in b.toml; nothing was started\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn without_a_daemon_there_is_a_remedy() {
    let folder = Folder::new("none", CLIENT);
    let output = bewick(&folder.0, &["status", "--control", "c.sock"]);
    assert_eq!(
        text(&output.stderr),
        "bewick: no daemon answers at c.sock: is `bewick run` running? If its socket is elsewhere, \
         say --control PATH or set BEWICK_CONTROL\n"
    );
    assert_eq!(output.status.code(), Some(1));
    let output = bewick(&folder.0, &["up", "office", "--json", "--control", "c.sock"]);
    assert!(
        text(&output.stdout).starts_with("{\"error\":\"no daemon answers at c.sock\",\"ok\":false")
    );
    assert!(output.stderr.is_empty());
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    let folder = Folder::new("usage", CLIENT);
    let output = bewick(&folder.0, &["move", "office"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--to <ADDRESS|INTERFACE>"));
}
