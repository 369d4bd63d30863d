//! What the host has on a link, and the steps in which it moves to another one: from a NIC to the bridge that it becomes a port of.
//!
//! **What goes back is what the bridge has at the end**: a lease may have been renewed on it, an address or a route added or
//! removed. So a move that was made whole has a [`Moved`] as the last line of its record, and before anything of the record is
//! undone, its lines are made anew of what is on the bridge then.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::announce::hears_routers;
use super::{Change, LinkAddress, LinkId, LinkNeighbour, LinkRoute, Netlink, Refusal};

/// All that the host has on a link and that can move; what the kernel makes and keeps by itself there is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Belongings {
    pub(crate) addresses: Vec<LinkAddress>,
    /// In the order to give them in.
    pub(crate) routes: Vec<LinkRoute>,
    /// Those that the kernel has learned from a router: it keeps them itself, on any link.
    pub(crate) learned: Vec<LinkRoute>,
    pub(crate) neighbours: Vec<LinkNeighbour>,
}

/// One step of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MoveStep {
    /// None where the kernel does it by itself, beside another step.
    pub(crate) change: Option<Change>,
    pub(crate) undo: Change,
    pub(crate) why: &'static str,
}

impl MoveStep {
    fn new(change: Change, undo: Change, why: &'static str) -> Self {
        Self { change: Some(change), undo, why }
    }
}

impl Belongings {
    pub(crate) fn of(netlink: &mut Netlink, link: &LinkId) -> Result<Self, Refusal> {
        let routes = netlink.routes_over(link)?;
        Ok(Self {
            addresses: netlink.addresses_of(link)?,
            routes: routes.routes,
            learned: routes.learned,
            neighbours: netlink.neighbours_of(link)?,
        })
    }

    /// True where there is nothing but the link's own address.
    fn is_empty(&self) -> bool {
        let Self { addresses, routes, learned, neighbours } = self;
        addresses.iter().all(LinkAddress::is_link_local)
            && routes.is_empty()
            && learned.is_empty()
            && neighbours.is_empty()
    }

    fn has_address(&self, address: &LinkAddress) -> bool {
        self.addresses.iter().any(|other| other.name() == address.name())
    }

    fn has_route(&self, route: &LinkRoute) -> bool {
        self.routes.iter().any(|other| other.is(route))
    }

    fn has_learned(&self, route: &LinkRoute) -> bool {
        self.learned.iter().any(|other| other.is_by_the_same_router(route))
    }

    fn has_neighbour(&self, neighbour: &LinkNeighbour) -> bool {
        self.neighbours.iter().any(|other| other.is_of_the_same_address(neighbour))
    }

    /// True where the address is in a subnet of one of these.
    fn reach(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|on_link| on_link.contains(address))
    }

    /// The first steps, which leave the link `from` as it is.
    pub(crate) fn arrival(&self, from: &LinkId, to: &LinkId) -> Vec<MoveStep> {
        let announcement = Change::Announce(from.clone(), self.addresses.iter().map(|a| a.local).collect());
        let mut steps = vec![MoveStep { change: None, undo: announcement, why: "" }];
        steps.extend(self.addresses.iter().map(|address| {
            let theirs = address.for_link(from, to);
            let undo = Change::TakeAddress(to.clone(), theirs.clone());
            let why = "the host is on the bridge from now on";
            MoveStep::new(Change::GiveAddress(to.clone(), theirs), undo, why)
        }));
        steps.extend(self.neighbours.iter().flat_map(|neighbour| {
            let undo = Change::TakeNeighbour(to.clone(), neighbour.clone());
            let give = Change::GiveNeighbour(to.clone(), neighbour.clone());
            // The kernel forgets it with the port's last address of IPv4.
            let back = Change::GiveNeighbour(from.clone(), neighbour.clone());
            [
                MoveStep::new(give, undo, "whom the host knew there it knows here"),
                MoveStep { change: None, undo: back, why: "" },
            ]
        }));
        steps
    }

    /// The other steps, after which it is all on the link `to`, a bridge, and `from` is a port of it.
    pub(crate) fn departure(&self, from: &LinkId, to: &LinkId) -> Vec<MoveStep> {
        let join = Change::Join(from.clone(), to.clone());
        let join = MoveStep::new(join, Change::Leave(from.clone(), to.index), "the bridge's way out");
        let mut steps = self.give_routes(to, true);
        steps.push(join);
        steps.extend(self.take(from, true));
        steps.extend(self.give_routes(to, false));
        for route in &self.learned {
            let of = |link: &LinkId| {
                let route = route.clone();
                (Change::LearnRoute(link.clone(), route.clone()), Change::UnlearnRoute(link.clone(), route))
            };
            let [(give, take), (give_back, take_there)] = [of(to), of(from)];
            let why = "until the router speaks on the bridge";
            // Only the router gives what is no default route, when it is asked.
            if route.is_default() {
                steps.push(MoveStep::new(give, take, why));
                steps.push(MoveStep::new(take_there, give_back, "and no more by the port"));
            } else {
                steps.push(MoveStep::new(take_there, give_back, "the router gives it to the bridge"));
            }
        }
        steps.extend(self.take(from, false));
        steps
    }

    fn give_routes(&self, to: &LinkId, ipv4: bool) -> Vec<MoveStep> {
        let routes = self.routes.iter().filter(|route| route.is_ipv4() == ipv4);
        let give = |route: &LinkRoute| {
            let undo = Change::TakeRoute(to.clone(), route.clone());
            MoveStep::new(
                Change::GiveRoute(to.clone(), route.clone()),
                undo,
                "the host's ways go by the bridge",
            )
        };
        routes.map(give).collect()
    }

    fn take(&self, from: &LinkId, ipv4: bool) -> Vec<MoveStep> {
        let routes = self.routes.iter().filter(|route| route.is_ipv4() == ipv4).rev();
        let routes = routes.map(|route| {
            let undo = Change::GiveRoute(from.clone(), route.clone());
            MoveStep::new(Change::TakeRoute(from.clone(), route.clone()), undo, "and no more by the port")
        });
        let addresses = self.addresses.iter().filter(|address| address.local.is_ipv4() == ipv4).rev();
        routes
            .chain(addresses.map(|address| {
                let undo = Change::GiveAddress(from.clone(), address.clone());
                let take = Change::TakeAddress(from.clone(), address.clone());
                MoveStep::new(take, undo, "the port has no address")
            }))
            .collect()
    }
}

