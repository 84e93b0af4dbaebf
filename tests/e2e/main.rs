//! Does the shipped thing run? Real binaries, real sockets, real processes; each test has a folder of its own.

mod backup;
mod bad_input;
mod command_line;
mod disk;
mod hostile_agent;
mod hostile_server;
mod lifetimes;
mod main_job;
mod operations;
mod outage;
mod standing;
mod stops;
mod store;
