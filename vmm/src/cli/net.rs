//! `wirevm net`: the network cards of machines that run.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use vmm::client::ClientError;
use vmm::info::{MachineInfo, NicInfo};
use vmm::runtime;

use super::machines::connect;
use super::net_args::{Mode, NetCommand, NetLink, NetLs, NetMove};
use super::{net_plug, net_rate, net_show, table};
use crate::report;

/// How long a move may take: a wire waits for others that change the host.
const MOVE: Duration = Duration::from_secs(120);

pub(crate) fn run(command: &NetCommand) -> Result<ExitCode, ClientError> {
    match command {
        NetCommand::Ls(args) => ls(args),
        NetCommand::Show(args) => net_show::show(args),
        NetCommand::Link(args) => link(args),
        NetCommand::Move(args) => move_to(args),
        NetCommand::Rate(args) => net_rate::rate(args),
        NetCommand::Add(args) => net_plug::add(args),
        NetCommand::Remove(args) => net_plug::remove(args),
    }
}

/// `wirevm net ls`
fn ls(args: &NetLs) -> Result<ExitCode, ClientError> {
    let names = args.name.clone().map_or_else(runtime::running, |name| Ok(vec![name]))?;
    let mut machines = Vec::new();
    for name in names {
        match connect(&name).and_then(|mut client| client.info()) {
            Ok(info) => machines.push(info),
            // It has ended meanwhile.
            Err(ClientError::Name(runtime::NameError::Unknown { .. }) | ClientError::Gone)
                if args.name.is_none() => {}
            Err(error) => return Err(error),
        }
    }
    match args.json {
        true => {
            let machine = |info: &MachineInfo| json!({ "name": info.name, "nics": info.nics });
            report::answer_json(&json!({ "machines": machines.iter().map(machine).collect::<Vec<_>>() }));
        }
        false => report::answer(&page(&machines)),
    }
    Ok(ExitCode::SUCCESS)
}

fn page(machines: &[MachineInfo]) -> String {
    let mut rows =
        vec![["NAME", "NIC", "LINK", "WIRE", "ON", "MAC", "QUEUES", "CARRIED BY"].map(str::to_owned)];
    let mut why = String::new();
    for info in machines {
        for nic in &info.nics {
            let cells = [
                info.name.clone(),
                nic.name.clone(),
                link_word(nic),
                nic.kind.clone(),
                nic.link.clone(),
                nic.mac.clone(),
                nic.queues.to_string(),
                nic.carrier.clone(),
            ];
            rows.push(cells);
            if let Some(reason) = &nic.why_down {
                why += &format!("{} {}: {}\n", info.name, nic.name, net::printable(reason));
            }
        }
    }
    table::text(&rows) + &why
}

/// Whether it is up, and by what, where that is not its wire.
fn link_word(nic: &NicInfo) -> String {
    let word = if nic.up { "up" } else { "down" };
    match &*nic.link_mode {
        "follow" | "" => word.to_owned(),
        _ => format!("{word} (by hand)"),
    }
}

/// `wirevm net link`
fn link(args: &NetLink) -> Result<ExitCode, ClientError> {
    let mode = match args.mode {
        Mode::Up => "up",
        Mode::Down => "down",
        Mode::Follow => "follow",
    };
    connect(&args.name)?.call("NetLink", json!({ "nic": args.nic, "mode": mode }))?;
    Ok(ExitCode::SUCCESS)
}

/// `wirevm net move`
fn move_to(args: &NetMove) -> Result<ExitCode, ClientError> {
    let mut client = connect(&args.name)?;
    client.set_timeout(Some(MOVE)).map_err(ClientError::Connection)?;
    let answer = client.call("NetMove", json!({ "nic": args.nic, "spec": args.spec }))?;
    match args.json {
        true => report::answer_json(&answer),
        false => {
            let (spec, link) = (&answer["nic"]["spec"], &answer["nic"]["link"]);
            let [spec, link] = [spec, link].map(|value| value.as_str().unwrap_or_default());
            report::answer(&format!("{} is on {link}: {}\n", args.nic, net::printable(spec)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