/// A move that was made whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) from: LinkId,
    pub(crate) to: LinkId,
    /// What was on `to` before.
    pub(crate) before: Belongings,
    pub(crate) moved: Belongings,
}

impl Moved {
    /// The same from another link, which has the place of the first one now.
    pub(crate) fn of_another(self, from: LinkId) -> Self {
        Self { from, ..self }
    }

    /// True for an undo of this move.
    pub(crate) fn has(&self, undo: &Change) -> bool {
        match undo {
            Change::Moved(other) => (other.from.index, other.to.index) == (self.from.index, self.to.index),
            Change::GiveAddress(link, _)
            | Change::GiveRoute(link, _)
            | Change::LearnRoute(link, _)
            | Change::GiveNeighbour(link, _)
            | Change::Announce(link, _)
            | Change::Leave(link, _) => link.index == self.from.index,
            Change::TakeAddress(link, _)
            | Change::TakeRoute(link, _)
            | Change::UnlearnRoute(link, _)
            | Change::TakeNeighbour(link, _) => link.index == self.to.index,
            _ => false,
        }
    }

    /// The undos of this move as the links are now, in the order of the changes; none where somebody was killed at them, or did them
    /// by hand: then those of the record are right, for what is on both links cannot be told from what came.
    pub(crate) fn undos(&self, netlink: &mut Netlink) -> Result<Option<Vec<Change>>, Refusal> {
        let Self { from, to, .. } = self;
        let is_port = netlink.link_by_index(from.index)?.is_some_and(|link| link.master == Some(to.index));
        let now = Belongings::of(netlink, to)?;
        let is_back = |address: &LinkAddress| self.moved.has_address(address) || now.has_address(address);
        if Belongings::of(netlink, from)?.addresses.iter().any(is_back) {
            return Ok(None);
        }
        let (back, strays) = self.divide(now, hears_routers(from));
        let take = |address| Change::TakeAddress(to.clone(), address);
        let mut undos: Vec<_> = strays.addresses.into_iter().map(take).collect();
        undos.extend(strays.learned.into_iter().map(|route| Change::UnlearnRoute(to.clone(), route)));
        let steps = back.arrival(from, to).into_iter().chain(back.departure(from, to));
        undos.extend(steps.map(|step| step.undo));
        // Somebody may have put it elsewhere.
        undos.retain(|undo| is_port || !matches!(undo, Change::Leave(..)));
        Ok(Some(undos))
    }

    /// What of that which is on the bridge `now` goes back, as the NIC has it; and what goes with the uplink: the kernel made it of
    /// what a router said there, and makes it anew for the NIC where that `hears` routers.
    ///
    /// Where the bridge had nothing before, everything goes back; else what came, and what leads or belongs where that does.
    fn divide(&self, now: Belongings, hears: bool) -> (Belongings, Belongings) {
        let Self { from, to, before, moved } = self;
        let all = before.is_empty();
        let new = now.addresses.into_iter().filter(|address| !before.has_address(address));
        let (came, made): (Vec<_>, Vec<_>) =
            new.partition(|address| moved.has_address(address) || !address.is_autoconfigured());
        let made = made.into_iter().filter(|address| all || moved.reach(address.local));
        let belongs = |address: IpAddr| all || moved.reach(address);
        let goes = |address: &LinkAddress| {
            moved.has_address(address) || !address.is_link_local() && belongs(address.local)
        };
        let came: Vec<_> = came.into_iter().filter(goes).collect();
        let by_address = |route: &LinkRoute| came.iter().any(|address| route.comes_with(address));
        let leads_there = |route: &LinkRoute| {
            let ends = [route.gateway(), route.source()];
            ends.into_iter().flatten().any(belongs)
        };
        let routes = now.routes.into_iter().filter(|route| {
            let goes = all || moved.has_route(route) || leads_there(route);
            goes && !before.has_route(route) && !by_address(route)
        });
        let learned = now.learned.into_iter().filter(|route| !before.has_learned(route));
        let (learned, forgotten) = learned.partition(|route| hears || moved.has_learned(route));
        let neighbours = now.neighbours.into_iter().filter(|neighbour| {
            let goes = moved.has_neighbour(neighbour) || belongs(neighbour.address);
            goes && !before.has_neighbour(neighbour)
        });
        let back = Belongings {
            routes: routes.collect(),
            learned,
            neighbours: neighbours.collect(),
            addresses: came.iter().map(|address| address.for_link(to, from)).collect(),
        };
        let strays = Belongings { addresses: made.collect(), learned: forgotten, ..Belongings::default() };
        (back, strays)
    }
}
