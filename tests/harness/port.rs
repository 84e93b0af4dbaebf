//! Which port is free when a daemon binds it, and still is when it is started again after a crash?

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to outgoing connections (32768 to 60999, unless told otherwise): while a daemon is away, anybody's
/// connection could take one of them, even that of a client that tries to reach it.
const FIRST: u16 = 12_000;
const PORTS: u16 = 20_000;

/// A port of 127.0.0.1 on which nobody listens, and which no other call of this process gives soon.
///
/// # Errors
/// When none can be had.
pub fn free_port() -> io::Result<u16> {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    // Processes begin at places of their own.
    let next = NEXT.get_or_init(|| {
        let some = RandomState::new().hash_one(()) % u64::from(PORTS);
        AtomicU16::new(u16::try_from(some).unwrap_or(0))
    });
    let mut refused = None;
    for _ in 0..PORTS {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % PORTS;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_in_a_row_nor_one_of_outgoing_connections() {
        let ports: Vec<u16> = (0..100).map(|_| free_port().unwrap()).collect();
        assert!(ports.windows(2).all(|two| two[0] != two[1]));
        assert!(ports.iter().all(|port| (FIRST..32_768).contains(port)), "{ports:?}");
    }
}
