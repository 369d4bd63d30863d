//! The user's terminal: raw while the guest has it, and given back whatever happens.

use std::io;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

use crate::report;

/// The terminal on standard input in raw mode; dropping it restores all settings.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Takes the terminal over: each key goes to the guest as it is pressed, Ctrl-C and Ctrl-Z too. None where standard
    /// input is no terminal, or one that another process has in the foreground (taking it would stop us, `SIGTTOU`).
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) || !in_foreground() {
            return Ok(None);
        }
        let raw = Self { before: tcgetattr(&stdin)? };
        make_raw()?;
        report::set_raw(Some(raw.before.clone()));
        Ok(Some(raw))
    }

    /// Makes it raw again after a stop, in which a shell took it back. False in the background, where it is left alone.
    pub(crate) fn resume(&self) -> io::Result<bool> {
        let ours = in_foreground();
        if ours {
            make_raw()?;
        }
        Ok(ours)
    }
}

fn make_raw() -> io::Result<()> {
    let stdin = io::stdin();
    let mut raw = tcgetattr(&stdin)?;
    raw.make_raw();
    Ok(tcsetattr(&stdin, OptionalActions::Flush, &raw)?)
}

impl Drop for Raw {
    fn drop(&mut self) {
        report::set_raw(None);
        give_back(&self.before);
    }
}

/// Gives the terminal back as it was, unless a shell has taken it back already (SIGSTOP, then `bg`).
pub(crate) fn give_back(before: &Termios) {
    if in_foreground() {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
    }
}

/// True where the terminal on standard input is ours: its settings are another process's otherwise, and setting them stops us.
pub(crate) fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).ok() == Some(rustix::process::getpgrp())
}

/// What a key means, once the escape Ctrl-A is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// For the guest.
    Guest(u8),
    /// Ctrl-A x.
    Quit,
    /// Ctrl-A p.
    PowerButton,
    /// Ctrl-A d: leave the console; the terminal of the run itself cannot be left.
    Detach,
    /// Ctrl-A h, and any other letter.
    Help,
}

/// What Ctrl-A does.
pub(crate) const HELP: &str = "\
Ctrl-A x  quit: end the virtual machine at once
Ctrl-A p  press the guest's power button
Ctrl-A a  send Ctrl-A to the guest
Ctrl-A h  this help";

/// What it does for who is attached to the console of a machine.
pub(crate) const HELP_ATTACHED: &str = "\
Ctrl-A d  leave the console; the machine goes on
Ctrl-A a  send Ctrl-A to the guest
Ctrl-A h  this help";

/// Finds Ctrl-A and the key after it, also across reads.
#[derive(Default)]
pub(crate) struct Escape {
    pending: bool,
}

impl Escape {
    const CTRL_A: u8 = 0x01;

    /// What `byte` means after those before; None for the Ctrl-A itself.
    pub(crate) fn key(&mut self, byte: u8) -> Option<Key> {
        if !std::mem::take(&mut self.pending) {
            self.pending = byte == Self::CTRL_A;
            return (!self.pending).then_some(Key::Guest(byte));
        }
        Some(match byte {
            b'x' | b'X' => Key::Quit,
            b'p' | b'P' => Key::PowerButton,
            b'd' | b'D' => Key::Detach,
            b'a' | b'A' | Self::CTRL_A => Key::Guest(Self::CTRL_A),
            _ => Key::Help,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::process::{Command, Stdio};

    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    /// Tells a process that it is the child of [`a_panic_gives_the_terminal_back_and_is_told_readably`].
    const CHILD: &str = "WIREVM_TEST_PANICS";

    /// That child, on a terminal of its own; nothing in any other process.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        crate::panics::handle();
        let _raw = Raw::enter().unwrap().expect("it is in the foreground");
        rustix::io::write(io::stdout(), b"raw\n").unwrap();
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back_and_is_told_readably() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let terminal = openpt(flags).unwrap();
        unlockpt(&terminal).unwrap();
        let end = ioctl_tiocgptpeer(&terminal, flags).unwrap();
        let settings = || format!("{:?}", tcgetattr(&terminal).unwrap());
        let before = settings();
        let stdio = || Stdio::from(end.try_clone().unwrap());
        let mut child = Command::new("setsid")
            .arg("--ctty")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "keeper::terminal::tests::child", "--nocapture"])
            .env(CHILD, "")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let mut read = File::from(terminal.try_clone().unwrap());
        let reader = std::thread::spawn(move || {
            let mut said = Vec::new();
            // Once nobody holds the other end, reading ends with an error.
            let _ = read.read_to_end(&mut said);
            said
        });
        let status = child.wait().unwrap();
        let after = settings();
        drop(end);
        let said = reader.join().unwrap();
        let said = String::from_utf8_lossy(&said);
        assert!(!status.success(), "it did not panic: {said}");
        assert_eq!(after, before, "{said}");
        // On a raw terminal a line ends with a carriage return, too.
        let (_, after) = said.split_once("raw\n").expect("it was raw");
        assert!(after.contains("on purpose\r\n") && !after.replace("\r\n", "").contains('\n'), "{said:?}");
    }

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes.iter().filter_map(|&b| escape.key(b)).collect()
    }

    #[test]
    fn ctrl_a_is_the_escape() {
        assert_eq!(keys(b"ax"), [Key::Guest(b'a'), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01x"), [Key::Quit]);
        assert_eq!(keys(b"\x01p\x01d"), [Key::PowerButton, Key::Detach]);
        assert_eq!(keys(b"\x01h\x01?"), [Key::Help, Key::Help]);
        assert_eq!(keys(b"\x01ax"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x03\x1a"), [Key::Guest(3), Key::Guest(0x1a)], "Ctrl-C and Ctrl-Z are the guest's");
    }
}
