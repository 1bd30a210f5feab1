//! How an IKE_SA is made, renewed and ended: scenarios that try one tunnel after the other on the same
//! network.

mod act;
mod case;
mod cases;
mod detour;
mod dying;
mod hand;
mod leak;
mod meeting;
mod outside;
mod outstanding;
mod second;
mod seen;
mod stranger;
mod topic;
mod transfer;
mod trap;
mod travel;
mod unknown;

use std::path::Path;
use std::time::Instant;

use crate::cleanup;
use crate::ends::Before;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::{Plane, Program};
use crate::report::{CaseVerdict, Verdict};
use crate::topology::Topology;

pub use topic::Topic;

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
    (Topic::Deaths, Plane::Userspace, [true, true]),
    (Topic::SilentPath, Plane::Userspace, [true, false]),
    (Topic::FamiliesMove, Plane::Userspace, [true, true]),
    (Topic::TwoChildrenMove, Plane::Userspace, [true, true]),
    (Topic::MoveDuringRekey, Plane::Userspace, [true, true]),
    (Topic::MoveDuringQuestion, Plane::Userspace, [true, true]),
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
    (Topic::BothStart, Plane::Userspace, [true, true]),
    (Topic::Unknown, Plane::Userspace, [true, true]),
    (Topic::Tunnels, Plane::Kernel, [true, true]),
    (Topic::Moves, Plane::Kernel, [true, true]),
    (Topic::SilentPath, Plane::Kernel, [true, false]),
    (Topic::Planned, Plane::Kernel, [true, false]),
    (Topic::Leaks, Plane::Kernel, [true, false]),
    (Topic::Leaks, Plane::CloudKernel, [true, false]),
    (Topic::Interfaces, Plane::CloudKernel, [true, false]),
    (Topic::Trap, Plane::Kernel, [true, true]),
    (Topic::Transport, Plane::Kernel, [true, true]),
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
    (Topic::Deaths, Plane::Kernel, [true, true]),
    (Topic::Sites, Plane::Kernel, [true, true]),
    (Topic::Lifetimes, Plane::Kernel, [true, true]),
    (Topic::BothStart, Plane::Kernel, [true, true]),
    (Topic::VirtualAddresses, Plane::Kernel, [true, true]),
    (Topic::FamiliesMove, Plane::Kernel, [true, true]),
    (Topic::MoveDuringRekey, Plane::Kernel, [true, true]),
    (Topic::MoveDuringQuestion, Plane::Kernel, [true, true]),
    (Topic::NatMappings, Plane::Kernel, [true, true]),
    (Topic::BothBehindNat, Plane::Kernel, [true, true]),
    (Topic::TwoClients, Plane::Kernel, [true, true]),
    (Topic::NatForgetsSoon, Plane::Kernel, [true, true]),
    (Topic::ManyMoves, Plane::Kernel, [true, true]),
    (Topic::MobikeOff, Plane::Kernel, [true, true]),
    // strongSwan has no ESN in userspace.
    (Topic::Esn, Plane::Kernel, [true, true]),
];

/// All of them, in the order in which they run: each in both roles.
pub fn all() -> impl Iterator<Item = Life> {
    use Program::{Bewick, Script, Strongswan};
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
            // It says nothing that nobody knows: a peer by hand does.
            Topic::Unknown if life.client == Strongswan => Some(Life { client: Script, ..life }),
            Topic::Unknown => Some(Life { gateway: Script, ..life }),
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
        let cases = verdict.step("prepare", || self.topic.cases(self.client, self.plane, out))?;
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
