//! Lets user-mode Linux 6.1 run on processors with AMX: a library for `LD_PRELOAD`, built by `guest` beside it.
//!
//! That kernel keeps the 2,696 octets of a process's extended state (XSAVE) that end with PKRU. Where the processor
//! has more, the host takes a state only if it is whole, and says EFAULT to a shorter one. So what is written
//! here is completed with what the process has: what a guest can't save it can't use either.

use std::ffi::{c_int, c_long, c_void};

const PTRACE_PEEKTEXT: c_long = 1;
const PTRACE_PEEKUSER: c_long = 3;
const PTRACE_GETREGSET: c_long = 0x4204;
const PTRACE_SETREGSET: c_long = 0x4205;
const NT_X86_XSTATE: usize = 0x202;
const SYS_PTRACE: c_long = 101;

/// Room for every state that a processor has by now: 11,008 octets with AMX.
const MOST: usize = 32 * 1024;

/// The stacks of that kernel's own are too small for it. It has one processor and is not preempted on its way into
/// a process, where alone it writes states: nobody else is here meanwhile.
static mut ROOM: [u64; MOST / 8] = [0; MOST / 8];

/// `struct iovec`.
#[repr(C)]
struct Span {
    base: *mut c_void,
    len: usize,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

unsafe fn call(request: c_long, pid: c_int, addr: usize, data: *mut c_void) -> c_long {
    // SAFETY: the arguments are those of ptrace(2), as the caller has them.
    unsafe { syscall(SYS_PTRACE, request, c_long::from(pid), addr, data) }
}

/// ptrace(2), with a state that is written completed.
///
/// # Safety
/// As ptrace(2) itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(
    request: c_long,
    pid: c_int,
    addr: usize,
    data: *mut c_void,
) -> c_long {
    // SAFETY: `data` is what `request` wants; with SETREGSET a `struct iovec`.
    unsafe {
        match request {
            // The system call puts the word where `data` says, the C library's function returns it.
            PTRACE_PEEKTEXT..=PTRACE_PEEKUSER => {
                let mut word: c_long = 0;
                let failed = call(request, pid, addr, (&raw mut word).cast());
                if failed < 0 { failed } else { word }
            }
            PTRACE_SETREGSET if addr == NT_X86_XSTATE => {
                let part = &*data.cast::<Span>();
                let mut whole = Span { base: (&raw mut ROOM).cast(), len: MOST };
                let failed = call(PTRACE_GETREGSET, pid, addr, (&raw mut whole).cast());
                if failed < 0 {
                    return failed;
                }
                let len = part.len.min(whole.len);
                part.base.cast::<u8>().copy_to(whole.base.cast(), len);
                call(request, pid, addr, (&raw mut whole).cast())
            }
            _ => call(request, pid, addr, data),
        }
    }
}
