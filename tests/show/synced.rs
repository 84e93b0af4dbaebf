//! How did an agent learn of changes: was it told, or did it ask again and again? By its own metrics.

use std::fmt;

use anyhow::{Context, ensure};
use passant_tests::daemon::Daemon;

use crate::shipped;

/// What an agent counted until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Synced {
    /// Updates that the server pushed.
    pushed: u64,
    /// Of them, those that did not add up.
    faults: u64,
    /// Watches of the server that have ended, however they did.
    watches: u64,
    /// Synchronizations by polling that went well.
    polls: u64,
}

impl Synced {
    /// Asks the agent's probe.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn of(agent: &Daemon) -> anyhow::Result<Self> {
        Self::read(&shipped::metrics(agent, "passant_agent_").await?)
    }

    /// Reads samples, each on a line.
    fn read(samples: &str) -> anyhow::Result<Self> {
        let mut synced = Self::default();
        for line in samples.lines() {
            let (series, value) = line.rsplit_once(' ').context("a sample")?;
            let count = match series.split('{').next().unwrap_or_default() {
                "passant_agent_updates_total" => &mut synced.pushed,
                "passant_agent_push_faults_total" => &mut synced.faults,
                "passant_agent_watches_total" => &mut synced.watches,
                "passant_agent_syncs_total" if series.contains("\"done\"") => &mut synced.polls,
                _ => continue,
            };
            *count += value.parse::<u64>()?;
        }
        Ok(synced)
    }

    /// Whether it was told of each of so many `changes`, and told right.
    ///
    /// # Errors
    /// When it was not.
    pub(crate) fn by_push(&self, changes: u64) -> anyhow::Result<String> {
        ensure!(self.pushed >= changes && self.faults == 0, "{self}");
        Ok(self.to_string())
    }
}

impl fmt::Display for Synced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pushed, faults, watches, polls } = self;
        write!(
            f,
            "{pushed} updates pushed, {faults} that did not add up, {watches} watches ended; {polls} polls"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_polls_was_not_told() {
        let samples = "passant_agent_syncs_total{outcome=\"done\"} 3\npassant_agent_syncs_total{outcome=\"failed\"} 7\n\
                       passant_agent_sync_seconds_sum 0.5";
        let polling = Synced::read(samples).unwrap();
        assert_eq!(polling, Synced { polls: 3, ..Synced::default() });
        assert!(polling.by_push(1).is_err());
    }

    #[test]
    fn an_agent_was_told_when_each_change_was_pushed_and_added_up() {
        let samples = |faults: u64| {
            format!(
                "passant_agent_updates_total 5\npassant_agent_push_faults_total {faults}\n\
                 passant_agent_watches_total{{outcome=\"done\"}} 1\npassant_agent_watches_total{{outcome=\"failed\"}} 2"
            )
        };
        let told = Synced::read(&samples(0)).unwrap();
        assert_eq!(told.watches, 3);
        assert!(told.by_push(5).is_ok() && told.by_push(6).is_err());
        assert!(Synced::read(&samples(1)).unwrap().by_push(5).is_err());
    }
}
