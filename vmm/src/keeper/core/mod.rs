//! What the keeper knows of its machine, and does with it: state, console, requests, and the end. What is to be told to clients is
//! put down as letters, which the loop delivers.

mod counting;
mod ends;
mod guest;
mod links;
mod parts;
mod plug;
mod rates;
mod requests;
mod wires;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use devices::pci::RootComplex;
use serde_json::{Value, json};
use vmm::MachineConfig;
use vmm::info::{Event, MachineState};
use vmm::runtime::Place;

use self::links::Asked;
pub(in crate::keeper) use self::parts::{Letter, Parts};
pub(super) use self::plug::Stage;
use self::wires::{Lost, Move};
use super::Ended;
use super::attached::Attached;
use super::child::{Child, Death};
use super::console::Console;
use super::control::{ControlError, CountersForm, Server, Ticket};
use super::detach::Ready;
use super::guest_words::GuestWords;
use super::keyboard::{Command, Keyboard};
use super::nic_table::Nics;
use super::notify::Notify;
use super::shares::Shares;
use super::signals::Signals;
use super::sink::Sink;
use super::stopping::Stopping;
use super::terminal;
use super::vsock::{Door, Vsock};
use crate::error::Error;
use crate::machine::sandbox;
use crate::protocol::{Channel, Failure, FromMachine, NicCounters, ToMachine};
use crate::report;
use crate::sys;

/// How long a change of the host waits for another wirevm while the guest runs. One that changes the host takes milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A machine, as its keeper has it.
pub(super) struct Core {
    config: MachineConfig,
    signals: Signals,
    channel: Channel<ToMachine, FromMachine>,
    child: Child,
    console: Console,
    keyboard: Keyboard,
    nics: Nics,
    vsock: Option<Vsock>,
    shares: Shares,
    /// By a NIC's number, the move that it is in, and the wire that is to be made again.
    moves: Vec<Option<Move>>,
    lost: Vec<Option<Lost>>,
    host: net::Host,
    /// Numbers of NICs that are gone, which the guest has not seen yet.
    unseen: Vec<usize>,
    place: Place,
    ready: Option<Ready>,
    notify: Notify,
    state: MachineState,
    stopping: Stopping,
    /// Somebody has asked for an end, who does not wait for a reader.
    end_wanted: bool,
    /// Until when the command may end that was sent a signal.
    told_due: Option<Instant>,
    /// Why the guest runs no more, in the machine's words or ours.
    ended: Option<Ended>,
    /// The command that the run is for.
    attached: Option<Attached>,
    words: GuestWords,
    /// The guest has said that it is up.
    up: bool,
    /// How long that may take, where somebody waits for it; and until when.
    wait_ready: Option<Duration>,
    ready_due: Option<Instant>,
    /// The machine is gone, and all that it said is heard.
    gone: bool,
    /// And so is the command's process.
    over: bool,
    since: Instant,
    started: u64,
    letters: Vec<Letter>,
    /// Who waits for the machine to stand still, to go on, and to count.
    pausing: Vec<Ticket>,
    resuming: Vec<Ticket>,
    counting: Vec<(Ticket, CountersForm)>,
    /// What the machine has counted for them so far.
    counted: Vec<NicCounters>,
    /// What the machine was asked for of links, and when it is to be asked again.
    linking: Vec<Asked>,
    link_due: Option<Instant>,
    /// Who waits for a NIC to be held to other limits, in the order in which they asked.
    rating: Vec<(usize, Ticket)>,
}

