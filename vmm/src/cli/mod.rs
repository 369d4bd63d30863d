//! The command line. The doc comments below and in `args.rs` are the user's help, in which brackets are not links.
#![allow(rustdoc::broken_intra_doc_links)]

pub(crate) mod args;
pub(crate) mod exec;
mod listen_fds;
pub(crate) mod machines;
#[cfg(test)]
mod man;
pub(crate) mod net;
mod net_args;
mod net_help;
mod net_plug;
mod net_rate;
mod net_show;
mod run;
mod screen;
pub(crate) mod ssh;
mod table;

use clap::{ArgAction, Args, Parser, Subcommand};

/// A minimal KVM hypervisor whose subject is the NIC: boots a Linux guest and wires its network card with one option.
#[derive(Debug, Parser)]
#[command(name = "wirevm", version, propagate_version = true, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    /// Say more: -v what is done, -vv details
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUS: &str = "\
Exit status of run:
  0  the guest powered off or rebooted, or was ended from outside
  1  wirevm could not start, or failed
  2  the command line makes no sense
  3  the guest crashed
With --image and --root that of the command: 127 where there is no such command,
126 where it cannot be executed, 128 and the number of a signal that ended it,
125 where the guest was gone before its end.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(display_name = "wirevm")]
    Run(Box<Run>),
    #[command(display_name = "wirevm")]
    Ls(Ls),
    /// Say what a running machine is and has
    #[command(display_name = "wirevm")]
    Show(Machine),
    #[command(display_name = "wirevm")]
    Stop(Stop),
    /// Have a machine stand still: its vCPUs and its queues, with nothing lost
    #[command(display_name = "wirevm")]
    Pause(Machine),
    /// Have a paused machine go on
    #[command(display_name = "wirevm")]
    Resume(Machine),
    /// Wait for a machine's end, and end with the exit status of its run
    #[command(display_name = "wirevm")]
    Wait(Machine),
    #[command(display_name = "wirevm")]
    Exec(Exec),
    #[command(display_name = "wirevm")]
    Ssh(Ssh),
    #[command(display_name = "wirevm")]
    Console(Console),
    #[command(display_name = "wirevm")]
    Logs(Logs),
    #[command(display_name = "wirevm")]
    Metrics(Metrics),
    #[command(display_name = "wirevm")]
    Net(Net),
    #[command(display_name = "wirevm")]
    Doctor(Doctor),
    #[command(display_name = "wirevm")]
    Explain(Explain),
    /// What a wirevm becomes that panicked
    #[command(hide = true)]
    TakeBack,
    /// A run's command in its guest
    #[command(hide = true)]
    Attach(exec::attach::Attach),
    /// ssh's way into a guest
    #[command(hide = true)]
    SshProxy(ssh::proxy::Proxy),
}

/// Say what this host can do, and how to mend what it cannot. Exits 0 where a guest can run.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print nothing, and look at KVM alone; the exit status tells
    #[arg(short, long, conflicts_with_all = ["json", "clean"])]
    pub(crate) quiet: bool,

    /// Print what was found as JSON, and what was taken back
    #[arg(long)]
    pub(crate) json: bool,

    /// First clean up after killed wirevm processes
    #[arg(long)]
    pub(crate) clean: bool,
}

/// Draw how a wire is wired, what can reach what over it, and when to choose it; alone, compare them all.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The wire
    pub(crate) wire: Option<Wire>,
}

/// The wires that can be explained, by the words of --net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wire {
    Tap,
    Bridge,
    Macvtap,
    Tun,
}

use self::args::{Console, Logs, Ls, Machine, Metrics, Stop};
use self::exec::Exec;
use self::net_args::Net;
use self::run::Run;
use self::ssh::Ssh;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    use super::run::run_help;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_tables_of_the_help_keep_their_columns() {
        let mut command = Cli::command().term_width(80);
        assert!(command.render_help().to_string().contains(EXIT_STATUS));
        let run = command.find_subcommand("run").unwrap();
        let help = run.clone().term_width(80).render_help().to_string();
        assert!(help.contains(&run_help()), "{help}");
    }
}
