//! News of a network namespace (rtnetlink(7)): that links or routes have changed.
//!
//! **Invariant: news is only a reason to look.** What changed is asked of the kernel afterwards, whatever the message said: so a socket
//! that overran ([`ENOBUFS`](libc::ENOBUFS)) is news like any other, and nothing is missed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with, sockopt};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_ROUTE` and `RTNLGRP_IPV6_ROUTE` of `linux/rtnetlink.h`, as the bits of a bind.
const GROUPS: u32 = group(1) | group(7) | group(11);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER_LEN: usize = 16;
/// As many messages are read in one go: who changes links without end does not keep the process from its other work.
const MOST: usize = 4096;
/// Room for messages, in bytes: some thousand links can change at once before the socket overruns.
const BUFFER: usize = 1 << 20;

/// A socket that hears of changes of one network namespace. It is readable when there is news.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
}

/// What the news is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The numbers of links that changed, came or went, each once.
    links: Vec<u32>,
    /// Routes came or went.
    routes: bool,
    /// More changed than was heard of.
    all: bool,
}

impl Watch {
    /// Of the thread's network namespace. It takes no right.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn here() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        // As much as the host allows.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, BUFFER);
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { socket })
    }

    /// What there is to hear; none where there is nothing.
    pub fn news(&mut self) -> Option<News> {
        let mut news = None;
        let mut buffer = [0; 16 << 10];
        for _ in 0..MOST {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, len)) => {
                    let news: &mut News = news.get_or_insert_default();
                    // One that is longer than the buffer is cut, and was about some link.
                    news.all |= len > buffer.len();
                    news.hear(&buffer[..len.min(buffer.len())]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return news,
                // It overran: some of it is lost.
                Err(_) => news.get_or_insert_default().all = true,
            }
        }
        news
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl News {
    /// That anything may have changed.
    pub fn of_all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Whether it may be about the link of that number.
    pub(crate) fn concerns(&self, link: u32) -> bool {
        self.all || self.links.contains(&link)
    }

    /// Whether links may have changed, whichever.
    pub(crate) fn concerns_links(&self) -> bool {
        self.all || !self.links.is_empty()
    }

    /// Whether it may be about routes.
    pub(crate) fn concerns_routes(&self) -> bool {
        self.all || self.routes
    }

    /// Takes the messages of one read (netlink(7)).
    fn hear(&mut self, mut bytes: &[u8]) {
        while let Some((header, _)) = bytes.split_at_checked(HEADER_LEN) {
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let Some(message) = bytes.get(..len).filter(|message| message.len() >= HEADER_LEN) else { break };
            match u16::from_ne_bytes([header[4], header[5]]) {
                libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                    // `struct ifinfomsg`: family, type, index.
                    match message.get(HEADER_LEN + 4..HEADER_LEN + 8).and_then(|index| index.try_into().ok())
                    {
                        Some(index) => self.hear_link(u32::from_ne_bytes(index)),
                        None => self.all = true,
                    }
                }
                libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.routes = true,
                _ => {}
            }
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn hear_link(&mut self, index: u32) {
        if !self.links.contains(&index) {
            self.links.push(index);
        }
        // A list that is as long as this is no shorter way.
        if self.links.len() > 64 {
            self.links.clear();
            self.all = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = (HEADER_LEN + body.len()) as u32;
        let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link(index: u32) -> Vec<u8> {
        message(libc::RTM_NEWLINK, &[&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat())
    }

    #[test]
    fn messages_are_about_links_and_routes() {
        let mut news = News::default();
        news.hear(&[link(7), message(0x99, &[1; 9]), link(7), link(9)].concat());
        assert_eq!(news.links, [7, 9]);
        assert!(news.concerns(9) && !news.concerns(8) && news.concerns_links() && !news.concerns_routes());
        news.hear(&message(libc::RTM_DELROUTE, &[0; 12]));
        assert!(news.concerns_routes());
        for number in 100..200 {
            news.hear(&link(number));
        }
        assert!(news.concerns(8) && news.links.len() <= 64, "many are as good as all");
    }

    #[test]
    fn what_makes_no_sense_is_passed_over() {
        for bytes in [&[0; 40][..], &[0xff; 40], &[4, 0, 0, 0], &link(3)[..20]] {
            News::default().hear(bytes);
        }
        let mut short = News::default();
        short.hear(&message(libc::RTM_NEWLINK, &[0; 4]));
        assert!(short.all, "some link it was");
    }
}
