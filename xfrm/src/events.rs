//! What a plane tells the daemon, whose queue may be full: a mapping can be lost, an expiry is owed.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bewick_ike::ChildId;
use tokio::sync::mpsc::{Sender, error::TrySendError};

use crate::PlaneEvent;

/// The daemon's queue, and what found no room in it.
pub(crate) struct Events {
    queue: Sender<PlaneEvent>,
    /// expiries to be sent later: which CHILD_SA, and whether it is its end
    owed: Mutex<BTreeSet<(ChildId, bool)>>,
    /// something is owed: packets look at this alone
    owes: AtomicBool,
}

impl Events {
    pub(crate) fn new(queue: Sender<PlaneEvent>) -> Self {
        Events { queue, owed: Mutex::default(), owes: AtomicBool::new(false) }
    }

    /// A hint that the next packet gives again: one that finds no room is lost rather than kept, and
    /// false.
    pub(crate) fn hint(&self, event: PlaneEvent) -> bool {
        self.queue.try_send(event).is_ok()
    }

    /// A limit that `id` passes once only: without this event it would get no successor (RFC 4303
    /// §3.3.3), so that one that finds no room is kept for [`Events::settle`].
    pub(crate) fn expire(&self, id: ChildId, hard: bool) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(PlaneEvent::Expire { id, hard }) {
            let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            owed.insert((id, hard));
            self.owes.store(true, Relaxed);
        }
    }

    /// Sends what is owed as far as there is room now. The userspace plane calls it with every
    /// packet, where it costs a load: without packets it has nothing whose end is near.
    pub(crate) fn settle(&self) {
        if !self.owes() {
            return;
        }
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(id, hard)) = owed.first() {
            if let Err(TrySendError::Full(_)) = self.queue.try_send(PlaneEvent::Expire { id, hard })
            {
                return;
            }
            owed.pop_first();
        }
        self.owes.store(false, Relaxed);
    }

    /// Whether something waits for [`Events::settle`].
    pub(crate) fn owes(&self) -> bool {
        self.owes.load(Relaxed)
    }

    /// Waits until the queue has room, or nobody reads it any more.
    pub(crate) async fn room(&self) {
        drop(self.queue.reserve().await);
    }

    /// Whether nobody reads the queue any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Forgets what is owed about `id`, which is gone.
    pub(crate) fn forget(&self, id: ChildId) {
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        owed.retain(|(owed, _)| *owed != id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn expire(id: u64, hard: bool) -> PlaneEvent {
        PlaneEvent::Expire { id: ChildId(id), hard }
    }

    #[test]
    fn an_expiry_that_finds_no_room_is_sent_later() {
        let (sender, mut queue) = mpsc::channel(1);
        let events = Events::new(sender);
        for id in [1, 2, 3, 4] {
            events.expire(ChildId(id), false);
        }
        events.expire(ChildId(2), true);
        events.expire(ChildId(2), true);
        assert!(!events.hint(PlaneEvent::EventsLost));
        events.forget(ChildId(3));
        let mut got = Vec::new();
        while let Ok(event) = queue.try_recv() {
            got.push(event);
            events.settle();
        }
        let expected = [(1, false), (2, false), (2, true), (4, false)];
        assert_eq!(got, expected.map(|(id, hard)| expire(id, hard)));
        assert!(!events.owes());
    }

    #[tokio::test]
    async fn room_is_waited_for() {
        let (sender, mut queue) = mpsc::channel(1);
        let events = Events::new(sender);
        events.expire(ChildId(1), false);
        events.expire(ChildId(2), false);
        tokio::select! {
            biased;
            () = events.room() => panic!("there is none"),
            got = queue.recv() => assert_eq!(got, Some(expire(1, false))),
        }
        events.room().await;
        events.settle();
        assert_eq!(queue.recv().await, Some(expire(2, false)));
        assert!(!events.owes());
        // Nobody reads any more: no reason to wait for ever.
        drop(queue);
        events.room().await;
        assert!(events.is_closed());
    }

    #[test]
    fn nothing_is_owed_to_one_who_has_gone() {
        let (sender, queue) = mpsc::channel(1);
        let events = Events::new(sender);
        events.expire(ChildId(1), false);
        events.expire(ChildId(2), false);
        drop(queue);
        events.expire(ChildId(3), false);
        events.settle();
        assert!(!events.owes());
        assert!(events.owed.lock().unwrap().is_empty());
    }
}
