//! What is wrong with a request, and what follows: the one place that turns a fault into a notify or into
//! silence, and says whether the IKE_SA ends (RFC 7296 §2.21, §3.10.1).

use crate::wire::NotifyType;

/// Where in the life of an IKE_SA a request arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// IKE_SA_INIT: nothing is protected yet
    Init,
    /// IKE_AUTH: protected, from somebody
    Auth,
    /// all later exchanges: from the peer
    Established,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// it can't be read, lacks a payload, or holds a value that can't be
    Malformed,
    /// a payload that must not be skipped and that we don't know (§2.5)
    UnknownCritical,
    /// the peer has not proved who it is, or is not expected (§2.21.2)
    Unproven,
    /// none of the proposals is one of ours (§2.7)
    NoProposal,
    /// the key exchange value is of another group than the one chosen (§1.2, §1.3)
    AnotherGroup,
    /// no traffic selector is one of ours (§2.9)
    Selectors,
    /// a CHILD_SA goes only to who asks for an address (§2.19)
    AddressNotAskedFor,
    /// there is no address left (§3.15.4)
    NoAddress,
    /// not now: something else is under way (§2.25)
    Busy,
    /// the CHILD_SA that is to be rekeyed is not there (§2.25)
    NoSuchChild,
    /// there are as many CHILD_SAs as we allow (§1.3)
    NoMoreChildren,
}

/// What a fault is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// the notify; `None` for silence
    pub(crate) notify: Option<NotifyType>,
    /// whether the IKE_SA, or what there is of it, ends here without DELETE
    pub(crate) ends: bool,
}

const SILENCE: Answer = Answer { notify: None, ends: true };

const fn stays(notify: NotifyType) -> Answer {
    Answer { notify: Some(notify), ends: false }
}

const fn ends(notify: NotifyType) -> Answer {
    Answer { notify: Some(notify), ends: true }
}

/// The table. In IKE_SA_INIT there is no IKE_SA that could stay.
const fn answer(fault: Fault, stage: Stage) -> Answer {
    use NotifyType as N;
    match (fault, stage) {
        // §2.21.1: an unprotected answer to something malformed would help an attacker alone.
        (Fault::Malformed, Stage::Init) => SILENCE,
        // §2.21.2, §2.21.3: the peer drops the IKE_SA too.
        (Fault::Malformed, _) => ends(N::INVALID_SYNTAX),
        (Fault::UnknownCritical, Stage::Init | Stage::Auth) => {
            ends(N::UNSUPPORTED_CRITICAL_PAYLOAD)
        }
        (Fault::UnknownCritical, Stage::Established) => stays(N::UNSUPPORTED_CRITICAL_PAYLOAD),
        (Fault::Unproven, _) => ends(N::AUTHENTICATION_FAILED),
        (Fault::NoProposal, Stage::Init) => ends(N::NO_PROPOSAL_CHOSEN),
        (Fault::AnotherGroup, Stage::Init) => ends(N::INVALID_KE_PAYLOAD),
        // §2.21.2: from here on the IKE_SA stands, the CHILD_SA does not.
        (Fault::NoProposal, _) => stays(N::NO_PROPOSAL_CHOSEN),
        (Fault::AnotherGroup, _) => stays(N::INVALID_KE_PAYLOAD),
        (Fault::Selectors, _) => stays(N::TS_UNACCEPTABLE),
        (Fault::AddressNotAskedFor, _) => stays(N::FAILED_CP_REQUIRED),
        (Fault::NoAddress, _) => stays(N::INTERNAL_ADDRESS_FAILURE),
        (Fault::Busy, _) => stays(N::TEMPORARY_FAILURE),
        (Fault::NoSuchChild, _) => stays(N::CHILD_SA_NOT_FOUND),
        (Fault::NoMoreChildren, _) => stays(N::NO_ADDITIONAL_SAS),
    }
}

impl Fault {
    /// What it is answered with at that stage.
    pub(crate) const fn at(self, stage: Stage) -> Answer {
        answer(self, stage)
    }

    /// The notify in a protected response.
    pub(crate) fn notify(self) -> NotifyType {
        self.at(Stage::Established).notify.unwrap_or(NotifyType::INVALID_SYNTAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULTS: [Fault; 11] = [
        Fault::Malformed,
        Fault::UnknownCritical,
        Fault::Unproven,
        Fault::NoProposal,
        Fault::AnotherGroup,
        Fault::Selectors,
        Fault::AddressNotAskedFor,
        Fault::NoAddress,
        Fault::Busy,
        Fault::NoSuchChild,
        Fault::NoMoreChildren,
    ];

    #[test]
    fn k_2_21_1_each_request_gets_an_error_but_a_malformed_one_that_nothing_protects() {
        for fault in FAULTS {
            for stage in [Stage::Init, Stage::Auth, Stage::Established] {
                let answer = fault.at(stage);
                let silent = fault == Fault::Malformed && stage == Stage::Init;
                assert_eq!(answer.notify.is_none(), silent, "{fault:?}, {stage:?}");
                assert!(answer.notify.is_none_or(|notify| notify.is_error()), "{fault:?}");
            }
        }
    }

    #[test]
    fn k_2_21_1_an_established_ike_sa_ends_by_what_is_malformed_or_unproven_alone() {
        let ending: Vec<Fault> =
            FAULTS.into_iter().filter(|fault| fault.at(Stage::Established).ends).collect();
        assert_eq!(ending, [Fault::Malformed, Fault::Unproven]);
        let in_auth: Vec<Fault> =
            FAULTS.into_iter().filter(|fault| fault.at(Stage::Auth).ends).collect();
        assert_eq!(in_auth, [Fault::Malformed, Fault::UnknownCritical, Fault::Unproven]);
    }
}
