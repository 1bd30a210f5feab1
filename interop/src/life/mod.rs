//! How an IKE_SA is made, renewed and ended: scenarios that try one tunnel after the other on the same
//! network.

mod act;
mod case;
mod cases;
mod leak;
mod second;
mod seen;
mod stranger;
mod transfer;
mod trap;
mod travel;

use std::path::Path;
use std::time::Instant;

use crate::cleanup;
use crate::ends::Before;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::{Plane, Program};
use crate::report::{CaseVerdict, Verdict};
use crate::topology::{Ground, Topology};
use case::Case;

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
            Topic::Tunnels => "tunnels",
            Topic::SilentPath => "silent-path",
            Topic::FamiliesMove => "families-move",
            Topic::TwoChildrenMove => "two-children-move",
            Topic::MoveDuringRekey => "move-during-rekey",
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
            Topic::Certificates => "certificates of each kind, a chain, a key at one end only",
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
                "a client that proves anew who it is: make before break, at most a packet lost each time"
            }
            Topic::ReauthenticationOfTwo => {
                "a client with two CHILD_SAs proves anew who it is: both are made before the break"
            }
            Topic::Windows => "a window of four at one end, of one at the other",
            Topic::Esn => "sequence numbers of 64 bits and of 32, with new keys",
            Topic::Ends => "DELETE from either end, a client that died, a gateway that restarts",
            Topic::Tunnels => "IPv4 in IPv6, both families in IPv4, two CHILD_SAs with new keys",
            Topic::SilentPath => {
                "the router drops all of the client's path: it is on the other one within 4 s"
            }
            Topic::FamiliesMove => "the outer packets go from IPv4 to IPv6 and back",
            Topic::TwoChildrenMove => "two CHILD_SAs, and the current uplink is lost",
            Topic::MoveDuringRekey => {
                "the uplink is lost while new keys are asked for, of either kind, from either end"
            }
            Topic::GatewayLosesAddress => "the gateway loses the address in use and has another",
            Topic::NatMappings => "the NAT in front of the client forgets its mappings",
            Topic::Planned => "the client moves on request, there and back, no packet lost",
            Topic::Moves => {
                "two CHILD_SAs move, a move while new keys are asked for, a gateway loses its address"
            }
            Topic::Identities => "PSK by address, name, mail address and key ID, and strangers",
            Topic::VirtualAddresses => {
                "IPv6 alone, an address asked for, a pool of one, DNS servers, all traffic"
            }
            Topic::Sites => "a network behind each end, no virtual address, one CHILD_SA and two",
            Topic::Lifetimes => "new keys from either end when it is time, no packet lost",
            Topic::MobikeOff => "MOBIKE off at either end: nothing is said of it, and new keys",
            Topic::ManyMoves => {
                "64 MB over TCP across five moves, and a move there and back at once"
            }
            Topic::GatewayBehindNat => "the gateway is behind a NAT, and the client moves",
            Topic::TwoClients => {
                "two clients behind one NAT: two pools, none left, the same address, the same name"
            }
            Topic::Trap => {
                "the first packet brings the tunnel up, each CHILD_SA by itself, and again after each DELETE"
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
        // Of two clients, a ping's answer came too late once on a busy machine, and it is not known why.
        let slow = matches!(
            self,
            Topic::Lifetimes | Topic::ManyMoves | Topic::TwoClients | Topic::NatForgetsSoon
        );
        (!in_guest && !slow)
            || matches!(
                self,
                Topic::Moves
                    | Topic::SilentPath
                    | Topic::Planned
                    | Topic::Leaks
                    | Topic::Interfaces
            )
    }

    fn ground(self) -> Ground {
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
            | Topic::ManyMoves => Ground::Plain,
            Topic::TcpOnly => Ground::OnlyTcp,
            Topic::NatForgetsSoon => Ground::BehindForgetfulNat,
            Topic::Announced => Ground::LaterGatewayAddress,
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

    fn cases(self, client: Program, out: &Path) -> Result<Vec<Case>> {
        Ok(match self {
            Topic::Suites => cases::suites(),
            Topic::Fragments => cases::fragments(),
            Topic::Cookies => cases::cookies(),
            Topic::Certificates => cases::certificates(&out.join("pki"))?,
            Topic::RsaPss => cases::rsa_pss(&out.join("pki"))?,
            Topic::Childless => cases::childless(client),
            Topic::Children => cases::children(),
            Topic::Families => cases::families(),
            Topic::RekeyChild => cases::rekey_child(),
            Topic::Secrecy => cases::secrecy(),
            Topic::RekeyIke => cases::rekey_ike(),
            Topic::Reauthentication => cases::reauthentication(client),
            Topic::ReauthenticationOfTwo => cases::reauthentication_of_two(),
            Topic::Windows => cases::windows(),
            Topic::Esn => cases::esn(),
            Topic::Ends => cases::ends(),
            Topic::Tunnels => [cases::families_in_kernel(), cases::children()].concat(),
            Topic::SilentPath => cases::silent_path(),
            Topic::FamiliesMove => cases::families_move(),
            Topic::TwoChildrenMove => cases::two_children_move(),
            Topic::MoveDuringRekey => cases::move_during_rekey(client),
            Topic::GatewayLosesAddress => cases::gateway_loses_address(),
            Topic::NatMappings => cases::nat_mappings(client),
            Topic::Planned => cases::planned(),
            Topic::Moves => cases::moves(client),
            Topic::Identities => cases::names::identities(),
            Topic::VirtualAddresses => cases::addresses::virtual_addresses(client),
            Topic::Sites => cases::sites::sites(),
            Topic::Lifetimes => cases::lifetimes::lifetimes(client),
            Topic::MobikeOff => cases::moves::mobike_off(),
            Topic::ManyMoves => cases::moves::many(),
            Topic::TwoClients => cases::addresses::two_clients(client),
            Topic::TcpFallback => cases::moves::tcp_fallback(),
            Topic::TcpOnly => cases::moves::tcp_only(),
            Topic::ForcedEncap => cases::moves::forced_encap(),
            Topic::Rough => cases::moves::rough(),
            Topic::NatForgetsSoon => cases::moves::nat_forgets_soon(),
            Topic::Announced => cases::moves::announced(),
            Topic::Leaks => cases::leaks(),
            Topic::Trap => cases::traps::traps(),
            Topic::Interfaces => cases::interfaces(),
            Topic::GatewayBehindNat | Topic::BothBehindNat => cases::moves::gateway_behind_nat(),
        })
    }
}

