//! The kernel's setting that lets packets wait for a state that is to come, and how a move gets the
//! processor before whoever sends them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const LARVAL_DROP: &str = "/proc/sys/net/core/xfrm_larval_drop";

/// How much longer packets may wait: one on another processor that has found a held policy is dropped if
/// the setting is back before it looks at that. Moves that follow each other change it only once.
const LATER: Duration = Duration::from_millis(20);

/// The setting, in the network namespace of the thread that opened it. It is put back at the latest when this
/// is dropped.
pub(super) struct Queueing(Arc<Mutex<Setting>>);

#[derive(Default)]
struct Setting {
    file: Option<File>,
    /// what is to be put back
    before: Option<[u8; 1]>,
    /// how often packets were let wait
    times: u64,
}

impl Setting {
    fn put_back(&mut self) {
        if let (Some(file), Some(digit)) = (&self.file, self.before.take())
            && let Err(error) = file.write_all_at(&digit, 0)
        {
            tracing::warn!(%error, "{LARVAL_DROP} stays 0");
        }
    }
}

impl Queueing {
    /// Without the right to change it, packets can't be held back.
    pub(super) fn open() -> Self {
        let file = OpenOptions::new().read(true).write(true).open(LARVAL_DROP);
        let file = file
            .inspect_err(|error| {
                tracing::debug!(%error, "{LARVAL_DROP} can't be set: moves don't hold packets back");
            })
            .ok();
        Queueing(Arc::new(Mutex::new(Setting { file, ..Setting::default() })))
    }

    /// Sets what the kernel begins with: somebody who was to put it back was killed.
    pub(super) fn reset(&self) {
        let mut setting = lock(&self.0);
        setting.before = Some(*b"1");
        setting.put_back();
    }

    /// Lets packets wait until [`Queueing::end`]; whether they would not without us, or `None` if that can't be.
    ///
    /// It is not left on, as it is about the policies of others too.
    pub(super) fn begin(&self) -> Option<bool> {
        let mut setting = lock(&self.0);
        setting.times += 1;
        let set = |file: &File| -> io::Result<Option<[u8; 1]>> {
            let mut digit = [0];
            file.read_exact_at(&mut digit, 0)?;
            if digit == *b"0" {
                return Ok(None);
            }
            file.write_all_at(b"0\n", 0)?;
            Ok(Some(digit))
        };
        match set(setting.file.as_ref()?) {
            // Another program may have changed it while it was ours.
            Ok(found) => setting.before = found.or(setting.before),
            Err(error) => {
                tracing::debug!(%error, "packets can't be held back");
                return None;
            }
        }
        Some(setting.before.is_some())
    }

    /// Puts the setting back at once.
    pub(super) fn put_back(&self) {
        lock(&self.0).put_back();
    }

    /// Puts the setting back after [`LATER`], unless packets are to wait again by then.
    pub(super) fn end(&self) {
        let times = lock(&self.0).times;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return self.put_back();
        };
        let setting = self.0.clone();
        runtime.spawn(async move {
            tokio::time::sleep(LATER).await;
            let mut setting = lock(&setting);
            if setting.times == times {
                setting.put_back();
            }
        });
    }
}

impl Drop for Queueing {
    fn drop(&mut self) {
        self.put_back();
    }
}

fn lock(setting: &Mutex<Setting>) -> MutexGuard<'_, Setting> {
    setting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread goes before all others that have no real-time priority, until this is dropped: whoever
/// sends must not fill the queue while we wait for a processor between two requests. It calls nothing
/// but the kernel meanwhile.
pub(super) struct Urgent {
    policy: libc::c_int,
    parameters: libc::sched_param,
}

impl Urgent {
    /// `None` without the right to it (CAP_SYS_NICE); the queue may do all the same.
    pub(super) fn begin() -> Option<Self> {
        let mut parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: the thread is this one, and the structure lives longer than the call.
        let policy = unsafe { libc::sched_getscheduler(0) };
        // SAFETY: as above.
        if policy < 0 || unsafe { libc::sched_getparam(0, &raw mut parameters) } != 0 {
            return None;
        }
        let least = libc::sched_param { sched_priority: 1 };
        // SAFETY: as above.
        let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const least) };
        (set == 0).then_some(Urgent { policy, parameters })
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // SAFETY: as in `begin`.
        if unsafe { libc::sched_setscheduler(0, self.policy, &raw const self.parameters) } != 0 {
            let error = io::Error::last_os_error();
            tracing::warn!(%error, "a thread keeps its real-time priority");
        }
    }
}
