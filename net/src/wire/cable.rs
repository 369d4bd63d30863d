//! The cable from a wire to its NIC: descriptors and plain data, from which the process that runs the guest makes its backends. It
//! needs no path and no right for that, nor for anything that these backends do.
//!
//! On a frame's descriptor they read, write, and set which offloads and whether the queue takes part (`TUNSETOFFLOAD`,
//! `TUNSETQUEUE`). What else a guest may want of its link, another address or other frames, they ask of the wire
//! ([`Wire::set_filter`](crate::Wire::set_filter)), in whatever process that is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use crate::answer::autoconf;
use crate::answer::listener::Listener;
use crate::frames::queue;
use crate::frames::unplugged::SendOnly;
use crate::wire::cable_spec::CableSpec;
use crate::wire::tun::Tun;
use crate::wire::tuntap;
use crate::{Backend, Mac, Offloads, RxFilter, Vhost, sys};

/// The descriptors and what they are.
#[derive(Debug)]
pub struct Cable {
    /// What they are.
    pub spec: CableSpec,
    /// As the spec orders them.
    pub descriptors: Vec<OwnedFd>,
}

/// What a cable gives a NIC.
#[derive(Debug)]
pub struct Plugged {
    /// One for each queue pair.
    pub backends: Vec<Box<dyn Backend>>,
    /// One for each as well, where the kernel is to carry the frames; else none.
    pub vhosts: Vec<Vhost>,
    /// The guest's Ethernet address.
    pub mac: Mac,
    /// The MTU for the guest, in bytes.
    pub mtu: u16,
    /// The name of the host's link.
    pub link: String,
    /// Frames of the guest for which this kind of wire has no way, counted on: on a tun, what is not IP.
    pub ignored: Arc<AtomicU64>,
}

/// Asks the wire for what a guest wants of the host's link.
pub type Ask = Box<dyn FnMut(&RxFilter) -> io::Result<()> + Send>;

impl Cable {
    /// The same for a NIC of `pairs` queue pairs, at least as many as the wire has queues: those past the last queue send by the
    /// first one, and receive nothing.
    #[must_use]
    pub fn for_pairs(mut self, pairs: usize) -> Self {
        self.spec.pairs = pairs.max(self.spec.queues);
        self
    }

    /// Makes the backends. What the guest asks of the host's link is asked by `ask`, on the thread of the first queue pair.
    ///
    /// # Errors
    /// The descriptors are not those of the spec.
    pub fn plug(self, ask: Ask) -> io::Result<Plugged> {
        let Self { spec, descriptors } = self;
        let wrong =
            || io::Error::new(io::ErrorKind::InvalidData, "the descriptors are not those of the cable");
        let mut descriptors = descriptors.into_iter();
        let mut take = |count| -> io::Result<Vec<OwnedFd>> {
            let taken: Vec<_> = descriptors.by_ref().take(count).collect();
            if taken.len() == count { Ok(taken) } else { Err(wrong()) }
        };
        let frames = take(spec.queues)?;
        let vhosts = take(spec.vhosts)?.into_iter().map(|fd| Vhost::over(fd.into()));
        let vhosts = vhosts.collect::<io::Result<Vec<_>>>()?;
        let listener = take(spec.listens.into())?.pop().map(Listener::over);
        let forwarding = take(spec.forwarding.into())?.pop().map(File::from);
        if descriptors.next().is_some() || frames.is_empty() {
            return Err(wrong());
        }
        let merges = (if spec.coalesce { spec.offloads } else { Offloads::default() }, spec.mtu);
        let send_only = |_| SendOnly::new(frames[0].try_clone()?, spec.offloads, merges);
        let send_only = (frames.len()..spec.pairs).map(send_only).collect::<io::Result<Vec<_>>>()?;
        let router = spec.router.map(|router| router.with_forwarding(forwarding));
        let ask = Arc::new(Mutex::new(ask));
        let mut ends = frames.into_iter().enumerate().map(|(index, device)| End {
            device,
            ask: Arc::clone(&ask),
            asks: index == 0 && spec.asks,
            offloads: spec.offloads,
            merges,
            leads: index == 0,
            switches: index > 0 || spec.switches_first,
            enabled: true,
            has_carrier: spec.has_carrier,
        });
        let first = ends.next().ok_or_else(wrong)?;
        let (backends, ignored) = match spec.gateway {
            Some(gateway) => {
                let tun = Tun::new(first, spec.mac, gateway);
                let ignored = tun.not_ip();
                let others: Vec<_> = ends.map(|end| tun.beside(end)).collect();
                let spare: Vec<_> = send_only.into_iter().map(|end| tun.beside(end)).collect();
                (autoconf::in_front(tun, others, spare, spec.lease, router, None), ignored)
            }
            None => {
                let others = ends.collect();
                let backends = autoconf::in_front(first, others, send_only, spec.lease, router, listener);
                (backends, Arc::default())
            }
        };
        Ok(Plugged { backends, vhosts, mac: spec.mac, mtu: spec.mtu, link: spec.link, ignored })
    }
}

