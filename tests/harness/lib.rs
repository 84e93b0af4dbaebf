//! How do tests run the real daemons? Each test has a [`site::Site`]: a folder with its own server, agents and sockets.
//!
//! | module | what it holds |
//! |---|---|
//! | [`binaries`] | the daemons and the command line, built once |
//! | [`daemon`] | one running process, its log, and how it is stopped |
//! | [`site`] | one trust domain on this machine: configuration, server, agents, command line |
//! | [`api`] | clients of the operators' socket and of the Workload API |
//! | [`node_ca`] | certificates for the x509pop attestor |
//! | [`conformance`] | which requirements of the specifications a test meets |
//! | [`node`] | a node that attests and calls the server, as an agent does |
//! | [`hostile`] | a client that keeps no rule of HTTP/2 |
//! | [`port`] | a port for a daemon, its own even while it is away |
//! | [`usage`] | what a process uses of the machine |
//! | [`tls`] | a client of the TLS port that shows whatever it likes |
//! | [`wait`] | waiting for a condition, with a bound |

pub mod api;
pub mod binaries;
pub mod conformance;
pub mod daemon;
pub mod hostile;
pub mod node;
pub mod node_ca;
pub mod port;
pub mod site;
pub mod tls;
pub mod usage;
pub mod wait;
