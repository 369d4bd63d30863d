//! A client of a running machine: calls over its socket, as varlink frames them (a JSON object, ended by a NUL).

mod vsock;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use net::RateLimits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::counters::NetCounters;
use crate::info::{Event, MachineInfo, NicInfo};
use crate::runtime::{self, Holder, NameError};

pub use self::vsock::connect_vsock;

/// The longest reply in bytes that is read.
const REPLY_MAX: usize = 4 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such machine.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The connection failed.
    #[error("cannot ask the machine")]
    Connection(#[source] io::Error),
    /// The machine is gone without an answer: it has just ended, or its process was killed.
    #[error("the machine is gone without an answer")]
    Gone,
    /// There was no answer [in time](Client::set_timeout).
    #[error("the machine has not answered in time")]
    TimedOut,
    /// The machine refuses.
    #[error("the machine refuses: {reason}")]
    Refused {
        /// The error's name on the wire.
        error: String,
        /// The same in words.
        reason: String,
        /// What the user can do about it, where the machine knows.
        remedy: Option<String>,
    },
    /// It has no socket device.
    #[error("the machine {name} has no socket device")]
    NoVsock {
        /// Its name.
        name: String,
    },
    /// The guest refuses a connection.
    #[error("no program of the guest accepts at its port {port}")]
    PortRefused {
        /// The guest's port.
        port: u32,
    },
    /// The guest says neither yes nor no.
    #[error("the guest does not answer at its port {port} in time")]
    PortSilent {
        /// The guest's port.
        port: u32,
    },
    /// Its answer makes no sense.
    #[error("the machine's answer makes no sense")]
    Nonsense(#[source] serde_json::Error),
}

impl ClientError {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Name(error) => error.remedy(),
            Self::Nonsense(_) => {
                Some("is it a machine of another version of wirevm? wirevm ls tells".to_owned())
            }
            Self::Gone => Some(
                "if it was killed, what it left on the host is taken back by the next wirevm run, or now by: wirevm doctor --clean"
                    .to_owned(),
            ),
            Self::TimedOut => {
                Some("it may still do what it was asked; wirevm show and wirevm net ls tell".to_owned())
            }
            Self::Refused { reason, remedy: None, .. } if reason.starts_with("the machine is paused") => {
                Some("let it go on first: wirevm resume NAME".to_owned())
            }
            Self::Refused { remedy, .. } => remedy.clone(),
            Self::NoVsock { .. } => Some(
                "start it with --vsock on, which is the default".to_owned(),
            ),
            Self::PortRefused { .. } => Some(
                "it may not be up yet; its kernel needs the driver (vmw_vsock_virtio_transport), and a program must listen there"
                    .to_owned(),
            ),
            Self::PortSilent { .. } => {
                Some("is it paused, or busy? wirevm show and wirevm console tell".to_owned())
            }
            Self::Connection(_) => None,
        }
    }
}

/// A connection to a running machine.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// What was read and is not taken yet.
    read: Vec<u8>,
    /// The machine; none for another service.
    holder: Option<Holder>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    parameters: Value,
    error: Option<String>,
    #[serde(default)]
    continues: bool,
}

impl Client {
    /// Connects to the machine `name`.
    ///
    /// # Errors
    /// No such machine runs, or it is another user's.
    pub fn connect(name: &str) -> Result<Self, ClientError> {
        let (stream, holder) = runtime::connect(name)?;
        Ok(Self { stream, read: Vec::new(), holder: Some(holder) })
    }

