//! The words of the commands for machines that run.

use clap::Args;

/// List the machines that run.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Print them as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A machine that runs.
#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// The machine's name
    pub(crate) name: String,

    /// Print what there is to say as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Press a machine's power button, and end it if it does not power itself off. Returns when it is gone.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// The machine's name
    pub(crate) name: String,

    /// How long the guest has to power itself off, in seconds; without it as its run says
    #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
    pub(crate) timeout: Option<u64>,

    /// End it at once
    #[arg(long)]
    pub(crate) force: bool,

    /// Print its exit status as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Attach to a machine's console; Ctrl-A d leaves it. One types, any number watch.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// The machine's name
    pub(crate) name: String,

    /// Watch only
    #[arg(long)]
    pub(crate) read_only: bool,
}

/// Print what a machine's guest has said: of a detached one all that its log holds, also after its end.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The machine's name
    pub(crate) name: String,

    /// Go on with what it says
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) follow: bool,

    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print counters for Prometheus: of one machine, or of all.
#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// The machine's name
    pub(crate) name: Option<String>,
}
