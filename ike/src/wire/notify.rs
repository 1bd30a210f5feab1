//! The Notify payload and its message types (RFC 7296 §3.10).

use std::fmt;

use super::{
    error::{TooLong, WireError},
    proposal::Protocol,
    reader::Reader,
    writer::octet,
};
use crate::EspSpi;

/// What a Notify says (RFC 7296 §3.10.1); unknown values are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NotifyType(pub u16);

macro_rules! notify_types {
    ($($name:ident = $value:literal, $source:literal;)*) => {
        impl NotifyType {
            $(
                #[doc = $source]
                pub const $name: Self = Self($value);
            )*

            /// The name in the IANA registry, if this implementation knows it.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

notify_types! {
    UNSUPPORTED_CRITICAL_PAYLOAD = 1, "RFC 7296 §2.5";
    INVALID_IKE_SPI = 4, "RFC 7296 §2.21";
    INVALID_MAJOR_VERSION = 5, "RFC 7296 §2.5";
    INVALID_SYNTAX = 7, "RFC 7296 §3.10.1";
    INVALID_MESSAGE_ID = 9, "RFC 7296 §2.3";
    INVALID_SPI = 11, "RFC 7296 §1.5";
    NO_PROPOSAL_CHOSEN = 14, "RFC 7296 §2.7";
    INVALID_KE_PAYLOAD = 17, "RFC 7296 §1.2";
    AUTHENTICATION_FAILED = 24, "RFC 7296 §2.21.2";
    SINGLE_PAIR_REQUIRED = 34, "RFC 7296 §2.9";
    NO_ADDITIONAL_SAS = 35, "RFC 7296 §1.3";
    INTERNAL_ADDRESS_FAILURE = 36, "RFC 7296 §3.15.4";
    FAILED_CP_REQUIRED = 37, "RFC 7296 §2.19";
    TS_UNACCEPTABLE = 38, "RFC 7296 §2.9";
    INVALID_SELECTORS = 39, "RFC 7296 §3.10.1";
    UNACCEPTABLE_ADDRESSES = 40, "RFC 4555 §4.1.1";
    UNEXPECTED_NAT_DETECTED = 41, "RFC 4555 §4.1.2";
    USE_ASSIGNED_HOA = 42, "RFC 5026";
    TEMPORARY_FAILURE = 43, "RFC 7296 §2.25";
    CHILD_SA_NOT_FOUND = 44, "RFC 7296 §2.25";
    INVALID_GROUP_ID = 45, "G-IKEv2";
    AUTHORIZATION_FAILED = 46, "G-IKEv2";
    STATE_NOT_FOUND = 47, "RFC 9370 §2.2.4";
    INITIAL_CONTACT = 16384, "RFC 7296 §2.4";
    SET_WINDOW_SIZE = 16385, "RFC 7296 §2.3";
    ADDITIONAL_TS_POSSIBLE = 16386, "RFC 7296 §2.9";
    IPCOMP_SUPPORTED = 16387, "RFC 7296 §2.22";
    NAT_DETECTION_SOURCE_IP = 16388, "RFC 7296 §2.23";
    NAT_DETECTION_DESTINATION_IP = 16389, "RFC 7296 §2.23";
    COOKIE = 16390, "RFC 7296 §2.6";
    USE_TRANSPORT_MODE = 16391, "RFC 7296 §1.3.1";
    HTTP_CERT_LOOKUP_SUPPORTED = 16392, "RFC 7296 §3.6";
    REKEY_SA = 16393, "RFC 7296 §1.3.3";
    ESP_TFC_PADDING_NOT_SUPPORTED = 16394, "RFC 7296 §1.3.1";
    NON_FIRST_FRAGMENTS_ALSO = 16395, "RFC 7296 §1.3.1";
    MOBIKE_SUPPORTED = 16396, "RFC 4555 §4.2.1";
    ADDITIONAL_IP4_ADDRESS = 16397, "RFC 4555 §4.2.2";
    ADDITIONAL_IP6_ADDRESS = 16398, "RFC 4555 §4.2.2";
    NO_ADDITIONAL_ADDRESSES = 16399, "RFC 4555 §4.2.3";
    UPDATE_SA_ADDRESSES = 16400, "RFC 4555 §4.2.4";
    COOKIE2 = 16401, "RFC 4555 §4.2.5";
    NO_NATS_ALLOWED = 16402, "RFC 4555 §4.2.6";
    AUTH_LIFETIME = 16403, "RFC 4478";
    MULTIPLE_AUTH_SUPPORTED = 16404, "RFC 4739";
    ANOTHER_AUTH_FOLLOWS = 16405, "RFC 4739";
    REDIRECT_SUPPORTED = 16406, "RFC 5685 §9.1";
    REDIRECT = 16407, "RFC 5685 §9.2";
    REDIRECTED_FROM = 16408, "RFC 5685 §9.3";
    TICKET_LT_OPAQUE = 16409, "RFC 5723 §7.1";
    TICKET_REQUEST = 16410, "RFC 5723 §4.1";
    TICKET_ACK = 16411, "RFC 5723 §4.1";
    TICKET_NACK = 16412, "RFC 5723 §4.3";
    TICKET_OPAQUE = 16413, "RFC 5723 §7.2";
    LINK_ID = 16414, "RFC 5739";
    USE_WESP_MODE = 16415, "RFC 5840";
    ROHC_SUPPORTED = 16416, "RFC 5857";
    EAP_ONLY_AUTHENTICATION = 16417, "RFC 5998 §3";
    CHILDLESS_IKEV2_SUPPORTED = 16418, "RFC 6023 §4";
    QUICK_CRASH_DETECTION = 16419, "RFC 6290 §4.1";
    IKEV2_MESSAGE_ID_SYNC_SUPPORTED = 16420, "RFC 6311 §6.1";
    IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED = 16421, "RFC 6311 §6.2";
    IKEV2_MESSAGE_ID_SYNC = 16422, "RFC 6311 §6.3";
    IPSEC_REPLAY_COUNTER_SYNC = 16423, "RFC 6311 §6.4";
    SECURE_PASSWORD_METHODS = 16424, "RFC 6467";
    PSK_PERSIST = 16425, "RFC 6631";
    PSK_CONFIRM = 16426, "RFC 6631";
    ERX_SUPPORTED = 16427, "RFC 6867";
    IFOM_CAPABILITY = 16428, "3GPP TS 24.303";
    SENDER_REQUEST_ID = 16429, "G-IKEv2";
    IKEV2_FRAGMENTATION_SUPPORTED = 16430, "RFC 7383 §2.3";
    SIGNATURE_HASH_ALGORITHMS = 16431, "RFC 7427 §4";
    CLONE_IKE_SA_SUPPORTED = 16432, "RFC 7791";
    CLONE_IKE_SA = 16433, "RFC 7791";
    PUZZLE = 16434, "RFC 8019 §8.1";
    USE_PPK = 16435, "RFC 8784 §3";
    PPK_IDENTITY = 16436, "RFC 8784 §3";
    NO_PPK_AUTH = 16437, "RFC 8784 §3";
    INTERMEDIATE_EXCHANGE_SUPPORTED = 16438, "RFC 9242 §3.1";
    IP4_ALLOWED = 16439, "RFC 8983";
    IP6_ALLOWED = 16440, "RFC 8983";
    ADDITIONAL_KEY_EXCHANGE = 16441, "RFC 9370 §2.2.4";
    USE_AGGFRAG = 16442, "RFC 9347 §5.1";
}

impl NotifyType {
    /// Whether it reports an error: a request answered by one of these has failed entirely, even
    /// if the type is unknown (RFC 7296 §3.10.1).
    pub fn is_error(self) -> bool {
        self.0 < 16384
    }
}

impl fmt::Display for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "notify {}", self.0),
        }
    }
}

