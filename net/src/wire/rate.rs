//! A guest's rate, where the host keeps it.

use crate::error::VhostError;
use crate::host::rate::HostRate;
use crate::host::wire_link::Role;
use crate::wire::Wire;
use crate::{Error, RateLimits, VhostMode, WireConfig};

impl Wire {
    /// Holds the guest to these limits from now on: on the host's link where vhost-net carries the frames; else whoever carries
    /// them has to do it, and the wire only notes it for [`config`](Self::config).
    ///
    /// # Errors
    /// The host refuses; then the limits before hold.
    pub fn hold_to(&mut self, limits: RateLimits) -> Result<(), Error> {
        if self.carried()
            && let Err(error) = self.hold_on_host(&limits)
        {
            let before = self.config.rate;
            if let Err(error) = self.hold_on_host(&before) {
                log::warn!("{} is not held to {before} any more: {}", self.link(), error.with_cause());
            }
            return Err(error);
        }
        self.config.rate = limits;
        Ok(())
    }

    /// Holds a guest to the limits of the configuration whose frames vhost-net is about to carry; with `vhost=auto`, wirevm's own
    /// threads carry them if the host cannot keep the limits.
    pub(super) fn begin_rate(&mut self) -> Result<(), Error> {
        let limits = self.config.rate;
        if !self.carried() || limits.is_off() {
            return Ok(());
        }
        self.config.rate = RateLimits::default();
        match (self.hold_to(limits), self.config.vhost) {
            (Err(error), VhostMode::Auto) => {
                self.notices.push(format!(
                    "wirevm's own threads carry the frames, for the host cannot keep {limits}: {}",
                    error.with_cause()
                ));
                self.vhosts.clear();
                self.config.vhost = VhostMode::Off;
                (self.parts.spec.vhosts, self.parts.spec.listens, self.parts.listener) = (0, false, None);
                self.config.rate = limits;
                Ok(())
            }
            (held, _) => held,
        }
    }

    /// Holds the guest to these limits on the host's link, whoever carries the frames.
    ///
    /// # Errors
    /// The host refuses, with a [`remedy`](Error::remedy). Some of it may be done then.
    pub fn hold_on_host(&mut self, limits: &RateLimits) -> Result<(), Error> {
        if self.rate.is_none() {
            // Of what was never limited there is nothing to take back.
            if limits.is_off() {
                return Ok(());
            }
            let end = self.parts.links.iter().find(|link| link.role == Role::Guest);
            let unseen = || VhostError::Unseen { link: self.link().to_owned() };
            let index = end.and_then(|end| end.index).ok_or_else(unseen)?;
            let stays = self.parts.stays || matches!(self.config.wire, WireConfig::Fd(_));
            self.rate = Some(HostRate::new(index, stays));
        }
        let Some(held) = &mut self.rate else { return Ok(()) };
        self.wiring.inside(|wiring| wiring.hold_to(held, limits))?
    }
}
