//! What guests of images, directories and disks take beyond KVM. A guest that is given a kernel runs without any of it, so all is good.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use boot::image::Cache;
use boot::modules;
use net::Finding;
use rustix::fs::{Access, access};
use rustix::process::{geteuid, getpid};
use vmm::agent;

use crate::cli::ssh;
use crate::keeper::jail::Jail;
use crate::keeper::shares::ShareError;
use crate::keeper::virtiofsd::{PACKAGES, Virtiofsd};
use crate::sys;

/// Everything of that.
pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![agent(), kernel(), image_cache(), virtiofsd()];
    findings.extend(user_namespaces());
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    findings.push(io_uring(setting.trim(), sys::has_io_uring()));
    findings.push(program("ssh", "is for wirevm ssh", "no wirevm ssh", ssh::PACKAGES));
    findings.push(program(
        "qemu-img",
        "converts images that are not raw",
        "images that are not raw cannot be converted here, which is all that it is for",
        "install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora), for such images",
    ));
    findings
}

fn finding(what: &str, state: String, remedy: Option<String>) -> Finding {
    Finding { what: what.into(), good: true, state, remedy }
}

/// An error and its cause, on one line.
fn text(error: &dyn Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn agent() -> Finding {
    let (state, remedy) = match agent::find() {
        Ok(path) => (format!("{} goes into guests", path.display()), None),
        Err(error) => (format!("{error}: no --image, no --root"), error.remedy()),
    };
    finding("agent", state, remedy)
}

/// The kernel that guests get which are given none.
fn kernel() -> Finding {
    let found = modules::default_kernel().and_then(|kernel| {
        let version = modules::kernel_version(&kernel)?;
        Ok((modules::directory(&kernel, version.as_deref(), None)?, kernel))
    });
    let (state, remedy) = match found {
        Ok((Some(modules), kernel)) => {
            (format!("{}, with {}, is for --image and --root", kernel.display(), modules.display()), None)
        }
        Ok((None, kernel)) => (
            format!("{} is for --image and --root, but its modules are not there", kernel.display()),
            Some("install linux-image-amd64 (Debian); or give --kernel FILE, with --modules DIR".to_owned()),
        ),
        Err(error) => {
            (format!("{}: --image and --root take --kernel", text(&error)), Some(error.remedy().into()))
        }
    };
    finding("kernel", state, remedy)
}

/// Where images are kept as file systems. Nothing is made there.
fn image_cache() -> Finding {
    let usable = Cache::place().and_then(|place| {
        if place.exists() {
            Cache::at(place.clone())?;
        }
        // What is not there yet is made in what is.
        let there = place.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        match access(there, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Ok(place),
            Err(error) => Err(boot::image::Error::Cache { path: place, source: error.into() }),
        }
    });
    let (state, remedy) = match usable {
        Ok(place) => (format!("{} can be written to", place.display()), None),
        Err(error) => (format!("{}: no --image", text(&error)), Some(error.remedy())),
    };
    finding("image cache", state, remedy)
}

/// The program by which directories are shared.
fn virtiofsd() -> Finding {
    let (state, remedy) = match Virtiofsd::find() {
        Ok(found) => (format!("shares directories with guests by {found}"), None),
        Err(error) => (format!("{}: no --share, no --root", text(&error)), Some(PACKAGES.into())),
    };
    finding("virtiofsd", state, remedy)
}

/// What `virtiofsd` takes without root: tried with a program that does nothing.
fn user_namespaces() -> Option<Finding> {
    if geteuid().is_root() {
        return None;
    }
    let mut program = Command::new("/proc/self/exe");
    program.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let jail = Jail { own_root: true, read_only: None, keeper: getpid() };
    let ended = jail.spawn(&mut program).and_then(|mut child| child.wait());
    let (state, remedy) = match ended {
        Ok(_) => ("are allowed: --share and --root take no root".to_owned(), None),
        Err(error) => {
            let error = ShareError::OwnRoot(error);
            (format!("{}: no --share, no --root", text(&error)), error.remedy())
        }
    };
    Some(finding("user namespaces", state, remedy))
}

/// Whether disks have it. `setting` is `kernel.io_uring_disabled` (the kernel's `admin-guide/sysctl/kernel.rst`): 1 refuses it to those
/// without rights, as the process that runs the guest is.
fn io_uring(setting: &str, has: bool) -> Finding {
    let slower = "disks are read and written by plain system calls, which is slower";
    let (state, remedy) = match (setting, has) {
        ("1" | "2", _) => (
            format!("is disabled (kernel.io_uring_disabled={setting}): {slower}"),
            Some("sysctl -w kernel.io_uring_disabled=0".to_owned()),
        ),
        (_, false) => (
            format!("is refused: {slower}"),
            Some(
                "take a kernel with CONFIG_IO_URING; in a container, a seccomp profile that allows it"
                    .to_owned(),
            ),
        ),
        (_, true) => ("is allowed: disks are read and written by it".to_owned(), None),
    };
    finding("io_uring", state, remedy)
}

/// A program on the path that something takes: what there is with it, and without.
fn program(name: &str, with: &str, without: &str, remedy: &str) -> Finding {
    let paths = env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    let found = env::split_paths(&paths).map(|directory| directory.join(name)).find(is_program);
    match found {
        Some(path) => finding(name, format!("{} {with}", path.display()), None),
        None => finding(name, format!("is not there: {without}"), Some(remedy.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_uring_is_for_a_process_without_rights() {
        for (setting, has, word) in [
            ("0", true, "is allowed"),
            // Before Linux 6.6 there is no such setting.
            ("", true, "is allowed"),
            ("1", true, "is disabled (kernel.io_uring_disabled=1)"),
            ("2", false, "is disabled (kernel.io_uring_disabled=2)"),
            ("0", false, "is refused"),
        ] {
            let found = io_uring(setting, has);
            assert!(found.good && found.state.starts_with(word), "{}", found.state);
            assert_eq!(found.remedy.is_none(), word == "is allowed");
        }
    }
}
