//! The NICs of a machine by their numbers, which stay while others come and go.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use super::nics::Nic;

/// NICs, by rising number.
#[derive(Default)]
pub(crate) struct Nics(BTreeMap<usize, Nic>);

impl Nics {
    pub(crate) fn insert(&mut self, nic: Nic) {
        self.0.insert(nic.number, nic);
    }

    pub(crate) fn remove(&mut self, number: usize) -> Option<Nic> {
        self.0.remove(&number)
    }

    pub(crate) fn get(&self, number: usize) -> Option<&Nic> {
        self.0.get(&number)
    }

    pub(crate) fn get_mut(&mut self, number: usize) -> Option<&mut Nic> {
        self.0.get_mut(&number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Nic> {
        self.0.values()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Nic> {
        self.0.values_mut()
    }

    /// The numbers that there are.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        self.0.keys().copied().collect()
    }

    /// The NICs, the last one first.
    pub(crate) fn into_reversed(self) -> impl Iterator<Item = Nic> {
        self.0.into_values().rev()
    }
}

impl FromIterator<Nic> for Nics {
    fn from_iter<I: IntoIterator<Item = Nic>>(nics: I) -> Self {
        Self(nics.into_iter().map(|nic| (nic.number, nic)).collect())
    }
}

impl Index<usize> for Nics {
    type Output = Nic;

    /// # Panics
    /// There is no such NIC.
    fn index(&self, number: usize) -> &Nic {
        &self.0[&number]
    }
}

impl IndexMut<usize> for Nics {
    /// # Panics
    /// There is no such NIC.
    fn index_mut(&mut self, number: usize) -> &mut Nic {
        self.0.get_mut(&number).expect("there is such a NIC")
    }
}
