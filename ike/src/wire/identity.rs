//! Identification payloads (RFC 7296 §3.5), identities as values, and patterns that they match.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use thiserror::Error;

use super::{error::WireError, reader::Reader};

/// The type of an identification; unknown values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdKind(pub u8);

impl IdKind {
    /// ID_IPV4_ADDR
    pub const IPV4: Self = Self(1);
    /// ID_FQDN
    pub const FQDN: Self = Self(2);
    /// ID_RFC822_ADDR
    pub const RFC822: Self = Self(3);
    /// ID_IPV6_ADDR
    pub const IPV6: Self = Self(5);
    /// ID_DER_ASN1_DN
    pub const DER_ASN1_DN: Self = Self(9);
    /// ID_DER_ASN1_GN
    pub const DER_ASN1_GN: Self = Self(10);
    /// ID_KEY_ID
    pub const KEY_ID: Self = Self(11);
    /// ID_NULL (RFC 7619)
    pub const NULL: Self = Self(13);
}

/// The body of an IDi or IDr payload, octet for octet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identification {
    /// what `data` is
    pub kind: IdKind,
    /// Zero when sent and ignored on receipt, but part of what AUTH signs (RFC 7296 §2.15).
    pub reserved: [u8; 3],
    /// the identity
    pub data: Vec<u8>,
}

impl Identification {
    /// A payload body to send.
    pub fn new(kind: IdKind, data: impl Into<Vec<u8>>) -> Self {
        Identification { kind, reserved: [0; 3], data: data.into() }
    }

    /// The octets that RFC 7296 §2.15 calls RestOfInitIDPayload or RestOfRespIDPayload.
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.kind.0];
        out.extend(self.reserved);
        out.extend(&self.data);
        out
    }

    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = IdKind(reader.u8("ID type")?);
        let reserved = reader.array("ID reserved field")?;
        Ok(Identification { kind, reserved, data: reader.rest().to_vec() })
    }
}

/// Who a peer says it is.
///
/// Equality is of octets; use [`Identity::is`] to ask whether two name the same peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR
    Address(IpAddr),
    /// ID_FQDN: printable ASCII
    Fqdn(String),
    /// ID_RFC822_ADDR: UTF-8 without control characters (RFC 7296 §3.5)
    Email(String),
    /// ID_KEY_ID
    KeyId(Vec<u8>),
    /// ID_DER_ASN1_DN
    DistinguishedName(Vec<u8>),
    /// any other type
    Other(IdKind, Vec<u8>),
}

/// Text in the configuration that is no identity or pattern.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Nothing at all.
    #[error("an identity must not be empty")]
    Empty,
    /// A character that its type forbids.
    #[error("{text:?} is no identity: {character:?} can't be in a name or address")]
    Character {
        /// the whole text
        text: String,
        /// the offending character
        character: char,
    },
    /// A `*` that is not in front of `@` or `.`.
    #[error("{0:?} is no pattern: write \"*\", \"*@example.com\" or \"*.example.com\"")]
    Pattern(String),
    /// No name in front of the `@` or no domain after it.
    #[error("{0:?} is no mail address: write \"name@example.com\"")]
    Email(String),
    /// `keyid:0x` with something else than pairs of hexadecimal digits.
    #[error("{0:?} is no key ID: after \"keyid:0x\" comes an even number of hexadecimal digits")]
    KeyId(String),
}

impl Identity {
    /// What the payload says; an error if its data can't be of its type.
    pub fn from_wire(wire: &Identification) -> Result<Self, WireError> {
        let mut reader = Reader::new(&wire.data);
        let identity = match wire.kind {
            IdKind::IPV4 => {
                let address = Ipv4Addr::from(reader.array("ID_IPV4_ADDR")?);
                reader.finish("ID_IPV4_ADDR")?;
                Identity::Address(address.into())
            }
            IdKind::IPV6 => {
                let address = Ipv6Addr::from(reader.array("ID_IPV6_ADDR")?);
                reader.finish("ID_IPV6_ADDR")?;
                Identity::Address(address.into())
            }
            IdKind::FQDN => Identity::Fqdn(text(&wire.data, "ID_FQDN", |c| c.is_ascii_graphic())?),
            IdKind::RFC822 => {
                Identity::Email(text(&wire.data, "ID_RFC822_ADDR", |c| !c.is_control())?)
            }
            IdKind::KEY_ID => Identity::KeyId(wire.data.clone()),
            IdKind::DER_ASN1_DN => Identity::DistinguishedName(wire.data.clone()),
            kind => Identity::Other(kind, wire.data.clone()),
        };
        Ok(identity)
    }

