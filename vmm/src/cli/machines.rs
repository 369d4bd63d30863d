//! The commands for machines that run: each asks a machine over its socket.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use net::printable;
use serde_json::json;
use vmm::client::{Client, ClientError};
use vmm::config::RootConfig;
use vmm::info::MachineInfo;
use vmm::runtime;

use super::args::{Console, Logs, Ls, Machine, Metrics, Stop};
use super::{screen, table};
use crate::report;

/// How long a machine may take to answer what it answers at once.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Turns what a command came to into its exit status.
pub(crate) fn done(result: Result<ExitCode, ClientError>) -> ExitCode {
    result.unwrap_or_else(|error| {
        report::error(&error, error.remedy().as_deref());
        ExitCode::FAILURE
    })
}

pub(super) fn connect(name: &str) -> Result<Client, ClientError> {
    let client = Client::connect(name)?;
    client.set_timeout(Some(AT_ONCE)).map_err(ClientError::Connection)?;
    Ok(client)
}

/// `wirevm ls`
pub(crate) fn ls(args: &Ls) -> Result<ExitCode, ClientError> {
    let mut machines = Vec::new();
    for name in runtime::running()? {
        match connect(&name).and_then(|mut client| client.info()) {
            Ok(info) => machines.push(info),
            // It has ended meanwhile, or is stopped (SIGSTOP), which says nothing against the others.
            Err(ClientError::Name(runtime::NameError::Unknown { .. }) | ClientError::Gone) => {}
            Err(error) => report::error(&error, Some(&format!("it is the machine {name}"))),
        }
    }
    match args.json {
        true => report::answer_json(&json!({ "machines": machines })),
        false => report::answer(&rows(&machines)),
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(machines: &[MachineInfo]) -> String {
    let mut rows = vec![["NAME", "STATE", "PID", "MEMORY", "CPUS", "UPTIME", "NICS"].map(str::to_owned)];
    for info in machines {
        let nics = info.nics.iter().map(|nic| format!("{}:{}", nic.kind, nic.link));
        let row = [
            info.name.clone(),
            info.state.word().to_owned(),
            info.pid.to_string(),
            vmm::config::argument(info.memory),
            info.config.cpus.to_string(),
            time(info.uptime),
            nics.collect::<Vec<_>>().join(" "),
        ];
        rows.push(row);
    }
    table::text(&rows)
}

/// Seconds as a person says them: the two largest units.
fn time(seconds: u64) -> String {
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, _, _) => format!("{d}d{h:02}h"),
    }
}

/// `wirevm show`
pub(crate) fn show(args: &Machine) -> Result<ExitCode, ClientError> {
    let info = connect(&args.name)?.info()?;
    match args.json {
        true => report::answer_json(&json!(info)),
        false => report::answer(&page(&info)),
    }
    Ok(ExitCode::SUCCESS)
}

fn page(info: &MachineInfo) -> String {
    let config = &info.config;
    let mut lines = vec![
        ("name", info.name.clone()),
        ("state", info.state.word().to_owned()),
        ("pid", format!("{}, and {} runs the guest", info.pid, info.machine_pid)),
        ("uptime", time(info.uptime)),
        ("kernel", config.kernel.as_deref().map(|kernel| kernel.display().to_string()).unwrap_or_default()),
    ];
    lines.extend(config.guest.as_ref().map(|guest| match &guest.root {
        RootConfig::Image(image) => ("image", image.display().to_string()),
        RootConfig::Directory(directory) => ("root", directory.display().to_string()),
    }));
    lines.extend(config.initrd.as_ref().map(|initrd| ("initrd", initrd.display().to_string())));
    lines.extend([
        ("cmdline", config.cmdline.clone()),
        ("cpus", config.cpus.to_string()),
        ("memory", config.memory.to_string()),
        ("transport", config.transport.to_string()),
    ]);
    lines.extend(config.disks.iter().map(|disk| ("disk", disk.to_string())));
    let mut text = String::new();
    for (what, value) in &lines {
        text.push_str(&format!("{what:<10} {}\n", printable(value)));
    }
    for thread in &info.threads {
        let line = format!("{:<10} {}, {}, on CPU {}", "thread", thread.id, thread.name, thread.cpus);
        text.push_str(&printable(&line));
        text.push('\n');
    }
    if let Some(vsock) = &info.vsock {
        let socket = vsock.socket.as_ref().map(|socket| format!(", {}", socket.display()));
        let line = format!("{:<10} CID {}{}", "vsock", vsock.cid, socket.unwrap_or_default());
        text.push_str(&printable(&line));
        text.push('\n');
    }
    for nic in &info.nics {
        let hop = |hop: &serde_json::Value| {
            let (what, name) = (hop["what"].as_str().unwrap_or_default(), hop["name"].as_str());
            name.map_or(what.to_owned(), |name| format!("{what} {name}"))
        };
        let hops: Vec<_> = nic.hops.as_array().into_iter().flatten().map(hop).collect();
        for line in [
            format!("{:<10} {}", nic.name, nic.spec),
            format!("{:<10} {}", "", hops.join(" - ")),
            format!(
                "{:<10} MAC {}, MTU {}, queues {}, carried by {}",
                "", nic.mac, nic.mtu, nic.queues, nic.carrier
            ),
            match &nic.addresses[..] {
                [] => String::new(),
                known => {
                    let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                    format!("{:<10} the guest has {}", "", known.join(", "))
                }
            },
            match &nic.why_down {
                Some(why) => format!("{:<10} the link is {}: {why}", "", if nic.up { "up" } else { "down" }),
                None => format!("{:<10} the link is {}", "", if nic.up { "up" } else { "down" }),
            },
        ]
        .iter()
        .filter(|line| !line.is_empty())
        {
            text.push_str(printable(line).trim_end());
            text.push('\n');
        }
    }
    text
}

