//! What MOBIKE asks of both ends (RFC 4555).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::frame::{FRESH, Frame, Ike};
use super::{IKE_AUTH, ikes};
use crate::fail;
use crate::failure::{Context, Result};
use crate::topology::GATEWAYS;

/// RFC 7296 §3.1.
const INFORMATIONAL: u8 = 37;

/// NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP (RFC 7296 §3.10.1).
const NAT_DETECTION: [u32; 2] = [16388, 16389];
/// How many digits of hex they hold: SHA-1 (RFC 7296 §2.23).
const HASH: usize = 40;

/// RFC 4555 §4.2.
const MOBIKE_SUPPORTED: u32 = 16396;
const UPDATE_SA_ADDRESSES: u32 = 16400;
const COOKIE2: u32 = 16401;
const NO_NATS_ALLOWED: u32 = 16402;

/// The payload with what a CHILD_SA is to have (RFC 7296 §3.2).
const SECURITY_ASSOCIATION: u8 = 33;

/// Holds a capture against all rules of MOBIKE, with the configurations beside it.
///
/// # Errors
/// The rule that is broken, and the number of a frame.
pub fn judge(frames: &[Frame], place: Option<&Path>) -> Result<()> {
    let mobike = is_agreed(place)?;
    where_it_must_be(frames, mobike)?;
    cookies_come_back(frames)?;
    if !mobike {
        return not_agreed_on(frames);
    }
    detection_is_answered(frames)?;
    let bewick = |end: &str| {
        let file = place.map(|place| place.join(format!("{end}-bewick.toml")));
        file.and_then(|file| fs::read_to_string(file).ok())
    };
    if bewick("client").is_some() {
        updates_detect_nats(frames)?;
    }
    // What is said in a stream is not looked at, nor what moves because of it.
    if bewick("gateway").is_some_and(|text| !text.contains("tcp_listen")) {
        moves_are_told(frames)?;
    }
    Ok(())
}

