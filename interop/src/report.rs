//! Verdicts: what a scenario showed, for people and for programs.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::failure::{Context, Result};
use crate::oracle::Judged;
use crate::scenario::Scenario;

/// One uplink taken away from the client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Move {
    /// How it was taken.
    pub kind: String,
    /// The client's own address and port before.
    pub from: String,
    /// And after.
    pub to: String,
    /// The longest time without a packet in the worse direction, in milliseconds; `None` if packets
    /// did not come back.
    pub gap_ms: Option<f64>,
    /// The same towards the gateway.
    pub to_gateway_ms: Option<f64>,
    /// The same towards the client.
    pub to_client_ms: Option<f64>,
    /// Packets sent, both directions together.
    pub sent: u64,
    /// How many of them never arrived.
    pub lost: u64,
}

/// A step that was passed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// One tunnel of a scenario that tries several, one after the other.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CaseVerdict {
    /// What was tried.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// Numbered packets sent while something was done to the tunnel, both directions together.
    #[serde(default)]
    pub sent: u64,
    /// How many of them never arrived.
    #[serde(default)]
    pub lost: u64,
    /// The longest time without a packet in the worse direction, in milliseconds, if the tunnel moved.
    #[serde(default)]
    pub gap_ms: Option<f64>,
    /// What else was found out.
    #[serde(default)]
    pub figures: Vec<String>,
    /// What was not passed and why; `None` if all was.
    pub reason: Option<String>,
}

/// What became of a scenario.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// The scenario.
    pub name: String,
    /// What it shows, in one line.
    #[serde(default)]
    pub purpose: String,
    /// Who initiates.
    #[serde(default)]
    pub client: String,
    /// Who responds.
    #[serde(default)]
    pub gateway: String,
    /// Who handles ESP.
    #[serde(default)]
    pub plane: String,
    /// Whether every step was passed.
    pub passed: bool,
    /// How long it took.
    pub seconds: f64,
    /// What was not passed and why.
    pub reason: Option<String>,
    /// The folder with logs, configurations and capture.
    pub evidence: String,
    /// The daemons that took part.
    pub versions: Vec<String>,
    /// What was passed.
    pub steps: Vec<Step>,
    /// The uplinks lost on the way.
    #[serde(default)]
    pub moves: Vec<Move>,
    /// The tunnels tried, if there were several.
    #[serde(default)]
    pub cases: Vec<CaseVerdict>,
    /// IKE messages that tshark opened with bewick's keys and that were held against the rules.
    #[serde(default)]
    pub opened: usize,
    /// ESP packets, of which no number came twice.
    #[serde(default)]
    pub esp: usize,
    /// The day of this run, as `2026-01-31`.
    #[serde(default)]
    pub date: String,
    /// The commit of the sources, `+` behind it if they were changed since.
    #[serde(default)]
    pub commit: String,
    /// How many runs that were kept have passed one after the other, this one included.
    #[serde(default)]
    pub in_a_row: u32,
}

impl Verdict {
    /// A verdict to come.
    pub fn on(scenario: &Scenario) -> Self {
        let [client, gateway] = scenario.programs().map(|program| program.name().to_owned());
        Self {
            name: scenario.name(),
            purpose: scenario.purpose(),
            client,
            gateway,
            plane: scenario.plane().name().to_owned(),
            ..Self::default()
        }
    }

    /// Notes what was found in the captures.
    pub fn note(&mut self, judged: Judged) {
        (self.opened, self.esp) = (judged.opened, judged.esp);
    }

    /// Runs a step and notes that it was passed.
    ///
    /// # Errors
    /// The step's own, with its name in front.
    pub fn step<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let value = step().context(name)?;
        self.steps.push(Step { name: name.to_owned(), ms: start.elapsed().as_millis() as u64 });
        Ok(value)
    }

    /// The verdict that a guest has written.
    ///
    /// # Errors
    /// There is none, or it is not whole.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context(path.display())?;
        serde_json::from_str(&text).context(path.display())
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file system's own.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("verdict")?;
        std::fs::write(path, text + "\n").context(path.display())
    }

    /// What a person reads: one line, and why and where to look if it failed.
    pub fn lines(&self) -> String {
        let word = if self.passed { "pass" } else { "FAIL" };
        let mut text = format!("{word}  {:<44} {:>5.1} s", self.name, self.seconds);
        for one in &self.moves {
            let gap = one.gap_ms.map_or("no traffic after".to_owned(), |ms| format!("{ms:.1} ms"));
            text.push_str(&format!("   {}: {gap}, {} of {} lost", one.kind, one.lost, one.sent));
        }
        if self.opened > 0 {
            let (opened, esp) = (self.opened, self.esp);
            text.push_str(&format!("\n      {opened} IKE messages opened, {esp} ESP packets"));
        }
        for one in &self.cases {
            let end = if one.reason.is_some() { " FAIL" } else { "" };
            text.push_str(&format!("\n      {:<66} {:>5.1} s", one.name, one.seconds));
            if one.sent > 0 {
                text.push_str(&format!("   {} of {} lost", one.lost, one.sent));
            }
            if let Some(gap) = one.gap_ms {
                text.push_str(&format!(", {gap:.1} ms without"));
            }
            for figure in &one.figures {
                text.push_str(&format!("   {figure}"));
            }
            text.push_str(end);
        }
        if let Some(reason) = &self.reason {
            text.push_str(&format!("\n      {reason}\n      evidence: {}", self.evidence));
        }
        text
    }
}

/// What a whole run gave.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Every scenario's verdict.
    pub scenarios: Vec<Verdict>,
    /// How many passed.
    pub passed: usize,
    /// How many did not, for whatever reason.
    pub failed: usize,
}

impl Summary {
    /// Counts.
    pub fn of(scenarios: Vec<Verdict>) -> Self {
        let passed = scenarios.iter().filter(|verdict| verdict.passed).count();
        let failed = scenarios.len() - passed;
        Self { scenarios, passed, failed }
    }
}
