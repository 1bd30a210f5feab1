//! What the scenarios of this family are about, and what each needs.

use std::path::Path;

use super::case::Case;
use super::cases;
use crate::failure::Result;
use crate::peer::{Plane, Program};
use crate::topology::Ground;

/// What a scenario of this family is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Every cipher and every key exchange.
    Suites,
    /// Messages in fragments.
    Fragments,
    /// Cookies.
    Cookies,
    /// Certificates of every kind.
    Certificates,
    /// RSA keys that sign with PSS.
    RsaPss,
    /// An IKE_SA without a first CHILD_SA.
    Childless,
    /// Several CHILD_SAs of one IKE_SA.
    Children,
    /// IPv4 in IPv6 and the other way round.
    Families,
    /// New keys for CHILD_SAs.
    RekeyChild,
    /// New keys for CHILD_SAs, from a key exchange of their own.
    Secrecy,
    /// New keys for the IKE_SA.
    RekeyIke,
    /// A client that proves anew who it is.
    Reauthentication,
    /// The same with several CHILD_SAs.
    ReauthenticationOfTwo,
    /// A window of several requests.
    Windows,
    /// Extended sequence numbers.
    Esn,
    /// How an IKE_SA ends, and what comes after it.
    Ends,
    /// An end that dies without a word.
    Deaths,
    /// What is worth trying in a kernel too.
    Tunnels,
    /// A path that dies without a word.
    SilentPath,
    /// From IPv4 to IPv6 and back.
    FamiliesMove,
    /// A move of several CHILD_SAs.
    TwoChildrenMove,
    /// New keys at the moment of a move.
    MoveDuringRekey,
    /// A question on its way at the moment of a move.
    MoveDuringQuestion,
    /// A gateway that loses an address.
    GatewayLosesAddress,
    /// A NAT that forgets.
    NatMappings,
    /// A move on request.
    Planned,
    /// Moves that are worth a look in a kernel too.
    Moves,
    /// Names of each type.
    Identities,
    /// What the client is told of the network inside.
    VirtualAddresses,
    /// A network behind each end.
    Sites,
    /// New keys when it is time.
    Lifetimes,
    /// An end that does not move.
    MobikeOff,
    /// Moves one after the other.
    ManyMoves,
    /// A gateway behind a NAT.
    GatewayBehindNat,
    /// Both ends behind a NAT each.
    BothBehindNat,
    /// Two clients behind one NAT.
    TwoClients,
    /// From UDP to TCP and back.
    TcpFallback,
    /// A network where nothing but TCP passes.
    TcpOnly,
    /// UDP around ESP for its own sake.
    ForcedEncap,
    /// A bad network.
    Rough,
    /// A NAT that forgets after 20 s.
    NatForgetsSoon,
    /// A gateway that gets and loses addresses.
    Announced,
    /// Programs that try to get out beside the tunnel.
    Leaks,
    /// A client that waits for packets.
    Trap,
    /// XFRM interfaces.
    Interfaces,
    /// ESP between the two ends themselves.
    Transport,
    /// What bewick does not know.
    Unknown,
    /// Two sites that start at once.
    BothStart,
}

