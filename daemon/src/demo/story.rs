//! What happens in the demo: the tunnel comes up, and then the moves, one after the other.

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use super::{
    agent::{Agent, AgentError, Exit, tunnel, write_private},
    footing::Footing,
    lab::{GATEWAY, INNER, Lab, Nat, UPLINKS, Uplink, uplink_of},
    netns::NetError,
    report::{Line, MoveRecord, Narrator, Report},
    traffic::{Clock, Flow, GRACE, PERIOD},
};
use crate::control::{Request, protocol::IkeSaStatus};

/// The connection's name in the client's configuration.
const CONNECTION: &str = "office";
/// The port that the numbered packets go to.
const PORT: u16 = 7701;
/// How long the tunnel may take to come up.
const SETUP: Duration = Duration::from_secs(15);
/// How long a move may take until both ends show the new address.
const MOVE: Duration = Duration::from_secs(15);
/// Traffic before a move's cause, so that a gap has a beginning.
const LEAD: Duration = Duration::from_millis(500);
/// Traffic after the move, so that it is seen to flow.
const TAIL: Duration = Duration::from_millis(700);

/// How many events are told at once.
const MANY: usize = 40;

/// One move of the demo.
#[derive(Debug)]
pub struct Move {
    /// its kind, as in the JSON
    kind: &'static str,
    cause: Cause,
    /// the fewest packets to send each way while it happens
    packets: u64,
}

/// What makes the tunnel move.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// The uplink that carries it goes down, and comes back afterwards.
    UplinkLost,
    /// The user asks for the other uplink, while both work.
    Asked,
    /// The path that carries it drops everything, while every link stays up.
    Silent,
    /// The NAT on the path forgets its mappings.
    NatRebind,
}

/// The moves, in order.
pub const MOVES: [Move; 4] = [
    Move { kind: "uplink-lost", cause: Cause::UplinkLost, packets: 2000 },
    Move { kind: "planned", cause: Cause::Asked, packets: 5000 },
    Move { kind: "silent", cause: Cause::Silent, packets: 2000 },
    Move { kind: "nat-rebind", cause: Cause::NatRebind, packets: 2000 },
];

/// Why the demo ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// The network could not be built or changed.
    #[error("could not {0}")]
    Net(#[from] NetError),
    /// A daemon could not be used.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A thread could not be started, or died.
    #[error("{0}")]
    Thread(String),
    /// Packets that belong into the tunnel were seen outside of it.
    #[error("{0} packets that belong into the tunnel went over the wires in the clear")]
    Leak(u64),
    /// The tunnel did not come up in time.
    #[error("{0}")]
    NoTunnel(String),
}

/// The demo while it runs: what is told, and what has to be cleaned up.
#[derive(Debug)]
pub struct Story {
    /// what has been found out so far
    pub report: Report,
    /// the running daemons, the client's last
    pub agents: Vec<Agent>,
    flow: Option<Flow>,
    narrator: Narrator,
    directory: PathBuf,
    exits: mpsc::UnboundedSender<Exit>,
    clock: Clock,
    told: Duration,
}

impl Story {
    /// Begins; configurations, logs and control sockets go to `directory`.
    pub fn new(narrator: Narrator, directory: PathBuf, exits: mpsc::UnboundedSender<Exit>) -> Self {
        Story {
            report: Report::default(),
            agents: Vec::new(),
            flow: None,
            narrator,
            directory,
            exits,
            clock: Clock::start(),
            told: Duration::ZERO,
        }
    }

    /// Runs from the network to the last move.
    pub async fn run(&mut self, footing: Footing) -> Result<(), StoryError> {
        let lab = Arc::new(blocking(Lab::build).await??);
        self.introduce(&lab, footing);
        let started = self.start_daemons(&lab).await?;
        self.connect(&lab, started).await?;
        for (index, step) in MOVES.iter().enumerate() {
            if let (Cause::NatRebind, Nat::Missing(_)) = (step.cause, &lab.nat) {
                self.narrator.say("");
                self.note(&format!("{} is left out, for there is no NAT", step.kind));
                self.report.skipped.push(step.kind);
                continue;
            }
            let record = self.make_move(&lab, step).await?;
            self.narrator.tell_move(index + 1, MOVES.len(), &record);
            self.told = self.clock.now();
            self.report.moves.push(record);
        }
        match lab.leaked() {
            0 => Ok(()),
            packets => Err(StoryError::Leak(packets)),
        }
    }

