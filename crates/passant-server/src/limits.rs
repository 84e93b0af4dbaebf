//! What is bounded in the server, and why? What server and agent share is in `passant_core::limits`.

/// Changes that wait for the journal; more callers wait in line, bounded by the calls that the server takes.
pub const JOURNAL_QUEUE: usize = 1024;
/// Changes made durable together. Past a hundred, one more adds to the latency of all and saves little.
pub const JOURNAL_BATCH: usize = 256;
/// Commits kept for readers that follow the journal; the one who is further behind reads all objects anew.
pub const JOURNAL_COMMITS_KEPT: u64 = 10_000;
/// Objects pruned in one commit, so that others need not wait long behind it.
pub const PRUNE_CHANGES: usize = 1_000;
/// Changes in one record of the store's journal. Keeps a record far below the size from which sled puts it in a file
/// of its own.
pub const STORE_RECORD_CHANGES: usize = 64;
/// sled's page cache, whose default of 1 GiB fills up. State is read once, at start; this is enough to write to.
pub const STORE_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Groups of intents that wait for the decision record; more callers wait in line.
pub const RECORD_QUEUE: usize = 1024;
/// Messages written to the decision record with one sync.
pub const RECORD_BATCH: usize = 256;