impl Topic {
    /// Its name as the scenarios have it.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Suites => "suites",
            Topic::Fragments => "fragments",
            Topic::Cookies => "cookies",
            Topic::Certificates => "certificates",
            Topic::RsaPss => "rsa-pss",
            Topic::Childless => "childless",
            Topic::Children => "children",
            Topic::Families => "families",
            Topic::RekeyChild => "rekey-child",
            Topic::Secrecy => "pfs",
            Topic::RekeyIke => "rekey-ike",
            Topic::Reauthentication => "reauth",
            Topic::ReauthenticationOfTwo => "reauth-two",
            Topic::Windows => "windows",
            Topic::Esn => "esn",
            Topic::Ends => "ends",
            Topic::Deaths => "deaths",
            Topic::Tunnels => "tunnels",
            Topic::SilentPath => "silent-path",
            Topic::FamiliesMove => "families-move",
            Topic::TwoChildrenMove => "two-children-move",
            Topic::MoveDuringRekey => "move-during-rekey",
            Topic::MoveDuringQuestion => "move-during-question",
            Topic::GatewayLosesAddress => "gateway-loses-address",
            Topic::NatMappings => "nat-mappings",
            Topic::Planned => "planned",
            Topic::Moves => "moves",
            Topic::Identities => "identities",
            Topic::VirtualAddresses => "virtual-addresses",
            Topic::Sites => "sites",
            Topic::Lifetimes => "lifetimes",
            Topic::MobikeOff => "mobike-off",
            Topic::ManyMoves => "many-moves",
            Topic::GatewayBehindNat => "gateway-behind-nat",
            Topic::BothBehindNat => "both-behind-nat",
            Topic::TwoClients => "two-clients",
            Topic::TcpFallback => "tcp-fallback",
            Topic::TcpOnly => "tcp-only",
            Topic::ForcedEncap => "forced-encap",
            Topic::Rough => "rough",
            Topic::NatForgetsSoon => "nat-forgets-soon",
            Topic::Announced => "announced",
            Topic::Leaks => "leaks",
            Topic::Trap => "trap",
            Topic::Interfaces => "interfaces",
            Topic::BothStart => "both-start",
            Topic::Transport => "transport",
            Topic::Unknown => "unknown",
        }
    }

    /// What it shows, in one line.
    pub fn purpose(self) -> &'static str {
        match self {
            Topic::Suites => {
                "every cipher for IKE and ESP, every key exchange, another group first"
            }
            Topic::Fragments => "IKE messages in fragments from either end",
            Topic::Cookies => "a gateway that asks for a cookie, and for another group after it",
            Topic::Certificates => {
                "certificates of each kind, a chain, a key at one end only, revocation lists"
            }
            Topic::RsaPss => "RSA keys that sign with PSS, with each hash",
            Topic::Childless => {
                "an IKE_SA that is made alone, or not, as both ends want, and its CHILD_SAs after it"
            }
            Topic::Children => "two networks as two CHILD_SAs of one IKE_SA, with new keys",
            Topic::Families => "IPv4 in IPv6, IPv6 in IPv4, both virtual addresses at once",
            Topic::RekeyChild => "new keys for the CHILD_SA from either end, no packet lost",
            Topic::Secrecy => {
                "new keys for the CHILD_SA from a key exchange of their own, no packet lost"
            }
            Topic::RekeyIke => "new keys for the IKE_SA from either end, no packet lost",
            Topic::Reauthentication => {
                "a client that proves anew who it is: make before break, none lost but what comes before the keys do"
            }
            Topic::ReauthenticationOfTwo => {
                "a client with two CHILD_SAs proves anew who it is: both are made before the break"
            }
            Topic::Windows => "a window of four at one end, of one at the other",
            Topic::Esn => "sequence numbers of 64 bits and of 32, with new keys",
            Topic::Ends => {
                "DELETE from either end, a client that died, at another address too, a gateway that restarts"
            }
            Topic::Deaths => {
                "either end is killed and the other finds out, a gateway crashes and the client is back by itself"
            }
            Topic::Tunnels => "IPv4 in IPv6, both families in IPv4, two CHILD_SAs with new keys",
            Topic::SilentPath => {
                "the router drops all of the client's path: it is on the other one within 4 s"
            }
            Topic::FamiliesMove => "the outer packets go from IPv4 to IPv6 and back",
            Topic::TwoChildrenMove => "two CHILD_SAs, and the current uplink is lost",
            Topic::MoveDuringRekey => {
                "the uplink is lost while new keys are asked for, of either kind, from either end"
            }
            Topic::MoveDuringQuestion => {
                "the uplink is lost while an end waits for an answer: liveness, the end of a CHILD_SA, a new one"
            }
            Topic::GatewayLosesAddress => "the gateway loses the address in use and has another",
            Topic::NatMappings => {
                "the NAT in front of the client forgets its mappings, under traffic and at rest"
            }
            Topic::Planned => "the client moves on request, there and back, no packet lost",
            Topic::Moves => {
                "two CHILD_SAs move, a move while new keys are asked for, a gateway loses its address"
            }
            Topic::Identities => "PSK by address, name, mail address and key ID, and strangers",
            Topic::VirtualAddresses => {
                "IPv6 alone, an address asked for, a pool of one, DNS servers, all traffic, other traffic beside it"
            }
            Topic::Sites => "a network behind each end, no virtual address, one CHILD_SA and two",
            Topic::Lifetimes => "new keys from either end when it is time, no packet lost",
            Topic::MobikeOff => {
                "MOBIKE off at either end: nothing is said of it, new keys, and a new IKE_SA when the uplink is lost"
            }
            Topic::ManyMoves => {
                "64 MB over TCP across five moves, and a move there and back at once, in a kernel also within a round trip"
            }
            Topic::GatewayBehindNat => "the gateway is behind a NAT, and the client moves",
            Topic::TwoClients => {
                "two clients behind one NAT: two pools, none left, the same address, the same name"
            }
            Topic::Trap => {
                "the first packet brings the tunnel up, each CHILD_SA by itself, and again after each DELETE"
            }
            Topic::Unknown => {
                "a peer by hand sends notifies, a Vendor ID and payloads of no known type: passed over, or refused"
            }
            Topic::Transport => {
                "transport mode: pings in ESP both ways, new keys from either end, a DELETE, ends that differ"
            }
            Topic::BothStart => {
                "two sites start towards each other before either hears the other, by hand and by themselves"
            }
            Topic::Interfaces => "packets come by XFRM interfaces, and the current uplink is lost",
            Topic::Leaks => {
                "nothing leaves in the clear before, between and after, whatever programs and routes say"
            }
            Topic::BothBehindNat => "the gateway is behind a NAT, and the client moves behind one",
            Topic::TcpFallback => {
                "the client moves to where nothing but TCP passes, and UDP comes back"
            }
            Topic::Announced => {
                "the gateway gets another address and loses its first, and the reverse"
            }
            Topic::ForcedEncap => "ESP in UDP where no NAT asks for it, new keys and a move",
            Topic::Rough => {
                "the uplink is lost under TCP on a network with 100 ms, 5 % of loss each way and reordering"
            }
            Topic::NatForgetsSoon => {
                "45 s of silence behind a NAT that forgets after 20 s, then the gateway sends"
            }
            Topic::TcpOnly => "all over TCP: set-up, new keys of either kind, a move behind a NAT",
        }
    }

    /// Whether it is done in seconds; in the guest, whether the kernel's own part in it is large.
    pub fn is_quick(self, in_guest: bool) -> bool {
        let slow = matches!(
            self,
            Topic::Lifetimes
                | Topic::ManyMoves
                | Topic::NatForgetsSoon
                | Topic::Deaths
                | Topic::BothStart
                | Topic::MoveDuringQuestion
        );
        (!in_guest && !slow)
            || matches!(self, Topic::Moves | Topic::SilentPath | Topic::Planned | Topic::Leaks)
    }

    /// The network that it wants.
    pub fn ground(self) -> Ground {
        match self {
            Topic::SilentPath
            | Topic::TwoChildrenMove
            | Topic::MoveDuringRekey
            | Topic::Planned
            | Topic::MobikeOff
            | Topic::TcpFallback
            | Topic::ForcedEncap
            | Topic::Rough
            | Topic::Interfaces
            | Topic::Transport
            | Topic::ManyMoves => Ground::Plain,
            Topic::MoveDuringQuestion | Topic::Unknown => Ground::PlainSites,
            Topic::TcpOnly => Ground::OnlyTcp,
            Topic::NatForgetsSoon => Ground::BehindForgetfulNat,
            Topic::Announced => Ground::LaterGatewayAddress,
            Topic::BothStart => Ground::FacingSites,
            Topic::Sites | Topic::Trap => Ground::Sites,
            Topic::TwoClients => Ground::TwoBehindNat,
            Topic::GatewayBehindNat => Ground::GatewayBehindNat,
            Topic::BothBehindNat => Ground::BothBehindNat,
            Topic::FamiliesMove => Ground::SecondIsIpv6,
            Topic::GatewayLosesAddress | Topic::Moves => Ground::SecondGatewayAddress,
            Topic::NatMappings => Ground::BehindNat,
            _ => Ground::Ipv6Too,
        }
    }

    /// The tunnels to try, whose certificates go to `out`.
    ///
    /// # Errors
    /// Certificates cannot be made.
    pub fn cases(self, client: Program, plane: Plane, out: &Path) -> Result<Vec<Case>> {
        Ok(match self {
            Topic::Suites => cases::suites(),
            Topic::Fragments => cases::fragments(),
            Topic::Cookies => cases::cookies(),
            Topic::Certificates => cases::certificates(&out.join("pki"))?,
            Topic::RsaPss => cases::rsa_pss(&out.join("pki"))?,
            Topic::Childless => cases::childless(client),
            Topic::Children => cases::children(client),
            Topic::Families => cases::families(),
            Topic::RekeyChild => cases::rekey_child(),
            Topic::Secrecy => cases::secrecy(),
            Topic::RekeyIke => cases::rekey_ike(),
            Topic::Reauthentication => cases::reauthentication(client),
            Topic::ReauthenticationOfTwo => cases::reauthentication_of_two(),
            Topic::Windows => cases::windows(),
            Topic::Esn => cases::esn(),
            Topic::Ends => cases::ends::ends(client),
            Topic::Deaths => cases::ends::deaths(),
            Topic::Tunnels => [cases::families_in_kernel(), cases::children(client)].concat(),
            Topic::SilentPath => cases::silent_path(),
            Topic::FamiliesMove => cases::families_move(),
            Topic::TwoChildrenMove => cases::two_children_move(),
            Topic::MoveDuringRekey => cases::move_during_rekey(client),
            Topic::MoveDuringQuestion => cases::moves::during_question(client),
            Topic::GatewayLosesAddress => cases::gateway_loses_address(),
            Topic::NatMappings => cases::nat_mappings(client),
            Topic::Planned => cases::planned(),
            Topic::Moves => cases::moves(client),
            Topic::Identities => cases::names::identities(),
            Topic::VirtualAddresses => cases::addresses::virtual_addresses(client),
            Topic::Sites => cases::sites::sites(),
            Topic::Lifetimes => cases::lifetimes::lifetimes(client, plane),
            Topic::MobikeOff => cases::moves::mobike_off(),
            Topic::ManyMoves => cases::moves::many(plane),
            Topic::TwoClients => cases::addresses::two_clients(client),
            Topic::TcpFallback => cases::moves::tcp_fallback(),
            Topic::TcpOnly => cases::moves::tcp_only(),
            Topic::ForcedEncap => cases::moves::forced_encap(),
            Topic::Rough => cases::moves::rough(),
            Topic::NatForgetsSoon => cases::moves::nat_forgets_soon(),
            Topic::Announced => cases::moves::announced(),
            Topic::Transport => cases::transport::transport(client),
            Topic::Leaks => cases::leaks(),
            Topic::Trap => cases::traps::traps(),
            Topic::Interfaces => cases::interfaces(),
            Topic::BothStart => cases::sites::both_start(),
            Topic::Unknown => cases::unknown(client),
            Topic::GatewayBehindNat | Topic::BothBehindNat => cases::moves::gateway_behind_nat(),
        })
    }
}
