//! Nobody: where a peer by hand stands, no daemon runs, and the case itself does the talking.

use super::{Peer, SaView};
use crate::fail;
use crate::failure::Result;

/// What there is in the place of a daemon.
pub struct Script;

fn no_daemon<T>() -> Result<T> {
    Err(fail!("there is no daemon at this end"))
}

impl Peer for Script {
    fn version(&self) -> Result<String> {
        Ok("script by hand".to_owned())
    }

    fn up(&mut self) -> Result<()> {
        no_daemon()
    }

    fn down(&mut self) -> Result<()> {
        no_daemon()
    }

    fn down_child(&mut self, _name: &str) -> Result<()> {
        no_daemon()
    }

    fn ask_for_end(&mut self, _name: &str) -> Result<()> {
        no_daemon()
    }

    fn ask_for_child(&mut self, _name: &str) -> Result<()> {
        no_daemon()
    }

    fn rekey_children(&mut self) -> Result<()> {
        no_daemon()
    }

    fn rekey_ike(&mut self) -> Result<()> {
        no_daemon()
    }

    fn move_to(&mut self, _device: &str) -> Result<()> {
        no_daemon()
    }

    fn reauthenticate(&mut self) -> Result<()> {
        no_daemon()
    }

    fn sas(&mut self) -> Result<Vec<SaView>> {
        Ok(Vec::new())
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn stop(&mut self) -> Result<()> {
        Ok(())
    }

    fn kill(&mut self) {}
}
