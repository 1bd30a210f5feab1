//! The captures of a scenario, opened by tshark with the keys that bewick wrote down, and held against rules
//! that are true of every tunnel: another program than ours has to be able to read what was sent.

mod frame;
mod keys;
mod mobike;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::capture;
use crate::fail;
use crate::failure::{Context, Result};
use crate::process;
use crate::run::aside;
use crate::topology::GATEWAYS;
use frame::{FIELDS, FRESH, Frame, Ike, parse};
use keys::Keys;

/// RFC 7296 §3.1.
const IKE_AUTH: u8 = 35;

/// The payload that says who made the sender (RFC 7296 §3.12).
const VENDOR_ID: u8 = 43;
/// The notifies of private use that two Bewicks send each other.
const KIN: std::ops::RangeInclusive<u32> = 40_970..=40_973;

/// How long tshark may take for one capture.
const LIMIT: Duration = Duration::from_secs(120);

/// What stays of what tcpdump has written.
const KEPT: &str = "router.pcapng";

/// What was looked at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// IKE messages that were opened.
    pub opened: usize,
    /// IKE messages that nobody reads without keys, where bewick takes part.
    pub sealed: usize,
    /// ESP packets.
    pub esp: usize,
}

/// Judges every capture below this folder of an IKE_SA that bewick takes part in.
///
/// # Errors
/// The rule that a capture breaks, and the number of its frame; or what tshark said. There is no capture, or bewick
/// has not written down keys, or they open nothing.
pub fn judge(folder: &Path) -> Result<Judged> {
    let captures = captures(folder)?;
    if captures.is_empty() {
        return Err(fail!("there is no capture in {}", folder.display()));
    }
    let mut judged = Judged::default();
    for capture in captures {
        let place = capture.parent().unwrap_or(folder);
        let Some(keys) = keys::beside(place)? else { continue };
        let one = judge_one(&capture, &keys).context(capture.display())?;
        judged.opened += one.opened;
        judged.sealed += one.sealed;
        judged.esp += one.esp;
    }
    keys::have_opened(&judged)?;
    Ok(judged)
}

/// Makes pcapng of every capture below this folder.
///
/// # Errors
/// What editcap said.
pub fn keep(folder: &Path) -> Result<()> {
    for capture in captures(folder)? {
        if capture.extension().is_some_and(|end| end == "pcap") {
            let mut command = Command::new("editcap");
            command.args(["-F", "pcapng"]).arg(&capture).arg(capture.with_file_name(KEPT));
            process::output(&mut command, LIMIT)?;
            fs::remove_file(&capture).context(capture.display())?;
        }
    }
    Ok(())
}

