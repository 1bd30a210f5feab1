//! A plane that carries nothing, writes down what it is told and fails on demand: for tests.

use std::{
    collections::{BTreeMap, VecDeque},
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bewick_ike::{ChildId, ChildMove, ChildSa, Path};
use tokio::sync::mpsc;

use crate::{
    Answer, Counters, DataPlane, Description, Kind, MoveReport, PlaneError, PlaneEvent, Trap,
    TrapId,
};

/// One operation as the plane was told it; failed ones are written down too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`DataPlane::install`]
    Install(Box<ChildSa>),
    /// [`DataPlane::move_children`]
    Move(Vec<ChildMove>),
    /// [`DataPlane::remove`]
    Remove(ChildId),
    /// [`DataPlane::retire`]
    Retire(Vec<ChildId>),
    /// [`DataPlane::set_trap`]
    SetTrap(Trap),
    /// [`DataPlane::clear_trap`]
    ClearTrap(TrapId),
    /// [`DataPlane::shutdown`]
    Shutdown,
}

struct State {
    operations: Vec<Operation>,
    failures: VecDeque<PlaneError>,
    children: BTreeMap<ChildId, (ChildSa, Counters)>,
    sender: mpsc::Sender<PlaneEvent>,
    events: Option<mpsc::Receiver<PlaneEvent>>,
}

/// The fake. Clones share their state: one goes into the daemon, another stays with the test.
#[derive(Clone)]
pub struct FakePlane(Arc<Mutex<State>>);

impl Default for FakePlane {
    fn default() -> Self {
        FakePlane::new()
    }
}

impl FakePlane {
    /// A plane without any CHILD_SA.
    pub fn new() -> Self {
        let (sender, events) = mpsc::channel(256);
        FakePlane(Arc::new(Mutex::new(State {
            operations: Vec::new(),
            failures: VecDeque::new(),
            children: BTreeMap::new(),
            sender,
            events: Some(events),
        })))
    }

    /// Has the next install, move, remove or trap fail with `error`; several calls queue up.
    pub fn fail_next(&self, error: PlaneError) {
        self.state().failures.push_back(error);
    }

    /// All operations so far, in order.
    pub fn operations(&self) -> Vec<Operation> {
        self.state().operations.clone()
    }

    /// The CHILD_SAs that are installed, with the paths that they have now.
    pub fn installed(&self) -> Vec<ChildSa> {
        self.state().children.values().map(|(sa, _)| sa.clone()).collect()
    }

    /// Sets what [`DataPlane::counters`] answers for `id`; nothing if it is not installed.
    pub fn set_counters(&self, id: ChildId, counters: Counters) {
        if let Some(child) = self.state().children.get_mut(&id) {
            child.1 = counters;
        }
    }

    /// Reports `event` to whoever took the events; false if there is no room.
    pub fn emit(&self, event: PlaneEvent) -> bool {
        self.state().sender.try_send(event).is_ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, operation: Operation) -> Result<MutexGuard<'_, State>, PlaneError> {
        let mut state = self.state();
        state.operations.push(operation);
        match state.failures.pop_front() {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    fn install_now(&self, sa: &ChildSa) -> Result<(), PlaneError> {
        let mut state = self.begin(Operation::Install(Box::new(sa.clone())))?;
        if state.children.values().any(|(other, _)| other.spi_in == sa.spi_in) {
            return Err(PlaneError::SpiInUse);
        }
        state.children.insert(sa.id, (sa.clone(), Counters::default()));
        Ok(())
    }

    fn move_now(&self, moves: &[ChildMove]) -> Result<MoveReport, PlaneError> {
        let mut state = self.begin(Operation::Move(moves.to_vec()))?;
        if let Some(step) = moves.iter().find(|step| !state.children.contains_key(&step.id)) {
            return Err(PlaneError::UnknownChild(step.id));
        }
        for step in moves {
            if let Some((sa, _)) = state.children.get_mut(&step.id) {
                (sa.path, sa.encap) = (step.path, step.encap);
            }
        }
        Ok(MoveReport::default())
    }

    fn remove_now(&self, id: ChildId) -> Result<(), PlaneError> {
        self.begin(Operation::Remove(id))?.children.remove(&id);
        Ok(())
    }
}

impl DataPlane for FakePlane {
    fn describe(&self) -> Description {
        Description { kind: Kind::Fake, reason: "a test asked for it".into(), move_method: "none" }
    }

    fn device(&self) -> &str {
        "fake0"
    }

    fn install<'a>(&'a mut self, sa: &'a ChildSa) -> Answer<'a, ()> {
        Box::pin(ready(self.install_now(sa)))
    }

    fn move_children<'a>(&'a mut self, moves: &'a [ChildMove]) -> Answer<'a, MoveReport> {
        Box::pin(ready(self.move_now(moves)))
    }

    fn remove(&mut self, id: ChildId) -> Answer<'_, ()> {
        Box::pin(ready(self.remove_now(id)))
    }

    fn retire<'a>(&'a mut self, ids: &'a [ChildId]) -> Answer<'a, ()> {
        Box::pin(ready(self.begin(Operation::Retire(ids.to_vec())).map(|_| ())))
    }

    fn set_trap<'a>(&'a mut self, trap: &'a Trap) -> Answer<'a, ()> {
        Box::pin(ready(self.begin(Operation::SetTrap(trap.clone())).map(|_| ())))
    }

    fn clear_trap(&mut self, id: TrapId) -> Answer<'_, ()> {
        Box::pin(ready(self.begin(Operation::ClearTrap(id)).map(|_| ())))
    }

    fn counters(&mut self, id: ChildId) -> Answer<'_, Counters> {
        let counters = self.state().children.get(&id).map(|(_, counters)| *counters);
        Box::pin(ready(counters.ok_or(PlaneError::UnknownChild(id))))
    }

    fn take_events(&mut self) -> Option<mpsc::Receiver<PlaneEvent>> {
        self.state().events.take()
    }

    fn path(&self, id: ChildId) -> Option<Path> {
        self.state().children.get(&id).map(|(sa, _)| sa.path)
    }

    fn shutdown(&mut self) -> Answer<'_, ()> {
        let mut state = self.state();
        state.operations.push(Operation::Shutdown);
        state.children.clear();
        Box::pin(ready(Ok(())))
    }
}
