//! The one place that prints: errors with their causes and a remedy, and log lines. Nothing here waits for a reader, but
//! [`finish`], and that not for long.
//!
//! **Invariant: no guest fills the log.** Each line of the source that logs does so [a bounded number of times](Bound) in a run; what
//! a guest can bring about as often as it likes is moreover said aloud once, where it comes about.
//!
//! The machine has nobody to print to but its keeper, to which it sends all that it says.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{Level, Record};

use net::{printable, printable_lines};
use rustix::termios::Termios;

use crate::keeper::sink::Sink;
use crate::keeper::terminal;
use crate::protocol::{Channel, Failure, FromMachine, ToMachine};

/// Where all goes. It is the program's, as the logger of the crate `log` is.
static TO: Mutex<To> = Mutex::new(To::Stderr { sink: None, raw: None });

enum To {
    /// Standard error. `raw`: it may be a terminal in raw mode, where a line must end with a carriage return too, and this is how that
    /// was before.
    Stderr {
        sink: Option<Sink>,
        raw: Option<Termios>,
    },
    Keeper(Arc<Channel<FromMachine, ToMachine>>),
}

fn to() -> MutexGuard<'static, To> {
    TO.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this process is the machine, and says all to its keeper.
pub(crate) fn send_to_keeper(channel: Arc<Channel<FromMachine, ToMachine>>) {
    *to() = To::Keeper(channel);
}

/// Says that the terminal is raw, and how it was before; or that it is so no more.
pub(crate) fn set_raw(before: Option<Termios>) {
    if let To::Stderr { raw, .. } = &mut *to() {
        *raw = before;
    }
}

/// Prints `error` on standard error: what failed, why, and what the user can do.
pub(crate) fn error(error: &dyn Error, remedy: Option<&str>) {
    print(&render(&Failure::new(error, remedy.map(str::to_owned))));
}

/// The same of an error that came from another process.
pub(crate) fn failure(failure: &Failure) {
    print(&render(failure));
}

/// Says what a process of ours fails of that is about to end, and gives the terminal back.
pub(crate) fn last_words(words: &str, failure: &Failure) {
    // Another thread gives this lock back at once; the one that panicked never does.
    let mut tries = (0..100).map(|_| TO.try_lock());
    let wait = |_: &_| std::thread::sleep(Duration::from_millis(1));
    let Some(mut to) = tries.by_ref().find_map(|tried| tried.inspect_err(wait).ok()) else { return };
    to.print(words);
    match &mut *to {
        To::Keeper(channel) => drop(channel.try_send(&FromMachine::Failed(failure.clone()))),
        To::Stderr { raw, .. } => {
            if let Some(before) = raw.take() {
                terminal::give_back(&before);
            }
            to.print(&render(failure));
        }
    }
}

/// Prints lines on standard error, readable also while the terminal is raw. What its reader has no room for waits.
pub(crate) fn print(text: &str) {
    to().print(text);
}

impl To {
    fn print(&mut self, text: &str) {
        // Whatever it is made of: names of others, the kernel's words, another process's.
        let text = printable_lines(text);
        match self {
            Self::Stderr { sink, raw } => {
                if sink.is_none() {
                    *sink = Sink::shared(std::io::stderr().as_fd()).ok();
                }
                let text = if raw.is_some() { text.replace('\n', "\r\n").into() } else { text };
                // With standard error gone there is nobody to tell.
                if let Some(sink) = sink {
                    sink.write(text.as_bytes());
                }
            }
            // Who talks without end is not heard to the end: no thread of the machine waits for a reader.
            Self::Keeper(channel) => drop(channel.try_send(&FromMachine::Print(text.into_owned()))),
        }
    }
}

/// The descriptor by which what waits can go on, where something does.
pub(crate) fn waits_for() -> Option<RawFd> {
    match &*to() {
        To::Stderr { sink: Some(sink), .. } if sink.is_waiting() => Some(sink.as_raw_fd()),
        _ => None,
    }
}

/// Prints what waits, as far as there is room.
pub(crate) fn flush() {
    if let To::Stderr { sink: Some(sink), .. } = &mut *to() {
        sink.flush();
    }
}

/// How long the end of a run waits for a reader of messages who takes none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits until all is printed, or `end` is readable, or the reader stalls: that keeps nothing from ending.
pub(crate) fn finish(end: Option<BorrowedFd<'_>>) {
    if let To::Stderr { sink: Some(sink), .. } = &mut *to() {
        sink.finish(end, Some(PATIENCE));
    }
}

/// Standard error is another one now.
pub(crate) fn reopen() {
    if let To::Stderr { sink, .. } = &mut *to() {
        *sink = None;
    }
}

/// Prints what was asked for on standard output. A reader that leaves early, as a pager may, is no failure.
pub(crate) fn answer(text: &str) {
    let _ = try_answer(text);
}

/// The same, for who goes on as long as somebody reads it.
///
/// # Errors
/// Nobody does.
pub(crate) fn try_answer(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(printable_lines(text).as_bytes()).and_then(|()| out.flush())
}

/// The same of JSON, as one line: what would be escaped as text is escaped as JSON.
pub(crate) fn answer_json(value: &serde_json::Value) {
    answer(&json_line(value));
}