fn captures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry.context(folder.display())?.path();
        if path.is_dir() {
            if !aside::is_aside(&path) {
                found.extend(captures(&path)?);
            }
        } else if [capture::FILE, KEPT].iter().any(|name| path.file_name() == Some(name.as_ref())) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn judge_one(capture: &Path, keys: &Keys) -> Result<Judged> {
    let mut command = Command::new("tshark");
    command.env("WIRESHARK_CONFIG_DIR", &keys.folder).args(["-n", "-r"]).arg(capture);
    // What UDP port 4500 carries tshark knows; a NAT's ports it does not, but the other side's is 4500.
    command.args(["-o", "esp.enable_encryption_decode:FALSE"]);
    // A stream has frames that are no packets, and may have a packet twice; an ICMP error quotes what somebody
    // else has sent: both are left alone. So is what programs try to get out with (port 9), which tshark takes
    // for whatever their ports would mean. A NAT may give one of two clients a port below 512 in place of 500, which
    // tshark takes for its owner's: of IKE_SA_INIT then nothing is seen.
    let carried = "(isakmp || esp || _ws.malformed) && !tcp && !icmp && !icmpv6 \
                   && !(udp.dstport == 9) && !(udp.port == 500 && !isakmp)";
    command.args(["-Y", carried, "-T", "fields"]);
    command.args(["-E", "separator=\t", "-E", "aggregator=;"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let text = process::output(&mut command, LIMIT)?;
    let frames: Vec<Frame> = text.lines().filter_map(parse).collect();
    well_formed(&frames)?;
    let sealed = ikes(&frames).filter(|(_, ike)| ike.is_sealed).count();
    let opened = opened(&frames, &keys.known)?;
    mobike::judge(&frames, capture.parent())?;
    kin_alone(&frames)?;
    let esp = no_number_twice(&frames)?;
    answers_go_back(&frames)?;
    Ok(Judged { opened, sealed, esp })
}

fn well_formed(frames: &[Frame]) -> Result<()> {
    match frames.iter().find(|frame| frame.malformed) {
        Some(frame) => Err(fail!("frame {} is malformed, tshark says", frame.number)),
        None => Ok(()),
    }
}

/// Every message behind IKE_SA_INIT of an IKE_SA whose keys are known can be opened.
fn opened(frames: &[Frame], known: &BTreeSet<String>) -> Result<usize> {
    let mut opened = 0;
    for (frame, ike) in ikes(frames) {
        if ike.is_open {
            opened += 1;
        } else if ike.is_sealed && known.contains(&ike.spi_i) {
            return Err(fail!("frame {} can't be opened with bewick's keys", frame.number));
        }
    }
    // An IKE_SA that is refused in IKE_SA_INIT has keys and no use for them.
    let sealed = ikes(frames).any(|(_, ike)| ike.is_sealed);
    if ikes(frames).next().is_none() || (opened == 0 && sealed && !known.is_empty()) {
        return Err(fail!("no message could be opened"));
    }
    Ok(opened)
}

fn ikes(frames: &[Frame]) -> impl Iterator<Item = (&Frame, &Ike)> {
    frames.iter().filter_map(|frame| Some((frame, frame.ike.as_ref()?)))
}

/// RFC 7296 §3.10.1: what Bewick's notifies of private use mean is agreed on by a Vendor ID, and nobody sends one to
/// who has not said in IKE_AUTH that it is one too.
fn kin_alone(frames: &[Frame]) -> Result<()> {
    let mut said: BTreeMap<&str, [bool; 2]> = BTreeMap::new();
    for (frame, ike) in ikes(frames).filter(|(_, ike)| ike.is_open) {
        if ike.exchange == IKE_AUTH {
            let [by_responder, by_initiator] = said.entry(&ike.spi_i).or_default();
            let says = if ike.by_initiator { by_initiator } else { by_responder };
            *says |= ike.payloads.contains(&VENDOR_ID);
        }
        let both = said.get(ike.spi_i.as_str()).is_none_or(|said| *said == [true; 2]);
        if !both && ike.notifies.iter().any(|kind| KIN.contains(kind)) {
            return Err(fail!("frame {}: a notify of Bewick's own to somebody else", frame.number));
        }
    }
    Ok(())
}

/// RFC 4303 §3.3.3: no sequence number of an SA comes twice, whatever becomes of its addresses. What the
/// router takes in is looked at, once: a gateway that has lost its address sends packets back to the
/// router, and those have fewer hops left than they had at first.
fn no_number_twice(frames: &[Frame]) -> Result<usize> {
    let mut seen: BTreeMap<(bool, u32, u32), (u64, u8)> = BTreeMap::new();
    for frame in frames.iter().filter(|frame| frame.came_in) {
        let (Some((_, to)), Some((spi, sequence))) = (frame.ends, frame.esp) else { continue };
        let key = (GATEWAYS.contains(&to.ip()), spi, sequence);
        let (number, hops) = (frame.number, frame.hops);
        let &mut (first, at_first) = seen.entry(key).or_insert((number, hops));
        if first != number && hops >= at_first {
            return Err(fail!(
                "frame {number}: number {sequence} of SPI {spi:08x}, as frame {first} had"
            ));
        }
    }
    Ok(seen.len())
}

/// RFC 7296 §2.11, RFC 4555 §1.2: an answer goes back on the pair that a copy of the question came on. Looked
/// at where the gateway is, behind all NATs of the client's.
fn answers_go_back(frames: &[Frame]) -> Result<()> {
    let mut asked = BTreeSet::new();
    for (frame, ike) in ikes(frames) {
        let Some((from, to)) = frame.ends else { continue };
        let by_gateway = GATEWAYS.contains(&from.ip());
        // What comes from the gateway is seen as it comes in, what goes to it as it goes out. What a NAT has
        // given back to the router comes in a second time.
        if by_gateway != frame.came_in || (by_gateway && frame.hops < FRESH) {
            continue;
        }
        let asker_is_gateway = by_gateway != ike.is_response;
        let exchange = (ike.name(), asker_is_gateway);
        if !ike.is_response {
            asked.insert((exchange, from, to));
        } else if !asked.contains(&(exchange, to, from)) {
            return Err(fail!(
                "frame {}: an answer from {from} to {to}, from where nobody had asked",
                frame.number
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::frame::made::{CLIENT, GATEWAY, esp, line};
    use super::*;

    #[test]
    fn a_number_that_comes_twice_is_found() {
        let good = [esp(1, GATEWAY, 1, 64), esp(2, CLIENT, 1, 64), esp(3, GATEWAY, 2, 64)];
        assert_eq!(no_number_twice(&good).expect("all differ"), 3);
        let bad = [esp(1, GATEWAY, 7, 64), esp(2, GATEWAY, 8, 64), esp(3, GATEWAY, 7, 64)];
        assert!(no_number_twice(&bad).is_err());
        let went_round = [esp(1, GATEWAY, 7, 64), esp(2, GATEWAY, 7, 62), esp(3, GATEWAY, 7, 60)];
        assert_eq!(no_number_twice(&went_round).expect("one packet"), 1);
    }

    #[test]
    fn an_answer_on_another_pair_is_found() {
        let ask = line((1, 4), (CLIENT, GATEWAY), (37, false, 2), "46;41", "16400");
        let good = line((2, 0), (GATEWAY, CLIENT), (37, true, 2), "46", "");
        let bad = line((2, 0), (GATEWAY, "198.51.100.130"), (37, true, 2), "46", "");
        let other = line((2, 0), (GATEWAY, CLIENT), (37, true, 3), "46", "");
        assert!(answers_go_back(&[ask.clone(), good]).is_ok());
        assert!(answers_go_back(&[ask.clone(), bad]).is_err());
        assert!(answers_go_back(&[ask, other]).is_err());
    }

    #[test]
    fn a_private_notify_to_somebody_else_is_found() {
        let auth = |from, to, response, payloads| {
            line((1, 4), (from, to), (35, response, 1), payloads, "16396")
        };
        let own = line((2, 4), (GATEWAY, CLIENT), (37, true, 2), "46;41", "40970");
        let asks = auth(CLIENT, GATEWAY, false, "46;33;43");
        let kin = auth(GATEWAY, CLIENT, true, "46;33;43");
        let other = auth(GATEWAY, CLIENT, true, "46;33");
        assert!(kin_alone(&[asks.clone(), kin, own.clone()]).is_ok());
        assert!(kin_alone(&[asks.clone(), other.clone()]).is_ok());
        assert!(kin_alone(&[asks, other, own.clone()]).is_err());
        // A successor has no IKE_AUTH of its own.
        assert!(kin_alone(&[own]).is_ok());
    }

    #[test]
    fn what_can_t_be_opened_or_is_malformed_is_found() {
        let open = line((1, 4), (CLIENT, GATEWAY), (37, false, 2), "46", "");
        let mut shut = open.clone();
        if let Some(ike) = &mut shut.ike {
            ike.is_open = false;
        }
        let known = BTreeSet::from(["0102030405060708".to_owned()]);
        assert_eq!(opened(std::slice::from_ref(&open), &known).expect("it is open"), 1);
        assert!(opened(&[open.clone(), shut.clone()], &known).is_err());
        assert!(
            opened(std::slice::from_ref(&shut), &BTreeSet::new()).is_ok(),
            "no keys of that one"
        );
        let mut plain = shut;
        if let Some(ike) = &mut plain.ike {
            ike.is_sealed = false;
        }
        assert_eq!(opened(&[plain], &known).expect("refused in IKE_SA_INIT"), 0);
        assert!(opened(&[], &known).is_err(), "a capture without IKE");
        let broken = Frame { malformed: true, ..open.clone() };
        assert!(well_formed(&[open]).is_ok() && well_formed(&[broken]).is_err());
    }
}
