//! What `swanctl --list-sas --pretty` says.

use std::net::{IpAddr, SocketAddr};

use crate::failure::{Context, Result};
use crate::peer::{ChildView, SaView, spi};

#[derive(Default)]
struct Raw {
    established: bool,
    spis: (String, String),
    local: (String, String),
    remote: (String, String),
    virtual_ips: Vec<IpAddr>,
    algorithms: Algorithms,
    children: Vec<ChildView>,
}

#[derive(Default)]
struct RawChild {
    installed: bool,
    spi_in: String,
    spi_out: String,
    algorithms: Algorithms,
}

#[derive(Default)]
struct Algorithms {
    encryption: String,
    key_bits: String,
    integrity: String,
    prf: String,
    key_exchange: String,
    esn: bool,
}

/// Reads it: a section opens with `name {`, a list with `name = [`, each closes on a line of its own.
///
/// # Errors
/// An address or an SPI that is none.
pub fn sas_in(text: &str) -> Result<Vec<SaView>> {
    let mut found = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    let mut raw = Raw::default();
    let mut child = RawChild::default();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix('{').or_else(|| line.strip_suffix("= [")) {
            path.push(name.trim());
            match path.len() {
                2 => raw = Raw::default(),
                4 => child = RawChild::default(),
                _ => {}
            }
        } else if line == "}" || line == "]" {
            match path.len() {
                2 if raw.established => found.push(std::mem::take(&mut raw).view()?),
                4 if child.installed => raw.children.push(std::mem::take(&mut child).view()?),
                _ => {}
            }
            path.pop();
        } else if let Some((key, value)) = line.split_once(" = ") {
            match path.len() {
                2 => raw.set(key, value),
                4 => child.set(key, value),
                _ => {}
            }
        } else if matches!(path.get(2), Some(&"local-vips" | &"remote-vips")) {
            raw.virtual_ips.extend(line.parse::<IpAddr>());
        }
    }
    Ok(found)
}

impl Raw {
    fn set(&mut self, key: &str, value: &str) {
        match key {
            "state" => self.established = value == "ESTABLISHED",
            "initiator-spi" => self.spis.0 = value.to_owned(),
            "responder-spi" => self.spis.1 = value.to_owned(),
            "local-host" => self.local.0 = value.to_owned(),
            "local-port" => self.local.1 = value.to_owned(),
            "remote-host" => self.remote.0 = value.to_owned(),
            "remote-port" => self.remote.1 = value.to_owned(),
            _ => self.algorithms.set(key, value),
        }
    }

    fn view(self) -> Result<SaView> {
        let end = |(host, port): &(String, String)| -> Result<SocketAddr> {
            let host: IpAddr = host.parse().context(format!("address {host}"))?;
            let port = port.parse().context(format!("port {port}"))?;
            Ok(SocketAddr::new(host, port))
        };
        Ok(SaView {
            spis: format!("{:0>16} {:0>16}", self.spis.0, self.spis.1),
            local: end(&self.local)?,
            remote: end(&self.remote)?,
            virtual_ips: self.virtual_ips,
            dns: Vec::new(),
            suite: Some([self.algorithms.suite(), self.algorithms.beyond()].join("-")),
            children: self.children,
        })
    }
}

impl RawChild {
    fn set(&mut self, key: &str, value: &str) {
        match key {
            "state" => self.installed = value == "INSTALLED",
            "spi-in" => self.spi_in = value.to_owned(),
            "spi-out" => self.spi_out = value.to_owned(),
            _ => self.algorithms.set(key, value),
        }
    }

    fn view(self) -> Result<ChildView> {
        Ok(ChildView {
            spi_in: spi(&self.spi_in)?,
            spi_out: spi(&self.spi_out)?,
            suite: self.algorithms.suite(),
            beyond: Some(self.algorithms.beyond()),
        })
    }
}

