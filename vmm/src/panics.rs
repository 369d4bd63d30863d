//! What a panic comes to, which is a bug of ours: the process says so and ends at once. Nothing unwinds, and no thread goes on with
//! what another one has left half done.
//!
//! Nothing is left behind either. The machine ends, and its keeper takes the host's wiring back. A keeper becomes a new wirevm that
//! does it from the records, as it is done for one that was killed: that one believes nothing that this one had in memory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;
use crate::protocol::Failure;
use crate::{report, sys};

/// Whether this process has changed the host, or may have. A hook knows nothing but statics.
static CHANGES_THE_HOST: AtomicBool = AtomicBool::new(false);

/// From now on this process changes the host, which is taken back after a panic, too.
pub(crate) fn take_back_after() {
    CHANGES_THE_HOST.store(true, Ordering::Release);
}

/// From now on a panic of any thread ends the process with status 1.
pub(crate) fn handle() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?");
        let bug = Error::Bug(format!("the thread {name}"));
        report::last_words(&format!("thread '{name}' {panic}\n"), &Failure::new(&bug, bug.remedy()));
        // A second panic on the way ends in the C library's abort.
        if CHANGES_THE_HOST.swap(false, Ordering::AcqRel) {
            become_another();
        }
        sys::exit_now(1)
    }));
}

/// Has the process be a new wirevm that [takes back](take_back). Returns where it cannot be: then the records stay for the next one.
fn become_another() {
    // The thread may have been in another network namespace; the process's first one never is.
    if let Ok(namespace) = File::open("/proc/self/ns/net") {
        let _ = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    }
    // That lets go of the locks on its records, which makes them anybody's to take back; and no signal is blocked then.
    let _ = Command::new("/proc/self/exe").arg0("wirevm").arg("take-back").exec();
}

/// Takes back what the process before has changed, and what others left that are gone.
pub(crate) fn take_back() {
    if let Err(error) = vmm::runtime::sweep() {
        report::error(&error, error.remedy().as_deref());
    }
    if let Err(error) = net::clean(&net::Host::new()) {
        report::error(&error, error.remedy().as_deref());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::process::{Output, Stdio};
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{Channel, FromMachine, ToMachine};

    /// Tells a process which child of these tests it is.
    const CHILD: &str = "WIREVM_TEST_PANICS_AS";

    /// This test as another process.
    fn child(who: &str, stdin: impl Into<Stdio>) -> Output {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "panics::tests::a_child", "--nocapture"]);
        child.env(CHILD, who).stdin(stdin).output().unwrap()
    }

    /// Such a child; nothing in any other process.
    #[test]
    fn a_child() {
        let Ok(who) = std::env::var(CHILD) else { return };
        handle();
        if who == "machine" {
            let stdin: OwnedFd = io::stdin().as_fd().try_clone_to_owned().unwrap();
            report::send_to_keeper(Arc::new(Channel::over(stdin)));
        } else {
            take_back_after();
        }
        let bug = std::thread::Builder::new().name("vcpu0".to_owned()).spawn(|| panic!("on purpose"));
        bug.unwrap();
        // As the other threads would, which know nothing of it.
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_panic_of_any_thread_ends_the_machine_and_its_keeper_hears_why() {
        let (keeper, machine) = Channel::<ToMachine, FromMachine>::pair().unwrap();
        let child = child("machine", OwnedFd::from(machine));
        assert_eq!(child.status.code(), Some(1), "{child:?}");
        let mut said = std::iter::from_fn(|| keeper.receive().unwrap()).map(|(said, _)| said);
        let Some(FromMachine::Print(text)) = said.next() else { panic!("it says where") };
        assert!(text.contains("'vcpu0'") && text.contains("on purpose"), "{text}");
        let Some(FromMachine::Failed(failure)) = said.next() else { panic!("it says that it failed") };
        assert_eq!(failure.error, "the thread vcpu0 panicked; this is a bug in wirevm");
        assert_eq!(said.next(), None);
    }

    #[test]
    fn a_keeper_that_panics_becomes_a_process_that_takes_back() {
        let child = child("keeper", Stdio::null());
        // It is these tests again, with a word of the command line by which none is called.
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains("running 0 tests"), "{child:?}");
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("error: the thread vcpu0 panicked; this is a bug in wirevm"), "{said}");
    }
}
