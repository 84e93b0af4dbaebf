//! Table of contents.

use std::process::ExitCode;

mod cli;

/// A batch of X509-SVIDs is thousands of small pieces, made by threads that sign and dropped by those that answer, and every
/// connection is some dozens that live for hours: in that it takes less of both time and memory than glibc's allocator.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::run()
}