/// One queue of the host's link, where frames go.
struct End {
    // Before `ask`, which may hold the wire: a link is given back once its last descriptor is closed.
    device: OwnedFd,
    ask: Arc<Mutex<Ask>>,
    /// The link brings only what it is asked for.
    asks: bool,
    offloads: Offloads,
    merges: (Offloads, u16),
    /// What is the link's and not the queue's is set by this one.
    leads: bool,
    switches: bool,
    enabled: bool,
    has_carrier: bool,
}

impl Backend for End {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn merges(&self) -> (Offloads, u16) {
        self.merges
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        if self.leads { tuntap::set_offloads(self.device.as_fd(), accepted) } else { Ok(()) }
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        match self.switches {
            true => queue::set_enabled(self.device.as_fd(), &mut self.enabled, enabled),
            false => Ok(()),
        }
    }

    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        if !self.asks {
            return Ok(());
        }
        let mut ask = self.ask.lock().unwrap_or_else(PoisonError::into_inner);
        ask(filter)
    }

    fn set_carrier(&mut self, present: bool) {
        if self.has_carrier
            && self.leads
            && let Err(error) = sys::tun_set_carrier(self.device.as_fd(), present)
        {
            log::debug!("cannot set the carrier of the host's link: {error}");
        }
    }

    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.device.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::answer::dhcp::Lease;
    use crate::answer::neighbour::Gateway;
    use crate::answer::router::Router;

    fn spec(queues: usize) -> CableSpec {
        CableSpec {
            link: "tap0".to_owned(),
            mac: Mac::new([2, 0, 0, 0, 0, 1]).unwrap(),
            mtu: 1500,
            offloads: Offloads::default(),
            coalesce: true,
            queues,
            pairs: queues,
            vhosts: 0,
            has_carrier: true,
            listens: false,
            forwarding: false,
            switches_first: false,
            asks: true,
            gateway: None,
            lease: None,
            router: None,
        }
    }

    fn plug(spec: CableSpec, descriptors: usize) -> io::Result<Plugged> {
        let descriptor = |_| eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let descriptors = (0..descriptors).map(descriptor).collect();
        Cable { spec, descriptors }.plug(Box::new(|_| Err(io::Error::from_raw_os_error(libc::EPERM))))
    }

    #[test]
    fn a_cable_has_the_descriptors_of_its_spec() {
        assert_eq!(plug(spec(2), 2).unwrap().backends.len(), 2);
        for (queues, descriptors) in [(0, 0), (1, 0), (1, 2), (3, 2)] {
            assert!(plug(spec(queues), descriptors).is_err(), "{queues} {descriptors}");
        }
        assert!(plug(CableSpec { listens: true, ..spec(1) }, 1).is_err());
    }

    #[test]
    fn the_first_queue_alone_asks_for_frames() {
        let mut plugged = plug(spec(2), 2).unwrap();
        let filter = RxFilter::new(plugged.mac);
        let refused = plugged.backends[0].set_filter(&filter).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        plugged.backends[1].set_filter(&filter).unwrap();
        let mut plugged = plug(CableSpec { asks: false, ..spec(1) }, 1).unwrap();
        plugged.backends[0].set_filter(&filter).unwrap();
    }

    #[test]
    fn every_queue_takes_several_frames_at_once_where_the_spec_says_so() {
        let offloads = Offloads { csum: true, tso4: true, tso6: true, uso: true };
        let gateway = || Some(Gateway::new(spec(1).mac, vec!["10.0.0.1".parse().unwrap()]));
        let host = crate::HostV4::new("10.0.0.1".parse().unwrap(), 30).unwrap();
        let lease = Lease::new(spec(1).mac, host, [2, 0, 0, 0, 0, 2], 1500);
        for (gateway, lease) in [(None, None), (None, lease.clone()), (gateway(), None), (gateway(), lease)] {
            for (coalesce, kinds) in [(true, offloads), (false, Offloads::default())] {
                let (gateway, lease) = (gateway.clone(), lease.clone());
                // The last pair only sends.
                let spec = CableSpec { offloads, coalesce, pairs: 3, gateway, lease, ..spec(2) };
                let plugged = plug(spec, 2).unwrap();
                assert_eq!(plugged.backends.len(), 3);
                for backend in plugged.backends {
                    assert_eq!(backend.merges(), (kinds, 1500));
                }
            }
        }
    }

    #[test]
    fn a_spec_is_plain_data() {
        let gateway = Gateway::new(spec(1).mac, vec!["10.0.0.1".parse().unwrap()]);
        let host = crate::HostV4::new("10.0.0.1".parse().unwrap(), 30).unwrap();
        let lease = Lease::new(spec(1).mac, host, [2, 0, 0, 0, 0, 2], 1500);
        let router = Router::new(
            [2, 0, 0, 0, 0, 2],
            "fe80::1".parse().unwrap(),
            crate::HostV6::new("fd00::1".parse().unwrap(), 64).unwrap(),
            1500,
            &[],
            &[],
            true,
        );
        let spec = CableSpec { gateway: Some(gateway), lease, router, ..spec(3) };
        let text = serde_json::to_string(&spec).unwrap();
        let read: CableSpec = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{read:?}"), format!("{spec:?}"));
    }
}
