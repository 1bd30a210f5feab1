//! No secret in any log line: a whole life of a tunnel is traced at TRACE, and everything that has a
//! `Debug` is printed besides; none of it holds an octet string of a key.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use bewick_ike::{ChildSa, ConnectionId};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Plan,
    lab::{client_config, psk},
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
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(lines.clone())
        .finish();
    let mut secrets = vec![psk().expose().to_vec()];
    let mut printed = String::new();
    tracing::subscriber::with_default(subscriber, || {
        tracing::trace!("the log is on");
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
    printed += &String::from_utf8_lossy(&lines.0.lock().expect("nobody writes any more"));
    assert!(printed.contains("the log is on") && printed.contains("rekeys the CHILD_SA"));
    assert!(secrets.len() > 8);
    for secret in secrets {
        for form in prints(&secret) {
            assert!(!printed.contains(&form), "a secret is printed");
        }
    }
}
