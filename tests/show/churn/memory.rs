//! How large are both daemons over time, and do they stay so?

use std::time::Duration;

use anyhow::{Context, bail};
use passant_tests::usage::Usage;
use tokio::time::{Instant, sleep_until};

/// Looks in all.
const LOOKS: u32 = 120;
/// The part of the time that counts as one quarter of it, and the one that counts as its end.
const QUARTER: (f64, f64) = (0.2, 0.3);
const END: (f64, f64) = (0.9, 1.0);
/// A show that is shorter ends before all that is kept for a while, or for a number of times, has filled up: it is held
/// against more.
const WHOLE: Duration = Duration::from_secs(10 * 60);
/// Rows of the table.
const ROWS: usize = 12;

/// Server and agent over time.
pub(super) struct Curve(Vec<Look>);

/// One look at both, so long after the beginning.
struct Look {
    after: Duration,
    at: [Usage; 2],
}

/// Looks at the processes `pids`, server and agent, for `length`.
///
/// # Errors
/// When one is gone.
pub(super) async fn watch(pids: [u32; 2], began: Instant, length: Duration) -> anyhow::Result<Curve> {
    let mut looks = Vec::new();
    for nth in 0..=LOOKS {
        let after = length * nth / LOOKS;
        sleep_until(began + after).await;
        let [server, agent] = pids.map(Usage::of);
        let at = [server.context("the server is gone")?, agent.context("the agent is gone")?];
        looks.push(Look { after, at });
    }
    Ok(Curve(looks))
}

impl Curve {
    /// How many times as large as at one quarter a daemon may be at the end, in tenths.
    const fn tenths(length: Duration) -> u64 {
        if length.as_secs() >= WHOLE.as_secs() { 11 } else { 13 }
    }

    /// As [`Curve::tenths`], in words.
    pub(super) fn most(length: Duration) -> String {
        let tenths = Self::tenths(length);
        format!("{}.{}", tenths / 10, tenths % 10)
    }

    /// Whether the server (0) or the agent (1) stayed as large as it was.
    ///
    /// # Errors
    /// When it did not, or the show was too short to tell.
    pub(super) fn flat(&self, nth: usize, length: Duration) -> anyhow::Result<String> {
        let within = |(from, to): (f64, f64)| {
            let (from, to) = (length.mul_f64(from), length.mul_f64(to));
            let looks = self.0.iter().filter(move |look| look.after >= from && look.after <= to);
            let mut sizes: Vec<u64> = looks.map(|look| look.at[nth].resident).collect();
            sizes.sort_unstable();
            sizes.get(sizes.len() / 2).copied()
        };
        let (Some(quarter), Some(end)) = (within(QUARTER), within(END)) else {
            bail!("the show was too short to tell");
        };
        let hundredths = end * 100 / quarter.max(1);
        let told = format!(
            "{quarter} KiB at one quarter, {end} KiB at the end: {}.{:02}x",
            hundredths / 100,
            hundredths % 100
        );
        if end * 10 <= quarter * Self::tenths(length) { Ok(told) } else { bail!(told) }
    }

    /// The curve in few lines.
    pub(super) fn table(&self) -> Vec<String> {
        let head = "      time   server resident  anonymous      CPU    agent resident  anonymous      CPU"
            .to_owned();
        let every = self.0.len().div_ceil(ROWS).max(1);
        let last = self.0.len().saturating_sub(1);
        let rows = self.0.iter().enumerate().filter(|(nth, _)| nth % every == 0 || *nth == last);
        let row = |Look { after, at: [server, agent] }: &Look| {
            let of = |usage: &Usage| {
                let seconds = usage.cpu.as_secs_f64();
                format!("{:>10} KiB {:>6} KiB {seconds:>6.1} s", usage.resident, usage.anonymous)
            };
            format!("  {:>6} s  {}  {}", after.as_secs(), of(server), of(agent))
        };
        [head].into_iter().chain(rows.map(|(_, look)| row(look))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A server that grows from one size to another half-way, and an agent that does not.
    fn curve(from: u64, to: u64) -> Curve {
        let usage = |resident| Usage {
            descriptors: 0,
            resident,
            anonymous: resident,
            threads: 1,
            cpu: Duration::ZERO,
        };
        let look = |nth| Look {
            after: HOUR * nth / LOOKS,
            at: [usage(if nth < LOOKS / 2 { from } else { to }), usage(1000)],
        };
        Curve((0..=LOOKS).map(look).collect())
    }

    #[test]
    fn a_tenth_more_is_flat_and_anything_beyond_is_not() {
        assert!(curve(1000, 1100).flat(0, HOUR).is_ok());
        assert!(curve(1000, 1101).flat(0, HOUR).is_err());
        assert!(curve(1000, 2000).flat(1, HOUR).is_ok(), "the other one");
        assert!(curve(2000, 1000).flat(0, HOUR).is_ok());
        assert!(Curve(Vec::new()).flat(0, HOUR).is_err());
    }

    #[test]
    fn the_table_begins_and_ends_where_the_curve_does() {
        let table = curve(1000, 1100).table();
        assert!(table[1].contains("     0 s") && table.last().unwrap().contains("  3600 s"), "{table:?}");
        assert!(table.len() <= ROWS + 2);
    }
}
