//! Real binaries, real sockets: see each module.