/// Whether both ends are told to use MOBIKE.
fn is_agreed(place: Option<&Path>) -> Result<bool> {
    let Some(place) = place else { return Ok(true) };
    for entry in fs::read_dir(place).context(place.display())? {
        let path = entry.context(place.display())?.path();
        // swanctl has a folder of its own.
        if path.is_dir() && !is_agreed(Some(&path))? {
            return Ok(false);
        }
        if path.extension().is_some_and(|end| end == "toml" || end == "conf") {
            let text = fs::read_to_string(&path).context(path.display())?;
            if text.contains("mobike = false") || text.contains("mobike = no") {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// RFC 4555 §3.2, §3.5: MOBIKE_SUPPORTED goes with SA in IKE_AUTH, from both ends; the client alone updates, and says
/// nothing of it in an answer.
fn where_it_must_be(frames: &[Frame], mobike: bool) -> Result<()> {
    for (frame, ike) in ikes(frames).filter(|(_, ike)| ike.is_open) {
        let number = frame.number;
        let says = |kind| ike.notifies.contains(&kind);
        let makes_child = ike.payloads.contains(&SECURITY_ASSOCIATION);
        if ike.exchange == IKE_AUTH && makes_child && mobike && !says(MOBIKE_SUPPORTED) {
            return Err(fail!("frame {number}: IKE_AUTH without MOBIKE_SUPPORTED"));
        }
        if ike.exchange != IKE_AUTH && says(MOBIKE_SUPPORTED) {
            return Err(fail!("frame {number}: MOBIKE_SUPPORTED outside of IKE_AUTH"));
        }
        let from_gateway = frame.ends.is_some_and(|(from, _)| GATEWAYS.contains(&from.ip()));
        let misplaced = ike.is_response || from_gateway || ike.exchange != INFORMATIONAL;
        if says(UPDATE_SA_ADDRESSES) && misplaced {
            return Err(fail!("frame {number}: UPDATE_SA_ADDRESSES where it must not be"));
        }
    }
    Ok(())
}

/// RFC 4555 §3.2: where an end has it off, no answer says MOBIKE_SUPPORTED, and nobody updates.
fn not_agreed_on(frames: &[Frame]) -> Result<()> {
    for (frame, ike) in ikes(frames).filter(|(_, ike)| ike.is_open) {
        let says = |kind| ike.notifies.contains(&kind);
        if (ike.is_response && says(MOBIKE_SUPPORTED)) || says(UPDATE_SA_ADDRESSES) {
            return Err(fail!("frame {}: MOBIKE, which an end has off", frame.number));
        }
    }
    Ok(())
}

/// Names a question and its answer: the exchange, and whether the IKE_SA's initiator has asked.
fn question(ike: &Ike) -> ((String, String, u8, u32), bool) {
    (ike.name(), ike.is_response != ike.by_initiator)
}

/// The octets of the COOKIE2 in a message; of all that may be one, where tshark has not given the data of each notify.
fn cookies(ike: &Ike) -> BTreeSet<&str> {
    let data = ike.data.iter().map(String::as_str);
    if ike.data.len() == ike.notifies.len() {
        let both = ike.notifies.iter().zip(data);
        return both.filter(|(kind, _)| **kind == COOKIE2).map(|(_, data)| data).collect();
    }
    // RFC 4555 §4.2.5: 8 to 64 octets.
    data.filter(|data| (16..=128).contains(&data.len()) && data.len() != HASH).collect()
}

/// RFC 4555 §3.7: an answer has the COOKIE2 of the question, octet by octet, and none if that had none.
fn cookies_come_back(frames: &[Frame]) -> Result<()> {
    let mut sent: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    let open = ikes(frames).filter(|(_, ike)| ike.is_open && ike.exchange == INFORMATIONAL);
    for (frame, ike) in open {
        let number = frame.number;
        let has_one = ike.notifies.contains(&COOKIE2);
        if !ike.is_response {
            if has_one {
                sent.entry(question(ike)).or_default().extend(cookies(ike));
            }
            continue;
        }
        match (sent.get(&question(ike)), has_one) {
            (None, false) => {}
            (None, true) => return Err(fail!("frame {number}: a COOKIE2 that nobody has sent")),
            (Some(_), false) => {
                return Err(fail!("frame {number}: an answer without the question's COOKIE2"));
            }
            (Some(sent), true) if sent.is_disjoint(&cookies(ike)) => {
                return Err(fail!("frame {number}: another COOKIE2 than the question's"));
            }
            (Some(_), true) => {}
        }
    }
    Ok(())
}

/// RFC 4555 §3.8: what asks whether there is a NAT has an answer that says so too.
fn detection_is_answered(frames: &[Frame]) -> Result<()> {
    let mut asked = BTreeSet::new();
    let open = ikes(frames).filter(|(_, ike)| ike.is_open && ike.exchange == INFORMATIONAL);
    for (frame, ike) in open {
        let detects = NAT_DETECTION.iter().all(|kind| ike.notifies.contains(kind));
        if !ike.is_response && detects {
            asked.insert(question(ike));
        } else if ike.is_response && !detects && asked.contains(&question(ike)) {
            return Err(fail!("frame {}: an answer without NAT_DETECTION_*_IP", frame.number));
        }
    }
    Ok(())
}

/// RFC 4555 §3.5, §3.9: an update lets the gateway see whether there is a NAT, or says that there must be none. The RFC
/// leaves it open whether NAT traversal is turned on or off by each update; bewick has each do so.
fn updates_detect_nats(frames: &[Frame]) -> Result<()> {
    for (frame, ike) in ikes(frames).filter(|(_, ike)| ike.is_open) {
        let says = |kind| ike.notifies.contains(&kind);
        let detects = NAT_DETECTION.into_iter().all(says);
        if says(UPDATE_SA_ADDRESSES) && !detects && !says(NO_NATS_ALLOWED) {
            return Err(fail!("frame {}: an update without NAT_DETECTION_*_IP", frame.number));
        }
    }
    Ok(())
}

/// RFC 4555 §3.5: a gateway sends ESP to another address only once an update has come from there. Another port of the
/// same address is a NAT's, and may be followed (§3.8).
fn moves_are_told(frames: &[Frame]) -> Result<()> {
    if ikes(frames).any(|(_, ike)| ike.is_sealed && !ike.is_open) {
        // An update may be among what can't be read.
        return Ok(());
    }
    let updates: Vec<(u64, IpAddr)> = ikes(frames)
        .filter(|(_, ike)| !ike.is_response && ike.notifies.contains(&UPDATE_SA_ADDRESSES))
        .filter_map(|(frame, _)| Some((frame.number, frame.ends?.0.ip())))
        .collect();
    // By SPI where its packets go, and the number of the update that has brought them there.
    let mut at: BTreeMap<u32, (IpAddr, u64)> = BTreeMap::new();
    for frame in frames.iter().filter(|frame| frame.came_in && frame.hops >= FRESH) {
        let (Some((from, to)), Some((spi, _))) = (frame.ends, frame.esp) else { continue };
        if !GATEWAYS.contains(&from.ip()) {
            continue;
        }
        let (place, since) = at.entry(spi).or_insert((to.ip(), 0));
        if *place == to.ip() {
            continue;
        }
        let told = updates
            .iter()
            .find(|(number, from)| *from == to.ip() && *number > *since && *number < frame.number);
        match told {
            Some((number, _)) => (*place, *since) = (to.ip(), *number),
            None => {
                return Err(fail!("frame {}: ESP to {} before an update", frame.number, to.ip()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::frame::made::{CLIENT, GATEWAY, esp, line};
    use super::*;

    const ELSEWHERE: &str = "203.0.113.2";
    const COOKIE: &str = "9e5b4e29488e3c43e6e72175d8884ba9";

    fn with(mut frame: Frame, data: &[&str]) -> Frame {
        if let Some(ike) = &mut frame.ike {
            ike.data = data.iter().map(|data| (*data).to_owned()).collect();
        }
        frame
    }

    #[test]
    fn mobike_in_the_wrong_place_is_found() {
        let update = |from, to, response| {
            [line((1, 4), (from, to), (37, response, 2), "46;41", "16400;16401")]
        };
        assert!(where_it_must_be(&update(CLIENT, GATEWAY, false), true).is_ok());
        assert!(where_it_must_be(&update(CLIENT, GATEWAY, true), true).is_err());
        assert!(where_it_must_be(&update(GATEWAY, CLIENT, false), true).is_err());
        let auth = |notifies| [line((1, 4), (CLIENT, GATEWAY), (35, false, 1), "46;33", notifies)];
        assert!(where_it_must_be(&auth("16396"), true).is_ok());
        assert!(where_it_must_be(&auth(""), true).is_err());
        assert!(where_it_must_be(&auth(""), false).is_ok());
        assert!(not_agreed_on(&auth("16396")).is_ok(), "one end may offer it");
        assert!(not_agreed_on(&update(CLIENT, GATEWAY, false)).is_err());
        let agreed = [line((1, 4), (GATEWAY, CLIENT), (35, true, 1), "46;33", "16396")];
        assert!(not_agreed_on(&agreed).is_err());
    }

    #[test]
    fn a_cookie_that_does_not_come_back_is_found() {
        let hash = "0e30a45d66a2a96839250d57a24e498bc0e1c693";
        let ask = line((1, 4), (CLIENT, GATEWAY), (37, false, 2), "46;41;41", "16400;16401");
        let ask = with(ask, &["<MISSING>", COOKIE]);
        let answer = |id, notifies, data: &[&str]| {
            with(line((2, 0), (GATEWAY, CLIENT), (37, true, id), "46;41;41", notifies), data)
        };
        let judged = |ask: &Frame, answer: Frame| cookies_come_back(&[ask.clone(), answer]);
        assert!(judged(&ask, answer(2, "16388;16401", &[hash, COOKIE])).is_ok());
        assert!(judged(&ask, answer(2, "16388", &[hash])).is_err(), "none");
        assert!(judged(&ask, answer(2, "16388;16401", &[COOKIE, hash])).is_err(), "another");
        assert!(judged(&ask, answer(9, "16401", &[COOKIE])).is_err(), "nobody has sent it");
        // One that leaves out what is empty.
        let ask = with(ask, &[COOKIE]);
        assert!(judged(&ask, answer(2, "16401", &[COOKIE])).is_ok());
        assert!(judged(&ask, answer(2, "16401", &["00112233445566778899aabbccddeeff"])).is_err());
    }

    #[test]
    fn a_nat_that_nobody_looks_for_is_found() {
        let ask = |notifies| line((1, 4), (CLIENT, GATEWAY), (37, false, 2), "46;41", notifies);
        let answer = |notifies| line((2, 0), (GATEWAY, CLIENT), (37, true, 2), "46;41", notifies);
        assert!(updates_detect_nats(&[ask("16400;16388;16389")]).is_ok());
        assert!(updates_detect_nats(&[ask("16400;16402")]).is_ok());
        assert!(updates_detect_nats(&[ask("16400;16388")]).is_err());
        assert!(updates_detect_nats(&[ask("")]).is_ok());
        assert!(detection_is_answered(&[ask("16388;16389"), answer("16388;16389")]).is_ok());
        assert!(detection_is_answered(&[ask("16388;16389"), answer("16388")]).is_err());
        assert!(detection_is_answered(&[ask(""), answer("")]).is_ok());
    }

    #[test]
    fn esp_that_goes_where_no_update_came_from_is_found() {
        let update = |number, from| {
            line((number, 4), (from, GATEWAY), (37, false, 2), "46;41", "16400;16388;16389")
        };
        let [here, there] =
            [CLIENT, ELSEWHERE].map(|to| move |number| esp(number, to, number as u32, 64));
        assert!(moves_are_told(&[here(1), update(2, ELSEWHERE), there(3), there(4)]).is_ok());
        assert!(moves_are_told(&[here(1), there(2), update(3, ELSEWHERE)]).is_err(), "too late");
        assert!(moves_are_told(&[here(1), update(2, CLIENT), there(3)]).is_err());
        let back = [here(1), update(2, ELSEWHERE), there(3), update(4, CLIENT), here(5)];
        assert!(moves_are_told(&back).is_ok());
        let unasked = [update(1, CLIENT), here(2), update(3, ELSEWHERE), there(4), here(5)];
        assert!(moves_are_told(&unasked).is_err(), "an update of long ago");
        assert!(moves_are_told(&[esp(1, GATEWAY, 1, 64), there(2)]).is_ok(), "its own packets");
    }
}
