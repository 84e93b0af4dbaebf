//! Which flags has `passant stop`?

use std::time::Duration;

use clap::{Args, Subcommand};
use passant_core::{EntryId, Instance, SpiffeId, StopReason};

use super::span;

#[derive(Subcommand)]
pub(crate) enum Stop {
    /// Stop an entry: nothing is minted for it, and agents withdraw what they serve of it
    Entry {
        /// Its id
        #[arg(value_parser = EntryId::parse)]
        id: EntryId,
        #[command(flatten)]
        how: StopHow,
    },
    /// Stop all that an agent serves; unlike a banned one it stays attested
    Agent {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        agent: SpiffeId,
        #[command(flatten)]
        how: StopHow,
    },
    /// Stop one process on the node of an agent
    Instance {
        /// The agent's SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        agent: SpiffeId,
        /// The process, as `passant explain pid` names it on the node
        #[arg(value_name = "BOOT_ID/PID/START_TIME", value_parser = Instance::parse)]
        instance: Instance,
        #[command(flatten)]
        how: StopHow,
    },
    /// End a stop: what it held back is minted and served again
    Resume {
        #[command(subcommand)]
        target: ResumeTarget,
    },
    /// List the stops
    List,
    /// Show who has applied stops and who has not: exits with 3 if somebody has not
    Status {
        #[command(subcommand)]
        target: Option<StatusTarget>,
    },
}

#[derive(Subcommand)]
pub(crate) enum ResumeTarget {
    /// Of an entry
    Entry {
        /// Its id
        #[arg(value_parser = EntryId::parse)]
        id: EntryId,
        #[command(flatten)]
        how: StopHow,
    },
    /// Of all that an agent serves
    Agent {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        agent: SpiffeId,
        #[command(flatten)]
        how: StopHow,
    },
    /// Of one process on the node of an agent
    Instance {
        /// The agent's SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        agent: SpiffeId,
        /// The process
        #[arg(value_name = "BOOT_ID/PID/START_TIME", value_parser = Instance::parse)]
        instance: Instance,
        #[command(flatten)]
        how: StopHow,
    },
}

#[derive(Subcommand)]
pub(crate) enum StatusTarget {
    /// Of an entry
    Entry {
        /// Its id
        #[arg(value_parser = EntryId::parse)]
        id: EntryId,
    },
    /// Of all that an agent serves
    Agent {
        /// Its SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        agent: SpiffeId,
    },
    /// Of one process on the node of an agent
    Instance {
        /// The agent's SPIFFE ID
        #[arg(value_parser = SpiffeId::parse)]
        agent: SpiffeId,
        /// The process
        #[arg(value_name = "BOOT_ID/PID/START_TIME", value_parser = Instance::parse)]
        instance: Instance,
    },
}

#[derive(Args)]
pub(crate) struct StopHow {
    /// Why; it goes on record
    #[arg(long, value_name = "TEXT", value_parser = StopReason::parse)]
    pub(crate) reason: StopReason,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// How long to wait for agents.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Wait until all agents that it concerns have applied it, such as 10s: exits with 3 if some have not, and names them
    #[arg(long = "wait", value_name = "SPAN", value_parser = waiting)]
    pub(crate) within: Option<Duration>,
}

/// The longest wait; the call itself has to end in a minute.
const LONGEST: Duration = Duration::from_secs(50);

fn waiting(text: &str) -> Result<Duration, String> {
    let within = span(text)?;
    if within > LONGEST {
        return Err(format!("at most {} seconds are waited", LONGEST.as_secs()));
    }
    Ok(within)
}

impl Wait {
    /// As the wire counts it; 0 for none.
    pub(crate) fn millis(self) -> u32 {
        self.within.map_or(0, |within| u32::try_from(within.as_millis()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_has_an_end() {
        assert_eq!(waiting("50s"), Ok(LONGEST));
        assert!(waiting("51s").is_err() && waiting("now").is_err());
        assert_eq!((Wait::default().millis(), Wait { within: Some(LONGEST) }.millis()), (0, 50_000));
    }
}
