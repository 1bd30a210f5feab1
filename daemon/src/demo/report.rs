//! What the demo tells: a timeline for people, or one JSON object.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use serde::Serialize;

use super::traffic::Figures;

/// The widest line of the timeline, in characters.
const WIDTH: usize = 100;
/// Where a line's text begins.
const INDENT: usize = 24;

/// One line of the timeline.
#[derive(Clone, Debug)]
pub struct Line {
    /// when, on the demo's clock
    pub at: Duration,
    /// who did it
    pub who: &'static str,
    /// what was done
    pub text: String,
}

/// One move, from its cause to its end.
#[derive(Clone, Debug)]
pub struct MoveRecord {
    /// the kind of move, as in the JSON
    pub kind: &'static str,
    /// what happens, in a few words
    pub title: String,
    /// when its cause was made, on the demo's clock
    pub at: Duration,
    /// the client's outer address before
    pub from: SocketAddr,
    /// the client's outer address after, if it changed
    pub to: Option<SocketAddr>,
    /// the client's address before as the gateway saw it
    pub seen_before: SocketAddr,
    /// the client's address after as the gateway sees it, if it changed
    pub seen: Option<SocketAddr>,
    /// what happened, in order
    pub lines: Vec<Line>,
    /// the worse of the two directions
    pub figures: Figures,
    /// what made the client doubt its path, if anything did
    pub hint: Option<String>,
    /// why the client moved, in its own words
    pub cause: Option<String>,
    /// why the move did not end well, if so
    pub trouble: Option<String>,
}

impl MoveRecord {
    /// Whether the move ended with traffic flowing on the new path.
    pub fn ok(&self) -> bool {
        self.trouble.is_none()
    }
}

/// The whole run.
#[derive(Debug, Default)]
pub struct Report {
    /// which data plane carried the traffic
    pub dataplane: Option<String>,
    /// from the start of the client's daemon to the first packet both ways
    pub setup: Option<Duration>,
    /// the moves that were made
    pub moves: Vec<MoveRecord>,
    /// the moves that this machine has no means for
    pub skipped: Vec<&'static str>,
    /// why the run ended early, if so
    pub error: Option<String>,
}

impl Report {
    /// Whether all of `expected` moves ended well.
    pub fn ok(&self, expected: usize) -> bool {
        self.error.is_none()
            && self.moves.len() + self.skipped.len() == expected
            && self.moves.iter().all(MoveRecord::ok)
    }

    /// The object that `--json` prints.
    pub fn json(&self, expected: usize) -> String {
        let object = Object {
            dataplane: self.dataplane.as_deref(),
            setup_ms: self.setup.map(milliseconds),
            moves: self.moves.iter().map(JsonMove::from).collect(),
            skipped: &self.skipped,
            ok: self.ok(expected),
            error: self.error.as_deref(),
        };
        // Numbers, words and addresses can always be written.
        serde_json::to_string(&object).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Object<'a> {
    dataplane: Option<&'a str>,
    setup_ms: Option<u64>,
    moves: Vec<JsonMove<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    skipped: &'a [&'static str],
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonMove<'a> {
    kind: &'static str,
    from: SocketAddr,
    to: Option<SocketAddr>,
    seen_from: SocketAddr,
    seen_to: Option<SocketAddr>,
    sent: u64,
    lost: u64,
    gap_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<&'a str>,
}

impl<'a> From<&'a MoveRecord> for JsonMove<'a> {
    fn from(record: &'a MoveRecord) -> Self {
        JsonMove {
            kind: record.kind,
            from: record.from,
            to: record.to,
            seen_from: record.seen_before,
            seen_to: record.seen,
            sent: record.figures.sent,
            lost: record.figures.lost,
            gap_ms: milliseconds(record.figures.gap),
            hint: record.hint.as_deref(),
            cause: record.cause.as_deref(),
            ok: record.ok(),
            trouble: record.trouble.as_deref(),
        }
    }
}

/// To the nearest.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from((time.as_micros() + 500) / 1000).unwrap_or(u64::MAX)
}

/// Tells people what happens, unless a program listens.
#[derive(Debug)]
pub struct Narrator {
    silent: bool,
}

impl Narrator {
    /// One that says nothing if `silent`.
    pub fn new(silent: bool) -> Self {
        Narrator { silent }
    }

    /// Prints a text as it is.
    pub fn say(&self, text: &str) {
        if !self.silent {
            // A reader that has left is no reason to stop: the exit status still tells.
            let _ = writeln!(io::stdout().lock(), "{text}");
        }
    }

    /// Prints a line with the time since the demo began.
    pub fn tell(&self, line: &Line) {
        self.say(&render(&format!("{:.3} s", line.at.as_secs_f64()), line));
    }

    /// Prints a move.
    pub fn tell_move(&self, number: usize, of: usize, record: &MoveRecord) {
        self.say(&format!("\nMove {number} of {of}: {}", record.title));
        for line in &record.lines {
            self.say(&render(&offset(record.at, line.at), line));
        }
        self.say(&verdict(record));
    }
}

/// The time of a line relative to the move's cause, which is at `zero`.
fn offset(zero: Duration, at: Duration) -> String {
    match at.checked_sub(zero) {
        Some(after) => format!("+{:.1} ms", after.as_secs_f64() * 1000.0),
        None => format!("-{:.1} ms", (zero - at).as_secs_f64() * 1000.0),
    }
}

