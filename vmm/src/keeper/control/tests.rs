//! The server without a machine: real sockets, a real loop, and a stand-in for the keeper.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use vmm::MachineConfig;
use vmm::info::MachineState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// A keeper that does what is asked in words.
#[derive(Default)]
struct Fake {
    tickets: Vec<Ticket>,
    stops: Vec<(Option<Duration>, bool)>,
    typed: Vec<u8>,
    rates: Vec<RateLimits>,
}

impl Requests for Fake {
    fn info(&self) -> MachineInfo {
        MachineInfo {
            name: "web".into(),
            state: MachineState::Running,
            pid: 1,
            machine_pid: 2,
            threads: Vec::new(),
            config: MachineConfig::new("vmlinuz"),
            memory: 512 << 20,
            vsock: None,
            nics: Vec::new(),
            started: 3,
            uptime: 4,
            version: "5".into(),
        }
    }
    fn stop(&mut self, timeout: Option<Duration>, force: bool) {
        self.stops.push((timeout, force));
    }
    fn pause(&mut self, ticket: Ticket) -> Result<(), ControlError> {
        self.tickets.push(ticket);
        Ok(())
    }
    fn resume(&mut self, _: Ticket) -> Result<(), ControlError> {
        Err(ControlError::WrongState("the machine is running, not paused".into()))
    }
    fn count(&mut self, ticket: Ticket, _: CountersForm) -> Result<(), ControlError> {
        self.pause(ticket)
    }
    fn net_link(&mut self, ticket: Ticket, _: &str, _: &str) -> Result<(), ControlError> {
        self.pause(ticket)
    }
    fn net_move(&mut self, _: Ticket, _: &str, _: &str) -> Result<(), ControlError> {
        Err(ControlError::NoSuchNic("there is no NIC nic7; the machine has nic0".into()))
    }
    fn net_rate(&mut self, ticket: Ticket, _: &str, limits: RateLimits) -> Result<(), ControlError> {
        self.rates.push(limits);
        self.pause(ticket)
    }
    fn net_add(&mut self, ticket: Ticket, _: &str) -> Result<(), ControlError> {
        self.pause(ticket)
    }
    fn net_remove(&mut self, _: Ticket, _: &str, _: bool) -> Result<(), ControlError> {
        Err(ControlError::Refused { reason: "the guest keeps it".into(), remedy: Some("force it".into()) })
    }
    fn type_in(&mut self, keys: &[u8]) -> usize {
        self.typed.extend(keys);
        keys.len()
    }
    fn console_history(&self) -> Vec<u8> {
        b"before".to_vec()
    }
}

type Act = Box<dyn FnOnce(&mut Server, &mut EventOps, &mut Fake)>;

struct Served {
    server: Server,
    fake: Fake,
    /// What the loop is to do once `poke` is readable: as where the machine answers.
    acts: Vec<Act>,
    poke: EventFd,
}

impl MutEventSubscriber for Served {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == 0 {
            self.poke.read().unwrap();
            self.acts.drain(..).for_each(|act| act(&mut self.server, ops, &mut self.fake));
        } else {
            self.server.process(events, ops, &mut self.fake);
        }
    }
    fn init(&mut self, ops: &mut EventOps) {
        self.server.init(ops).unwrap();
        ops.add(Events::new(&self.poke, EventSet::IN)).unwrap();
    }
}

/// A loop with a server in it, and where that listens.
struct World {
    manager: EventManager<Served>,
    id: SubscriberId,
    address: SocketAddr,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wirevm-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut manager = EventManager::new().unwrap();
        let poke = EventFd::new(EFD_NONBLOCK).unwrap();
        let served = Served { server: Server::new(listener), fake: Fake::default(), acts: Vec::new(), poke };
        let id = manager.add_subscriber(served);
        Self { manager, id, address }
    }

    /// Handles all that there is.
    fn turn(&mut self) {
        while self.manager.run_with_timeout(20).unwrap() > 0 {}
    }

    fn connect(&mut self) -> UnixStream {
        let stream = UnixStream::connect_addr(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        self.turn();
        stream
    }

    fn served(&mut self) -> &mut Served {
        self.manager.subscriber_mut(self.id).unwrap()
    }

    fn act(&mut self, act: impl FnOnce(&mut Server, &mut EventOps, &mut Fake) + 'static) {
        let served = self.served();
        served.acts.push(Box::new(act));
        served.poke.write(1).unwrap();
        self.turn();
    }

    fn clients(&mut self) -> usize {
        self.served().server.slots.iter().flatten().count()
    }

    /// Calls, and returns the answer.
    fn call(&mut self, stream: &mut UnixStream, call: Value) -> Value {
        send(stream, &call);
        self.turn();
        reply(stream)
    }
}

