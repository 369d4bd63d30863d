//! Commands on a terminal.

use std::time::Duration;

use harness::Vm;
use harness::agent::Agent;
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(20);

/// The settings of a new terminal: that of a command may be raw already when a test looks.
fn fresh_settings() -> String {
    let (_vm, terminal) = Vm::start_on_stalled_terminal(std::process::Command::new("sleep").arg("600"));
    terminal.settings()
}

#[test]
fn a_command_has_a_terminal_with_the_size_of_this_one() {
    let agent = Agent::new();
    let script = "test -t 0 && test -t 1 && test -t 2 && tty && stty size && echo $TERM; trap 'stty size; exit 5' WINCH; \
        echo ready.; while :; do sleep 0.1; done";
    let mut exec = agent.exec(&["-t"], &["sh", "-c", script]);
    let (mut vm, terminal) = Vm::start_on_terminal(exec.env("TERM", "xterm-wirevm"));
    let before = fresh_settings();
    let said = vm.expect("ready.", SOON);
    assert!(said.contains("/dev/pts/") && said.contains("xterm-wirevm\r\n"), "{said}");
    assert_ne!(terminal.settings(), before, "the terminal is raw meanwhile");
    terminal.resize(33, 111);
    vm.expect("33 111\r\n", SOON);
    vm.ends_with(5, SOON);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn keys_go_to_the_command_as_they_are() {
    let agent = Agent::new();
    let (mut vm, terminal) =
        Vm::start_on_terminal(&agent.exec(&["-t"], &["sh", "-c", "echo ready.; exec sleep 600"]));
    let before = fresh_settings();
    vm.expect("ready.", SOON);
    // The terminal in the guest makes a signal of it.
    vm.type_in("\x03");
    vm.ends_with(130, SOON);
    assert_eq!(terminal.settings(), before);
    // It controls the command's session, and its end is a key, too.
    let (mut vm, _terminal) =
        Vm::start_on_terminal(&agent.exec(&["-t"], &["sh", "-c", "echo ready.; cat < /dev/tty; echo over"]));
    vm.expect("ready.\r\n", SOON);
    vm.type_in("line\n");
    vm.expect("line\r\nline\r\n", SOON);
    vm.type_in("\x04");
    vm.expect("over\r\n", SOON);
    vm.ends_with(0, SOON);
}

#[test]
fn the_terminal_is_given_back_however_it_ends() {
    let agent = Agent::new();
    let start = || {
        let script = "echo $PPID.; exec sleep 600";
        let (mut vm, terminal) = Vm::start_on_terminal(&agent.exec(&["-t"], &["sh", "-c", script]));
        let usual = fresh_settings();
        let said = vm.expect(".", SOON);
        let session = said.trim_end_matches('.').trim().parse().unwrap();
        (vm, terminal, usual, rustix::process::Pid::from_raw(session).unwrap())
    };
    for signal in [Signal::TERM, Signal::HUP, Signal::QUIT] {
        let (mut vm, terminal, usual, _) = start();
        vm.signal(signal);
        vm.ends_with(128 + signal.as_raw(), SOON);
        assert_eq!(terminal.settings(), usual, "{signal:?}");
    }
    let (mut vm, terminal, usual, session) = start();
    rustix::process::kill_process(session, Signal::KILL).unwrap();
    vm.expect("error: the agent in the guest is gone", SOON);
    vm.ends_with(125, SOON);
    assert_eq!(terminal.settings(), usual);
    let (mut vm, terminal) = Vm::start_on_terminal(&agent.exec(&["-t"], &["no-such-command"]));
    let usual = fresh_settings();
    vm.ends_with(127, SOON);
    assert_eq!(terminal.settings(), usual);
}

#[test]
fn in_the_background_the_terminal_is_another_s() {
    let agent = Agent::new();
    // Job control: the one in the background has a process group of its own.
    let script = "set -m; \"$@\" & wait $!; echo ended $?.; read line; echo $line.";
    let command = agent.exec(&[], &["sh", "-c", "echo ready.; sleep 1; exit 7"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    let (mut vm, _terminal) = Vm::start_on_terminal(&shell);
    vm.expect("ready.", SOON);
    vm.type_in("mine\n");
    vm.expect("ended 7.", SOON);
    vm.expect("mine.", SOON);
    vm.ends_with(0, SOON);
}

#[test]
fn one_that_comes_to_the_foreground_takes_the_terminal() {
    let agent = Agent::new();
    // It stops where it would ask for the terminal's settings in the background, or is stopped; fg has it go on.
    let script = "set -m; \"$@\" & sleep 1; kill -STOP $!; sleep 0.2; fg";
    let command = agent.exec(&["-t"], &["sh", "-c", "echo ready.; read line; echo got $line.; exit 7"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    let (mut vm, terminal) = Vm::start_on_terminal(&shell);
    let before = fresh_settings();
    vm.expect("ready.", SOON);
    let until = std::time::Instant::now() + SOON;
    while terminal.settings() == before {
        assert!(std::time::Instant::now() < until, "the terminal is not raw");
        std::thread::sleep(Duration::from_millis(20));
    }
    vm.type_in("line\r");
    vm.expect("got line.", SOON);
    vm.ends_with(7, SOON);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn without_a_terminal_here_there_is_one_there_and_its_input_ends() {
    let agent = Agent::new();
    for (input, shown) in [("line\n", "line\r\nline\r\n"), ("begun", "begunbegun")] {
        let output = agent.output(&["-t"], &["cat"], input.as_bytes());
        assert_eq!(output.status.code(), Some(0));
        // The terminal shows what is typed, the key that ends it too.
        let said = String::from_utf8_lossy(&output.stdout).replace("^D\x08\x08", "");
        assert_eq!(said, shown);
    }
}