    /// The payload body that says this.
    pub fn to_wire(&self) -> Identification {
        match self {
            Identity::Address(IpAddr::V4(address)) => {
                Identification::new(IdKind::IPV4, address.octets())
            }
            Identity::Address(IpAddr::V6(address)) => {
                Identification::new(IdKind::IPV6, address.octets())
            }
            Identity::Fqdn(name) => Identification::new(IdKind::FQDN, name.as_bytes()),
            Identity::Email(name) => Identification::new(IdKind::RFC822, name.as_bytes()),
            Identity::KeyId(octets) => Identification::new(IdKind::KEY_ID, octets.as_slice()),
            Identity::DistinguishedName(octets) => {
                Identification::new(IdKind::DER_ASN1_DN, octets.as_slice())
            }
            Identity::Other(kind, octets) => Identification::new(*kind, octets.as_slice()),
        }
    }

    /// Whether both name the same peer: domains without regard to ASCII case, all else by octet.
    pub fn is(&self, other: &Identity) -> bool {
        match (self, other) {
            (Identity::Fqdn(a), Identity::Fqdn(b)) => a.eq_ignore_ascii_case(b),
            (Identity::Email(a), Identity::Email(b)) => {
                match (a.rsplit_once('@'), b.rsplit_once('@')) {
                    (Some((name_a, domain_a)), Some((name_b, domain_b))) => {
                        name_a == name_b && domain_a.eq_ignore_ascii_case(domain_b)
                    }
                    _ => a == b,
                }
            }
            _ => self == other,
        }
    }

    /// The one spelling of all identities that name this peer: equal for two exactly if
    /// [`Identity::is`] says that they are the same.
    pub fn canonical(&self) -> Identity {
        match self {
            Identity::Fqdn(name) => Identity::Fqdn(name.to_ascii_lowercase()),
            Identity::Email(address) => Identity::Email(match address.rsplit_once('@') {
                Some((name, domain)) => format!("{name}@{}", domain.to_ascii_lowercase()),
                None => address.clone(),
            }),
            _ => self.clone(),
        }
    }
}

/// The data as text of at least one character, all of which are `allowed`. NUL never is: a name
/// that ends early for one reader and late for another is a way to be taken for somebody else.
fn text(
    data: &[u8],
    what: &'static str,
    allowed: impl Fn(&char) -> bool,
) -> Result<String, WireError> {
    if data.is_empty() {
        return Err(WireError::Truncated { what, at: 0, needed: 1, left: 0 });
    }
    let text = std::str::from_utf8(data).map_err(|error| {
        let at = error.valid_up_to();
        WireError::Value { what, at, value: data.get(at).copied().unwrap_or_default().into() }
    })?;
    match text.char_indices().find(|(_, c)| !allowed(c)) {
        None => Ok(text.to_owned()),
        Some((at, c)) => Err(WireError::Value { what, at, value: u32::from(c).into() }),
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// An address, `name@domain`, `keyid:text`, `keyid:0x` and hexadecimal digits, or else a
    /// domain name.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.is_empty() {
            return Err(IdentityError::Empty);
        }
        if let Some(key_id) = text.strip_prefix("keyid:") {
            let octets = match key_id.strip_prefix("0x") {
                Some(digits) => {
                    hexadecimal(digits).ok_or_else(|| IdentityError::KeyId(text.to_owned()))?
                }
                None => key_id.as_bytes().to_vec(),
            };
            return if octets.is_empty() {
                Err(IdentityError::Empty)
            } else {
                Ok(Identity::KeyId(octets))
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Identity::Address(address));
        }
        if let Some((name, domain)) = text.rsplit_once('@') {
            let bad = |c: &char| c.is_control() || c.is_whitespace() || *c == '*';
            if let Some(character) = text.chars().find(bad) {
                return Err(IdentityError::Character { text: text.to_owned(), character });
            }
            if name.is_empty() || domain.is_empty() {
                return Err(IdentityError::Email(text.to_owned()));
            }
            return Ok(Identity::Email(text.to_owned()));
        }
        match text.chars().find(|c| !domain_character(*c)) {
            None => Ok(Identity::Fqdn(text.to_owned())),
            Some(character) => Err(IdentityError::Character { text: text.to_owned(), character }),
        }
    }
}