fn send(stream: &mut UnixStream, call: &Value) {
    stream.write_all(format!("{call}\0").as_bytes()).unwrap();
}

/// The next message.
fn reply(stream: &mut UnixStream) -> Value {
    let mut message = Vec::new();
    let mut byte = [0];
    loop {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the connection ended after {message:?}");
        match byte {
            [0] => return serde_json::from_slice(&message).unwrap(),
            [byte] => message.push(byte),
        }
    }
}

/// Whether the connection is closed, after at most one message.
#[track_caller]
fn is_refused(stream: &mut UnixStream, words: &str) {
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.contains(words) && said.ends_with('\0'), "{said:?}");
}

fn method(name: &str) -> Value {
    json!({ "method": format!("io.wirevm.Machine.{name}") })
}

#[test]
fn it_says_what_it_is_and_can() {
    let mut world = World::new();
    let mut client = world.connect();
    let info = world.call(&mut client, json!({ "method": "org.varlink.service.GetInfo" }));
    let interfaces = info["parameters"]["interfaces"].as_array().unwrap().clone();
    assert_eq!(interfaces.len(), 3, "{info}");
    for interface in interfaces {
        let call = json!({ "method": "org.varlink.service.GetInterfaceDescription", "parameters": { "interface": interface } });
        let description =
            world.call(&mut client, call)["parameters"]["description"].as_str().unwrap().to_owned();
        assert!(
            description.contains(&format!("interface {}\n", interface.as_str().unwrap())),
            "{description}"
        );
    }
    let machine = world.call(&mut client, method("GetInfo"))["parameters"]["machine"].clone();
    assert_eq!(
        (&machine["name"], &machine["state"], &machine["uptime"]),
        (&json!("web"), &json!("running"), &json!(4))
    );
    let status = world.call(&mut client, json!({ "method": "io.systemd.MachineInstance.QueryStatus" }));
    assert_eq!(status["parameters"], json!({ "running": true, "status": "running" }));
}

#[test]
fn each_method_of_a_description_is_there_and_no_other() {
    let mut world = World::new();
    for (interface, description) in methods::INTERFACES {
        let names = description.lines().filter_map(|line| line.strip_prefix("method ")?.split('(').next());
        for name in names {
            let mut client = world.connect();
            send(&mut client, &json!({ "method": format!("{interface}.{name}") }));
            world.turn();
            client.set_nonblocking(true).unwrap();
            let mut said = vec![0; 1 << 16];
            let len = client.read(&mut said).unwrap_or(0);
            let said = String::from_utf8_lossy(&said[..len]).into_owned();
            assert!(!said.contains("MethodNotFound"), "{interface}.{name}: {said}");
        }
    }
    let mut client = world.connect();
    for (call, error) in [
        ("io.wirevm.Machine.Fly", "org.varlink.service.MethodNotFound"),
        ("com.example.Fly", "org.varlink.service.InterfaceNotFound"),
        ("fly", "org.varlink.service.InvalidParameter"),
        ("io.systemd.MachineInstance.Reboot", "org.varlink.service.MethodNotImplemented"),
        ("io.wirevm.Machine.Subscribe", "org.varlink.service.ExpectedMore"),
        ("io.wirevm.Machine.Console", "org.varlink.service.InvalidParameter"),
        ("io.wirevm.Machine.Resume", "io.wirevm.Machine.WrongState"),
    ] {
        assert_eq!(world.call(&mut client, json!({ "method": call }))["error"], json!(error), "{call}");
    }
}