impl Algorithms {
    fn set(&mut self, key: &str, value: &str) {
        match key {
            "encr-alg" => self.encryption = value.to_owned(),
            "encr-keysize" => self.key_bits = value.to_owned(),
            "integ-alg" => self.integrity = value.to_owned(),
            "prf-alg" => self.prf = value.to_owned(),
            "dh-group" => self.key_exchange = value.to_owned(),
            "esn" => self.esn = value == "1",
            _ => {}
        }
    }

    /// In the words of the configurations; what has none stays as it is.
    fn suite(&self) -> String {
        let bits = &self.key_bits;
        let encryption = match self.encryption.as_str() {
            "AES_GCM_16" => format!("aes{bits}gcm16"),
            "AES_CBC" => format!("aes{bits}"),
            "CHACHA20_POLY1305" => "chacha20poly1305".to_owned(),
            other => other.to_owned(),
        };
        let hash = |name: &str, before: &str| {
            let bits = name.strip_prefix(before)?.split('_').next()?;
            Some(format!("sha{bits}"))
        };
        let integrity = hash(&self.integrity, "HMAC_SHA2_").or(word(&self.integrity));
        let prf = hash(&self.prf, "PRF_HMAC_SHA2_").map(|hash| format!("prf{hash}"));
        let words = [Some(encryption), integrity, prf.or(word(&self.prf))];
        words.into_iter().flatten().collect::<Vec<_>>().join("-")
    }

    /// What follows them: the key exchange and `esn`.
    fn beyond(&self) -> String {
        let exchange = match self.key_exchange.as_str() {
            "CURVE_25519" => Some("x25519".to_owned()),
            other => word(&other.replace('_', "").to_lowercase()),
        };
        let esn = self.esn.then(|| "esn".to_owned());
        exchange.into_iter().chain(esn).collect::<Vec<_>>().join("-")
    }
}

fn word(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
list-sa event {
  tunnel {
    uniqueid = 1
    state = ESTABLISHED
    local-host = 192.0.2.1
    local-port = 4500
    local-id = vpn.example.com
    remote-host = 203.0.113.9
    remote-port = 21908
    initiator-spi = 84caa0b1d1ae90f5
    responder-spi = 8e38f5c41e5b3ab
    encr-alg = AES_CBC
    encr-keysize = 128
    integ-alg = HMAC_SHA2_256_128
    prf-alg = PRF_HMAC_SHA2_256
    dh-group = MODP_2048
    remote-vips = [
      10.9.0.1
    ]
    child-sas {
      net-1 {
        name = net
        state = DELETED
        local-ts = [
          10.1.0.0/16
        ]
      }
      net-3 {
        name = net
        state = INSTALLED
        spi-in = 00ca4bd2
        spi-out = c9c1a12e
        encr-alg = AES_GCM_16
        encr-keysize = 256
        dh-group = ECP_256
        esn = 1
        remote-ts = [
          10.9.0.1/32
        ]
      }
    }
  }
}
list-sa event {
  tunnel {
    state = CONNECTING
    local-host = 192.0.2.1
    child-sas {
    }
  }
}
list-sas reply {
}
";

    #[test]
    fn only_established_sas_and_installed_children_count() {
        let sas = sas_in(LISTED).unwrap_or_default();
        let expected = SaView {
            spis: "84caa0b1d1ae90f5 08e38f5c41e5b3ab".to_owned(),
            local: SocketAddr::from(([192, 0, 2, 1], 4500)),
            remote: SocketAddr::from(([203, 0, 113, 9], 21908)),
            virtual_ips: vec![IpAddr::from([10, 9, 0, 1])],
            dns: Vec::new(),
            suite: Some("aes128-sha256-prfsha256-modp2048".to_owned()),
            children: vec![ChildView {
                spi_in: 0x00ca_4bd2,
                spi_out: 0xc9c1_a12e,
                suite: "aes256gcm16".to_owned(),
                beyond: Some("ecp256-esn".to_owned()),
            }],
        };
        assert_eq!(sas, [expected]);
    }

    #[test]
    fn no_sas_is_an_empty_list() {
        assert_eq!(sas_in("list-sas reply {\n}\n").map(|sas| sas.len()).ok(), Some(0));
    }
}