    /// Connects to another service that speaks varlink, at its socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn at(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).map_err(ClientError::Connection)?;
        Ok(Self { stream, read: Vec::new(), holder: None })
    }

    /// The machine that it is connected to.
    pub(crate) fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// Waits until nothing is left of the machine, once it has ended: its name is free, or another machine's.
    pub fn wait_until_gone(&self) {
        if let Some(holder) = &self.holder {
            holder.wait_until_gone();
        }
    }

    /// Waits no longer than this for an answer; for ever without it.
    ///
    /// # Errors
    /// It is zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Calls `method` of the interface `io.wirevm.Machine`, and waits for its answer.
    ///
    /// # Errors
    /// The machine refuses, or is gone.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value, ClientError> {
        self.call_method(&format!("io.wirevm.Machine.{method}"), parameters)
    }

    /// Calls a method by its whole name, and waits for its answer.
    ///
    /// # Errors
    /// The service refuses, or is gone.
    pub fn call_method(&mut self, method: &str, parameters: Value) -> Result<Value, ClientError> {
        self.send(&json!({ "method": method, "parameters": parameters }))?;
        Ok(self.reply()?.parameters)
    }

    /// The same of a method that answers again and again: `each` takes an answer, and says whether to go on.
    ///
    /// # Errors
    /// The machine refuses, or is gone.
    pub fn call_more(
        &mut self,
        method: &str,
        parameters: Value,
        mut each: impl FnMut(Value) -> bool,
    ) -> Result<(), ClientError> {
        let method = format!("io.wirevm.Machine.{method}");
        self.send(&json!({ "method": method, "parameters": parameters, "more": true }))?;
        loop {
            let Reply { parameters, continues, .. } = self.reply()?;
            if !each(parameters) || !continues {
                return Ok(());
            }
        }
    }

    /// What the machine is, and what it has.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn info(&mut self) -> Result<MachineInfo, ClientError> {
        let answer = self.call("GetInfo", json!({}))?;
        serde_json::from_value(answer["machine"].clone()).map_err(ClientError::Nonsense)
    }

    /// Has the guest power itself off within `timeout` (by default what its configuration says), and ends it then; at once where
    /// it is to be `force`d. Does not wait.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn stop(&mut self, timeout: Option<Duration>, force: bool) -> Result<(), ClientError> {
        self.call("Stop", stop_parameters(timeout, force)).map(drop)
    }

    /// The same, and waits for the end, however long that takes. Returns the exit status of its `wirevm run`.
    ///
    /// # Errors
    /// As [`call`](Self::call); [`Gone`](ClientError::Gone) where its process is killed before it has ended in order.
    pub fn stop_and_wait(&mut self, timeout: Option<Duration>, force: bool) -> Result<u8, ClientError> {
        // Both at once: it may end before a second message comes.
        let stop = method_call("Stop", stop_parameters(timeout, force));
        self.send_all(&[stop, method_call("Wait", json!({}))])?;
        self.reply()?;
        self.set_timeout(None).map_err(ClientError::Connection)?;
        status_in(&self.reply()?.parameters)
    }

    /// Has the guest stand still; returns when it does.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn pause(&mut self) -> Result<(), ClientError> {
        self.call("Pause", json!({})).map(drop)
    }

    /// Has the guest go on.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.call("Resume", json!({})).map(drop)
    }

    /// Waits for the machine's end, and returns the exit status of its `wirevm run`.
    ///
    /// # Errors
    /// As [`call`](Self::call); [`Gone`](ClientError::Gone) where its process is killed before it has ended in order.
    pub fn wait(&mut self) -> Result<u8, ClientError> {
        status_in(&self.call("Wait", json!({}))?)
    }

    /// Plugs a NIC into the guest, as `--net` makes one, and waits until the guest has taken it. Returns the NIC, and what the user should
    /// know of its wire.
    ///
    /// # Errors
    /// As [`call`](Self::call): there cannot be such a NIC, or the guest does not take it; nothing has changed then.
    pub fn net_add(&mut self, spec: &str) -> Result<(NicInfo, Vec<String>), ClientError> {
        let answer = self.call("NetAdd", json!({ "spec": spec }))?;
        let nic = serde_json::from_value(answer["nic"].clone()).map_err(ClientError::Nonsense)?;
        let notices = serde_json::from_value(answer["notices"].clone()).map_err(ClientError::Nonsense)?;
        Ok((nic, notices))
    }

    /// Takes the NIC of that name out of the guest, and waits until the guest lets it go; by `force` at once.
    ///
    /// # Errors
    /// As [`call`](Self::call): there is none, or the guest does not let it go, and is still asked to.
    pub fn net_remove(&mut self, nic: &str, force: bool) -> Result<(), ClientError> {
        self.call("NetRemove", json!({ "nic": nic, "force": force })).map(drop)
    }

    /// What happens to the machine, as long as `each` wants to hear it.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn events(&mut self, mut each: impl FnMut(Event) -> bool) -> Result<(), ClientError> {
        self.call_more("Subscribe", json!({}), |answer| {
            match serde_json::from_value(answer["event"].clone()) {
                Ok(event) => each(event),
                // Of a newer version.
                Err(_) => true,
            }
        })
    }

    /// What the guest said last.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn logs(&mut self) -> Result<String, ClientError> {
        let answer = self.call("Logs", json!({}))?;
        Ok(answer["text"].as_str().unwrap_or_default().to_owned())
    }

    /// Its counters, as Prometheus reads them.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn metrics(&mut self) -> Result<String, ClientError> {
        let answer = self.call("Metrics", json!({}))?;
        Ok(answer["text"].as_str().unwrap_or_default().to_owned())
    }

    /// What went over its NICs until now, or over the one of that name.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn net_counters(&mut self, nic: Option<&str>) -> Result<NetCounters, ClientError> {
        let answer = self.call("NetCounters", json!({ "nic": nic }))?;
        serde_json::from_value(answer["counters"].clone()).map_err(ClientError::Nonsense)
    }

    /// Holds the NIC of that name (`nic0`) to `limits` from now on.
    ///
    /// # Errors
    /// As [`call`](Self::call): there is no such NIC, or its frames are vhost-net's and the host cannot keep the limits.
    pub fn net_rate(&mut self, nic: &str, limits: &RateLimits) -> Result<(), ClientError> {
        self.call("NetRate", json!({ "nic": nic, "limits": limits })).map(drop)
    }

    /// Waits for so long, and returns early, with true, where the machine is gone.
    pub fn is_gone_within(&self, time: Duration) -> bool {
        let until = end_of(time);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
            // Nothing was asked, so that nothing comes but the end.
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => continue,
                ready => return ready != Ok(0),
            }
        }
    }

    /// Turns the connection into the guest's console: first what the guest said last, then what it says. Where it is to `write`,
    /// what is written to the stream is typed.
    ///
    /// # Errors
    /// As [`call`](Self::call): somebody else writes already.
    pub fn console(mut self, write: bool) -> Result<(Vec<u8>, UnixStream), ClientError> {
        let parameters = json!({ "write": write });
        self.send(
            &json!({ "method": "io.wirevm.Machine.Console", "parameters": parameters, "upgrade": true }),
        )?;
        self.reply()?;
        self.stream.set_read_timeout(None).map_err(ClientError::Connection)?;
        Ok((self.read, self.stream))
    }

    fn send(&mut self, call: &Value) -> Result<(), ClientError> {
        self.send_all(std::slice::from_ref(call))
    }

    fn send_all(&mut self, calls: &[Value]) -> Result<(), ClientError> {
        let bytes: Vec<_> = calls.iter().flat_map(|call| format!("{call}\0").into_bytes()).collect();
        match self.stream.write_all(&bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClientError::Gone),
            written => written.map_err(ClientError::Connection),
        }
    }

    fn reply(&mut self) -> Result<Reply, ClientError> {
        use io::ErrorKind::{TimedOut, WouldBlock};
        let end = loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == 0) {
                break end;
            }
            let mut chunk = [0; 4096];
            let len = match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
                    return Err(ClientError::TimedOut);
                }
                Ok(0) => return Err(ClientError::Gone),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(ClientError::Gone);
                }
                read => read.map_err(ClientError::Connection)?,
            };
            self.read.extend_from_slice(&chunk[..len]);
            if self.read.len() > REPLY_MAX {
                let long = io::Error::new(io::ErrorKind::InvalidData, "its answer has no end");
                return Err(ClientError::Connection(long));
            }
        };
        let message: Vec<_> = self.read.drain(..=end).collect();
        let reply: Reply = serde_json::from_slice(&message[..end]).map_err(ClientError::Nonsense)?;
        match reply.error {
            None => Ok(reply),
            Some(error) => {
                let said = reply.parameters["reason"].as_str().map(str::to_owned);
                let reason = said.unwrap_or_else(|| error.rsplit('.').next().unwrap_or_default().to_owned());
                let remedy = reply.parameters["remedy"].as_str().map(str::to_owned);
                Err(ClientError::Refused { error, reason, remedy })
            }
        }
    }
}