#[test]
fn a_stop_says_how() {
    let mut world = World::new();
    let mut client = world.connect();
    for (parameters, stop) in [
        (json!({}), Some((None, false))),
        (json!({ "timeout": 3, "force": null }), Some((Some(Duration::from_secs(3)), false))),
        (json!({ "force": true }), Some((None, true))),
        (json!({ "timeout": "soon" }), None),
        (json!({ "timeout": -1 }), None),
        (json!({ "force": 1 }), None),
    ] {
        let call = json!({ "method": "io.wirevm.Machine.Stop", "parameters": parameters });
        let answer = world.call(&mut client, call);
        assert_eq!(answer.get("error").is_none(), stop.is_some(), "{answer}");
        assert_eq!(world.served().fake.stops.pop(), stop, "{parameters}");
    }
}

#[test]
fn what_makes_no_sense_ends_the_connection_and_nothing_else() {
    let mut world = World::new();
    let mut good = world.connect();
    for (bytes, words) in [
        (&b"garbage\0"[..], "no varlink call"),
        (b"\0", "no varlink call"),
        (b"{}\0", "no varlink call"),
        (b"[1,2,3]\0", "no varlink call"),
        (b"{\"method\":7}\0", "no varlink call"),
        (b"\xff\xfe\0", "no varlink call"),
    ] {
        let mut bad = world.connect();
        bad.write_all(bytes).unwrap();
        world.turn();
        is_refused(&mut bad, words);
    }
    // A mebibyte without an end: it is read no further than 64 KiB.
    let mut endless = world.connect();
    endless.set_nonblocking(true).unwrap();
    let mut written = 0;
    while written < 1 << 20 {
        match endless.write(&[b'x'; 4096]) {
            Ok(len) => written += len,
            Err(_) => {
                world.turn();
                if world.clients() == 1 {
                    break;
                }
            }
        }
    }
    assert_eq!(world.clients(), 1, "after {written} bytes");
    assert_eq!(world.call(&mut good, method("GetInfo"))["parameters"]["machine"]["name"], "web");
}

#[test]
fn half_a_call_has_a_while_and_two_at_once_are_answered_in_order() {
    let mut world = World::new();
    let mut client = world.connect();
    let text = format!("{}\0{}\0", method("GetInfo"), method("Logs"));
    let (start, rest) = text.split_at(10);
    client.write_all(start.as_bytes()).unwrap();
    world.turn();
    let deadline = world.served().server.deadline().expect("the rest is waited for");
    client.write_all(rest.as_bytes()).unwrap();
    world.turn();
    assert_eq!(reply(&mut client)["parameters"]["machine"]["name"], "web");
    assert_eq!(reply(&mut client)["parameters"]["text"], "before");
    assert_eq!(world.served().server.deadline(), None);

    client.write_all(start.as_bytes()).unwrap();
    world.turn();
    let late = deadline + Duration::from_secs(60);
    world.act(move |server, ops, _| server.expire(late, ops));
    is_refused(&mut client, "has no end");
    assert_eq!(world.clients(), 0);
}

#[test]
fn who_asks_and_sends_nothing_more_is_answered() {
    let mut world = World::new();
    let mut client = UnixStream::connect_addr(&world.address).unwrap();
    send(&mut client, &method("Pause"));
    send(&mut client, &method("Logs"));
    client.shutdown(std::net::Shutdown::Write).unwrap();
    world.turn();
    let ticket = world.served().fake.tickets.pop().expect("it was asked");
    world.act(move |server, ops, fake| server.answer(ticket, Ok(json!({})), ops, fake));
    assert_eq!(reply(&mut client), json!({ "parameters": {} }));
    assert_eq!(reply(&mut client)["parameters"]["text"], "before");
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "nothing is left to answer");
    assert_eq!(world.clients(), 0);
}

#[test]
fn who_asks_and_leaves_is_heard() {
    let mut world = World::new();
    let mut client = UnixStream::connect_addr(&world.address).unwrap();
    send(&mut client, &json!({ "method": "io.wirevm.Machine.Stop", "oneway": true }));
    drop(client);
    world.turn();
    assert_eq!(world.served().fake.stops, [(None, false)]);
    assert_eq!(world.clients(), 0);
}

