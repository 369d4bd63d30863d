//! What a keeper is made of, and what it puts down for its clients.

use std::time::Duration;

use serde_json::Value;
use vmm::MachineConfig;
use vmm::info::Event;
use vmm::runtime::Place;

use crate::keeper::child::Child;
use crate::keeper::console::Console;
use crate::keeper::control::{ControlError, Server, Ticket};
use crate::keeper::detach::Ready;
use crate::keeper::keyboard::Keyboard;
use crate::keeper::nics::Nic;
use crate::keeper::shares::Shares;
use crate::keeper::signals::Signals;
use crate::keeper::vsock::Vsock;
use crate::protocol::{Channel, FromMachine, ToMachine};

/// All that makes a keeper.
pub(in crate::keeper) struct Parts {
    pub(in crate::keeper) config: MachineConfig,
    pub(in crate::keeper) signals: Signals,
    pub(in crate::keeper) channel: Channel<ToMachine, FromMachine>,
    pub(in crate::keeper) child: Child,
    pub(in crate::keeper) console: Console,
    pub(in crate::keeper) keyboard: Keyboard,
    /// After `child`, which holds their links as long as it lives.
    pub(in crate::keeper) nics: Vec<Nic>,
    pub(in crate::keeper) vsock: Option<Vsock>,
    pub(in crate::keeper) shares: Shares,
    pub(in crate::keeper) server: Server,
    /// What wires are made by.
    pub(in crate::keeper) host: net::Host,
    /// Last: the name is free once the host is as before.
    pub(in crate::keeper) place: Place,
    pub(in crate::keeper) ready: Option<Ready>,
    /// How long the guest may take to say that it is up.
    pub(in crate::keeper) wait_ready: Option<Duration>,
}

/// Something for clients.
pub(in crate::keeper) enum Letter {
    Answer(Ticket, Result<Value, ControlError>),
    /// What the guest's driver asks of this NIC is to be heard.
    Came(usize),
    /// The machine has this NIC no more: its wire is to be taken back.
    Gone(Box<Nic>),
    Event(Event),
    Console(Vec<u8>),
}
