//! `bewick release`.

use std::{path::Path, process::ExitCode};

use serde_json::json;

use crate::{
    cli::fail,
    control::{Client, Request},
    net::Routes,
};

/// Removes the rules and routes that a daemon has left closed (`kill_switch = "always"`), unless one
/// runs at `control`, which would put them back.
pub fn release(control: &Path, json: bool) -> ExitCode {
    if Client::ask(control, &Request::Status {}).is_ok() {
        let remedy = "stop it first; to keep it from closing again, take kill_switch out of its \
                      configuration";
        return fail("the daemon runs, and keeps closed what its kill switch says", Some(remedy));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&format!("start the runtime: {e}"), None),
    };
    match runtime.block_on(Routes::release()) {
        Ok(()) if json => println!("{}", json!({ "ok": true })),
        Ok(()) => println!("nothing is kept closed any more"),
        Err(e) => {
            let denied = [Some(libc::EPERM), Some(libc::EACCES)].contains(&e.errno);
            return fail(&e.to_string(), denied.then_some("run as root or with CAP_NET_ADMIN"));
        }
    }
    ExitCode::SUCCESS
}