#[test]
fn who_floods_while_a_call_is_answered_and_leaves_is_gone() {
    let mut world = World::new();
    let mut client = world.connect();
    send(&mut client, &method("Wait"));
    world.turn();
    client.set_nonblocking(true).unwrap();
    // More than is read of it, so that its end is not read either.
    while client.write(&[b'x'; 4096]).is_ok() {
        world.manager.run_with_timeout(0).unwrap();
    }
    drop(client);
    for _ in 0..100 {
        world.manager.run_with_timeout(0).unwrap();
    }
    assert_eq!(world.clients(), 0);
    assert_eq!(world.manager.run_with_timeout(0).unwrap(), 0, "the loop turns without end");
}

#[test]
fn there_are_so_many_clients_and_the_others_are_told() {
    let mut world = World::new();
    let mut clients: Vec<_> = (0..200).map(|_| world.connect()).collect();
    assert_eq!(world.clients(), CLIENTS);
    for refused in &mut clients[CLIENTS..] {
        is_refused(refused, "too many clients");
    }
    let mut first = clients.remove(0);
    assert_eq!(world.call(&mut first, method("GetInfo"))["parameters"]["machine"]["name"], "web");
    drop(clients);
    world.turn();
    assert_eq!(world.clients(), 1);
    world.connect();
}

#[test]
fn who_asks_nothing_for_long_gives_way_and_who_waits_does_not() {
    let mut world = World::new();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| world.connect()).collect();
    let mut subscribe = method("Subscribe");
    subscribe["more"] = true.into();
    for (call, client) in [method("Wait"), subscribe, method("Pause")].iter().zip(&mut clients) {
        send(client, call);
        world.turn();
    }
    is_refused(&mut world.connect(), "too many clients");
    let long_ago = Instant::now().checked_sub(IDLE).unwrap();
    for (slot, client) in world.served().server.slots.iter_mut().enumerate() {
        // The one in the last slot was heard of last.
        client.as_mut().unwrap().active = long_ago - Duration::from_millis((CLIENTS - slot) as u64);
    }
    let mut new = world.connect();
    assert_eq!(world.call(&mut new, method("GetInfo"))["parameters"]["machine"]["name"], "web");
    assert_eq!(world.clients(), CLIENTS);
    is_refused(&mut clients[3], "nothing was asked here for long");
    assert_eq!(world.call(&mut clients[4], method("GetInfo"))["parameters"]["machine"]["name"], "web");
    world.act(|server, ops, _| server.event(&Event::Ended { status: 7 }, ops));
    assert_eq!(reply(&mut clients[0])["parameters"]["status"], 7);
    assert_eq!(reply(&mut clients[1])["parameters"]["event"]["status"], 7);
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let mut world = World::new();
    let mut client = world.connect();
    client.set_nonblocking(true).unwrap();
    for _ in 0..20_000 {
        if client.write_all(format!("{}\0", method("GetInfo")).as_bytes()).is_err() {
            world.turn();
        }
        if world.clients() == 0 {
            break;
        }
    }
    world.turn();
    assert_eq!(world.clients(), 0);
}

#[test]
fn only_this_user_and_root_are_served() {
    for (peer, own, allowed) in
        [(1000, 1000, true), (0, 1000, true), (1001, 1000, false), (1000, 0, false), (0, 0, true)]
    {
        assert_eq!(is_one_of_us(peer, own), allowed, "{peer} {own}");
    }
}

#[test]
fn an_answer_comes_when_the_machine_has_one_and_not_to_another_client() {
    let mut world = World::new();
    let mut client = world.connect();
    // The second call waits for the first.
    send(&mut client, &method("Pause"));
    send(&mut client, &method("Logs"));
    world.turn();
    let ticket = world.served().fake.tickets.pop().expect("it was asked");
    world.act(move |server, ops, fake| server.answer(ticket, Ok(json!({})), ops, fake));
    assert_eq!(reply(&mut client), json!({ "parameters": {} }));
    assert_eq!(reply(&mut client)["parameters"]["text"], "before");

    send(&mut client, &method("Pause"));
    world.turn();
    let ticket = world.served().fake.tickets.pop().unwrap();
    drop(client);
    world.turn();
    // It has the place that is free now, and is not the one that asked.
    let mut other = world.connect();
    world.act(move |server, ops, fake| {
        server.answer(ticket, Err(ControlError::Failed("late".into())), ops, fake);
    });
    assert_eq!(world.call(&mut other, method("Logs"))["parameters"]["text"], "before");
}

