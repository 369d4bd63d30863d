//! The machine locks itself in, before the guest's first instruction: what a hostile guest could take over has no right, no path,
//! and few system calls.
//!
//! In this order, for each step takes what the next one gives up:
//!
//! 1. [`lock`], while there is one thread, after all files are open: another user where it is root, no capability, no new
//!    privileges (so that no program gives any back), not dumpable, no path ([`paths`]), and an end together with the keeper.
//! 2. [`Filters::enter`], on each thread before the guest runs: the `filter` of its kind of thread. Those of a NIC that is plugged
//!    in later are born of the main thread, with its filter, and get their own before the guest sees the NIC.
//!
//! A forbidden call is not made. It ends the machine, which says the call and the thread ([`trap`]).

mod calls;
mod filter;
mod paths;
mod trap;

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Signal, getppid, set_dumpable_behavior};
use rustix::process::{geteuid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

pub(crate) use self::calls::name as call_name;
pub(crate) use self::filter::{Filters, Thread, can_be as filters_can_be};
pub(crate) use self::paths::{Confined as PathsConfined, can_confine as paths_can_be_confined};
pub(crate) use self::trap::tell as tell_forbidden_calls;

/// What a machine is confined to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    user: Option<u32>,
    paths: PathsConfined,
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.user {
            Some(user) => write!(f, "user {user}, ")?,
            None => f.write_str("its user as before, ")?,
        }
        write!(f, "no capability, {}, seccomp filters", self.paths)
    }
}

/// Has the process, which has one thread, become what it stays, and end when `keeper` does.
///
/// # Errors
/// The kernel refuses what it never refuses, or the keeper is gone already.
pub(crate) fn lock(user: u32, keeper: Pid) -> io::Result<Lock> {
    // First, for it may take a right that is given up then.
    let paths = paths::confine();
    let user = if geteuid().is_root() { become_user(user)? } else { None };
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    end_with(keeper)?;
    Ok(Lock { user, paths })
}

/// Has the process end when `keeper` does. A change of the user forgets it, so that it comes after that.
///
/// # Errors
/// The keeper is gone already.
pub(crate) fn end_with(keeper: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    match getppid() == Some(keeper) {
        true => Ok(()),
        false => Err(io::Error::other("the process that started it is gone")),
    }
}

/// Becomes `user`, and the group of that number, in no other group. None where this user namespace has no such user, as where
/// `unshare --map-root-user` has made one of root alone: root of it is nobody outside.
fn become_user(user: u32) -> io::Result<Option<u32>> {
    match set_thread_groups(&[]) {
        // user_namespaces(7): a user who made one may not leave the groups that it had.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    let become_it = || {
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    };
    match become_it() {
        Ok(()) => Ok(Some(user)),
        Err(Errno::INVAL | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
