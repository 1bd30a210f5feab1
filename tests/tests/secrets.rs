//! No secret in any log line: a whole life of a tunnel is traced at TRACE, and everything that has a
//! `Debug` is printed besides; none of it holds an octet string of a key.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use bewick_ike::{
    ChildSa, ConnectionId,
    auth::{RemoteAuth, RevocationPolicy},
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Plan,
    lab::{client_config, psk},
    pki::{holder_params, root},
};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("one writer at a time").extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;
    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

/// The ways in which a program prints octets, long enough not to match by chance.
fn prints(secret: &[u8]) -> Vec<String> {
    let part = &secret[..secret.len().min(12)];
    let hex: String = part.iter().map(|octet| format!("{octet:02x}")).collect();
    let decimal: Vec<String> = part.iter().map(u8::to_string).collect();
    let spaced: Vec<String> = part.iter().map(|octet| format!("{octet:02x}")).collect();
    vec![
        hex.to_uppercase(),
        hex,
        decimal.join(", "),
        spaced.join(" "),
        String::from_utf8_lossy(part).into_owned(),
    ]
}

fn keys(child: &ChildSa) -> impl Iterator<Item = Vec<u8>> {
    [&child.keys_in, &child.keys_out]
        .map(|keys| [keys.encryption.expose().to_vec(), keys.integrity.expose().to_vec()])
        .into_iter()
        .flatten()
        .filter(|key| !key.is_empty())
}

#[test]
fn no_key_is_in_the_log_or_in_a_debug_print() {
    let mut secrets = vec![psk().expose().to_vec()];
    let mut printed = String::new();
    let log = logged(|| {
        let mut lab = Lab::established(Plan::default());
        for _ in 0..2 {
            for end in [lab.client, lab.gateway] {
                for child in lab.children(end) {
                    secrets.extend(keys(&child));
                    printed += &format!("{child:?} {child:#?}");
                }
            }
            lab.world.command(lab.client, Command::Rekey(ConnectionId(0))).expect("a rekey");
            lab.rest();
            let lte = lab.lte();
            lab.move_to(lte);
            lab.rest();
        }
        lab.world.command(lab.client, Command::Down(ConnectionId(0))).expect("its end");
        lab.rest();
        printed += &format!("{:?} {:?}", lab.events(lab.client), client_config());
        printed += &lab.story();
    });
    printed += &log;
    assert!(printed.contains("the log is on") && printed.contains("rekeys or makes a CHILD_SA"));
    assert!(secrets.len() > 8);
    for secret in secrets {
        for form in prints(&secret) {
            assert!(!printed.contains(&form), "a secret is printed");
        }
    }
}

/// What is logged at TRACE while `work` runs.
fn logged(work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(lines.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        tracing::trace!("the log is on");
        work();
    });
    let lines = lines.0.lock().expect("nobody writes any more");
    String::from_utf8_lossy(&lines).into_owned()
}

#[test]
fn no_private_key_is_in_the_log_of_a_set_up_with_certificates() {
    let root = root("root");
    let laptop = root.certify(holder_params("laptop@example.com"));
    let vpn = root.certify(holder_params("vpn.example.com"));
    let mut plan = Plan::default();
    (plan.client.local_auth, plan.client.remote_auth) = (laptop.as_local(), root.as_remote());
    (plan.gateway.local_auth, plan.gateway.remote_auth) = (vpn.as_local(), root.as_remote());
    let mut printed = format!("{:?} {:?}", plan.client, plan.gateway);
    printed += &logged(|| printed_story(plan));
    assert!(printed.contains("the log is on"));
    for holder in [&laptop, &vpn] {
        // PKCS#8 of a P-256 key: the scalar is the OCTET STRING of 32 octets from here on.
        let file = holder.key.serialized_der();
        assert_eq!(file[34..36], [0x04, 0x20]);
        for form in prints(&file[36..68]) {
            assert!(!printed.contains(&form), "a private key is printed");
        }
    }
}

fn printed_story(plan: Plan) {
    let lab = Lab::established(plan);
    tracing::trace!("{}", lab.story());
}

#[test]
fn a_certificate_that_no_fresh_list_speaks_for_is_told_in_the_log() {
    let root = root("root");
    let laptop = root.certify(holder_params("laptop@example.com"));
    let vpn = root.certify(holder_params("vpn.example.com"));
    let log = |until| {
        let mut trust = root.trust().with_revocation_policy(RevocationPolicy::Relaxed);
        trust.add_revocation_lists(&root.revocation_list(false, until)).expect("a list");
        let mut plan = Plan::default();
        (plan.client.local_auth, plan.client.remote_auth) = (laptop.as_local(), root.as_remote());
        plan.gateway.local_auth = vpn.as_local();
        plan.gateway.remote_auth = RemoteAuth::Certificate(Arc::new(trust));
        logged(|| printed_story(plan))
    };
    let is_told = |text: &str| {
        text.lines().any(|line| line.contains("WARN") && line.contains("is out of date"))
    };
    assert!(is_told(&log((2027, 1))));
    assert!(!is_told(&log((2027, 2))));
}
