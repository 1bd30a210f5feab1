//! The commands that the daemon answers: ask, print what it says, turn the end into an exit status.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::json;

use crate::{
    cli::{fail, roaming, show},
    control::{Client, Reply, Request},
};

/// Sends `request` to the daemon at `control` and prints its replies until the last.
pub fn ask(control: &Path, request: &Request, json: bool) -> ExitCode {
    let mut client = match Client::ask(control, request) {
        Ok(client) => client,
        Err(e) => return failed(&e.to_string(), e.remedy(), json),
    };
    loop {
        let reply = match client.reply() {
            Ok(reply) => reply,
            Err(e) => return failed(&e.to_string(), e.remedy(), json),
        };
        let last = reply.is_last();
        let printed = match reply {
            Reply::Error { text, remedy } => return failed(&text, remedy.as_deref(), json),
            Reply::Event(record) if json => print_json(&record),
            Reply::Event(record) => print(&show::event(&record)),
            Reply::Status(status) if json => print_json(&status),
            Reply::Status(status) => print(&show::status(&status)),
            Reply::Paths(paths) if json => print_json(&paths),
            Reply::Paths(paths) => print(&roaming::paths(&paths)),
            Reply::Moves(moves) if json => print_json(&moves),
            Reply::Moves(moves) => print(&roaming::moves(&moves)),
            Reply::Done { text } if json => print_json(&json!({ "ok": true, "text": text })),
            Reply::Done { text } => print(&format!("{text}\n")),
        };
        match printed {
            Ok(()) if !last => {}
            Ok(()) => return ExitCode::SUCCESS,
            // whoever reads has seen enough: `bewick events | head`
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Err(e) => return fail(&format!("writing to stdout: {e}"), None),
        }
    }
}

/// Reports a failure: to a program as an object on stdout, to a person on stderr.
fn failed(text: &str, remedy: Option<&str>, json: bool) -> ExitCode {
    if json {
        let object = match remedy {
            Some(remedy) => json!({ "ok": false, "error": text, "remedy": remedy }),
            None => json!({ "ok": false, "error": text }),
        };
        // the exit status tells the same if stdout is closed
        let _ = print_json(&object);
        return ExitCode::FAILURE;
    }
    fail(text, remedy)
}

fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    print(&line)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
