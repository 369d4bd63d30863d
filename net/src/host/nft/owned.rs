//! A table that is in force as long as we are.

use std::fmt;

use super::{Family, Nft, Rule, Table};
use crate::host::{Refusal, Wiring};

/// A table in force. Dropped, it goes; it goes with the process too.
pub(crate) struct OwnTable {
    nft: Nft,
    family: Family,
    name: String,
}

impl OwnTable {
    /// Puts `table` in force.
    pub(crate) fn make(table: &Table) -> Result<Self, Refusal> {
        let mut nft = Nft::new();
        nft.make(table)?;
        Ok(Self { nft, family: table.family, name: table.name.clone() })
    }

    /// Puts `table` in force, and tells it.
    pub(crate) fn make_told(table: &Table, wiring: &Wiring) -> Result<Self, Refusal> {
        let this = Self::make(table)?;
        table.steps().into_iter().for_each(|step| wiring.tell(step.command, step.why));
        Ok(this)
    }

    /// Puts `table`, which has its name, in force in its place, and tells it.
    pub(crate) fn replace_told(&mut self, table: &Table, wiring: &Wiring) -> Result<(), Refusal> {
        self.nft.replace(table)?;
        table.steps().into_iter().for_each(|step| wiring.tell(step.command, step.why));
        Ok(())
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many packets that came in by the link of that index its rules have dropped.
    pub(crate) fn dropped(&mut self, link: u32) -> Result<u64, Refusal> {
        self.nft.dropped(self.family, &self.name, None, link)
    }

    /// How many packets its rules in one chain have dropped, in a table of the family `netdev`.
    pub(crate) fn dropped_in(&mut self, chain: &str) -> Result<u64, Refusal> {
        self.nft.dropped(self.family, &self.name, Some(chain), 0)
    }
}

impl OwnTable {
    /// Adds rules at the end of one of its chains, all or none.
    pub(crate) fn append(&mut self, chain: &str, rules: &[Rule]) -> Result<(), Refusal> {
        self.nft.append(self.family, &self.name, chain, rules)
    }
}

impl Drop for OwnTable {
    fn drop(&mut self) {
        let command = format!("nft delete table {} {}", self.family, self.name);
        match self.nft.remove(self.family, &self.name) {
            Ok(()) => log::debug!("undone: {command}"),
            Err(refusal) if refusal.errno() == Some(libc::ENOENT) => {}
            Err(refusal) => log::warn!("cannot undo a change of the host ({command}): {refusal}"),
        }
    }
}

impl fmt::Debug for OwnTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}
