//! What `--register` tells systemd-machined: that the machine is there, by its name, its process and its links, so that
//! `machinectl list` has it. machined forgets it when the process ends.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use vmm::client::Client;

use crate::error::Error;

/// Where machined listens (systemd 256 and later).
const SOCKET: &str = "/run/systemd/machine/io.systemd.Machine";
/// It answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Registers this process as the machine `name`, whose links have these numbers.
///
/// # Errors
/// machined is not there, or refuses.
pub(super) fn register(name: &str, links: &[u32]) -> Result<(), Error> {
    let mut machined = Client::at(Path::new(SOCKET)).map_err(Error::Register)?;
    let timeout = machined.set_timeout(Some(PATIENCE));
    timeout.map_err(|source| Error::Host { what: "wait for systemd-machined", source })?;
    // Its leader is who calls, by default.
    let machine = json!({ "name": name, "service": "wirevm", "class": "vm", "ifIndices": links });
    machined.call_method("io.systemd.Machine.Register", machine).map_err(Error::Register)?;
    Ok(())
}
