//! The command line: what can be said, and who does it.
//!
//! Results go to stdout, made for a person or, with `--json`, for a program; what went wrong goes to
//! stderr with a remedy, and the exit status is 1. Wrong usage is status 2.

mod ask;
mod release;
mod roaming;
mod run;
mod show;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    control::{DEFAULT_PATH, PATH_VARIABLE, Request},
    demo,
};

/// An IKEv2 VPN whose tunnels move: gateway, road-warrior client, and the tool that controls both.
#[derive(Debug, Parser)]
#[command(name = "bewick", version, arg_required_else_help = true)]
struct Cli {
    /// Print JSON: one object, or one per line where a command goes on
    #[arg(long, global = true)]
    json: bool,

    /// The control socket [env: BEWICK_CONTROL] [default: /run/bewick/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground until SIGTERM or Ctrl-C
    Run {
        /// The configuration, a TOML file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Only read the configuration and say what is wrong with it
        #[arg(long)]
        check: bool,
    },
    /// Establish a connection and wait until it stands
    Up {
        /// The connection's name in the configuration
        name: String,
    },
    /// Take a connection down
    Down {
        /// The connection's name in the configuration
        name: String,
    },
    /// Show connections, their SAs, paths and traffic
    Status,
    /// Show the paths that a connection could take, how each works, and which one is in use
    Paths {
        /// The connection's name in the configuration; without it all of them
        name: Option<String>,
    },
    /// Show the last moves: when, why, from where to where, and what each cost
    Moves {
        /// The connection's name in the configuration; without it all of them
        name: Option<String>,
    },
    /// Move a connection to another address of this machine, with no packet lost if both work
    Move {
        /// The connection's name in the configuration
        name: String,
        /// An address of this machine, or the name of an interface
        #[arg(long, value_name = "ADDRESS|INTERFACE")]
        to: String,
    },
    /// Give a connection's CHILD_SAs new keys
    Rekey {
        /// The connection's name in the configuration
        name: String,
        /// The IKE_SA instead of the CHILD_SAs
        #[arg(long)]
        ike: bool,
    },
    /// Open what a kill switch keeps closed, when no daemon runs
    Release,
    /// Show what happens, as it happens
    Events,
    /// Show a tunnel that moves, in network namespaces on this machine
    Demo {
        /// Leave the configuration files and logs in place
        #[arg(long)]
        keep: bool,
    },
}

/// Does what the command line says; the result is the process's exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let request = match cli.command {
        Command::Run { config, check } => return run::run(&config, check, cli.control, cli.json),
        Command::Demo { keep } => return demo::run(demo::DemoOptions { json: cli.json, keep }),
        Command::Release => return release::release(&control_path(cli.control, None), cli.json),
        Command::Up { name } => Request::Up { name },
        Command::Down { name } => Request::Down { name },
        Command::Status => Request::Status {},
        Command::Paths { name } => Request::Paths { name },
        Command::Moves { name } => Request::Moves { name },
        Command::Move { name, to } => Request::Move { name, to },
        Command::Rekey { name, ike } => Request::Rekey { name, ike },
        Command::Events => Request::Events {},
    };
    ask::ask(&control_path(cli.control, None), &request, cli.json)
}

/// The control socket: the option, else the environment, else the configuration, else the default.
fn control_path(option: Option<PathBuf>, configured: Option<PathBuf>) -> PathBuf {
    option
        .or_else(|| std::env::var_os(PATH_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from))
        .or(configured)
        .unwrap_or_else(|| PathBuf::from(DEFAULT_PATH))
}

/// Says on stderr what went wrong and what can be done.
fn fail(text: &str, remedy: Option<&str>) -> ExitCode {
    match remedy {
        Some(remedy) => eprintln!("bewick: {text}: {remedy}"),
        None => eprintln!("bewick: {text}"),
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_the_command() {
        let cli = Cli::try_parse_from(["bewick", "status", "--json", "--control", "/x"]).unwrap();
        assert!(cli.json);
        assert_eq!(cli.control, Some(PathBuf::from("/x")));
    }

    #[test]
    fn the_option_beats_the_configuration() {
        assert_eq!(control_path(Some("/a".into()), Some("/b".into())), PathBuf::from("/a"));
        assert_eq!(control_path(None, Some("/b".into())), PathBuf::from("/b"));
        assert_eq!(control_path(None, None), PathBuf::from(DEFAULT_PATH));
    }
}
