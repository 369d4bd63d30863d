//! The terminal of a command: a console to attach to.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::keeper::terminal::{self, Escape, Key, Raw};
use crate::report;

/// Shows a console, and types what is typed unless it is to be `read_only`, until it ends or is left by Ctrl-A d.
pub(crate) fn attach(history: &[u8], mut stream: UnixStream, read_only: bool) -> io::Result<()> {
    let raw = Raw::enter()?;
    let mut escape = raw.is_some().then(Escape::default);
    let mut out = io::stdout();
    out.write_all(history).and_then(|()| out.flush())?;
    let mut typing = raw.is_some() || !rustix::termios::isatty(io::stdin());
    loop {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(&stream, PollFlags::IN)];
        if typing {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                len => out.write_all(&chunk[..len]).and_then(|()| out.flush())?,
            }
        }
        if ready.get(1) == Some(&true) {
            let mut keys = [0; 256];
            let len = match rustix::io::read(&stdin, &mut keys) {
                Err(Errno::INTR | Errno::AGAIN) => continue,
                read => read?,
            };
            if len == 0 {
                // What was typed is still to be answered.
                typing = false;
                continue;
            }
            let mut typed = Vec::new();
            for &byte in &keys[..len] {
                match escape.as_mut().map_or(Some(Key::Guest(byte)), |escape| escape.key(byte)) {
                    Some(Key::Guest(byte)) => typed.push(byte),
                    // Only who runs the machine ends it so.
                    Some(Key::Detach | Key::Quit) => return Ok(()),
                    Some(Key::PowerButton | Key::Help) => {
                        report::print(&format!("\n{}\n", terminal::HELP_ATTACHED));
                    }
                    None => {}
                }
            }
            if !read_only {
                stream.write_all(&typed)?;
            }
        }
    }
}