impl fmt::Debug for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A Notify payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// the protocol of `spi`, without meaning if that is empty
    pub protocol: Protocol,
    /// the SA that this is about; empty if it is the IKE_SA or none
    pub spi: Vec<u8>,
    /// what it says
    pub kind: NotifyType,
    /// the details, in a format of the type's own
    pub data: Vec<u8>,
}

impl Notify {
    /// A notify about the IKE_SA or about no SA.
    pub fn new(kind: NotifyType, data: impl Into<Vec<u8>>) -> Self {
        Notify { protocol: Protocol::NONE, spi: Vec::new(), kind, data: data.into() }
    }

    /// A notify about a CHILD_SA, without data.
    pub fn about_child(kind: NotifyType, spi: EspSpi) -> Self {
        let (protocol, spi) = (Protocol::ESP, spi.0.to_be_bytes().to_vec());
        Notify { protocol, spi, kind, data: Vec::new() }
    }

    /// The CHILD_SA that this is about; `None` if it names none that could be ours.
    pub fn esp_spi(&self) -> Option<EspSpi> {
        let spi = self.spi.as_slice().try_into().ok()?;
        (self.protocol == Protocol::ESP).then(|| EspSpi(u32::from_be_bytes(spi)))
    }

    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let protocol = Protocol(reader.u8("Notify protocol")?);
        let spi_len = reader.u8("Notify SPI size")?;
        let kind = NotifyType(reader.u16("Notify message type")?);
        let spi = reader.take(spi_len.into(), "Notify SPI")?.to_vec();
        Ok(Notify { protocol, spi, kind, data: reader.rest().to_vec() })
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        out.extend([self.protocol.0, octet(self.spi.len(), "Notify SPI")?]);
        out.extend(self.kind.0.to_be_bytes());
        out.extend(&self.spi);
        out.extend(&self.data);
        Ok(())
    }
}
