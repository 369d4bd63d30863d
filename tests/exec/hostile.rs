//! What makes no sense on a connection, either way.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use harness::TempDir;
use harness::agent::{Agent, exec_at, output};
use rustix::process::{Pid, Signal, kill_process};
use wirevm_agent::frame::{Decoder, FromAgent, Message, PAYLOAD_MAX, STDIN_WINDOW, ToAgent};
use wirevm_agent::request::{Command, Request};

use super::{noise, text};

fn request(argv: &[&str]) -> Vec<u8> {
    let argv = argv.iter().map(Into::into).collect();
    let document = Request::Exec(Command { argv, ..Command::default() }).to_bytes().unwrap();
    encoded(&[ToAgent::Request(document)])
}

fn encoded(messages: &[impl Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut bytes));
    bytes
}

/// All that the agent answers.
fn answered(mut stream: UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => {}
        read => drop(read.expect("the agent closes the connection")),
    }
    answer
}

#[test]
fn the_agent_outlives_clients_that_make_no_sense() {
    let agent = Agent::new();
    let cat = request(&["cat"]);
    let long = [
        ToAgent::Stdin(vec![0; PAYLOAD_MAX]),
        ToAgent::Stdin(vec![0; PAYLOAD_MAX]),
        ToAgent::Stdin(vec![0; PAYLOAD_MAX]),
    ];
    let mut cases = vec![
        // A length that nobody has, claimed; and a frame in the place of another.
        [&[2][..], &u32::MAX.to_le_bytes()].concat(),
        encoded(&[ToAgent::Signal(9)]),
        encoded(&[ToAgent::Request(b"wirevm request 99\0".to_vec())]),
        encoded(&[ToAgent::Request(Vec::new())]),
        // More input than there is credit for, by a command that reads none.
        [request(&["sleep", "600"]), encoded(&long)].concat(),
        [cat.clone(), vec![5, 2, 0, 0, 0, 9, 9]].concat(),
        // Signals that are none, sizes of a terminal that there is none of, and a second request: all without effect.
        [
            cat.clone(),
            encoded(&[ToAgent::Signal(0), ToAgent::Signal(255)]),
            cat.clone(),
            encoded(&[ToAgent::StdinEnd, ToAgent::StdinEnd]),
        ]
        .concat(),
    ];
    for seed in 1..60 {
        cases.push(noise(seed as usize * 7, seed));
        cases.push([cat.clone(), noise(seed as usize * 7, seed)].concat());
        let mut cut = cat.clone();
        let at = seed as usize * 31 % cut.len();
        cut[at] ^= seed as u8;
        cases.push(cut);
    }
    for bytes in cases {
        let mut stream = agent.connect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        answered(stream);
    }
    // A request without end is not collected.
    let mut stream = agent.connect();
    let part = encoded(&[ToAgent::Part(vec![b'x'; PAYLOAD_MAX])]);
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = (0..1000).try_for_each(|_| stream.write_all(&part));
    let _ = stream.shutdown(Shutdown::Write);
    assert!(String::from_utf8_lossy(&answered(stream)).contains("the request is longer than"));
    // And one of another version hears it.
    let mut stream = agent.connect();
    stream.write_all(&encoded(&[ToAgent::Request(b"wirevm request 99\0".to_vec())])).unwrap();
    assert!(String::from_utf8_lossy(&answered(stream)).contains("another version"));

    assert_eq!(agent.output(&[], &["echo", "still here"], b"").stdout, b"still here\n");
    let memory = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let resident = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u32 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 16 << 10, "{resident}");
}

/// What `wirevm exec` comes to on an agent that answers this.
fn client_of(answer: impl FnOnce(UnixStream) + Send + 'static) -> Output {
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.path("agent")).unwrap();
    let liar = std::thread::spawn(move || answer(listener.accept().unwrap().0));
    let output = output(&mut exec_at(&dir.path("agent"), &[], &["true"]), b"");
    liar.join().unwrap();
    output
}

