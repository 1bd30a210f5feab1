//! The choice of data plane, made once at the start.

use crate::{
    kernel::KernelPlane,
    plane::{Kind, PlaneError},
};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// the kernel if it does ESP, else userspace
    #[default]
    Auto,
    /// the kernel, or no start at all
    Kernel,
    /// userspace, without asking the kernel
    Userspace,
}

/// Which plane to use, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// the plane
    pub kind: Kind,
    /// one clause for `bewick status`
    pub reason: String,
}

/// Decides for a plane; where that is open, by asking the kernel.
///
/// With [`Wanted::Kernel`] the kernel is not asked here: [`KernelPlane::new`] says what is missing.
pub fn choose(wanted: Wanted) -> Decision {
    match wanted {
        Wanted::Auto => decide(KernelPlane::probe()),
        Wanted::Kernel => {
            Decision { kind: Kind::Kernel, reason: "the configuration asks for it".into() }
        }
        Wanted::Userspace => {
            Decision { kind: Kind::Userspace, reason: "the configuration asks for it".into() }
        }
    }
}

fn decide(probe: Result<(), PlaneError>) -> Decision {
    let (kind, reason) = match probe {
        Ok(()) => (Kind::Kernel, "the kernel has ESP".into()),
        Err(PlaneError::Kernel { operation, errno, message }) => {
            let what = match errno {
                libc::EPERM | libc::EACCES => "this process may not use the kernel's ESP",
                _ => "the kernel has no ESP",
            };
            (Kind::Userspace, format!("{what} ({operation}: {message})"))
        }
        Err(error) => (Kind::Userspace, format!("the kernel's ESP can't be used ({error})")),
    };
    Decision { kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32, message: &str) -> Result<(), PlaneError> {
        let operation = "adding a state".into();
        Err(PlaneError::Kernel { operation, errno, message: message.into() })
    }

    #[test]
    fn a_kernel_without_esp_means_userspace_and_the_reason_says_so() {
        let decision = decide(refused(libc::ENOSYS, "Function not implemented"));
        assert_eq!(decision.kind, Kind::Userspace);
        assert_eq!(
            decision.reason,
            "the kernel has no ESP (adding a state: Function not implemented)"
        );
    }

    #[test]
    fn missing_rights_are_not_taken_for_missing_esp() {
        let decision = decide(refused(libc::EPERM, "Operation not permitted"));
        assert_eq!(decision.kind, Kind::Userspace);
        assert!(decision.reason.starts_with("this process may not"), "{}", decision.reason);
    }

    #[test]
    fn a_wish_in_the_configuration_is_not_questioned() {
        assert_eq!(choose(Wanted::Kernel).kind, Kind::Kernel);
        assert_eq!(choose(Wanted::Userspace).kind, Kind::Userspace);
        assert_eq!(decide(Ok(())).kind, Kind::Kernel);
    }
}
