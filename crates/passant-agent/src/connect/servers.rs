//! Which of the servers of the trust domain is asked?

use std::sync::atomic::{AtomicUsize, Ordering};

use passant_core::Host;
use tracing::info;

use crate::config::{ServerAddress, ServerAddresses};

/// The addresses of all servers, and the one that is used: as long as it answers, there is no reason to leave it.
pub(super) struct Servers {
    addresses: ServerAddresses,
    at: AtomicUsize,
}

impl Servers {
    /// Begins with any of them, so that the agents of a fleet spread over its servers.
    pub(super) fn new(addresses: ServerAddresses, host: &Host) -> Self {
        let draw = usize::from(u16::from_be_bytes(host.random_bytes()));
        let at = AtomicUsize::new(draw % addresses.all().len());
        Self { addresses, at }
    }

    /// Whether there is another one to go to.
    pub(super) fn are_several(&self) -> bool {
        self.addresses.all().len() > 1
    }

    /// The one that is used.
    pub(super) fn current(&self) -> &ServerAddress {
        &self.addresses.all()[self.at.load(Ordering::SeqCst)]
    }

    /// All of them once, the one that is used first, each with its place.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = (usize, &ServerAddress)> {
        let (all, at) = (self.addresses.all(), self.at.load(Ordering::SeqCst));
        let places = (at..all.len()).chain(0..at);
        places.map(|place| (place, &all[place]))
    }

    /// The one at `place` does not answer: the next one is used, unless another already is.
    pub(super) fn leave(&self, place: usize) {
        let next = (place + 1) % self.addresses.all().len();
        let is_first_to_leave =
            self.at.compare_exchange(place, next, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if is_first_to_leave && self.are_several() {
            info!(next = %self.current(), "the server is left for the next one");
        }
    }

    /// The one that is used is of no use.
    pub(super) fn leave_current(&self) {
        self.leave(self.at.load(Ordering::SeqCst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(names: &[&str]) -> Servers {
        let all = names.iter().map(|name| ServerAddress::parse(name).unwrap()).collect();
        Servers::new(ServerAddresses::new(all).unwrap(), &Host::system())
    }

    #[test]
    fn one_that_answers_is_kept_and_one_that_does_not_is_left_for_the_next() {
        let servers = servers(&["a:1", "b:1", "c:1"]);
        let first = servers.current().to_string();
        let turn: Vec<(usize, String)> =
            servers.in_turn().map(|(place, address)| (place, address.to_string())).collect();
        assert_eq!((turn.len(), &turn[0].1), (3, &first));
        servers.leave(turn[0].0);
        assert_eq!(servers.current().to_string(), turn[1].1);
        servers.leave(turn[0].0);
        assert_eq!(servers.current().to_string(), turn[1].1, "it was left already");
        servers.leave_current();
        servers.leave_current();
        assert_eq!(servers.current().to_string(), first);
    }

    #[test]
    fn a_fleet_begins_everywhere() {
        let begun: std::collections::BTreeSet<String> =
            (0..200).map(|_| servers(&["a:1", "b:1", "c:1"]).current().to_string()).collect();
        assert_eq!(begun.len(), 3);
        let alone = servers(&["a:1"]);
        alone.leave_current();
        assert_eq!((alone.current().to_string(), alone.are_several()), ("a:1".to_owned(), false));
    }
}