#[test]
fn who_wants_to_hear_of_events_does() {
    let mut world = World::new();
    let [mut waits, mut subscribes, mut systemd, mut filters, mut not] = [(); 5].map(|()| world.connect());
    send(&mut waits, &method("Wait"));
    send(&mut subscribes, &json!({ "method": "io.wirevm.Machine.Subscribe", "more": true }));
    send(&mut systemd, &json!({ "method": "io.systemd.MachineInstance.SubscribeEvents", "more": true }));
    let some = json!({ "filter": ["RUNNING"] });
    send(
        &mut filters,
        &json!({ "method": "io.systemd.MachineInstance.SubscribeEvents", "parameters": some, "more": true }),
    );
    world.turn();
    assert_eq!(reply(&mut systemd)["parameters"]["event"], "READY");
    assert_eq!(reply(&mut filters)["parameters"]["event"], "READY");
    world.act(|server, ops, _| {
        server.event(&Event::State { state: MachineState::Paused }, ops);
        server.event(&Event::Ended { status: 3 }, ops);
    });
    assert_eq!(reply(&mut waits), json!({ "parameters": { "status": 3 } }));
    let paused = reply(&mut subscribes);
    assert_eq!(
        paused,
        json!({ "parameters": { "event": { "event": "state", "state": "paused" } }, "continues": true })
    );
    let ended = reply(&mut subscribes);
    assert_eq!(ended, json!({ "parameters": { "event": { "event": "ended", "status": 3 } } }));
    assert_eq!(reply(&mut systemd)["parameters"]["event"], "PAUSED");
    let end = reply(&mut systemd);
    assert!(end["parameters"]["event"] == "SHUTDOWN" && end["continues"].is_null(), "{end}");
    assert_eq!(reply(&mut filters), json!({ "parameters": {} }));
    assert_eq!(world.call(&mut not, method("Logs"))["parameters"]["text"], "before");
}

#[test]
fn a_console_has_watchers_and_one_writer() {
    let mut world = World::new();
    let console = |write| json!({ "method": "io.wirevm.Machine.Console", "parameters": { "write": write }, "upgrade": true });
    let [mut writer, mut watcher, mut second] = [(); 3].map(|()| world.connect());
    assert_eq!(world.call(&mut writer, console(true)), json!({ "parameters": {} }));
    assert_eq!(world.call(&mut watcher, console(false)), json!({ "parameters": {} }));
    assert_eq!(world.call(&mut second, console(true))["error"], "io.wirevm.Machine.ConsoleTaken");
    world.act(|server, ops, _| server.console(b" and after", ops));
    for stream in [&mut writer, &mut watcher] {
        let mut said = [0; 16];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"before and after");
    }
    writer.write_all(b"ls\n\0").unwrap();
    watcher.write_all(b"not heard").unwrap();
    world.turn();
    assert_eq!(world.served().fake.typed, b"ls\n\0");
    // The next one may write once the first has gone.
    drop(writer);
    world.turn();
    assert_eq!(world.call(&mut second, console(true)), json!({ "parameters": {} }));
}

#[test]
fn a_watcher_who_stalls_misses_some_and_holds_nobody_up() {
    let mut world = World::new();
    let console = json!({ "method": "io.wirevm.Machine.Console", "upgrade": true });
    let [mut stalls, mut reads] = [(); 2].map(|()| world.connect());
    world.call(&mut stalls, console.clone());
    world.call(&mut reads, console);
    let mut seen = 0;
    for _ in 0..400 {
        world.act(|server, ops, _| server.console(&[b'x'; 4096], ops));
        let mut chunk = [0; 8192];
        seen += reads.read(&mut chunk).unwrap();
    }
    assert!(seen > 300 * 4096, "{seen}");
    stalls.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    for _ in 0..400 {
        let _ = stalls.read_to_end(&mut all);
        world.turn();
    }
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains("bytes are not shown"), "{} bytes", text.len());
    assert_eq!(world.clients(), 2);
}
