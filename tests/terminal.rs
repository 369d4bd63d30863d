//! The terminal: raw while the guest runs, its escape keys, and given back whatever ends the run.

use std::process::Command;
use std::time::Duration;

use harness::{TempDir, Vm, guest, handmade, puts, wirevm};
use rustix::process::{Pid, Signal};

const SOON: Duration = Duration::from_secs(30);

guest!(echo:
    puts!("ready\\r\\n"),
    "2: mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 2b",
    "mov edx, 0x3f8", "in al, dx", "out dx, al", "cmp al, 'q'", "jne 2b",
);

fn run(dir: &TempDir, code: &[u8]) -> Command {
    let mut command = wirevm();
    command.arg("run").arg("--kernel").arg(handmade::kernel(dir, code));
    command
}

#[test]
fn keys_go_to_the_guest_as_they_are_and_the_guest_s_end_gives_the_terminal_back() {
    let dir = TempDir::new();
    let (mut vm, terminal) = Vm::start_on_terminal(&run(&dir, echo()));
    let before = terminal.settings();
    vm.expect("ready\r\n", SOON);
    assert_ne!(terminal.settings(), before, "the terminal is raw while the guest runs");
    // Ctrl-C, Ctrl-Z, Ctrl-D, Ctrl-S, Ctrl-\ and a carriage return: none is the terminal's own now.
    vm.type_in("a\x03\x1a\x04\x13\x1c\rb");
    vm.expect("a\x03\x1a\x04\x13\x1c\rb", SOON);
    vm.type_in("q");
    vm.ends_with(0, SOON);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn ctrl_a_is_the_escape_key() {
    let dir = TempDir::new();
    let (mut vm, terminal) = Vm::start_on_terminal(&run(&dir, echo()));
    let before = terminal.settings();
    vm.expect("ready\r\n", SOON);
    vm.type_in("\x01h");
    let help = vm.expect("this help\r\n", SOON);
    assert!(help.contains("Ctrl-A x  quit"), "{help}");
    assert!(!help.replace("\r\n", "").contains('\n'), "each line begins at the left: {help:?}");
    vm.type_in("\x01a");
    vm.expect("\x01", SOON);
    vm.type_in("\x01x");
    vm.ends_with(0, SOON);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_terminal_that_stalls_does_not_keep_the_run_from_ending() {
    guest!(spam: "2: lea rsi, [rip + 3f]", "mov ecx, 1024", "mov edx, 0x3f8", "rep outsb", "jmp 2b", "3: .fill 1024, 1, 0x78");
    let dir = TempDir::new();
    for signal in [None, Some(Signal::TERM), Some(Signal::INT)] {
        let (mut vm, terminal) = Vm::start_on_stalled_terminal(run(&dir, spam()).arg("-v"));
        let before = terminal.settings();
        vm.fills_its_output();
        match signal {
            None => vm.type_in("\x01x"),
            Some(signal) => vm.signal(signal),
        }
        vm.ends_with(0, SOON);
        assert_eq!(terminal.settings(), before, "{signal:?}");
    }
}

#[test]
fn the_escape_key_is_heard_though_the_guest_reads_no_key() {
    guest!(deaf: puts!("ready\\r\\n"), "2: hlt", "jmp 2b");
    let dir = TempDir::new();
    let (mut vm, _terminal) = Vm::start_on_terminal(&run(&dir, deaf()));
    vm.expect("ready\r\n", SOON);
    // More than the serial port holds.
    vm.type_in(&"z".repeat(200));
    vm.type_in("\x01x");
    vm.ends_with(0, SOON);
}

#[test]
fn the_terminal_is_given_back_after_a_signal_and_after_a_crash() {
    guest!(crash: puts!("ready\\r\\n"), "2: mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 2b", "ud2");
    let dir = TempDir::new();
    for signal in [Signal::TERM, Signal::HUP] {
        let (mut vm, terminal) = Vm::start_on_terminal(&run(&dir, echo()));
        let before = terminal.settings();
        vm.expect("ready\r\n", SOON);
        vm.signal(signal);
        vm.ends_with(0, SOON);
        assert_eq!(terminal.settings(), before, "{signal:?}");
    }
    let (mut vm, terminal) = Vm::start_on_terminal(&run(&dir, crash()));
    let before = terminal.settings();
    vm.expect("ready\r\n", SOON);
    vm.type_in("!");
    vm.ends_with(3, SOON);
    assert_eq!(terminal.settings(), before);
    assert!(vm.console().contains("error: the guest crashed"), "{}", vm.state());
}

#[test]
fn in_the_background_it_leaves_the_terminal_alone() {
    let dir = TempDir::new();
    // A shell with job control runs it as a background job, which a terminal would stop for touching its settings.
    let kernel = handmade::kernel(&dir, echo());
    let script = "set -m; \"$0\" run --kernel \"$1\" & read line; kill $!; wait $!; echo over: $?, $line";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(harness::wirevm_path()).arg(kernel);
    let (mut vm, terminal) = Vm::start_on_terminal(&command);
    let before = terminal.settings();
    vm.expect("ready", SOON);
    assert_eq!(terminal.settings(), before);
    vm.type_in("for the shell\n");
    vm.expect("over: 0, for the shell", SOON);
}

#[test]
fn put_into_the_background_it_goes_on_and_ends_without_the_terminal() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, echo());
    // A shell goes on when its job is stopped, and has the terminal again.
    let job = "echo pid $$.; exec \"$0\" run --kernel \"$1\"";
    let behind = "bg; sleep 1; echo behind.; read line; sleep 1; kill %1; wait %1; echo over: $?, $line.";
    let script = format!("set -m; sh -c '{job}' \"$0\" \"$1\"; {behind}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(harness::wirevm_path()).arg(kernel);
    let (mut vm, _terminal) = Vm::start_on_terminal(&command);
    vm.expect("pid ", SOON);
    let pid = vm.expect(".", SOON).trim_end_matches('.').parse().expect("a number");
    vm.expect("ready", SOON);
    rustix::process::kill_process(Pid::from_raw(pid).expect("a process"), Signal::STOP).unwrap();
    vm.expect("behind.", SOON);
    // Who reads a terminal from the background is stopped, and deaf to the signal.
    vm.type_in("for the shell\n");
    vm.expect("over: 0, for the shell.", SOON);
}

#[test]
fn in_the_foreground_again_it_has_the_terminal_again() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, echo());
    // Stopped from outside, for the guest gets all keys; and started in the background.
    let job = "echo pid $$.; exec \"$0\" run --kernel \"$1\"";
    let stopped = format!("sh -c '{job}' \"$0\" \"$1\"; stty sane; echo stopped.; fg");
    let behind = "\"$0\" run --kernel \"$1\" & read line; kill -STOP $!; fg".to_owned();
    for (script, stop) in [(stopped, true), (behind, false)] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("set -m; {script}; echo over: $?.")]);
        command.arg(harness::wirevm_path()).arg(&kernel);
        let (mut vm, _terminal) = Vm::start_on_terminal(&command);
        if stop {
            vm.expect("pid ", SOON);
            let pid = vm.expect(".", SOON).trim_end_matches('.').parse().expect("a number");
            vm.expect("ready", SOON);
            rustix::process::kill_process(Pid::from_raw(pid).expect("a process"), Signal::STOP).unwrap();
            vm.expect("stopped.", SOON);
        } else {
            vm.expect("ready", SOON);
            vm.type_in("for the shell\n");
        }
        vm.expect("run --kernel", SOON);
        // The shell says what goes on, and then it does.
        std::thread::sleep(Duration::from_millis(500));
        vm.type_in("\x03a");
        vm.expect("\x03a", SOON);
        vm.type_in("q");
        vm.expect("over: 0.", SOON);
    }
}
