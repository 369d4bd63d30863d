//! The user's terminal: raw while the guest has it, and given back whatever happens.

use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

/// How the terminal was before [`Raw::enter`]; None while it is so now.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal on standard input in raw mode; dropping it restores all settings.
pub(crate) struct Raw(());

impl Raw {
    /// Takes the terminal over: each key goes to the guest as it is pressed, Ctrl-C and Ctrl-Z too. None where standard
    /// input is no terminal, or one that another process has in the foreground (taking it would stop us, `SIGTTOU`).
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) || !in_foreground() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let guard = Self(());
        make_raw()?;
        Ok(Some(guard))
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
        restore();
    }
}

/// True while the terminal is raw: a line must then end with a carriage return too.
pub(crate) fn is_raw() -> bool {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// From now on a panic of any thread gives the terminal back before it is told, so that the message is readable.
pub(crate) fn restore_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        tell(panic);
    }));
}

/// True where the terminal on standard input is ours: its settings are another process's otherwise, and setting them stops us.
fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).ok() == Some(rustix::process::getpgrp())
}

/// Gives the terminal back, where it was taken, and a shell has not taken it back already (SIGSTOP, then `bg`).
fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take()
        && in_foreground()
    {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
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
    /// Ctrl-A h, and any other letter.
    Help,
}

/// What Ctrl-A does.
pub(crate) const HELP: &str = "\
Ctrl-A x  quit: end the virtual machine at once
Ctrl-A p  press the guest's power button
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

    /// Tells a process that it is the child of [`a_panic_gives_the_terminal_back_before_it_is_told`].
    const CHILD: &str = "WIREVM_TEST_PANICS";

    /// That child, on a terminal of its own; nothing in any other process.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        restore_on_panic();
        // Nobody but the hook gives it back, as where another thread panics.
        std::mem::forget(Raw::enter().unwrap().expect("it is in the foreground"));
        assert!(is_raw());
        rustix::io::write(io::stdout(), b"raw\n").unwrap();
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
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
        // A terminal that is not raw puts a carriage return before each end of a line.
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
        assert_eq!(keys(b"\x01p"), [Key::PowerButton]);
        assert_eq!(keys(b"\x01h\x01?"), [Key::Help, Key::Help]);
        assert_eq!(keys(b"\x01ax"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x03\x1a"), [Key::Guest(3), Key::Guest(0x1a)], "Ctrl-C and Ctrl-Z are the guest's");
    }
}
