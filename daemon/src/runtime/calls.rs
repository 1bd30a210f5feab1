//! What the operator asks for over the control socket, and the clients that wait for its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bewick_ike::{ConnectionId, Path, Time};
use bewick_mobike::{Cause, Command, Event, MoveTarget};
use tokio::sync::mpsc;

use super::Daemon;
use crate::{
    config::Start,
    control::{Call, EventRecord, Reply, Request},
};

/// How long `bewick down` waits for the peer to confirm.
const DOWN: Duration = Duration::from_secs(2);

/// The clients that wait for something to happen.
#[derive(Default)]
pub(super) struct Waiters {
    list: Vec<Waiter>,
    /// initiators' connections that are tried again after a while
    retrying: BTreeSet<ConnectionId>,
}

struct Waiter {
    connection: ConnectionId,
    name: String,
    goal: Goal,
    replies: mpsc::Sender<Reply>,
}

enum Goal {
    Up {
        /// whether the daemon goes on by itself after a failure
        keep_up: bool,
    },
    Down {
        deadline: Time,
    },
    Move {
        /// where it is as yet
        from: Option<Path>,
    },
}

impl Waiters {
    /// When a client's patience ends.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        let deadline = |waiter: &Waiter| match waiter.goal {
            Goal::Down { deadline } => Some(deadline),
            _ => None,
        };
        self.list.iter().filter_map(deadline).min()
    }

    /// Whether the connection is down and will be tried again.
    pub(super) fn is_retrying(&self, connection: ConnectionId) -> bool {
        self.retrying.contains(&connection)
    }

    /// The operator does not want the connection any more.
    fn given_up(&mut self, connection: ConnectionId) {
        self.retrying.remove(&connection);
    }

    /// Keeps in mind what an event says about the connections.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Retrying { connection, .. } => {
                self.retrying.insert(*connection);
            }
            Event::Established { established, .. } => {
                self.retrying.remove(&established.connection);
            }
            _ => {}
        }
    }

    /// Sends an event to the clients that wait for its connection, and answers those that it ends
    /// the wait of.
    pub(super) fn forward(&mut self, event: &Event, record: &Arc<EventRecord>) {
        let Some(connection) = event.connection() else { return };
        self.list.retain(|waiter| {
            if waiter.connection != connection {
                return true;
            }
            // a client that does not read is not waited for
            if waiter.replies.try_send(Reply::Event((**record).clone())).is_err() {
                return false;
            }
            match waiter.outcome(event) {
                Some(reply) => {
                    let _ = waiter.replies.try_send(reply);
                    false
                }
                None => true,
            }
        });
    }
}

impl Waiter {
    /// The last reply, if `event` is what the client waits for or makes it impossible.
    fn outcome(&self, event: &Event) -> Option<Reply> {
        let name = &self.name;
        let done = |text: String| Some(Reply::Done { text });
        let error = |text: String, remedy: Option<String>| Some(Reply::Error { text, remedy });
        match (&self.goal, event) {
            (Goal::Up { .. }, Event::Established { .. }) => done(format!("{name} is up")),
            (Goal::Up { keep_up }, Event::Closed { reason, .. }) => {
                let again = keep_up
                    .then(|| format!("the daemon goes on trying; `bewick down {name}` ends that"));
                error(format!("{name} did not come up: {reason}"), again)
            }
            (Goal::Up { .. }, Event::Waiting { .. }) => error(
                format!("{name} did not come up: no address of this machine reaches the gateway"),
                Some("is the network up, and can the gateway's name be looked up?".into()),
            ),
            // The peer did not take it there, and it came back (RFC 4555 §3.5).
            (Goal::Move { from: Some(from) }, Event::Moved { to, cause: Cause::Refused, .. })
                if to.local == from.local =>
            {
                let remedy = "`peer_from` and the keys beside it on the gateway say from where laptops may \
                              come";
                error(
                    format!("{name} is at {} still: {}", to.local, Cause::Refused),
                    Some(remedy.into()),
                )
            }
            (Goal::Move { .. }, Event::Moved { to, took, .. }) => done(format!(
                "{name} is at {} now, after {:.1} ms",
                to.local,
                took.as_secs_f64() * 1000.0
            )),
            (Goal::Move { .. }, Event::MoveFailed { error: why, .. }) => {
                error(format!("{name} did not move: {}", why.0), None)
            }
            (Goal::Move { .. }, Event::Closed { reason, .. }) => {
                error(format!("{name} did not move, it is closed: {reason}"), None)
            }
            _ => None,
        }
    }
}