/// A scenario of this family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// What is tried.
    pub topic: Topic,
    /// Who initiates.
    pub client: Program,
    /// Who responds.
    pub gateway: Program,
    /// Who handles ESP.
    pub plane: Plane,
    /// Whether bewick can do it.
    pub ready: bool,
}

/// What runs where, and whether bewick can do it as the client and as the gateway: what it cannot do
/// yet is run only when it is asked for by name.
const TOPICS: &[(Topic, Plane, [bool; 2])] = &[
    (Topic::Suites, Plane::Userspace, [true, true]),
    (Topic::Fragments, Plane::Userspace, [true, true]),
    (Topic::Cookies, Plane::Userspace, [true, true]),
    (Topic::Certificates, Plane::Userspace, [true, true]),
    (Topic::RsaPss, Plane::Userspace, [true, true]),
    (Topic::Children, Plane::Userspace, [true, true]),
    (Topic::Childless, Plane::Userspace, [true, true]),
    (Topic::Families, Plane::Userspace, [true, true]),
    (Topic::RekeyChild, Plane::Userspace, [true, true]),
    (Topic::Secrecy, Plane::Userspace, [true, true]),
    (Topic::RekeyIke, Plane::Userspace, [true, true]),
    (Topic::Reauthentication, Plane::Userspace, [true, true]),
    (Topic::ReauthenticationOfTwo, Plane::Userspace, [true, true]),
    (Topic::Windows, Plane::Userspace, [true, true]),
    (Topic::Ends, Plane::Userspace, [true, true]),
    (Topic::SilentPath, Plane::Userspace, [true, false]),
    (Topic::FamiliesMove, Plane::Userspace, [true, true]),
    (Topic::TwoChildrenMove, Plane::Userspace, [true, true]),
    (Topic::MoveDuringRekey, Plane::Userspace, [true, true]),
    (Topic::GatewayLosesAddress, Plane::Userspace, [true, true]),
    (Topic::NatMappings, Plane::Userspace, [true, true]),
    (Topic::Planned, Plane::Userspace, [true, false]),
    (Topic::Identities, Plane::Userspace, [true, true]),
    (Topic::VirtualAddresses, Plane::Userspace, [true, true]),
    (Topic::Sites, Plane::Userspace, [true, true]),
    (Topic::Lifetimes, Plane::Userspace, [true, true]),
    (Topic::MobikeOff, Plane::Userspace, [true, true]),
    (Topic::ManyMoves, Plane::Userspace, [true, true]),
    (Topic::GatewayBehindNat, Plane::Userspace, [true, true]),
    (Topic::BothBehindNat, Plane::Userspace, [true, true]),
    (Topic::TwoClients, Plane::Userspace, [true, true]),
    (Topic::TcpFallback, Plane::Userspace, [true, true]),
    (Topic::TcpOnly, Plane::Userspace, [true, true]),
    (Topic::NatForgetsSoon, Plane::Userspace, [true, true]),
    (Topic::Announced, Plane::Userspace, [true, true]),
    (Topic::Leaks, Plane::Userspace, [true, false]),
    (Topic::Trap, Plane::Userspace, [true, false]),
    (Topic::Tunnels, Plane::Kernel, [true, true]),
    (Topic::Moves, Plane::Kernel, [true, true]),
    (Topic::SilentPath, Plane::Kernel, [true, false]),
    // A few packets are lost.
    (Topic::Planned, Plane::Kernel, [false, false]),
    (Topic::Leaks, Plane::Kernel, [true, false]),
    (Topic::Leaks, Plane::CloudKernel, [true, false]),
    (Topic::Interfaces, Plane::CloudKernel, [true, false]),
    (Topic::Trap, Plane::Kernel, [true, true]),
    (Topic::Suites, Plane::Kernel, [true, true]),
    (Topic::ForcedEncap, Plane::Kernel, [true, true]),
    (Topic::Rough, Plane::Kernel, [true, true]),
    (Topic::Announced, Plane::Kernel, [true, true]),
    (Topic::RekeyChild, Plane::Kernel, [true, true]),
    (Topic::Secrecy, Plane::Kernel, [true, true]),
    (Topic::RekeyIke, Plane::Kernel, [true, true]),
    (Topic::Reauthentication, Plane::Kernel, [true, true]),
    (Topic::Certificates, Plane::Kernel, [true, true]),
    (Topic::Ends, Plane::Kernel, [true, true]),
    (Topic::Sites, Plane::Kernel, [true, true]),
    (Topic::VirtualAddresses, Plane::Kernel, [true, true]),
    (Topic::FamiliesMove, Plane::Kernel, [true, true]),
    (Topic::MoveDuringRekey, Plane::Kernel, [true, true]),
    (Topic::NatMappings, Plane::Kernel, [true, true]),
    (Topic::BothBehindNat, Plane::Kernel, [true, true]),
    (Topic::ManyMoves, Plane::Kernel, [true, true]),
    (Topic::MobikeOff, Plane::Kernel, [true, true]),
    // strongSwan has no ESN in userspace.
    (Topic::Esn, Plane::Kernel, [true, true]),
];

