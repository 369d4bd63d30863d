//! What clients of the control socket ask of a [`Core`].

use std::fs;
use std::time::Duration;

use net::{RateLimits, Wire};
use serde_json::json;
use vmm::info::{MachineInfo, MachineState, NicInfo, ThreadInfo};

use super::Core;
use crate::keeper::control::{ControlError, CountersForm, Requests, Ticket};
use crate::keeper::guest;
use crate::protocol::ToMachine;

impl Requests for Core {
    fn info(&self) -> MachineInfo {
        MachineInfo {
            name: self.place.name().to_owned(),
            state: self.state,
            pid: std::process::id(),
            machine_pid: self.child.id(),
            threads: threads_of(self.child.id()),
            config: guest::as_asked(&self.config),
            memory: self.config.memory.bytes,
            vsock: self.vsock.as_ref().map(|vsock| vsock.info().clone()),
            nics: self.nics.iter().filter(|nic| nic.is_in()).map(|nic| self.nic_info(nic.number)).collect(),
            started: self.started,
            uptime: self.since.elapsed().as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn stop(&mut self, timeout: Option<Duration>, force: bool) {
        match force {
            true => self.force_stop(),
            false => self.ask_to_stop(timeout.unwrap_or(self.config.stop_timeout())),
        }
    }

    fn pause(&mut self, ticket: Ticket) -> Result<(), ControlError> {
        self.in_state(MachineState::Running)?;
        self.request(&ToMachine::Pause)?;
        self.pausing.push(ticket);
        Ok(())
    }

    fn resume(&mut self, ticket: Ticket) -> Result<(), ControlError> {
        self.in_state(MachineState::Paused)?;
        self.request(&ToMachine::Resume)?;
        self.resuming.push(ticket);
        Ok(())
    }

    fn count(&mut self, ticket: Ticket, form: CountersForm) -> Result<(), ControlError> {
        if self.state == MachineState::Built {
            return Err(ControlError::WrongState("the guest does not run yet".to_owned()));
        }
        if let CountersForm::Net(Some(nic)) = &form {
            self.nic_of(nic)?;
        }
        self.request(&ToMachine::Counters)?;
        self.counting.push((ticket, form));
        Ok(())
    }

    fn net_link(&mut self, ticket: Ticket, nic: &str, mode: &str) -> Result<(), ControlError> {
        self.link_by(ticket, nic, mode)
    }

    fn net_move(&mut self, ticket: Ticket, nic: &str, spec: &str) -> Result<(), ControlError> {
        self.move_to(ticket, nic, spec)
    }

    fn net_rate(&mut self, ticket: Ticket, nic: &str, limits: RateLimits) -> Result<(), ControlError> {
        self.hold_to(ticket, nic, limits)
    }

    fn net_add(&mut self, ticket: Ticket, spec: &str) -> Result<(), ControlError> {
        self.plug_in(ticket, spec)
    }

    fn net_remove(&mut self, ticket: Ticket, nic: &str, force: bool) -> Result<(), ControlError> {
        self.take_out(ticket, nic, force)
    }

    fn type_in(&mut self, keys: &[u8]) -> usize {
        let taken = self.keyboard.type_in(keys);
        self.keyboard.give();
        taken
    }

    fn console_history(&self) -> Vec<u8> {
        self.console.history()
    }
}

impl Core {
    /// What there is to say of a NIC.
    pub(super) fn nic_info(&self, index: usize) -> NicInfo {
        let nic = &self.nics[index];
        let wire = nic.wire.as_ref();
        let why = match wire {
            Some(wire) => wire.condition().why().map(str::to_owned),
            None => Some("there is no wire at the moment; wirevm keeps trying to make it again".to_owned()),
        };
        NicInfo {
            name: nic.name(),
            spec: nic.config.to_string(),
            kind: nic.config.wire.kind().to_string(),
            link: wire.map(|wire| wire.link().to_owned()).unwrap_or_default(),
            mac: nic.mac.to_string(),
            addresses: wire.map(Wire::guest_addresses).unwrap_or_default(),
            mtu: nic.mtu,
            queues: nic.pairs,
            carrier: nic.carrier().to_owned(),
            up: nic.up,
            link_mode: nic.mode.to_string(),
            why_down: why,
            links: json!(wire.map(Wire::links).unwrap_or_default()),
            hops: json!(wire.map(Wire::hops).unwrap_or_default()),
        }
    }
}

/// The threads of the process, in the order of their birth.
fn threads_of(pid: u32) -> Vec<ThreadInfo> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let thread = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        // proc_pid_status(5)
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let id = task.file_name().to_str()?.parse().ok()?;
        let (name, cpus) = (value("Name:")?.to_owned(), value("Cpus_allowed_list:")?.to_owned());
        Some(ThreadInfo { id, name, cpus })
    };
    let mut threads: Vec<_> = tasks.filter_map(thread).collect();
    threads.sort_by_key(|thread| thread.id);
    threads
}
