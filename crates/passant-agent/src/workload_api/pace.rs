//! How fast may a workload make the server sign?

use std::time::Duration;

use passant_core::Refusal;
use passant_daemon::buckets::Buckets;
use passant_proto::status;
use tonic::Status;

use super::caller::Caller;
use super::limits::{NEW_JWTS, NEW_JWTS_PER_USER};

/// Counts the JWT-SVIDs that the server is asked for, by process and by user.
#[derive(Debug)]
pub(super) struct Pace {
    of_process: Buckets<Option<(u32, u64)>>,
    of_user: Buckets<u32>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            of_process: Buckets::new(NEW_JWTS.0, NEW_JWTS.1),
            of_user: Buckets::new(NEW_JWTS_PER_USER.0, NEW_JWTS_PER_USER.1),
        }
    }

    /// Counts `wanted` new ones for `caller`.
    ///
    /// # Errors
    /// ResourceExhausted, with when to ask again, for whoever has asked for too many.
    pub(super) fn take(&self, caller: &Caller, wanted: usize) -> Result<(), Status> {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let of_process = self.of_process.take(caller.process(), wanted);
        of_process.map_err(|wait| refused("process", NEW_JWTS.1, wait))?;
        let of_user = self.of_user.take(caller.uid(), wanted);
        of_user.map_err(|wait| refused("user", NEW_JWTS_PER_USER.1, wait))
    }
}

fn refused(whose: &str, rate: u32, wait: Duration) -> Status {
    let refusal = Refusal::exhausted(format!(
        "too many new JWT-SVIDs for this {whose}: {rate} a second are fetched; keep those that are valid, or ask again in \
         {} s",
        wait.as_millis().div_ceil(1000)
    ));
    status::to_status(&refusal.retry_in(wait))
}

#[cfg(test)]
mod tests {
    use passant_daemon::log_rate::LogRate;
    use tokio::net::UnixStream;
    use tonic::Code;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_asks_for_ever_new_tokens_is_told_when_to_come_again() {
        let (near, _far) = UnixStream::pair().unwrap();
        let caller = Caller::of(&near, 7, &LogRate::default()).unwrap();
        let pace = Pace::new();
        for _ in 0..NEW_JWTS.0 {
            pace.take(&caller, 1).unwrap();
        }
        pace.take(&caller, 0).unwrap();
        let refused = pace.take(&caller, 1).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("for this process"), "{refused}");
        let pushback = refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
        let wait = status::from_status(&refused).retry_after.unwrap();
        assert!(Duration::from_millis(pushback.parse().unwrap()) >= wait);
        tokio::time::advance(wait).await;
        pace.take(&caller, 1).unwrap();
    }
}