fn client_of_bytes(bytes: Vec<u8>) -> Output {
    client_of(move |mut stream| {
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

#[test]
fn an_agent_that_lies_costs_its_client_nothing_but_the_command() {
    let gone = "error: the agent in the guest is gone before the command's end";
    let nonsense = "error: the agent in the guest answers what makes no sense";
    for (bytes, words) in [
        (Vec::new(), gone),
        (vec![65, 0, 0], gone),
        ([&[65][..], &(PAYLOAD_MAX as u32).to_le_bytes()].concat(), gone),
        ([&[65][..], &u32::MAX.to_le_bytes()].concat(), nonsense),
        (vec![68, 0, 0, 0, 0], nonsense),
        (encoded(&[FromAgent::Answer(vec![])]), nonsense),
        // Kinds that it does not know, and credit without end.
        (
            [
                &[200, 1, 0, 0, 0, 9][..],
                &encoded(&[FromAgent::Credit(u32::MAX), FromAgent::Credit(u32::MAX)]),
            ]
            .concat(),
            gone,
        ),
    ] {
        let (status, out, err) = text(&client_of_bytes(bytes.clone()));
        assert_eq!((status, &*out), (Some(125), ""), "{bytes:?}: {err}");
        assert!(err.contains(words), "{bytes:?}: {err}");
    }
    for seed in 1..40 {
        let status = client_of_bytes(noise(seed as usize * 11, seed)).status;
        assert!(status.code().is_some(), "{status}");
    }
    // Its words command no terminal, and its statuses are those of who cannot start a command.
    let failed = FromAgent::Failed { status: 0, text: "a\x1b[2J\nerror: b".repeat(1000) };
    let (status, _, err) = text(&client_of_bytes(encoded(&[failed])));
    assert_eq!(status, Some(125));
    assert!(err.starts_with("error: a\\x1b[2J") && !err.contains('\x1b') && err.len() < 20_000, "{err}");
    // A signal that is none is no success.
    assert_eq!(client_of_bytes(encoded(&[FromAgent::Killed(128)])).status.code(), Some(128));
}

/// Reads what a client says until that is a signal.
fn signal_of(stream: &mut UnixStream) -> u8 {
    let mut decoder = Decoder::default();
    loop {
        let mut chunk = [0; 4096];
        let len = stream.read(&mut chunk).unwrap();
        assert_ne!(len, 0, "the client is gone");
        decoder.push(&chunk[..len]);
        while let Some(frame) = decoder.next::<ToAgent>().unwrap() {
            if let ToAgent::Signal(signal) = frame {
                return signal;
            }
        }
    }
}

/// Its exit status, once it ends, which it does soon.
#[track_caller]
fn status(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait().unwrap().code()
}

#[test]
fn who_gets_no_answer_ends_it_by_a_second_signal_and_before_any_by_the_first() {
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.path("agent")).unwrap();
    let start = || {
        let child = exec_at(&dir.path("agent"), &[], &["true"]).stdin(Stdio::null()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0, "its request");
        (Pid::from_child(&child), child, stream)
    };
    let (pid, mut child, _stream) = start();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(status(&mut child), Some(128 + 15));

    let (pid, mut child, mut stream) = start();
    for _ in 0..2 {
        // Each that is answered is the command's.
        stream.write_all(&encoded(&[FromAgent::Stdout(b".\n".to_vec())])).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        kill_process(pid, Signal::INT).unwrap();
        assert_eq!(signal_of(&mut stream), 2);
    }
    assert_eq!(child.try_wait().unwrap(), None);
    kill_process(pid, Signal::HUP).unwrap();
    assert_eq!(status(&mut child), Some(128 + 1));
}

#[test]
fn input_after_the_command_s_end_cuts_nothing_off() {
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.path("agent")).unwrap();
    let mut command = exec_at(&dir.path("agent"), &[], &["true"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&encoded(&[FromAgent::Credit(STDIN_WINDOW)])).unwrap();
    // More than a pipe takes.
    let frame = encoded(&[FromAgent::Stdout(vec![b'x'; 30_000])]);
    (0..4).for_each(|_| stream.write_all(&frame).unwrap());
    stream.write_all(&encoded(&[FromAgent::Exited(3)])).unwrap();
    drop(stream);
    // Its reader is slow, and it has written what that takes.
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..20 {
        let _ = child.stdin.as_mut().unwrap().write_all(b"more\n");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(3), 120_000));
}

#[test]
fn a_flood_is_not_collected() {
    // Frames without end that say nothing, then the end.
    let output = client_of(|mut stream| {
        let nothing = [encoded(&[FromAgent::Credit(1)]), vec![200, 0, 0, 1, 0], vec![7; 1 << 16]].concat();
        for _ in 0..2000 {
            stream.write_all(&nothing).unwrap();
        }
        stream.write_all(&encoded(&[FromAgent::Exited(3)])).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(output.status.code(), Some(3));
}