impl Core {
    pub(super) fn new(parts: Parts) -> (Self, Server) {
        let Parts {
            config,
            signals,
            channel,
            child,
            console,
            keyboard,
            nics,
            vsock,
            shares,
            server,
            host,
            place,
            ready,
            wait_ready,
        } = parts;
        // Who waits for another process here has the guest's end, the console and all clients wait, too.
        host.set_patience(Some(LOCK_PATIENCE));
        let numbers = || 0..RootComplex::FUNCTIONS;
        let (moves, lost) = (numbers().map(|_| None).collect(), numbers().map(|_| None).collect());
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let core = Self {
            config,
            signals,
            channel,
            child,
            console,
            keyboard,
            nics: nics.into_iter().collect(),
            vsock,
            shares,
            moves,
            lost,
            host,
            unseen: Vec::new(),
            place,
            ready,
            notify: Notify::from_env(),
            state: MachineState::Built,
            stopping: Stopping::default(),
            end_wanted: false,
            told_due: None,
            ended: None,
            attached: None,
            words: GuestWords::default(),
            up: false,
            wait_ready,
            ready_due: None,
            gone: false,
            over: false,
            since: Instant::now(),
            started,
            letters: Vec::new(),
            pausing: Vec::new(),
            resuming: Vec::new(),
            counting: Vec::new(),
            counted: Vec::new(),
            linking: Vec::new(),
            link_due: None,
            rating: Vec::new(),
        };
        (core, server)
    }

    pub(super) fn channel(&self) -> &Channel<ToMachine, FromMachine> {
        &self.channel
    }

    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    pub(super) fn nics_mut(&mut self) -> &mut Nics {
        &mut self.nics
    }

    /// Where the guest asks for ports of the host.
    pub(super) fn door(&mut self) -> Option<&mut Door> {
        self.vsock.as_mut()?.door()
    }

    pub(super) fn shares(&mut self) -> &mut Shares {
        &mut self.shares
    }

    /// Where the console is shown, and where it is typed.
    pub(super) fn ends(&mut self) -> (&mut Sink, &mut Keyboard) {
        (self.console.sink(), &mut self.keyboard)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn take_letters(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.letters)
    }

    /// When something is to be done although nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.stopping.deadline(),
            self.told_due,
            self.next_try(),
            self.plug_deadline(),
            self.ready_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Time may be up.
    pub(super) fn expire(&mut self, now: Instant) {
        let next = self.stopping.expire(now);
        self.carry_out(next);
        self.try_again(now);
        self.expire_plugs(now);
        self.expire_ready(now);
        self.expire_told(now);
    }

    /// Takes the host's wiring back, gives the terminal back, and says why the guest runs no more. `asked`: somebody wanted that.
    pub(super) fn take_back(self, asked: &mut bool) -> Ended {
        let Self {
            signals, child, mut console, keyboard, nics, shares, host, place, ended, end_wanted, ..
        } = self;
        host.set_patience(None);
        drop(child);
        // Who waits for the host's disk ends when that answers, which nothing else here waits for.
        shares.kill();
        // The last NIC's first; and before the terminal is given back, so that what is said meanwhile is readable.
        nics.into_reversed().for_each(drop);
        *asked = end_wanted;
        // Who asked for an end does not wait for a reader.
        if !*asked && signals.ends() == 0 {
            console.sink().finish(Some(std::os::fd::AsFd::as_fd(&signals)), None);
        }
        drop(keyboard);
        drop(place);
        drop(shares);
        ended.unwrap_or(Ended::Died(Death::Exit(0)))
    }

    /// Hears at most so many messages of the machine: who has taken it over may send without end, and others are to be heard, too.
    pub(super) fn hear_machine(&mut self, most: usize) {
        for _ in 0..most {
            match self.channel.try_receive() {
                Ok(Some((message, _))) => self.heed(message),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // Its end is told by its process.
                Ok(None) => return,
                // What makes no sense comes from one that is not itself any more.
                Err(error) => {
                    self.end(Ended::Failed(Failure::new(&Error::Nonsense(error), None)));
                    return self.child.kill();
                }
            }
        }
    }

