//! `wirevm exec` and the guest's agent, without a guest: the agent serves on the host, and `wirevm exec` is the real one.

mod ends;
mod hostile;
mod init;
mod network;
mod stock;
mod terminal;

use std::hash::{DefaultHasher, Hasher};
use std::process::{Output, Stdio};

use harness::agent::Agent;

/// The exit status and the output, as text.
fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Bytes that are no pattern.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[test]
fn the_exit_status_is_the_command_s() {
    let agent = Agent::new();
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
    {
        assert_eq!(agent.output(&[], &["sh", "-c", script], b"").status.code(), Some(status), "{script}");
    }
}

#[test]
fn a_command_that_does_not_start_has_the_status_that_shells_give_it() {
    let agent = Agent::new();
    let script = agent.dir.file("script", "#!/no/such/interpreter\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (options, command, status, words) in [
        (&[][..], "no-such-command", 127, "error: there is no command no-such-command\n"),
        (&[], "/no/such/command", 127, "error: there is no command /no/such/command\n"),
        (&[], "/etc/passwd", 126, "error: cannot execute /etc/passwd: Permission denied"),
        (&[], "/etc", 126, "error: cannot execute /etc: "),
        (&[], script.to_str().unwrap(), 126, "the interpreter or the loader that it names is not there"),
        (&["--workdir", "/no/such"], "true", 125, "error: cannot change to the directory /no/such: "),
        (&["--user", "no-such-user"], "true", 125, "error: the guest has no user no-such-user\n"),
        (&["--user", "0:no-such-group"], "true", 125, "error: the guest has no group no-such-group\n"),
    ] {
        let (got, out, err) = text(&agent.output(options, &[command], b""));
        assert_eq!((got, &*out), (Some(status), ""), "{command} {options:?}: {err}");
        assert!(err.contains(words), "{err}");
    }
}

#[test]
fn where_there_is_no_agent_the_status_is_125_and_a_remedy_is_named() {
    let nobody = harness::TempDir::new();
    let (status, _, err) = text(&harness::agent::output(
        &mut harness::agent::exec_at(&nobody.path("none"), &[], &["true"]),
        b"",
    ));
    assert_eq!(status, Some(125));
    assert!(err.contains("cannot connect to") && err.contains("try:   what serves there is"), "{err}");
    let mut exec = harness::wirevm();
    exec.args(["exec", "no-such-machine", "--", "true"]).env("WIREVM_RUNTIME_DIR", nobody.path(""));
    let (status, _, err) = text(&harness::agent::output(&mut exec, b""));
    assert_eq!(status, Some(125));
    assert!(err.contains("no machine named no-such-machine runs"), "{err}");
}

#[test]
fn standard_output_and_error_are_apart() {
    let agent = Agent::new();
    let script = "echo out; echo err >&2; printf more; printf 'no end' >&2";
    let (status, out, err) = text(&agent.output(&[], &["sh", "-c", script], b""));
    assert_eq!((status, &*out, &*err), (Some(0), "out\nmore", "err\nno end"));
}

#[test]
fn a_command_has_its_directory_its_user_and_its_variables() {
    let agent = Agent::new();
    let mut exec = agent.exec(
        &["-w", "/usr", "-e", "A=1 2", "-e", "B", "-e", "A=3"],
        &["sh", "-c", "pwd; echo $A $B $HIDDEN; cat /proc/self/oom_score_adj"],
    );
    let (status, out, err) = text(&harness::agent::output(exec.env("B", "of here").env("HIDDEN", "x"), b""));
    assert_eq!((status, &*out, &*err), (Some(0), "/usr\n3 of here\n0\n", ""));
    if !rustix::process::geteuid().is_root() {
        harness::skip!("only root can run commands as others");
    }
    // Also its streams are its own, which it can open again.
    let script = "id -u; id -g; id -G; cat /dev/stdin > /dev/stdout; echo $HOME";
    let (status, out, err) = text(&agent.output(&["-u", "65534:7"], &["sh", "-c", script], b"in\n"));
    assert_eq!((status, &*out), (Some(0), "65534\n7\n7\nin\n/nonexistent\n"), "{err}");
}

#[test]
fn standard_input_arrives_to_its_last_byte_and_megabytes_come_back() {
    let agent = Agent::new();
    for len in [0, 1, 65_536, 8 << 20] {
        let bytes = noise(len, 42);
        let output = agent.output(&[], &["cat"], &bytes);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), len));
        assert_eq!(hash(&output.stdout), hash(&bytes));
    }
    // Both outputs at once, each more than any buffer on the way.
    let output = agent.output(&[], &["sh", "-c", "tee /dev/stderr"], &noise(4 << 20, 7));
    assert_eq!(
        (hash(&output.stdout), hash(&output.stderr)),
        (hash(&noise(4 << 20, 7)), hash(&noise(4 << 20, 7)))
    );
}

#[test]
fn what_a_command_wrote_before_its_end_arrives_though_others_hold_its_output() {
    let agent = Agent::new();
    // The one in the background would keep it open for long.
    let script = "sleep 600 & head -c 60000 /dev/zero; echo $! >&2; exit 4";
    let output = agent.output(&[], &["sh", "-c", script], b"");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(4), 60_000));
    let left: i32 = String::from_utf8_lossy(&output.stderr).trim().parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL)
        .expect("what it left in the background goes on");
}

#[test]
fn a_hundred_commands_run_at_once() {
    let agent = Agent::new();
    // None ends before all have begun: each adds a line, and waits for the hundredth.
    let log = agent.dir.path("log");
    let script =
        "echo $1 >> \"$0\"; while [ $(wc -l < \"$0\") -lt 100 ]; do sleep 0.2; done; echo $1; exit $1";
    let start = |number: usize| {
        let number = number.to_string();
        let mut exec = agent.exec(&[], &["sh", "-c", script, log.to_str().unwrap(), &number]);
        exec.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = (0..100).map(start).collect();
    for (number, child) in running.into_iter().enumerate() {
        let (status, out, _) = text(&child.wait_with_output().unwrap());
        assert_eq!((status, out.trim().parse()), (Some(number as i32), Ok(number)));
    }
}
