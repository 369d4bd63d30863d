//! Whether frames get through a wire now, and how it is made whole again.
//!
//! A wire is looked at when there is news of its network namespace ([`Watch`]), and never otherwise.
//!
//! | what | what comes of it |
//! |---|---|
//! | a link on the way is down, or has no carrier | the wire is down until it is up again |
//! | the bridge is deleted | down, until there is one of its name: the guest's end joins it as it was on the old one |
//! | the guest's end is taken out of the bridge | down, until somebody puts it back |
//! | the uplink is unplugged | down, until there is a NIC of its name, which joins the bridge |
//! | with `nat`, the host has a route by another link | the guest's connections leave by it |
//! | the guest's end is deleted, by itself or with a macvtap's NIC | lost: only a new wire helps ([`Wire::open`]) |
//!
//! Links are told by their numbers: one of the same name and another number is another link.

use std::time::{Duration, Instant};

use crate::error::HostError;
use crate::host::watch::{News, Watch};
use crate::host::wire_link::Role;
use crate::host::{Link, LinkId, Wiring};
use crate::wire::{Wire, bridge};
use crate::{BridgeConfig, Error, WireConfig};

/// Between two looks at the host's routes: a host may have as many as the internet, and one of them changes all the time.
const ROUTES: Duration = Duration::from_secs(1);

/// Before a link is tried again that could not be joined.
const AGAIN: Duration = Duration::from_secs(1);

/// What a wire is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Frames get through, as far as can be told from here.
    Up,
    /// They do not, and why: half a sentence.
    Down(String),
    /// The guest's end is gone, and can be made again: what happened.
    Lost(String),
}

impl Condition {
    /// Why frames do not get through.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Up => None,
            Self::Down(why) | Self::Lost(why) => Some(why),
        }
    }
}

/// A bridge or uplink that could not be joined. It is tried again when it has changed, but not at once: our own steps change it too.
#[derive(Debug)]
pub(super) struct Refused {
    link: u32,
    why: String,
    at: Instant,
    has_changed: bool,
}

impl Refused {
    fn new(link: u32, why: String) -> Self {
        Self { link, why, at: Instant::now(), has_changed: false }
    }

    /// When it is to be tried again, if at all.
    fn due(&self) -> Option<Instant> {
        self.has_changed.then(|| self.at + AGAIN)
    }

    fn is_due(&self) -> bool {
        self.due().is_some_and(|at| at <= Instant::now())
    }
}

impl Wire {
    /// The inode of the network namespace that its links are in.
    pub fn namespace(&self) -> u64 {
        self.wiring.namespace_inode()
    }