fn render(time: &str, line: &Line) -> String {
    let mut rendered = format!("{time:>12}  {:<8}  ", line.who);
    let mut column = INDENT;
    for (index, word) in line.text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if index > 0 {
            if column + 1 + length > WIDTH {
                rendered.push('\n');
                rendered.push_str(&" ".repeat(INDENT));
                column = INDENT;
            } else {
                rendered.push(' ');
                column += 1;
            }
        }
        rendered.push_str(word);
        column += length;
    }
    rendered
}

fn verdict(record: &MoveRecord) -> String {
    let figures = &record.figures;
    let gap = figures.gap.as_secs_f64() * 1000.0;
    let to = record.to.map_or("nowhere".to_owned(), |to| to.to_string());
    let (from, before) = (record.from, record.seen_before);
    let mut text = match record.seen {
        Some(seen) if record.to == Some(from) => {
            format!("    {before} -> {seen}, as the gateway sees {from}")
        }
        Some(seen) if record.to != Some(seen) => {
            format!("    {from} -> {to}, which the gateway sees as {seen}")
        }
        _ => format!("    {from} -> {to}"),
    };
    let found = [("found", &record.hint), ("moved", &record.cause)];
    for (what, words) in found {
        if let Some(words) = words {
            text.push_str(&format!("\n    {what}: {words}"));
        }
    }
    text.push_str(&format!("\n    {gap:.1} ms without traffic, {} of ", figures.lost));
    text.push_str(&format!("{} packets lost", figures.sent));
    match &record.trouble {
        None => text.push_str(": ok"),
        Some(trouble) => text.push_str(&format!("\n    NOT OK: {trouble}")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn record() -> MoveRecord {
        MoveRecord {
            kind: "uplink-lost",
            title: "wifi is taken away".to_owned(),
            at: ms(2000),
            from: "10.77.1.2:4500".parse().expect("an address"),
            to: "10.77.2.2:4500".parse().ok(),
            seen_before: "10.77.1.2:4500".parse().expect("an address"),
            seen: "198.51.100.2:1024".parse().ok(),
            lines: vec![Line {
                at: Duration::from_micros(2_003_400),
                who: "client",
                text: "10.77.1.2 is gone".to_owned(),
            }],
            figures: Figures {
                sent: 3000,
                lost: 9,
                gap: Duration::from_micros(9_600),
                resumed: ms(2010),
                flowing: true,
            },
            hint: None,
            cause: Some("our address 10.77.1.2 is gone".to_owned()),
            trouble: None,
        }
    }

    #[test]
    fn the_object_has_the_promised_shape() {
        let mut report = Report {
            dataplane: Some("userspace".to_owned()),
            setup: Some(ms(43)),
            moves: vec![record()],
            skipped: Vec::new(),
            error: None,
        };
        assert_eq!(
            report.json(1),
            r#"{"dataplane":"userspace","setup_ms":43,"moves":[{"kind":"uplink-lost","from":"10.77.1.2:4500","to":"10.77.2.2:4500","seen_from":"10.77.1.2:4500","seen_to":"198.51.100.2:1024","sent":3000,"lost":9,"gap_ms":10,"cause":"our address 10.77.1.2 is gone","ok":true}],"ok":true}"#
        );
        assert!(!report.ok(2), "a move that was never made is not well");
        report.skipped.push("nat-rebind");
        assert!(report.ok(2), "one that can't be made here is no failure");
        assert!(report.json(2).ends_with(r#""skipped":["nat-rebind"],"ok":true}"#));
        report.skipped.clear();
        report.error = Some("killed".to_owned());
        assert!(report.json(1).ends_with(r#""ok":false,"error":"killed"}"#));
    }

    #[test]
    fn a_move_is_told_relative_to_its_cause() {
        let record = record();
        let line = render(&offset(record.at, record.lines[0].at), &record.lines[0]);
        assert_eq!(line, "     +3.4 ms  client    10.77.1.2 is gone");
        assert_eq!(offset(ms(2), ms(1)), "-1.0 ms");
        assert_eq!(
            verdict(&record),
            "    10.77.1.2:4500 -> 10.77.2.2:4500, which the gateway sees as 198.51.100.2:1024\n    \
             moved: our address 10.77.1.2 is gone\n    \
             9.6 ms without traffic, 9 of 3000 packets lost: ok"
        );
        let rebound = MoveRecord {
            from: "10.77.2.2:4500".parse().expect("an address"),
            seen_before: "198.51.100.2:4500".parse().expect("an address"),
            hint: Some("nothing comes back".to_owned()),
            ..record.clone()
        };
        assert!(verdict(&rebound).starts_with(
            "    198.51.100.2:4500 -> 198.51.100.2:1024, as the gateway sees 10.77.2.2:4500\n    \
             found: nothing comes back\n    moved: "
        ));
        let stuck = MoveRecord { to: None, trouble: Some("no way out".to_owned()), ..record };
        assert!(verdict(&stuck).ends_with("\n    NOT OK: no way out"));
    }

    #[test]
    fn long_lines_are_broken_under_their_text() {
        let line = Line { at: ms(0), who: "demo", text: "word ".repeat(40) };
        let rendered = render("0.000 s", &line);
        assert!(rendered.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(rendered.lines().skip(1).all(|line| line.starts_with(&" ".repeat(INDENT))));
        assert_eq!(rendered.split_whitespace().filter(|w| *w == "word").count(), 40);
    }
}