fn domain_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_bytes().as_chunks();
    if !rest.is_empty() {
        return None;
    }
    let digit = |octet: u8| char::from(octet).to_digit(16).and_then(|d| u8::try_from(d).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Octets of an identity that are shown: a peer may send 64 kB of it.
const MOST_SHOWN: usize = 128;

impl fmt::Display for Identity {
    /// In the words of the configuration; after 128 octets `…` stands for the rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, octets) = match self {
            Identity::Address(address) => return address.fmt(f),
            Identity::Fqdn(name) | Identity::Email(name) => {
                let fits = |at: &usize| name.is_char_boundary(*at);
                let cut = (0..=MOST_SHOWN.min(name.len())).rev().find(fits).unwrap_or_default();
                let (shown, rest) = name.split_at(cut);
                f.write_str(shown)?;
                return f.write_str(if rest.is_empty() { "" } else { "…" });
            }
            Identity::KeyId(octets) => {
                let plain = octets.iter().all(u8::is_ascii_graphic)
                    && !octets.starts_with(b"0x")
                    && octets.len() <= MOST_SHOWN;
                if let (true, Ok(text)) = (plain, std::str::from_utf8(octets)) {
                    return write!(f, "keyid:{text}");
                }
                ("keyid".to_owned(), octets)
            }
            Identity::DistinguishedName(octets) => ("dn".to_owned(), octets),
            Identity::Other(IdKind(kind), octets) => (format!("id-type-{kind}"), octets),
        };
        write!(f, "{name}:0x")?;
        octets.iter().take(MOST_SHOWN).try_for_each(|octet| write!(f, "{octet:02x}"))?;
        f.write_str(if octets.len() > MOST_SHOWN { "…" } else { "" })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which peers a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityPattern {
    /// `*`: whoever authenticates
    Any,
    /// `*@example.com`: every mail address of this one domain
    EmailDomain(String),
    /// `*.example.com`: every name below this domain, not the domain itself
    Subdomain(String),
    /// one peer
    Exactly(Identity),
}

impl IdentityPattern {
    /// Whether `identity` is one of those meant. An address or key ID never matches a domain.
    pub fn matches(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (IdentityPattern::Any, _) => true,
            (IdentityPattern::Exactly(wanted), identity) => wanted.is(identity),
            (IdentityPattern::EmailDomain(wanted), Identity::Email(address)) => {
                // A second @ would leave open which part is the domain.
                address.split_once('@').is_some_and(|(name, domain)| {
                    !name.is_empty() && domain.eq_ignore_ascii_case(wanted)
                })
            }
            (IdentityPattern::Subdomain(wanted), Identity::Fqdn(name)) => {
                // The dot in front of the domain is what keeps evilexample.com out.
                let split = name.len().checked_sub(wanted.len());
                split.and_then(|at| name.split_at_checked(at)).is_some_and(|(labels, domain)| {
                    labels.strip_suffix('.').is_some_and(|labels| !labels.is_empty())
                        && domain.eq_ignore_ascii_case(wanted)
                })
            }
            _ => false,
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = IdentityError;

    /// `*`, `*@domain`, `*.domain`, or what [`Identity`] is written as.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let domain = |domain: &str| match domain.chars().all(domain_character) && !domain.is_empty()
        {
            true => Ok(domain.to_owned()),
            false => Err(IdentityError::Pattern(text.to_owned())),
        };
        match text.strip_prefix('*') {
            None => Identity::from_str(text).map(IdentityPattern::Exactly),
            Some("") => Ok(IdentityPattern::Any),
            Some(rest) => match (rest.strip_prefix('@'), rest.strip_prefix('.')) {
                (Some(rest), _) => domain(rest).map(IdentityPattern::EmailDomain),
                (_, Some(rest)) => domain(rest).map(IdentityPattern::Subdomain),
                _ => Err(IdentityError::Pattern(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityPattern::Any => f.write_str("*"),
            IdentityPattern::EmailDomain(domain) => write!(f, "*@{domain}"),
            IdentityPattern::Subdomain(domain) => write!(f, "*.{domain}"),
            IdentityPattern::Exactly(identity) => identity.fmt(f),
        }
    }
}
