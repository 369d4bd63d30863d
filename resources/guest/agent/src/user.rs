//! Whom a command runs as, by the guest's `/etc/passwd` and `/etc/group`.

use std::ffi::OsStr;
use std::io;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

/// A user of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    groups: Vec<Gid>,
    pub(crate) home: String,
    /// It is whom the agent runs as, and nothing is changed.
    is_agent: bool,
}

impl User {
    /// The user that `USER[:GROUP]` names, by names or numbers; the agent's own by default.
    pub(crate) fn find(named: Option<&OsStr>) -> Result<Self, String> {
        let file = |path| {
            std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        };
        let (passwd, group) = (file("/etc/passwd"), file("/etc/group"));
        match named
            .map(|named| named.to_str().ok_or_else(|| format!("there is no user {named:?}")))
            .transpose()?
        {
            None | Some("") => {
                let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
                let entry = entries(&passwd).find(|entry| number(entry, 2) == Some(uid.as_raw()));
                Ok(Self { uid, gid, groups: Vec::new(), home: home(entry.as_deref()), is_agent: true })
            }
            Some(named) => Self::named(named, &passwd, &group),
        }
    }

    fn named(named: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, wanted) = match named.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (named, None),
        };
        let known = entries(passwd)
            .find(|entry| entry.first() == Some(&user))
            .or_else(|| entries(passwd).find(|entry| entry.get(2) == Some(&user)));
        let uid = match &known {
            Some(entry) => number(entry, 2),
            None => id(user),
        };
        let uid = uid.ok_or_else(|| format!("the guest has no user {user}"))?;
        let gid = match wanted {
            Some(wanted) => entries(group)
                .find(|entry| entry.first() == Some(&wanted))
                .and_then(|entry| number(&entry, 2))
                .or_else(|| id(wanted))
                .ok_or_else(|| format!("the guest has no group {wanted}"))?,
            None => known.as_ref().and_then(|entry| number(entry, 3)).unwrap_or(0),
        };
        let name = known.as_ref().and_then(|entry| entry.first().copied());
        let member = |entry: &Vec<&str>| {
            wanted.is_none() && entry.get(3).is_some_and(|all| all.split(',').any(|one| Some(one) == name))
        };
        let groups = entries(group).filter(member).filter_map(|entry| number(&entry, 2)).map(Gid::from_raw);
        Ok(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: std::iter::once(Gid::from_raw(gid)).chain(groups).collect(),
            home: home(known.as_deref()),
            is_agent: false,
        })
    }

    /// Makes this process, which has one thread, this user's.
    pub(crate) fn become_it(&self) -> io::Result<()> {
        if !self.is_agent {
            set_thread_groups(&self.groups)?;
            set_thread_gid(self.gid)?;
            set_thread_uid(self.uid)?;
        }
        Ok(())
    }
}

/// The lines of such a file, in their fields.
fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.split(':').collect())
}

fn number(entry: &[&str], at: usize) -> Option<u32> {
    entry.get(at).and_then(|text| id(text))
}

/// The greatest number means no change to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&id| id != u32::MAX)
}

fn home(entry: Option<&[&str]>) -> String {
    entry.and_then(|entry| entry.get(5)).filter(|home| !home.is_empty()).unwrap_or(&"/").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\n\nbroken\n1000:x:7:7::/odd:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:50:root,web\nadm:x:51:web\n";

    fn named(named: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let user = User::named(named, PASSWD, GROUP)?;
        let groups = user.groups.iter().map(|group| group.as_raw()).collect();
        Ok((user.uid.as_raw(), user.gid.as_raw(), groups, user.home))
    }

    #[test]
    fn users_are_found_by_names_and_numbers() {
        assert_eq!(named("web"), Ok((33, 34, vec![34, 50, 51], "/srv".into())));
        assert_eq!(named("33"), Ok((33, 34, vec![34, 50, 51], "/srv".into())));
        assert_eq!(named("web:log"), Ok((33, 50, vec![50], "/srv".into())));
        assert_eq!(named("web:7"), Ok((33, 7, vec![7], "/srv".into())));
        assert_eq!(named("4242"), Ok((4242, 0, vec![0], "/".into())));
        assert_eq!(named("1000"), Ok((7, 7, vec![7], "/odd".into())), "a name goes before a number");
        for unknown in ["nobody", "-1", "4294967295", "broken", ":0"] {
            assert!(named(unknown).is_err(), "{unknown}");
        }
        assert_eq!(named("web:none"), Err("the guest has no group none".into()));
    }
}
