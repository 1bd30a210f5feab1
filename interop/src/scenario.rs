//! The scenarios: what can be run by name.

use std::path::Path;

use crate::life::{self, Life, Topic};
use crate::peer::{Plane, Program};
use crate::report::Verdict;
use crate::roam::{self, Roam};

/// One entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// The client loses its uplinks.
    Roam(Roam),
    /// What else becomes of an IKE_SA: how it is made, renewed and ended.
    Life(Life),
}

/// All scenarios, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    roam::all().map(Scenario::Roam).chain(life::all().map(Scenario::Life)).collect()
}

impl Scenario {
    /// Who initiates and who responds.
    pub fn programs(&self) -> [Program; 2] {
        match self {
            Scenario::Roam(Roam { client, gateway, .. })
            | Scenario::Life(Life { client, gateway, .. }) => [*client, *gateway],
        }
    }

    /// Whether bewick can do it; the others run only when asked for by name.
    pub fn is_ready(&self) -> bool {
        match self {
            Scenario::Roam(_) => true,
            Scenario::Life(life) => life.ready,
        }
    }

    /// Whether `run --quick` runs it: all that runs on this machine and is done in seconds, and of the
    /// guest's what differs most from it.
    pub fn is_quick(&self) -> bool {
        let in_guest = self.plane().is_in_kernel();
        match self {
            Scenario::Roam(roam) => !in_guest || roam.client != roam.gateway,
            Scenario::Life(life) => life.topic.is_quick(in_guest),
        }
    }

    /// Whether it waits for most of its time: it takes minutes, and hardly any of the processor.
    pub fn waits(&self) -> bool {
        matches!(self, Scenario::Life(life) if life.topic == Topic::Deaths)
    }

    /// Who handles ESP; the kernel's is the guest's.
    pub fn plane(&self) -> Plane {
        match self {
            Scenario::Roam(Roam { plane, .. }) | Scenario::Life(Life { plane, .. }) => *plane,
        }
    }

    /// `psk-bewick-to-strongswan-userspace`: what, who initiates to whom, data plane.
    pub fn name(&self) -> String {
        let what = match self {
            Scenario::Roam(_) => "psk",
            Scenario::Life(life) => life.topic.name(),
        };
        let [client, gateway] = self.programs().map(Program::name);
        format!("{what}-{client}-to-{gateway}-{}", self.plane().name())
    }

    /// What it shows, in one line.
    pub fn purpose(&self) -> String {
        let purpose = match self {
            Scenario::Roam(roam) => roam.purpose(),
            Scenario::Life(life) => life.topic.purpose().to_owned(),
        };
        let place = match self.plane() {
            Plane::Userspace => "userspace ESP on this machine",
            Plane::Kernel => "kernel XFRM in the guest",
            Plane::CloudKernel => "kernel XFRM in the guest with Debian's cloud kernel",
        };
        format!("{purpose}; {place}")
    }

    /// Runs it here, whichever kernel this is, and fills in the verdict.
    pub fn judge(&self, out: &Path, verdict: &mut Verdict) {
        let result = match self {
            Scenario::Roam(roam) => roam.steps(out, verdict),
            Scenario::Life(life) => life.steps(out, verdict),
        };
        verdict.passed = result.is_ok();
        verdict.reason = result.err().map(|failure| failure.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_scenario_has_a_name_of_its_own() {
        let names: BTreeSet<String> = all().iter().map(Scenario::name).collect();
        assert_eq!(names.len(), all().len());
    }
}
