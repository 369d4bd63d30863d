//! The guest's NICs: each virtio NIC, also one that is plugged in later, has a process that gets it an address by DHCP and keeps it.
//! Router advertisements are the kernel's.

mod lease;
mod message;
mod resolver;

use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};

use crate::sys::{Forked, Setting};
use crate::{log, sys};

/// Brings `lo` up.
pub(crate) fn up_loopback() {
    let up = sys::any_socket().and_then(|socket| sys::set_interface(&socket, "lo", Setting::Up));
    if let Err(why) = up {
        log(format_args!("cannot bring lo up: {why}"));
    }
}

/// Starts the process that looks after the NICs, which has a copy of `not_ready`: all that hold one have yet to try their network.
/// `names_guest`: a DHCP server may say what the guest is called.
pub(crate) fn start(not_ready: &mut Option<OwnedFd>, names_guest: bool) {
    match sys::fork() {
        Ok(Forked::Child) => look_after(not_ready.take(), names_guest),
        Ok(Forked::Parent(_)) => {}
        Err(why) => log(format_args!("cannot start a process for the network: {why}")),
    }
}

fn look_after(not_ready: Option<OwnedFd>, names_guest: bool) -> ! {
    // Before the first look, so that none is missed.
    let events = sys::netlink(libc::NETLINK_KOBJECT_UEVENT, 1);
    let mut not_ready = not_ready;
    let mut known: Vec<String> = Vec::new();
    loop {
        let there = virtio_nics();
        known.retain(|nic| there.contains(nic));
        for nic in there {
            if known.contains(&nic) {
                continue;
            }
            match sys::fork() {
                Ok(Forked::Child) => {
                    sys::unblock_signals();
                    let why = lease::keep(&nic, not_ready.take(), names_guest);
                    log(format_args!("{nic}: {why}"));
                    sys::exit_now(0);
                }
                Ok(Forked::Parent(_)) => known.push(nic),
                Err(why) => log(format_args!("cannot start a process for {nic}: {why}")),
            }
        }
        not_ready = None;
        let Ok(events) = &events else { sys::exit_now(0) };
        let _ = poll(&mut [PollFd::new(events, PollFlags::IN)], None);
        let mut event = [0; 8192];
        // What matters is that something has happened.
        while rustix::io::read(events, &mut event).is_ok_and(|len| len > 0) {}
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
}

fn virtio_nics() -> Vec<String> {
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let is_virtio = |link: &fs::DirEntry| {
        fs::read_link(link.path().join("device/driver")).is_ok_and(|driver| driver.ends_with("virtio_net"))
    };
    let mut names: Vec<_> =
        links.filter(is_virtio).filter_map(|link| link.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Gets an address for one interface, of any kind, and keeps it; says why it cannot.
pub(crate) fn run_one(nic: &str) -> Result<(), String> {
    Err(format!("{nic}: {}", lease::keep(nic, None, false)))
}
