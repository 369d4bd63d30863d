//! How a command ends before its time: by signals, and with who started it.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::agent::Agent;
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(20);

/// Starts `wirevm exec`, and waits for the command's first line.
fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = Vec::new();
    let out = child.stdout.as_mut().unwrap();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        out.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    (child, String::from_utf8_lossy(&line).trim().to_owned())
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until the process is no more, or a zombie that its parent has not yet taken.
#[track_caller]
fn is_gone(pid: &str) {
    let until = Instant::now() + SOON;
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    };
    while lives() {
        assert!(Instant::now() < until, "the process {pid} goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn signals_are_the_command_s() {
    let agent = Agent::new();
    for (name, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::HUP, 1), (Signal::QUIT, 3)] {
        // One that has its own answer, of which nobody else in its group knows; and one that has none.
        let script =
            format!("trap 'echo got {number}; exit 9' {number}; echo ready; while :; do sleep 0.1; done");
        let (child, _) = start(&mut agent.exec(&[], &["sh", "-c", &script]));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(9));
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("got {number}\n"));

        let (mut child, _) =
            start(&mut agent.exec(&[], &["sh", "-c", "ulimit -c 0; echo ready; exec sleep 600"]));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(128 + number));
    }
}

#[test]
fn a_signal_passes_standard_input_that_the_command_does_not_read() {
    let agent = Agent::new();
    let (mut child, _) = start(&mut agent.exec(&[], &["sh", "-c", "echo ready; exec sleep 600"]));
    let mut stdin = child.stdin.take().unwrap();
    // More than all buffers on the way take, so that it stalls.
    let writer = std::thread::spawn(move || stdin.write_all(&vec![0; 4 << 20]));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!writer.is_finished(), "somebody took it all");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn a_signal_passes_output_that_nobody_reads() {
    let agent = Agent::new();
    let script = "trap 'exit 9' TERM; echo $$; yes & wait";
    let (mut child, pid) = start(&mut agent.exec(&[], &["sh", "-c", script]));
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, Signal::TERM);
    is_gone(&pid);
    // What was written is still to be read.
    let mut rest = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert!(rest.len() > 100_000, "{}", rest.len());
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_signal_passes_a_terminal_that_nobody_reads() {
    let agent = Agent::new();
    let pid = agent.dir.path("pid");
    let script = "echo $$ >\"$0\"; exec yes";
    let (vm, _terminal) = harness::Vm::start_on_stalled_terminal(
        &agent.exec(&[], &["sh", "-c", script, pid.to_str().unwrap()]),
    );
    let until = Instant::now() + SOON;
    let began = loop {
        match std::fs::read_to_string(&pid) {
            Ok(pid) if pid.ends_with('\n') => break pid,
            _ => assert!(Instant::now() < until, "the command does not begin"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    std::thread::sleep(Duration::from_millis(300));
    vm.signal(Signal::TERM);
    is_gone(began.trim());
}

#[test]
fn output_that_cannot_be_written_is_told() {
    let agent = Agent::new();
    for (script, words) in
        [("echo out", "cannot write standard output"), ("echo err >&2", "cannot write standard error")]
    {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut exec = agent.exec(&[], &["sh", "-c", script]);
        let exec = exec.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match words.ends_with("output") {
            true => exec.stdout(full()),
            false => exec.stderr(full()),
        };
        let output = exec.output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{script}");
        if words.ends_with("output") {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(words) && said.contains("No space left"), "{said}");
        }
    }
}

#[test]
fn a_reader_who_stalls_stalls_nobody_else() {
    let agent = Agent::new();
    let (stalled, _) = start(&mut agent.exec(&[], &["sh", "-c", "echo ready; yes"]));
    assert_eq!(agent.output(&[], &["echo", "me"], b"").stdout, b"me\n");
    signal(&stalled, Signal::KILL);
    drop(stalled.wait_with_output());
}

#[test]
fn with_a_reader_that_leaves_the_command_ends() {
    let agent = Agent::new();
    let (mut child, pid) = start(&mut agent.exec(&[], &["sh", "-c", "echo $$; exec yes"]));
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
    is_gone(&pid);
}

#[test]
fn with_who_started_it_the_command_s_whole_group_ends() {
    let agent = Agent::new();
    // One that a SIGHUP ends; one that it does not; one that is stopped; and each has a child.
    for script in [
        "sleep 600 & echo $$ $!; wait",
        "trap '' HUP TERM; sleep 600 & echo $$ $!; wait",
        "sleep 600 & echo $$ $!; kill -STOP $$; wait",
    ] {
        let (mut child, pids) = start(&mut agent.exec(&[], &["sh", "-c", script]));
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        pids.split(' ').for_each(is_gone);
    }
    // It hears of it before. Nobody reads its standard error any more, where a shell may name the signal that ended its child.
    let said = agent.dir.path("said");
    let script =
        "exec 2>/dev/null; trap 'echo hung up > \"$0\"; exit' HUP; echo $$; while :; do sleep 0.1; done";
    let (mut child, pid) = start(&mut agent.exec(&[], &["sh", "-c", script, said.to_str().unwrap()]));
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    is_gone(&pid);
    assert_eq!(std::fs::read_to_string(said).unwrap(), "hung up\n");
}

#[test]
fn a_command_that_the_guest_s_end_does_not_end_is_killed_and_its_end_told() {
    let agent = Agent::new();
    let script = "trap '' TERM; echo $$ $PPID; while :; do sleep 0.1; done";
    let (mut child, pids) = start(&mut agent.exec(&[], &["sh", "-c", script]));
    let (command, session) = pids.split_once(' ').unwrap();
    // As whoever ends a service, or all processes, does it.
    for pid in [session, command] {
        kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::TERM).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(128 + 9), "it is told to who waits");
    is_gone(command);
}

#[test]
fn a_command_ends_with_the_agent_s_process_that_started_it() {
    let agent = Agent::new();
    let script = "echo $$ $PPID; exec sleep 600";
    let (mut child, pids) = start(&mut agent.exec(&[], &["sh", "-c", script]));
    let (command, session) = pids.split_once(' ').unwrap();
    let session = Pid::from_raw(session.parse().unwrap()).unwrap();
    assert_ne!(
        session.as_raw_nonzero().get() as u32,
        agent.pid(),
        "each connection has a process of its own"
    );
    kill_process(session, Signal::KILL).unwrap();
    is_gone(command);
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert_eq!(agent.output(&[], &["echo", "still"], b"").stdout, b"still\n");
}
