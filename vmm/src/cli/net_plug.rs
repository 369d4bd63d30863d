//! `wirevm net add` and `wirevm net remove`: NICs that come and go while the guest runs.

use std::process::ExitCode;
use std::time::Duration;

use ::net::printable;
use clap::Args;
use serde_json::json;
use vmm::client::{Client, ClientError};

use super::machines::connect;
use crate::report;

/// How long it may take: a wire waits for others that change the host, and then the guest has its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Plug a network card into a guest while it runs. Returns once the guest has taken it.
#[derive(Debug, Args)]
pub(crate) struct NetAdd {
    /// The machine's name
    pub(crate) name: String,

    /// The card and its wire, KIND[=WHERE][,KEY=VALUE]..., as run --net takes it
    #[arg(value_name = "SPEC")]
    pub(crate) spec: String,

    /// Print the card as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Take a network card out of a guest while it runs. Returns once the guest has let it go.
#[derive(Debug, Args)]
pub(crate) struct NetRemove {
    /// The machine's name
    pub(crate) name: String,

    /// The card: nic0, as wirevm show lists it
    pub(crate) nic: String,

    /// Take it at once, whatever the guest does with it
    #[arg(long)]
    pub(crate) force: bool,

    /// Print what there is to say as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A connection for what the guest has its word on. How long that has, the machine knows.
fn patient(name: &str) -> Result<Client, ClientError> {
    let client = connect(name)?;
    client.set_timeout(Some(PATIENCE)).map_err(ClientError::Connection)?;
    Ok(client)
}

/// `wirevm net add`
pub(crate) fn add(args: &NetAdd) -> Result<ExitCode, ClientError> {
    let (nic, notices) = patient(&args.name)?.net_add(&args.spec)?;
    for notice in &notices {
        log::warn!("{}: {}", printable(&nic.name), printable(notice));
    }
    match args.json {
        true => report::answer_json(&json!(nic)),
        false => {
            let line =
                format!("{}: {}, MAC {}, MTU {}, on {}", nic.name, nic.spec, nic.mac, nic.mtu, nic.link);
            report::answer(&format!("{}\n", printable(&line)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `wirevm net remove`
pub(crate) fn remove(args: &NetRemove) -> Result<ExitCode, ClientError> {
    patient(&args.name)?.net_remove(&args.nic, args.force)?;
    if args.json {
        report::answer_json(&json!({ "name": args.name, "removed": args.nic }));
    }
    Ok(ExitCode::SUCCESS)
}
