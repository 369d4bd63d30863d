//! A wire as each of the kinds makes it.

use std::fs::File;

use crate::answer::listener::Listener;
use crate::answer::relay::Relay;
use crate::host::Wiring;
use crate::host::wire_link::WireLink;
use crate::wire::cable_spec::CableSpec;
use crate::{Backend, HostAddress, Mac, Offloads};

/// What a wire has beside its ends.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) spec: CableSpec,
    pub(crate) listener: Option<Listener>,
    pub(crate) forwarding: Option<File>,
    pub(crate) relay: Option<Relay>,
    pub(crate) links: Vec<WireLink>,
    /// The guest's end is somebody's own: it was there, and stays.
    pub(crate) stays: bool,
    /// The host's addresses on the link, of a kind that has some: those of the configuration, or those that were chosen.
    pub(crate) hosts: Vec<HostAddress>,
}

impl Parts {
    /// Of a wire whose frames go by `link` as they are, to a guest that finds out all by itself.
    pub(crate) fn new(link: &str, mac: Mac, mtu: u16, offloads: Offloads) -> Self {
        let spec = CableSpec {
            link: link.to_owned(),
            mac,
            mtu,
            offloads,
            coalesce: false,
            queues: 0,
            pairs: 0,
            has_carrier: false,
            vhosts: 0,
            listens: false,
            forwarding: false,
            switches_first: false,
            asks: false,
            gateway: None,
            lease: None,
            router: None,
        };
        Self {
            spec,
            listener: None,
            forwarding: None,
            relay: None,
            links: Vec::new(),
            stays: false,
            hosts: Vec::new(),
        }
    }
}

/// The descriptors of a link, the first of which leads.
pub(crate) fn ends<A: Backend + 'static, B: Backend + 'static>(
    first: A,
    others: Vec<B>,
) -> Vec<Box<dyn Backend>> {
    let others = others.into_iter().map(|other| -> Box<dyn Backend> { Box::new(other) });
    std::iter::once(Box::new(first) as Box<dyn Backend>).chain(others).collect()
}

/// A wire as one of the kinds makes it.
pub(crate) struct Made {
    pub(crate) ends: Vec<Box<dyn Backend>>,
    pub(crate) parts: Parts,
    pub(crate) wiring: Wiring,
}
