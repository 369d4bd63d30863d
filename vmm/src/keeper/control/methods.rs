//! What can be called.

use std::time::Duration;

use serde_json::{Value, json};
use vmm::info::MachineState;

use super::connection::{Call, Connection, Subscription};
use super::{CountersForm, Requests, Ticket, service};

/// The interfaces, and what describes them.
pub(super) const INTERFACES: [(&str, &str); 3] = [
    ("org.varlink.service", include_str!("org.varlink.service.varlink")),
    ("io.wirevm.Machine", include_str!("io.wirevm.Machine.varlink")),
    ("io.systemd.MachineInstance", include_str!("io.systemd.MachineInstance.varlink")),
];

/// Why a call fails; each is an error of one of the interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlError {
    InterfaceNotFound(String),
    MethodNotFound(String),
    MethodNotImplemented(String),
    InvalidParameter(&'static str),
    ExpectedMore,
    WrongState(String),
    ConsoleTaken,
    NoSuchNic(String),
    Failed(String),
    /// The same, with what the user can do.
    Refused {
        reason: String,
        remedy: Option<String>,
    },
}

impl ControlError {
    /// Why, and what helps.
    pub(crate) fn parts(&self) -> (String, Option<String>) {
        match self {
            Self::Refused { reason, remedy } => (reason.clone(), remedy.clone()),
            Self::WrongState(reason) | Self::NoSuchNic(reason) | Self::Failed(reason) => {
                (reason.clone(), None)
            }
            other => (format!("{other:?}"), None),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let service = |name, parameters| (format!("org.varlink.service.{name}"), parameters);
        let machine = |name, reason: &str| (format!("io.wirevm.Machine.{name}"), json!({ "reason": reason }));
        let (error, parameters) = match self {
            Self::InterfaceNotFound(name) => service("InterfaceNotFound", json!({ "interface": name })),
            Self::MethodNotFound(name) => service("MethodNotFound", json!({ "method": name })),
            Self::MethodNotImplemented(name) => service("MethodNotImplemented", json!({ "method": name })),
            Self::InvalidParameter(name) => service("InvalidParameter", json!({ "parameter": name })),
            Self::ExpectedMore => service("ExpectedMore", json!({})),
            Self::WrongState(reason) => machine("WrongState", reason),
            Self::ConsoleTaken => machine("ConsoleTaken", "somebody writes on the console already"),
            Self::NoSuchNic(reason) => machine("NoSuchNic", reason),
            Self::Failed(reason) => machine("Failed", reason),
            Self::Refused { reason, remedy } => {
                ("io.wirevm.Machine.Failed".to_owned(), json!({ "reason": reason, "remedy": remedy }))
            }
        };
        json!({ "error": error, "parameters": parameters })
    }
}

/// Answers `call`, or leaves it to be answered by its `ticket`.
pub(super) fn answer(
    connection: &mut Connection,
    call: Call,
    ticket: Ticket,
    writes_elsewhere: bool,
    vm: &mut dyn Requests,
) {
    let Some((interface, method)) = call.method.rsplit_once('.') else {
        return connection.reply(Err(ControlError::InvalidParameter("method")));
    };
    let method = method.to_owned();
    let answer = match interface {
        "org.varlink.service" => introspect(&method, &call),
        "io.wirevm.Machine" => match machine(connection, &method, &call, ticket, writes_elsewhere, vm) {
            Answer::Now(answer) => answer,
            Answer::Later => return,
        },
        "io.systemd.MachineInstance" => match instance(connection, &method, &call, ticket, vm) {
            Answer::Now(answer) => answer,
            Answer::Later => return,
        },
        _ => Err(ControlError::InterfaceNotFound(interface.to_owned())),
    };
    connection.reply(answer);
}

enum Answer {
    Now(Result<Value, ControlError>),
    Later,
}

/// An answer that comes by its ticket, unless it is refused at once.
fn later(asked: Result<(), ControlError>) -> Answer {
    match asked {
        Ok(()) => Answer::Later,
        Err(error) => Answer::Now(Err(error)),
    }
}

fn introspect(method: &str, call: &Call) -> Result<Value, ControlError> {
    match method {
        "GetInfo" => Ok(service()),
        "GetInterfaceDescription" => {
            let wanted = call.parameters["interface"].as_str();
            let wanted = wanted.ok_or(ControlError::InvalidParameter("interface"))?;
            let found = INTERFACES.iter().find(|(name, _)| *name == wanted);
            let found = found.ok_or_else(|| ControlError::InterfaceNotFound(wanted.to_owned()))?;
            Ok(json!({ "description": found.1 }))
        }
        _ => Err(ControlError::MethodNotFound(call.method.clone())),
    }
}

fn machine(
    connection: &mut Connection,
    method: &str,
    call: &Call,
    ticket: Ticket,
    writes_elsewhere: bool,
    vm: &mut dyn Requests,
) -> Answer {
    Answer::Now(match method {
        "GetInfo" => Ok(json!({ "machine": vm.info() })),
        "Stop" => match (seconds(&call.parameters["timeout"]), flag(&call.parameters["force"])) {
            (None, _) => Err(ControlError::InvalidParameter("timeout")),
            (_, None) => Err(ControlError::InvalidParameter("force")),
            (Some(timeout), Some(force)) => {
                vm.stop(timeout, force);
                Ok(json!({}))
            }
        },
        "Pause" => return later(vm.pause(ticket)),
        "Resume" => return later(vm.resume(ticket)),
        "Metrics" => return later(vm.count(ticket, CountersForm::Metrics)),
        "NetCounters" => {
            let nic = call.parameters["nic"].as_str().map(str::to_owned);
            return later(vm.count(ticket, CountersForm::Net(nic)));
        }
        "NetLink" => match (text(call, "nic"), text(call, "mode")) {
            (Ok(nic), Ok(mode)) => return later(vm.net_link(ticket, nic, mode)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
        "NetRate" => match (text(call, "nic"), text(call, "limits")) {
            (Ok(nic), Ok(limits)) => match limits.parse() {
                Ok(limits) => return later(vm.net_rate(ticket, nic, limits)),
                Err(why) => Err(ControlError::Failed(why)),
            },
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
        "NetMove" => match (text(call, "nic"), text(call, "spec")) {
            (Ok(nic), Ok(spec)) => return later(vm.net_move(ticket, nic, spec)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
        "NetAdd" => match text(call, "spec") {
            Ok(spec) => return later(vm.net_add(ticket, spec)),
            Err(error) => Err(error),
        },
        "NetRemove" => match (text(call, "nic"), flag(&call.parameters["force"])) {
            (Ok(nic), Some(force)) => return later(vm.net_remove(ticket, nic, force)),
            (Err(error), _) => Err(error),
            (_, None) => Err(ControlError::InvalidParameter("force")),
        },
        "Wait" => {
            connection.subscribe(Subscription::End);
            return Answer::Later;
        }
        "Subscribe" if !call.more => Err(ControlError::ExpectedMore),
        "Subscribe" => {
            connection.subscribe(Subscription::Events);
            return Answer::Later;
        }
        "Logs" => Ok(json!({ "text": String::from_utf8_lossy(&vm.console_history()) })),
        "Console" => match flag(&call.parameters["write"]) {
            _ if !call.upgrade => Err(ControlError::InvalidParameter("upgrade")),
            None => Err(ControlError::InvalidParameter("write")),
            Some(true) if writes_elsewhere => Err(ControlError::ConsoleTaken),
            Some(write) => {
                connection.become_console(write, &vm.console_history());
                return Answer::Later;
            }
        },
        _ => Err(ControlError::MethodNotFound(call.method.clone())),
    })
}

/// What systemd's tools ask.
fn instance(
    connection: &mut Connection,
    method: &str,
    call: &Call,
    ticket: Ticket,
    vm: &mut dyn Requests,
) -> Answer {
    Answer::Now(match method {
        "Terminate" => {
            vm.stop(None, true);
            Ok(json!({}))
        }
        "PowerOff" => {
            vm.stop(None, false);
            Ok(json!({}))
        }
        "Pause" => return later(vm.pause(ticket)),
        "Resume" => return later(vm.resume(ticket)),
        "QueryStatus" => {
            let state = vm.info().state;
            Ok(json!({ "running": state == MachineState::Running, "status": state.word() }))
        }
        "SubscribeEvents" if !call.more => Err(ControlError::ExpectedMore),
        "SubscribeEvents" => match serde_json::from_value(call.parameters["filter"].clone()) {
            Err(_) => Err(ControlError::InvalidParameter("filter")),
            Ok(filter) => {
                connection.subscribe(Subscription::Systemd(filter));
                return Answer::Later;
            }
        },
        "Describe" => {
            let info = vm.info();
            Ok(json!({ "name": info.name, "class": "vm", "state": info.state.word() }))
        }
        // A reboot ends a run.
        "Reboot" => Err(ControlError::MethodNotImplemented(call.method.clone())),
        _ => Err(ControlError::MethodNotFound(call.method.clone())),
    })
}

/// A parameter that is text.
fn text<'a>(call: &'a Call, name: &'static str) -> Result<&'a str, ControlError> {
    call.parameters[name].as_str().ok_or(ControlError::InvalidParameter(name))
}

/// A number of seconds, or none given; nothing where it is something else.
fn seconds(value: &Value) -> Option<Option<Duration>> {
    match value {
        Value::Null => Some(None),
        value => value.as_u64().map(|seconds| Some(Duration::from_secs(seconds))),
    }
}

/// A flag, off where it is not given; nothing where it is something else.
fn flag(value: &Value) -> Option<bool> {
    if value.is_null() { Some(false) } else { value.as_bool() }
}
