//! What a program of another project is confined to before it begins: a user namespace where the user has no rights to give it, a
//! read-only view of a directory, no descriptor but its own, and an end together with the keeper.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::{Pid, Signal, getegid, geteuid, getppid, set_parent_process_death_signal, setsid};
use rustix::thread::set_no_new_privs;

use crate::sys;

/// How a program is confined.
#[derive(Clone, Debug)]
pub(crate) struct Jail {
    /// It is root of a user namespace of its own, in which there is nobody else: outside, it is who starts it.
    pub(crate) own_root: bool,
    /// Nobody in its mount namespace changes anything below this directory.
    pub(crate) read_only: Option<PathBuf>,
    /// When this process ends, it does.
    pub(crate) keeper: Pid,
}

/// What can fail before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    OwnRoot = 1,
    ReadOnly,
    Rest,
}

impl Jail {
    /// Starts `command` in it, whose standard error is to be a pipe: where a step fails, its number is what comes there.
    ///
    /// # Errors
    /// A step fails, or there is no such program.
    pub(crate) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        sys::before_exec(command, move || {
            let mut step = Step::Rest;
            self.enter(&mut step).inspect_err(|_| {
                let _ = rustix::io::write(io::stderr(), &[step as u8]);
            })
        });
        command.spawn()
    }

    fn enter(&self, step: &mut Step) -> io::Result<()> {
        let (user, group) = (geteuid(), getegid());
        *step = Step::OwnRoot;
        if self.own_root {
            sys::unshare(libc::CLONE_NEWUSER)?;
            // user_namespaces(7): without it, a user may map no group.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
            fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))?;
        }
        *step = Step::ReadOnly;
        if let Some(directory) = &self.read_only {
            sys::unshare(libc::CLONE_NEWNS)?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount_bind_recursive(directory, directory)?;
            sys::make_mounts_read_only(directory)?;
        }
        *step = Step::Rest;
        setsid()?;
        sys::close_on_exec_from(3)?;
        set_no_new_privs(true)?;
        // Last: a change of the user's rights forgets it.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        match getppid() == Some(self.keeper) {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Step {
    /// The step of that number.
    pub(super) fn of(number: u8) -> Option<Self> {
        [Self::OwnRoot, Self::ReadOnly, Self::Rest].into_iter().find(|step| *step as u8 == number)
    }
}
