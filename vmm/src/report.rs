//! The one place that prints: errors with their causes and a remedy, and log lines.

use std::error::Error;
use std::fmt::Write;
use std::io::Write as _;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::fd;
use crate::keeper::{signals, terminal};

/// Prints `error` on standard error: what failed, why, and what the user can do.
pub(crate) fn error(error: &dyn Error, remedy: Option<&str>) {
    print(&render(error, remedy));
}

/// Prints lines on standard error, readable also while the terminal is raw. A reader that stalls is waited for, but keeps
/// nothing from ending: once a signal was heard, what cannot be printed is dropped.
pub(crate) fn print(text: &str) {
    let text = if terminal::is_raw() { text.replace('\n', "\r\n") } else { text.to_owned() };
    let (stderr, signals) = (std::io::stderr(), signals::event());
    // One message at a time, though threads speak at once.
    let stderr = stderr.lock();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let mut fds = vec![PollFd::new(&stderr, PollFlags::OUT)];
        fds.extend(signals.map(|event| PollFd::from_borrowed_fd(fd::of(event), PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if fds[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        match rustix::io::write(&stderr, rest) {
            Ok(len) => rest = &rest[len..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            // With standard error gone there is nobody to tell.
            Err(_) => return,
        }
    }
}

/// Prints what was asked for on standard output. A reader that leaves early, as a pager may, is no failure.
pub(crate) fn answer(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn render(error: &dyn Error, remedy: Option<&str>) -> String {
    let mut text = format!("error: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = writeln!(text, "  cause: {error}");
        cause = error.source();
    }
    if let Some(remedy) = remedy {
        let _ = writeln!(text, "  try:   {}", remedy.replace('\n', "\n         "));
    }
    text
}

/// Log lines on standard error.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            print(&format!("{}: {}\n", record.level().as_str().to_lowercase(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Sends log lines of `level` and above to standard error.
pub(crate) fn log_to_stderr(level: log::LevelFilter) {
    log::set_max_level(level);
    log::set_logger(&Log).expect("called once");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot attach to tap0")]
    struct Attach(#[source] io::Error);

    #[test]
    fn an_error_shows_its_causes_and_its_remedy() {
        let error = Attach(io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(
            render(&error, Some("use another name\nor stop pid 7")),
            "error: cannot attach to tap0\n  cause: Device or resource busy (os error 16)\n  \
             try:   use another name\n         or stop pid 7\n"
        );
        assert_eq!(render(&io::Error::other("plain"), None), "error: plain\n");
    }
}