/// A call of `io.wirevm.Machine`.
/// When a wait that begins now is over; one without end is of a year.
pub(crate) fn end_of(wait: Duration) -> Instant {
    Instant::now() + wait.min(Duration::from_secs(365 * 24 * 3600))
}

fn method_call(method: &str, parameters: Value) -> Value {
    json!({ "method": format!("io.wirevm.Machine.{method}"), "parameters": parameters })
}

fn stop_parameters(timeout: Option<Duration>, force: bool) -> Value {
    json!({ "timeout": timeout.map(|timeout| timeout.as_secs()), "force": force })
}

/// The exit status in the answer to `Wait`.
fn status_in(answer: &Value) -> Result<u8, ClientError> {
    let status = answer["status"].as_u64().and_then(|status| u8::try_from(status).ok());
    status.ok_or_else(|| {
        let none = io::Error::new(io::ErrorKind::InvalidData, "there is no exit status in it");
        ClientError::Connection(none)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_does_not_answer_in_time_may_still_do_it() {
        let socket = std::env::temp_dir().join(format!("wirevm-mute-{}", std::process::id()));
        let _mute = UnixListener::bind(&socket).unwrap();
        let client = Client::at(&socket);
        std::fs::remove_file(&socket).unwrap();
        let mut client = client.unwrap();
        client.set_timeout(Some(Duration::from_millis(20))).unwrap();
        let error = client.info().unwrap_err();
        assert!(matches!(error, ClientError::TimedOut), "{error}");
        assert!(error.remedy().unwrap().contains("may still do"));
    }
}
