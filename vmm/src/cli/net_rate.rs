//! `wirevm net rate`: what a NIC may send and receive in a second.

use std::process::ExitCode;

use clap::Args;
use net::RateLimits;
use serde_json::json;
use vmm::client::ClientError;

use super::machines::connect;
use crate::report;

/// Hold a NIC to a rate from now on, or let it go. What is not named is not limited.
#[derive(Debug, Args)]
pub(crate) struct NetRate {
    /// The machine's name
    pub(crate) name: String,

    /// The NIC
    #[arg(value_name = "NIC")]
    pub(crate) nic: String,

    /// The keys of --net: rate=50M, or rate=20M:100M,pps=10k,burst=20 (sent:received); or off
    #[arg(value_name = "off|KEY=VALUE[,KEY=VALUE]...")]
    pub(crate) limits: RateLimits,

    /// Print the limits as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `wirevm net rate`
pub(crate) fn rate(args: &NetRate) -> Result<ExitCode, ClientError> {
    connect(&args.name)?.net_rate(&args.nic, &args.limits)?;
    if args.json {
        report::answer_json(&json!({ "name": args.name, "nic": args.nic, "limits": args.limits }));
    }
    Ok(ExitCode::SUCCESS)
}