impl Daemon {
    /// Answers a request, at once or when what it asks for has come about.
    pub(super) async fn on_call(&mut self, call: Call) {
        let answer = match &call.request {
            Request::Status {} => Some(Reply::Status(Box::new(self.status().await))),
            // the server answers it itself
            Request::Events {} => None,
            Request::Paths { name } => Some(self.paths(name.as_deref())),
            Request::Moves { name } => Some(self.moves(name.as_deref())),
            Request::Up { name } => self.up(name, &call.replies),
            Request::Down { name } => self.down(name, &call.replies).await,
            Request::Move { name, to } => self.move_to(name, to, &call.replies),
            Request::Rekey { name, ike } => Some(self.rekey(name, *ike)),
        };
        if let Some(answer) = answer {
            // it is the first in the queue: only a client that has gone does not take it
            let _ = call.replies.try_send(answer);
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<ConnectionId, Reply> {
        if let Some(index) = self.connections.iter().position(|c| c.name() == name) {
            return Ok(ConnectionId(index));
        }
        let known: Vec<&str> = self.connections.iter().map(|c| c.name()).collect();
        Err(Reply::Error {
            text: format!("no connection is named {name:?}"),
            remedy: Some(format!("there is {}", known.join(", "))),
        })
    }

    fn up(&mut self, name: &str, replies: &mpsc::Sender<Reply>) -> Option<Reply> {
        let connection = match self.find(name) {
            Ok(connection) => connection,
            Err(reply) => return Some(reply),
        };
        let up = |sa: &bewick_ike::endpoint::SaStatus<'_>| {
            sa.connection == Some(connection) && sa.state == "established"
        };
        let is_up = self.host.status().any(|sa| up(&sa));
        if let Err(e) = self.host.command(self.clock.now(), Command::Up(connection)) {
            return Some(refused(name, &e));
        }
        if is_up {
            return Some(Reply::Done { text: format!("{name} is up already") });
        }
        let keep_up = self.connections.get(connection.0).is_some_and(|c| c.start == Start::Auto);
        self.wait(connection, name, Goal::Up { keep_up }, replies);
        None
    }

    async fn down(&mut self, name: &str, replies: &mpsc::Sender<Reply>) -> Option<Reply> {
        let connection = match self.find(name) {
            Ok(connection) => connection,
            Err(reply) => return Some(reply),
        };
        let now = self.clock.now();
        if let Err(e) = self.host.command(now, Command::Down(connection)) {
            return Some(refused(name, &e));
        }
        self.waiters.given_up(connection);
        self.unblock(name).await;
        self.wait(connection, name, Goal::Down { deadline: now + DOWN }, replies);
        None
    }

    fn rekey(&mut self, name: &str, ike: bool) -> Reply {
        let connection = match self.find(name) {
            Ok(connection) => connection,
            Err(reply) => return reply,
        };
        let command = match ike {
            true => Command::RekeyIke(connection),
            false => Command::Rekey(connection),
        };
        match self.host.command(self.clock.now(), command) {
            Ok(()) => Reply::Done { text: format!("{name} asks its peer for new keys") },
            Err(e) => refused(name, &e),
        }
    }

    fn move_to(&mut self, name: &str, to: &str, replies: &mpsc::Sender<Reply>) -> Option<Reply> {
        let connection = match self.find(name) {
            Ok(connection) => connection,
            Err(reply) => return Some(reply),
        };
        let target = match to.parse() {
            Ok(address) => MoveTarget::Address(address),
            Err(_) => MoveTarget::Interface(to.to_owned()),
        };
        let path = |daemon: &Self| {
            let sa = daemon
                .host
                .status()
                .find(|sa| sa.connection == Some(connection) && sa.state == "established");
            sa.map(|sa| sa.path)
        };
        let before = path(self);
        let command = Command::Move(connection, target);
        if let Err(e) = self.host.command(self.clock.now(), command) {
            return Some(refused(name, &e));
        }
        match path(self) {
            Some(now) if before == Some(now) => {
                Some(Reply::Done { text: format!("{name} is at {} already", now.local) })
            }
            _ => {
                self.wait(connection, name, Goal::Move { from: before }, replies);
                None
            }
        }
    }

    fn wait(
        &mut self,
        connection: ConnectionId,
        name: &str,
        goal: Goal,
        replies: &mpsc::Sender<Reply>,
    ) {
        let (name, replies) = (name.to_owned(), replies.clone());
        self.waiters.list.push(Waiter { connection, name, goal, replies });
    }

    /// Answers the clients that wait for a connection to be gone, and forgets those that have left.
    pub(super) fn serve_waiters(&mut self) {
        let now = self.clock.now();
        let host = &self.host;
        self.waiters.list.retain(|waiter| {
            let Goal::Down { deadline } = waiter.goal else { return !waiter.replies.is_closed() };
            let gone = !host.status().any(|sa| sa.connection == Some(waiter.connection));
            if !gone && now < deadline {
                return !waiter.replies.is_closed();
            }
            let name = &waiter.name;
            let text = match gone {
                true => format!("{name} is down"),
                false => format!("{name} is down here; the peer has not confirmed it"),
            };
            let _ = waiter.replies.try_send(Reply::Done { text });
            false
        });
    }
}

fn refused(name: &str, error: &dyn std::fmt::Display) -> Reply {
    Reply::Error { text: format!("{name}: {error}"), remedy: None }
}

#[cfg(test)]
mod tests {
    use bewick_ike::SaId;

    use super::*;

    #[test]
    fn a_move_that_the_peer_refuses_is_no_success() {
        let path =
            |local: &str| Path::new(local.parse().unwrap(), "192.0.2.1:4500".parse().unwrap());
        let (old, new) = (path("198.51.100.2:4500"), path("203.0.113.2:4500"));
        let (replies, _) = mpsc::channel(1);
        let goal = Goal::Move { from: Some(old) };
        let waiter = Waiter { connection: ConnectionId(0), name: "office".into(), goal, replies };
        let moved = |to, cause| Event::Moved {
            connection: ConnectionId(0),
            sa: SaId(1),
            from: old,
            to,
            cause,
            took: Duration::from_millis(1),
            tried: Vec::new(),
        };
        let there = waiter.outcome(&moved(new, Cause::Requested));
        assert!(matches!(there, Some(Reply::Done { text }) if text.contains("203.0.113.2")));
        let back = waiter.outcome(&moved(old, Cause::Refused));
        let Some(Reply::Error { text, remedy }) = back else { panic!("{back:?}") };
        assert!(text.contains("at 198.51.100.2:4500 still"), "{text}");
        assert!(remedy.unwrap().contains("peer_from"));
        // another of the gateway's addresses has taken it
        assert!(matches!(waiter.outcome(&moved(new, Cause::Refused)), Some(Reply::Done { .. })));
    }
}