    /// Ends the daemons, the client's first, so that the gateway hears its farewell. Returns who
    /// had to be killed.
    pub async fn stop(&mut self) -> Vec<&'static str> {
        self.flow = None;
        let mut killed = Vec::new();
        while let Some(mut agent) = self.agents.pop() {
            if !agent.stop().await {
                killed.push(agent.name());
            }
        }
        killed
    }

    fn introduce(&self, lab: &Lab, footing: Footing) {
        let [wifi, lte] = &UPLINKS;
        let nat = if matches!(lab.nat, Nat::Nft(_)) { "- NAT -" } else { "-------" };
        self.narrator.say(&format!(
            "A tunnel that moves\n\n  \
             client --- {:<4} {:<10} --------- router --- gateway {GATEWAY} --- {INNER}\n         \
             \\- {:<4} {:<10} {nat} -/\n",
            wifi.name, wifi.address, lte.name, lte.address,
        ));
        self.note(match footing {
            Footing::Root => "made the network: four namespaces of this machine",
            Footing::UserNamespace => {
                "made the network: four namespaces, inside a user namespace, since we are not root"
            }
        });
        match &lab.nat {
            Nat::Nft(nft) => {
                self.note(&format!("{} is behind a NAT, made with {}", lte.name, nft.display()))
            }
            Nat::Missing(why) => {
                self.note(&format!("{} is without a NAT: could not {why}", lte.name))
            }
        }
    }

    /// Starts the gateway's daemon and then the client's; returns when the latter was.
    async fn start_daemons(&mut self, lab: &Lab) -> Result<Duration, StoryError> {
        let psk = secret()?;
        let mut started = Duration::ZERO;
        for (netns, configuration) in [(&lab.gateway, GATEWAY_TOML), (&lab.client, CLIENT_TOML)] {
            let name = netns.name();
            let psk_file = self.directory.join(format!("{name}.psk"));
            write_private(&psk_file, &psk)?;
            let configuration = fill(configuration, &psk_file);
            started = self.clock.now();
            let directory = self.directory.join(name);
            let agent =
                Agent::start(netns, &directory, &configuration, self.clock, self.exits.clone())
                    .await?;
            self.agents.push(agent);
            self.narrator.tell(&Line {
                at: started,
                who: name,
                text: format!("the daemon starts with {}", directory.join("bewick.toml").display()),
            });
        }
        Ok(started)
    }

    /// Waits for the tunnel and sends the first packets through it.
    async fn connect(&mut self, lab: &Lab, started: Duration) -> Result<(), StoryError> {
        let deadline = started + SETUP;
        let connection = CONNECTION.to_owned();
        if let Err(error) = self.client()?.ask(Request::Up { name: connection }).await {
            return Err(error.into());
        }
        let status = self.client()?.status().await?;
        let client = lab.client.enter(|| UdpSocket::bind(("0.0.0.0", PORT)));
        let gateway = lab.gateway.enter(|| UdpSocket::bind((INNER, PORT)));
        let flow = client
            .and_then(|client| Flow::start(client, gateway?, (INNER, PORT).into(), self.clock))
            .map_err(|error| StoryError::Thread(format!("could not start to send: {error}")))?;
        let flow = self.flow.insert(flow);
        let both_ways = loop {
            if let Some(at) = flow.both_ways() {
                break at;
            }
            if self.clock.now() > deadline {
                let refused = flow.tracks().into_iter().find_map(|t| t.refused().map(String::from));
                let refused = refused.map(|why| format!(" ({why})")).unwrap_or_default();
                return Err(StoryError::NoTunnel(format!(
                    "the tunnel is up, but no packets get through it in both directions{refused}"
                )));
            }
            sleep(Duration::from_millis(2)).await;
        };
        let setup = both_ways.saturating_sub(started);
        self.report.setup = Some(setup);
        self.report.dataplane = Some(status.dataplane.kind.clone());
        // Events come by another way than the packets: let them arrive before they are told.
        sleep(Duration::from_millis(100)).await;
        self.tell_events();
        if let Some(sa) = tunnel(&status) {
            self.narrator.tell(&Line {
                at: both_ways,
                who: "demo",
                text: format!(
                    "the first packets get through, {} ms after the client's start: {} in {} -> {}",
                    setup.as_millis(),
                    list(&sa.virtual_ips),
                    sa.local,
                    sa.remote,
                ),
            });
        }
        self.note(&format!("data plane: {} ({})", status.dataplane.kind, status.dataplane.reason));
        self.note("from now on 1000 numbered packets a second, each way");
        Ok(())
    }

    async fn make_move(&mut self, lab: &Arc<Lab>, step: &Move) -> Result<MoveRecord, StoryError> {
        let mut before = self.sides().await?;
        let [_, behind_nat] = &UPLINKS;
        if matches!(step.cause, Cause::NatRebind)
            && uplink_of(before.client.local) != Some(behind_nat)
        {
            before = self.go_to(lab, before, behind_nat).await?;
        }
        let from = before.client.local;
        let (Some(current), Some(other)) = (uplink_of(from), other_than(&before.client)) else {
            return Err(StoryError::NoTunnel(format!("the tunnel is at {from}, not at an uplink")));
        };
        let (began, sent) = (self.clock.now(), self.flow()?.sent());
        sleep(LEAD).await;

        let at = self.clock.now();
        let (title, what, refused) = match step.cause {
            Cause::UplinkLost => {
                let lab = lab.clone();
                blocking(move || lab.take(current)).await??;
                let title = format!("{}, the current uplink, is taken away", current.name);
                (title, format!("takes {} down", current.name), None)
            }
            Cause::Asked => {
                let (name, to) = (CONNECTION.to_owned(), other.address.to_string());
                let what = format!("asks the client: bewick move {name} --to {to}");
                // What the daemon thinks of it shows in the outcome.
                let refused = self.client()?.ask(Request::Move { name, to }).await.err();
                let title = format!("a request to use {}, while both uplinks work", other.name);
                (title, what, refused)
            }
            Cause::Silent => {
                let lab = lab.clone();
                blocking(move || lab.silence(current)).await??;
                let title =
                    format!("the path by {} goes silent, while every link is up", current.name);
                (title, format!("has the router drop all packets of {}", current.name), None)
            }
            Cause::NatRebind => {
                let lab = lab.clone();
                blocking(move || lab.rebind()).await??;
                let title = format!("the NAT of {} forgets its mappings", current.name);
                (title, "has the NAT forget all, and give other ports from now on".to_owned(), None)
            }
        };
        let mut lines = vec![Line { at, who: "demo", text: what }];
        let after = self.moved(lab, step.cause, &before, at + MOVE).await?;
        let settled = self.clock.now();
        while self.flow()?.sent() < sent + step.packets || self.clock.now() < settled + TAIL {
            sleep(Duration::from_millis(5)).await;
        }
        let until = self.clock.now();
        sleep(GRACE).await;

        let [up, down] = self.flow()?.figures(began, until);
        let figures = up.worse(down);
        // A gap of a packet or two is how traffic looks at any time; a later one has another cause.
        let ceased = figures.resumed.saturating_sub(figures.gap);
        if figures.flowing && figures.gap > 4 * PERIOD && ceased < settled && figures.resumed > at {
            let text = "packets arrive again in both directions".to_owned();
            lines.push(Line { at: figures.resumed, who: "demo", text });
        }
        let restored = lab.clone();
        match step.cause {
            Cause::UplinkLost => {
                blocking(move || restored.restore(current)).await??;
                self.knows(current).await?;
            }
            Cause::Silent => blocking(move || restored.unsilence(current)).await??,
            Cause::Asked | Cause::NatRebind => {}
        }
        let hint = self.told_by_client("suspected", "hint", at, until)?;
        let reason = self.told_by_client("moving", "cause", at, until)?;
        // The daemons' marks are whole milliseconds, so that a consequence may seem to come first.
        let events = self.events(at.saturating_sub(Duration::from_millis(1)), until);
        lines.extend(events.into_iter().map(|line| Line { at: line.at.max(at), ..line }));
        lines.sort_by_key(|line| line.at);
        let trouble = match &after {
            Err(why) => Some(refused.map_or(why.clone(), |refused| format!("{refused}; {why}"))),
            Ok(_) if !figures.flowing => Some("no traffic flows at the end".to_owned()),
            Ok(_) => None,
        };
        let after = after.ok();
        Ok(MoveRecord {
            kind: step.kind,
            title,
            at,
            from,
            to: after.as_ref().map(|sides| sides.client.local),
            seen_before: before.gateway.remote,
            seen: after.as_ref().map(|sides| sides.gateway.remote),
            lines,
            figures,
            hint,
            cause: reason,
            trouble,
        })
    }

    /// Moves the tunnel to this uplink, so that something else can happen there.
    async fn go_to(&self, lab: &Lab, before: Sides, uplink: &Uplink) -> Result<Sides, StoryError> {
        let (name, to) = (CONNECTION.to_owned(), uplink.address.to_string());
        self.client()?.ask(Request::Move { name, to }).await?;
        let deadline = self.clock.now() + MOVE;
        self.moved(lab, Cause::Asked, &before, deadline).await?.map_err(StoryError::NoTunnel)
    }

    /// The first that the client's daemon said of this in an event of this kind.
    fn told_by_client(
        &self,
        event: &str,
        field: &str,
        from: Duration,
        until: Duration,
    ) -> Result<Option<String>, StoryError> {
        let from = from.saturating_sub(Duration::from_millis(1));
        let events = self.client()?.events(from, until);
        let found = events.iter().find(|(_, record)| record.event == event);
        let text = found.and_then(|(_, record)| record.fields.get(field)?.as_str());
        Ok(text.map(str::to_owned))
    }

    /// Waits until the client's daemon has seen an uplink come back.
    async fn knows(&self, uplink: &Uplink) -> Result<(), StoryError> {
        let deadline = self.clock.now() + MOVE;
        while self.clock.now() < deadline {
            let addresses = self.client()?.status().await?.addresses;
            if addresses.iter().any(|a| a.address == uplink.address && a.metric.is_some()) {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(StoryError::NoTunnel(format!(
            "{} is back, but the client's daemon does not show it",
            uplink.name
        )))
    }

    /// Waits until both ends show another outer address, and the right one; the inner error says
    /// what they show instead.
    async fn moved(
        &self,
        lab: &Lab,
        cause: Cause,
        before: &Sides,
        deadline: Duration,
    ) -> Result<Result<Sides, String>, StoryError> {
        loop {
            let now = self.sides().await;
            let trouble = match now {
                Ok(now) => {
                    let seen = uplink_of(now.client.local).map(|uplink| lab.seen(uplink).into());
                    if matches!(cause, Cause::NatRebind) {
                        if now.gateway.remote != before.gateway.remote {
                            return Ok(Ok(now));
                        }
                        format!("the gateway still sees the client at {}", now.gateway.remote)
                    } else if now.client.local == before.client.local {
                        format!("the client is still at {}", now.client.local)
                    } else if seen != Some(now.gateway.remote.ip()) {
                        format!(
                            "the client is at {}, but the gateway sees it at {}",
                            now.client.local, now.gateway.remote
                        )
                    } else {
                        return Ok(Ok(now));
                    }
                }
                Err(StoryError::NoTunnel(why)) => why,
                Err(error) => return Err(error),
            };
            if self.clock.now() > deadline {
                return Ok(Err(trouble));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The tunnel as both ends show it.
    async fn sides(&self) -> Result<Sides, StoryError> {
        let mut sides = Vec::new();
        for agent in &self.agents {
            let status = agent.status().await?;
            sides.push(tunnel(&status).cloned().ok_or_else(|| {
                StoryError::NoTunnel(format!("the {} has no tunnel any more", agent.name()))
            })?);
        }
        match <[IkeSaStatus; 2]>::try_from(sides) {
            Ok([gateway, client]) => Ok(Sides { client, gateway }),
            Err(_) => Err(StoryError::NoTunnel("a daemon is missing".to_owned())),
        }
    }

    fn client(&self) -> Result<&Agent, StoryError> {
        self.agents.last().ok_or_else(|| StoryError::NoTunnel("no daemon runs".to_owned()))
    }

    fn flow(&self) -> Result<&Flow, StoryError> {
        self.flow.as_ref().ok_or_else(|| StoryError::NoTunnel("no packets are sent".to_owned()))
    }

    /// Tells what the daemons did since it was last told.
    pub fn tell_events(&mut self) {
        let now = self.clock.now();
        for line in self.events(self.told, now) {
            self.narrator.tell(&line);
        }
        self.told = now;
    }

    /// What the daemons did in this time, in order, but no more of it than a person reads.
    fn events(&self, from: Duration, until: Duration) -> Vec<Line> {
        let of = |agent: &Agent| {
            let who = agent.name();
            let events = agent.events(from, until);
            events.into_iter().map(move |(at, event)| Line { at, who, text: event.text })
        };
        let mut lines: Vec<Line> = self.agents.iter().flat_map(of).collect();
        lines.sort_by_key(|line| line.at);
        let more = lines.len().saturating_sub(MANY);
        if let (1.., Some(last)) = (more, lines.get(MANY).cloned()) {
            lines.truncate(MANY);
            lines.push(Line { who: "demo", text: format!("and {more} events more"), ..last });
        }
        lines
    }

    fn note(&self, text: &str) {
        let line = Line { at: self.clock.now(), who: "demo", text: text.to_owned() };
        self.narrator.tell(&line);
    }
}

/// The tunnel as both ends show it.
#[derive(Debug)]
struct Sides {
    client: IkeSaStatus,
    gateway: IkeSaStatus,
}

fn other_than(sa: &IkeSaStatus) -> Option<&'static Uplink> {
    UPLINKS.iter().find(|uplink| sa.local.ip() != uplink.address)
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoryError> {
    spawn_blocking(work).await.map_err(|error| StoryError::Thread(error.to_string()))
}

/// A pre-shared key that nobody knows, for one run.
fn secret() -> Result<String, StoryError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| StoryError::Thread(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Completes one of the configurations below.
fn fill(configuration: &str, psk_file: &Path) -> String {
    configuration
        .replace("@PSK@", &psk_file.display().to_string())
        .replace("@GATEWAY@", &GATEWAY.to_string())
        .replace("@CONNECTION@", CONNECTION)
}

const GATEWAY_TOML: &str = r#"# The gateway of `bewick demo`.
[daemon]
crash_tokens = false
resolver = "off"

[[connection]]
name = "road-warriors"
role = "responder"
local_id = "gateway.demo.example"
remote_id = "*@demo.example"
psk_file = "@PSK@"
local_ts = ["10.1.0.0/16"]
pool = ["10.9.0.0/24"]
"#;

const CLIENT_TOML: &str = r#"# The client of `bewick demo`.
[daemon]
resolver = "off"

[[connection]]
name = "@CONNECTION@"
role = "initiator"
gateway = "@GATEWAY@"
local_id = "client@demo.example"
remote_id = "gateway.demo.example"
psk_file = "@PSK@"
remote_ts = ["10.1.0.0/16"]
virtual_ip = true
back_after = 0
"#;

#[cfg(test)]
mod tests {
    use super::{super::agent::make_directory, *};
    use crate::config;

    #[test]
    fn the_daemon_understands_both_configurations() {
        let directory =
            std::env::temp_dir().join(format!("bewick-demo-test-{}", std::process::id()));
        make_directory(&directory).expect("a directory");
        let psk = directory.join("psk");
        write_private(&psk, &secret().expect("random numbers")).expect("a secret");
        let read = [GATEWAY_TOML, CLIENT_TOML].map(|text| {
            let file = directory.join(format!("{}.toml", text.len()));
            write_private(&file, &fill(text, &psk)).expect("a configuration");
            config::load(&file).map(|config| config.connections.len())
        });
        std::fs::remove_dir_all(&directory).expect("the directory again");
        for connections in read {
            assert_eq!(connections.expect("no problems"), 1);
        }
    }
}