/// All of them, in the order in which they run: each in both roles.
pub fn all() -> impl Iterator<Item = Life> {
    use Program::{Bewick, Strongswan};
    TOPICS
        .iter()
        .flat_map(|&(topic, plane, [as_client, as_gateway])| {
            [
                Life { topic, client: Bewick, gateway: Strongswan, plane, ready: as_client },
                Life { topic, client: Strongswan, gateway: Bewick, plane, ready: as_gateway },
            ]
        })
        .filter_map(|life| match life.topic {
            // strongSwan never leaves a path that is silent, takes no request to, and has no kill switch.
            Topic::SilentPath | Topic::Planned | Topic::Leaks if life.client == Strongswan => None,
            // In userspace it drops packets for which it has no SA, and tells nobody.
            Topic::Trap if (life.client, life.plane) == (Strongswan, Plane::Userspace) => None,
            // It has no TCP at all, and XFRM interfaces are nothing that a peer sees: bewick is with itself.
            Topic::TcpFallback | Topic::TcpOnly | Topic::Interfaces
                if life.client == Strongswan =>
            {
                None
            }
            Topic::TcpFallback | Topic::TcpOnly | Topic::Interfaces => {
                Some(Life { gateway: Bewick, ..life })
            }
            _ => Some(life),
        })
}

impl Life {
    /// Runs it here, whichever kernel this is, and fills in the verdict.
    ///
    /// # Errors
    /// The cases that were not passed, and why.
    pub fn steps(&self, out: &Path, verdict: &mut Verdict) -> Result<()> {
        let (scratch, _guard) = cleanup::scratch_folder("life").context("scratch folder")?;
        let cases = verdict.step("prepare", || self.topic.cases(self.client, out))?;
        let topology = verdict.step("build the network", || {
            let ground = self.topic.ground();
            let mut topology = Topology::build(self.plane.name(), ground.has_nat())?;
            topology.make(ground)?;
            Ok(topology)
        })?;
        let before = Before::note(&topology, self.client, self.gateway)?;
        for case in cases {
            let start = Instant::now();
            let stage = case::Stage { life: *self, topology: &topology, scratch: &scratch };
            let mut one = CaseVerdict { name: case.name.clone(), ..CaseVerdict::default() };
            let folder = out.join(&case.name);
            let result = case.run(&stage, &folder, &mut verdict.versions, &mut one);
            one.seconds = start.elapsed().as_secs_f64();
            one.reason = result.err().map(|failure| failure.to_string());
            verdict.cases.push(one);
        }
        let failed: Vec<String> = verdict
            .cases
            .iter()
            .filter_map(|case| Some(format!("{}: {}", case.name, case.reason.as_ref()?)))
            .collect();
        if !failed.is_empty() {
            let (bad, all) = (failed.len(), verdict.cases.len());
            return Err(fail!("{bad} of {all} failed: {}", failed.join("; ")));
        }
        verdict.step("nothing is left behind", || before.nothing_left(&topology))
    }
}