    /// A socket that hears of changes in its network namespace.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn watch(&mut self) -> Result<Watch, Error> {
        let watch = self.wiring.inside(|_| Watch::here())?;
        Ok(watch.map_err(|source| HostError::Reserve { source })?)
    }

    /// What it is like, by the last look.
    pub fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Looks what it is like after this `news`, and makes it whole again where it can. What it did is in its
    /// [notices](Self::take_notices).
    pub fn look(&mut self, news: &News) -> &Condition {
        if news.concerns_routes() && self.follows_routes() && self.routes_at.is_none() {
            self.routes_at = Some(self.routes_seen.map_or_else(Instant::now, |seen| seen + ROUTES));
        }
        if self.routes_at.is_some_and(|at| at <= Instant::now()) {
            (self.routes_at, self.routes_seen) = (None, Some(Instant::now()));
            let followed = self.wiring.inside(Wiring::follow_routes).and_then(|followed| followed);
            if let Err(error) = followed {
                let why =
                    format!("the guest's connections do not leave by new routes: {}", error.with_cause());
                // Every change of a route tries it again.
                if self.unfollowed.as_ref() != Some(&why) {
                    self.wiring.notice(why.clone());
                    self.unfollowed = Some(why);
                }
            }
        }
        if let Some(refused) = &mut self.refused {
            refused.has_changed |= news.concerns(refused.link);
        }
        if self.is_concerned(news) {
            let seen = self.look_anew();
            // The kernel does not say how it is: as before.
            match seen {
                Ok(condition) => self.condition = condition,
                Err(error) => log::debug!("cannot look at {}: {}", self.link(), error.with_cause()),
            }
        }
        &self.condition
    }

    /// Takes what the user should know of what it did since it was made: each a sentence.
    pub fn take_notices(&mut self) -> Vec<String> {
        self.wiring.take_notices()
    }

    /// When it is to be [looked](Self::look) at although there is no news.
    pub fn deadline(&self) -> Option<Instant> {
        let refused = self.refused.as_ref().and_then(Refused::due);
        self.routes_at.into_iter().chain(refused).min()
    }

    fn follows_routes(&self) -> bool {
        matches!(&self.config.wire, WireConfig::Tap(tap) if tap.nat)
    }

    fn is_concerned(&self, news: &News) -> bool {
        // Where something is missing, any link may be it.
        self.condition != Condition::Up && news.concerns_links()
            || self.refused.as_ref().is_some_and(Refused::is_due)
            || self.parts.links.iter().filter_map(|link| link.index).any(|index| news.concerns(index))
    }

    /// The link that has this role now; none where it is gone.
    fn find(&mut self, role: Role) -> Result<Option<Link>, Error> {
        let Some(at) = self.parts.links.iter().position(|link| link.role == role) else { return Ok(None) };
        let Some(index) = self.parts.links[at].index else { return Ok(None) };
        let asked = |refusal| HostError::Ask { what: "a link of the wire".to_owned(), refusal };
        let found = self.wiring.netlink().link_by_index(index).map_err(asked)?;
        if let Some(found) = &found {
            // It may be called otherwise now.
            self.parts.links[at].name.clone_from(&found.id.name);
            if role == Role::Guest {
                self.parts.spec.link.clone_from(&found.id.name);
            }
        }
        Ok(found)
    }

    /// What the link of that role was called when it was last seen.
    pub(super) fn name_of(&self, role: Role) -> Option<&str> {
        self.parts.links.iter().find(|link| link.role == role).map(|link| &*link.name)
    }

    fn look_anew(&mut self) -> Result<Condition, Error> {
        let Some(end) = self.find(Role::Guest)? else { return self.look_for_lost_end() };
        if !end.up {
            return Ok(down(format!("{} is down", end.id)));
        }
        match self.config.wire.clone() {
            WireConfig::Bridge(config) => self.look_at_bridge(&config, &end),
            WireConfig::Macvtap(_) => self.look_at_parent(&end),
            WireConfig::Tap(_) | WireConfig::Tun(_) | WireConfig::Fd(_) => Ok(Condition::Up),
        }
    }

    /// The guest's end is not there, or cannot be seen.
    fn look_for_lost_end(&mut self) -> Result<Condition, Error> {
        let seen = self.parts.links.iter().any(|link| link.role == Role::Guest && link.index.is_some());
        if !seen {
            return Ok(Condition::Up);
        }
        let link = self.link().to_owned();
        let gone = format!("{link} was deleted");
        if self.parts.stays {
            // It was somebody's own: who made it makes it again.
            return Ok(match self.wiring.find_link(&link)? {
                Some(_) => Condition::Lost(format!("{link} was deleted and made again")),
                None => down(format!("{gone}; the guest is on it again when there is one of that name")),
            });
        }
        let (on, name) = match &self.config.wire {
            // Whoever gave the descriptor has to give another one.
            WireConfig::Fd(_) => return Ok(down(gone)),
            WireConfig::Tap(_) | WireConfig::Tun(_) => return Ok(Condition::Lost(gone)),
            WireConfig::Macvtap(config) => (Role::Parent, config.parent.to_string()),
            WireConfig::Bridge(config) => (Role::Bridge, config.name.to_string()),
        };
        // It may be called otherwise now, or be another one of its name.
        let is_there = self.find(on)?.is_some() || self.wiring.find_link(&name)?.is_some();
        Ok(if is_there { Condition::Lost(gone) } else { down(format!("{name} is gone, and {link} with it")) })
    }

    fn look_at_parent(&mut self, end: &Link) -> Result<Condition, Error> {
        let Some(parent) = self.find(Role::Parent)? else {
            // In another namespace: what can be seen of it is the carrier that the macvtap has from it.
            return Ok(carrier(end));
        };
        Ok(if parent.up { carrier_of(end, &parent) } else { down(format!("{} is down", parent.id)) })
    }

    fn look_at_bridge(&mut self, config: &BridgeConfig, end: &Link) -> Result<Condition, Error> {
        let Some(bridge) = self.find(Role::Bridge)? else { return self.look_for_bridge(config, end) };
        if end.master != Some(bridge.id.index) {
            let (end, bridge) = (&end.id, &bridge.id);
            let again = format!("sudo ip link set dev {end} master {bridge}");
            return Ok(down(format!("{end} was taken out of {bridge}; to put it back: {again}")));
        }
        if !bridge.up {
            return Ok(down(format!("{} is down", bridge.id)));
        }
        if self.name_of(Role::Uplink).is_none() {
            return Ok(Condition::Up);
        }
        match self.find(Role::Uplink)? {
            None => self.look_for_uplink(config, &bridge.id),
            Some(uplink) if uplink.master != Some(bridge.id.index) => {
                Ok(down(format!("the uplink {} was taken out of {}", uplink.id, bridge.id)))
            }
            Some(uplink) if !uplink.up => Ok(down(format!("the uplink {} is down", uplink.id))),
            Some(uplink) => Ok(carrier(&uplink)),
        }
    }

    /// The bridge is gone: there may be another one of its name.
    fn look_for_bridge(&mut self, config: &BridgeConfig, end: &Link) -> Result<Condition, Error> {
        let name = config.name.as_str();
        let Some(bridge) = self.wiring.find_link(name)?.filter(|link| link.bridge.is_some()) else {
            return Ok(down(format!("{name} is gone; the guest joins it again when it is there")));
        };
        if let Some(why) = self.still_refused(bridge.id.index) {
            return Ok(down(why));
        }
        let (all, mac, port) = (self.config.clone(), self.mac(), end.id.clone());
        let joined = self.wiring.inside(|wiring| bridge::follow::rejoin(wiring, config, &all, mac, &port))?;
        match joined {
            Ok(joined) => {
                self.refused = None;
                self.put(Role::Bridge, &joined.bridge);
                if let Some(uplink) = &joined.uplink {
                    self.put(Role::Uplink, uplink);
                }
                self.wiring.notice(format!("{name} is there again, and {port} is a port of it"));
                self.look_anew()
            }
            Err(error) => {
                let why = format!("{port} cannot join the new {name}: {}", error.with_cause());
                Ok(self.refuse(bridge.id.index, why))
            }
        }
    }

    /// The uplink is unplugged: there may be another one of its name.
    fn look_for_uplink(&mut self, config: &BridgeConfig, bridge: &LinkId) -> Result<Condition, Error> {
        let name = config.uplink.as_ref().map_or_else(String::new, ToString::to_string);
        let gone = || Ok(down(format!("the uplink {name} is gone")));
        let Some(nic) = self.wiring.find_link(&name)? else { return gone() };
        if let Some(why) = self.still_refused(nic.id.index) {
            return Ok(down(why));
        }
        match self.wiring.inside(|wiring| bridge::follow::rejoin_uplink(wiring, config, bridge))? {
            Ok(None) => gone(),
            Ok(Some(nic)) => {
                self.refused = None;
                self.put(Role::Uplink, &nic);
                self.wiring.notice(format!("the uplink {name} is there again, and joins {bridge}"));
                self.look_anew()
            }
            Err(error) => {
                let why = format!("the new {name} cannot join {bridge}: {}", error.with_cause());
                Ok(self.refuse(nic.id.index, why))
            }
        }
    }

    /// Why the link could not be joined, until it is to be tried again.
    fn still_refused(&self, link: u32) -> Option<String> {
        let refused = self.refused.as_ref().filter(|refused| refused.link == link && !refused.is_due())?;
        Some(refused.why.clone())
    }

    fn refuse(&mut self, link: u32, why: String) -> Condition {
        // What was said on the way is said when it succeeds.
        drop(self.wiring.take_notices());
        self.refused = Some(Refused::new(link, why.clone()));
        down(why)
    }

    fn put(&mut self, role: Role, id: &LinkId) {
        let new = self.wiring.wire_link(id, role);
        self.parts.links.retain(|link| link.role != role);
        self.parts.links.push(new);
    }
}

fn down(why: String) -> Condition {
    Condition::Down(why)
}

fn carrier(link: &Link) -> Condition {
    carrier_of(link, link)
}

/// The carrier that `link` shows, which is that of `whose`.
fn carrier_of(link: &Link, whose: &Link) -> Condition {
    if link.carrier { Condition::Up } else { down(format!("{} has no carrier", whose.id)) }
}