pub(crate) fn json_line(value: &serde_json::Value) -> String {
    let mut line = String::new();
    // Such characters are in strings, and nowhere else.
    for c in value.to_string().chars() {
        match printable(c.encode_utf8(&mut [0; 4])) {
            Cow::Borrowed(same) => line.push_str(same),
            Cow::Owned(_) => drop(write!(line, "\\u{:04x}", u32::from(c))),
        }
    }
    line.push('\n');
    line
}

fn render(Failure { error, causes, remedy }: &Failure) -> String {
    // Whoever has put a line's end into it begins no line of his own.
    let inside = |text: &str| text.replace('\n', "\n         ");
    let mut text = format!("error: {}\n", inside(error));
    for cause in causes {
        let _ = writeln!(text, "  cause: {}", inside(cause));
    }
    if let Some(remedy) = remedy {
        let _ = writeln!(text, "  try:   {}", inside(remedy));
    }
    text
}

/// Log lines.
struct Log {
    bound: Bound,
}

static LOG: Log = Log { bound: Bound(Mutex::new(BTreeMap::new())) };

/// The crates that this program is of.
const OURS: [&str; 5] = ["wirevm", "vmm", "net", "devices", "boot"];

/// How loud a line is. Other crates say in their words what we say in ours, so theirs are for who debugs.
fn level(metadata: &log::Metadata<'_>) -> Level {
    let root = metadata.target().split("::").next().unwrap_or_default();
    if OURS.contains(&root) { metadata.level() } else { metadata.level().max(Level::Debug) }
}

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        level(metadata) <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = level(record.metadata());
            let word = level.as_str().to_lowercase();
            match self.bound.admit((record.file_static(), record.line()), level) {
                Admitted::Yes => print(&format!("{word}: {}\n", record.args())),
                Admitted::Last => {
                    print(&format!("{word}: {}\n{word}: no more lines like this are shown\n", record.args()));
                }
                Admitted::No => {}
            }
        }
    }

    fn flush(&self) {}
}

/// A line of the source.
type Origin = (Option<&'static str>, Option<u32>);

/// How often each line of the source has logged.
struct Bound(Mutex<BTreeMap<Origin, u32>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    Yes,
    Last,
    No,
}

impl Bound {
    /// How often what is always shown is said: a line for each of many NICs, and for a while what goes wrong again and again.
    const LOUD: u32 = 64;
    /// How often what is shown to who asked for it is said: a line for each of many vCPUs.
    const QUIET: u32 = 4096;

    fn admit(&self, origin: Origin, level: Level) -> Admitted {
        let most = if level <= Level::Warn { Self::LOUD } else { Self::QUIET };
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = said.entry(origin).or_default();
        *count = count.saturating_add(1);
        match (*count).cmp(&most) {
            std::cmp::Ordering::Less => Admitted::Yes,
            std::cmp::Ordering::Equal => Admitted::Last,
            std::cmp::Ordering::Greater => Admitted::No,
        }
    }
}

/// Has log lines of `level` and above printed.
pub(crate) fn log_from(level: log::LevelFilter) {
    log::set_max_level(level);
    log::set_logger(&LOG).expect("called once");
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
            render(&Failure::new(&error, Some("use another name\nor stop pid 7".to_owned()))),
            "error: cannot attach to tap0\n  cause: Device or resource busy (os error 16)\n  \
             try:   use another name\n         or stop pid 7\n"
        );
        assert_eq!(render(&Failure::new(&io::Error::other("plain"), None)), "error: plain\n");
        let forged = Failure::new(&io::Error::other("x\nerror: y"), None);
        assert_eq!(render(&forged), "error: x\n         error: y\n");
    }

    #[test]
    fn what_json_is_printed_commands_nothing_and_says_the_same() {
        let value = serde_json::json!({ "name": "a\x1b[2J\u{9b}\u{202e}\n\u{e4}" });
        let line = json_line(&value);
        assert!(line.ends_with('\n') && printable(line.trim_end()) == line.trim_end(), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
    }

    #[test]
    fn a_line_of_the_source_is_said_so_often_and_no_more() {
        let bound = Bound(Mutex::default());
        let say = |line, level| bound.admit((Some("a.rs"), Some(line)), level);
        let said: Vec<_> = (0..1000).map(|_| say(1, Level::Warn)).collect();
        assert!(said[..63].iter().all(|&said| said == Admitted::Yes));
        assert_eq!(said[63], Admitted::Last);
        assert!(said[64..].iter().all(|&said| said == Admitted::No));
        assert_eq!(say(2, Level::Error), Admitted::Yes, "another line");
        assert_eq!((0..10_000).filter(|_| say(3, Level::Trace) != Admitted::No).count(), 4096);
    }

    #[test]
    fn what_other_crates_say_is_for_who_debugs() {
        let of = |target| level(&log::Metadata::builder().level(Level::Error).target(target).build());
        assert_eq!(of("devices::virtio::queue"), Level::Error);
        assert_eq!(of("wirevm::keeper"), Level::Error);
        assert_eq!(of("virtio_queue::queue"), Level::Debug);
    }

    #[test]
    fn the_machine_does_not_wait_for_a_keeper_that_does_not_listen() {
        let (keeper, machine) = Channel::<ToMachine, FromMachine>::pair().unwrap();
        let mut to = To::Keeper(Arc::new(machine));
        (0..10_000).for_each(|_| to.print("a line\n"));
        assert!(keeper.try_receive().unwrap().is_some(), "the first ones are there");
    }
}
