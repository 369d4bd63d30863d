//! The words of `wirevm net`.

use clap::{Args, Subcommand, ValueEnum};

use super::net_plug::{NetAdd, NetRemove};
use super::net_rate::NetRate;
use super::net_show::NetShow;

/// Ask about, and change, the network cards of machines that run.
#[derive(Debug, Args)]
pub(crate) struct Net {
    #[command(subcommand)]
    pub(crate) command: NetCommand,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    Ls(NetLs),
    Show(NetShow),
    Link(NetLink),
    Move(NetMove),
    Rate(NetRate),
    Add(NetAdd),
    Remove(NetRemove),
}

/// List the network cards of a machine, or of all.
#[derive(Debug, Args)]
pub(crate) struct NetLs {
    /// The machine's name
    pub(crate) name: Option<String>,

    /// Print them as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Set the link of a network card up or down, as if its cable were plugged in or pulled out, or have it follow the wire.
#[derive(Debug, Args)]
pub(crate) struct NetLink {
    /// The machine's name
    pub(crate) name: String,

    /// The network card: nic0 is the first
    pub(crate) nic: String,

    /// follow: up while frames get through the wire
    pub(crate) mode: Mode,
}

/// What a link is up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Up,
    Down,
    Follow,
}

/// Move a network card to another wire while its guest runs. If that fails, it stays where it is.
#[derive(Debug, Args)]
pub(crate) struct NetMove {
    /// The machine's name
    pub(crate) name: String,

    /// The network card: nic0 is the first
    pub(crate) nic: String,

    /// The wire, as --net takes it; or only keys, as vhost=on, that are to be others
    pub(crate) spec: String,

    /// Print what the network card is then as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