    fn heed(&mut self, message: FromMachine) {
        match message {
            FromMachine::Running { confined } => {
                log::info!("the process that runs the guest is confined: {confined}");
                self.enter(MachineState::Running);
                self.attach();
                self.notify.say("READY=1\nSTATUS=The guest runs");
                sys::forget_start();
                match self.wait_ready {
                    // The guest's word is waited for, which it may have said already.
                    Some(_) if !self.up => {
                        self.ready_due = self.wait_ready.and_then(|wait| Instant::now().checked_add(wait));
                    }
                    _ => self.tell_ready(),
                }
            }
            FromMachine::Print(text) => report::print(&text),
            FromMachine::Paused(done) => {
                if done.is_ok() {
                    self.enter(MachineState::Paused);
                }
                let waiting = std::mem::take(&mut self.pausing);
                self.answer_all(waiting, done.map(|()| json!({})));
            }
            FromMachine::Resumed(done) => {
                if done.is_ok() {
                    self.enter(MachineState::Running);
                    self.renew_patience(Instant::now());
                }
                let waiting = std::mem::take(&mut self.resuming);
                self.answer_all(waiting, done.map(|()| json!({})));
            }
            FromMachine::Linked { nic, done } => self.linked(nic, done),
            FromMachine::Swapped { nic, done } => self.swapped(nic, done),
            FromMachine::Plugged { number, done } => self.plugged(number, done),
            FromMachine::Unplugged { number, done, unseen } => self.unplugged(number, done, unseen),
            FromMachine::Looked => self.unseen.clear(),
            FromMachine::NicCounters(counters) => self.note_counters(counters),
            FromMachine::Counters { exits, disks } => self.answer_counters(exits, disks),
            FromMachine::Rated { nic, done } => self.rated(nic, done),
            FromMachine::PowerButton { heard } => {
                if !heard && self.stopping.is_asked() {
                    let next = self.stopping.force(Instant::now());
                    self.carry_out(next);
                }
            }
            FromMachine::Failed(failure) => self.end(Ended::Failed(failure)),
            FromMachine::Ended(end) => self.end(Ended::Guest(end)),
            FromMachine::Forbidden { call, thread } => {
                let error = Error::Forbidden {
                    call: sandbox::call_name(call),
                    thread: net::printable(&thread).into_owned(),
                };
                self.end(Ended::Failed(Failure::new(&error, error.remedy())));
            }
            FromMachine::ShareLost { share } => self.shares.lost(share),
            FromMachine::Accepted => {}
        }
    }

    fn enter(&mut self, state: MachineState) {
        self.state = state;
        self.letters.push(Letter::Event(Event::State { state }));
    }

    fn answer_all(&mut self, tickets: Vec<Ticket>, answer: Result<Value, String>) {
        for ticket in tickets {
            let answer = answer.clone().map_err(ControlError::Failed);
            self.letters.push(Letter::Answer(ticket, answer));
        }
    }

    /// Notes why the guest runs no more; the first reason counts.
    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    /// Reads some of the console: whether there may be more now; none once there never is.
    pub(super) fn read_console(&mut self) -> Option<bool> {
        match self.console.read() {
            Ok(Some(output)) => {
                self.letters.push(Letter::Console(output));
                Some(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(false),
            Ok(None) | Err(_) => None,
        }
    }

    pub(super) fn read_keys(&mut self) {
        for command in self.keyboard.read() {
            match command {
                Command::Quit => self.force_stop(),
                Command::PowerButton => drop(self.channel.try_send(&ToMachine::PowerButton)),
                Command::Help => report::print(&format!("\n{}\n", terminal::HELP)),
            }
        }
    }

    /// Sends the machine a request whose answer `waiting` waits for.
    fn request(&mut self, request: &ToMachine) -> Result<(), ControlError> {
        self.channel.try_send(request).map_err(|_| {
            ControlError::WrongState("the machine does not listen, or is about to end".to_owned())
        })
    }

    fn in_state(&self, state: MachineState) -> Result<(), ControlError> {
        match self.state == state {
            true => Ok(()),
            false => Err(ControlError::WrongState(format!(
                "the machine is {}, not {}",
                self.state.word(),
                state.word()
            ))),
        }
    }
}