/// `wirevm stop`: returns once the machine is gone.
pub(crate) fn stop(args: &Stop) -> Result<ExitCode, ClientError> {
    let mut client = connect(&args.name)?;
    let status = client.stop_and_wait(args.timeout.map(Duration::from_secs), args.force)?;
    client.wait_until_gone();
    if args.json {
        report::answer_json(&json!({ "name": args.name, "status": status }));
    }
    Ok(ExitCode::SUCCESS)
}

/// `wirevm pause`
pub(crate) fn pause(args: &Machine) -> Result<ExitCode, ClientError> {
    connect(&args.name)?.pause()?;
    told(args, "paused")
}

/// `wirevm resume`
pub(crate) fn resume(args: &Machine) -> Result<ExitCode, ClientError> {
    connect(&args.name)?.resume()?;
    told(args, "running")
}

fn told(args: &Machine, state: &str) -> Result<ExitCode, ClientError> {
    if args.json {
        report::answer_json(&json!({ "name": args.name, "state": state }));
    }
    Ok(ExitCode::SUCCESS)
}

/// `wirevm wait`: ends with the machine's exit status.
pub(crate) fn wait(args: &Machine) -> Result<ExitCode, ClientError> {
    let mut client = Client::connect(&args.name)?;
    let status = client.wait()?;
    client.wait_until_gone();
    if args.json {
        report::answer_json(&json!({ "name": args.name, "status": status }));
    }
    Ok(ExitCode::from(status))
}

/// `wirevm logs`
pub(crate) fn logs(args: &Logs) -> Result<ExitCode, ClientError> {
    let running = connect(&args.name);
    if args.follow {
        let (history, mut stream) = running?.console(false)?;
        let mut out = io::stdout();
        let copied = out
            .write_all(&history)
            .and_then(|()| out.flush())
            .and_then(|()| copy_at_once(&mut stream, &mut out));
        // A reader that leaves early, as a pager may, is no failure.
        drop(copied);
        return Ok(ExitCode::SUCCESS);
    }
    // What a detached one has said from its start on, also after its end; else what is kept of the last.
    let mut text = Vec::new();
    let log = runtime::log(&args.name, net::Opening::Existing);
    let read = log.is_ok_and(|mut log| log.read_to_end(&mut text).is_ok());
    let text = match (read, running) {
        (true, _) => text,
        (false, Ok(mut client)) => client.logs()?.into_bytes(),
        (false, Err(error)) => return Err(error),
    };
    match args.json {
        true => {
            let text = String::from_utf8_lossy(&text);
            report::answer_json(&json!({ "name": args.name, "text": text }));
        }
        false => drop(io::stdout().write_all(&text)),
    }
    Ok(ExitCode::SUCCESS)
}

fn copy_at_once(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(len) => to.write_all(&chunk[..len]).and_then(|()| to.flush())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `wirevm console`
pub(crate) fn console(args: &Console) -> Result<ExitCode, ClientError> {
    let (history, stream) = connect(&args.name)?.console(!args.read_only)?;
    screen::attach(&history, stream, args.read_only).map_err(ClientError::Connection)?;
    Ok(ExitCode::SUCCESS)
}

/// `wirevm metrics`
pub(crate) fn metrics(args: &Metrics) -> Result<ExitCode, ClientError> {
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => runtime::running()?,
    };
    let mut texts = Vec::new();
    for name in names {
        match connect(&name).and_then(|mut client| client.metrics()) {
            Ok(text) => texts.push(text),
            Err(error) if args.name.is_some() => return Err(error),
            // It has ended meanwhile, or does not run yet.
            Err(_) => {}
        }
    }
    report::answer(&merged(&texts));
    Ok(ExitCode::SUCCESS)
}

/// Several machines' counters as one text, in which each family is said once (Prometheus' exposition format).
fn merged(texts: &[String]) -> String {
    let mut families: Vec<(String, Vec<&str>)> = Vec::new();
    for text in texts {
        let mut head = String::new();
        for line in text.lines() {
            match line.strip_prefix("# ") {
                Some(_) if line.starts_with("# HELP") => head = line.to_owned(),
                Some(_) => head = format!("{head}\n{line}"),
                None => match families.iter_mut().find(|(known, _)| *known == head) {
                    Some((_, lines)) => lines.push(line),
                    None => families.push((head.clone(), vec![line])),
                },
            }
        }
    }
    let mut all = String::new();
    for (head, lines) in families {
        all.push_str(&format!("{head}\n{}\n", lines.join("\n")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_two_units() {
        for (seconds, text) in [(7, "7s"), (61, "1m01s"), (3600, "1h00m"), (90_061, "1d01h")] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn a_family_is_said_once_for_all_machines() {
        let one = |vm: &str| {
            format!(
                "# HELP a_total A\n# TYPE a_total counter\na_total{{vm=\"{vm}\"}} 1\n# HELP b B\n# TYPE b gauge\nb 2\n"
            )
        };
        assert_eq!(
            merged(&[one("x"), one("y")]),
            "# HELP a_total A\n# TYPE a_total counter\na_total{vm=\"x\"} 1\na_total{vm=\"y\"} 1\n\
             # HELP b B\n# TYPE b gauge\nb 2\nb 2\n"
        );
        assert_eq!(merged(&[]), "");
    }
}
