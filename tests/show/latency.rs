//! How are many measured times told? By what so many of a hundred stay below, and as a histogram in text.

use std::fmt::Write;
use std::time::Duration;

/// Upper ends of the histogram's rows, in milliseconds; what is above them all has a row of its own.
const ROWS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];
/// Columns of the longest bar.
const BAR: usize = 50;

/// Times of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one.
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Adds those of another.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest time that at least so many of a hundred do not exceed; zero without any.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// The main figures on one line.
    pub(crate) fn told(&self) -> String {
        let [half, most, nearly, all] = [50, 90, 99, 100].map(|percent| millis(self.percentile(percent)));
        format!("p50 {half}, p90 {most}, p99 {nearly}, max {all} ms ({} measured)", self.len())
    }

    /// A line for each row that lies between the first and the last with something in it.
    pub(crate) fn histogram(&self) -> Vec<String> {
        let mut counts = [0_usize; ROWS.len() + 1];
        for time in &self.0 {
            counts[ROWS.partition_point(|end| Duration::from_millis(*end) < *time)] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        let filled = |count: &usize| *count > 0;
        let (Some(first), Some(last)) = (counts.iter().position(filled), counts.iter().rposition(filled))
        else {
            return Vec::new();
        };
        (first..=last)
            .map(|row| {
                let mut line = match ROWS.get(row) {
                    Some(end) => format!("  <= {end:>5} ms "),
                    None => "   > 10000 ms ".to_owned(),
                };
                let bar = "#".repeat((counts[row] * BAR).div_ceil(most));
                write!(line, "{:>6} {bar}", counts[row]).expect("a string takes everything");
                line
            })
            .collect()
    }
}

/// In milliseconds, finely where that says something.
pub(crate) fn millis(time: Duration) -> String {
    let micros = time.as_micros();
    if micros < 100_000 {
        format!("{}.{}", micros / 1000, micros % 1000 / 100)
    } else {
        (micros / 1000).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|millis| latencies.push(Duration::from_millis(millis)));
        latencies
    }

    #[test]
    fn percentiles_are_measured_times_and_the_hundredth_is_the_longest() {
        let hundred = of((1..=100).rev());
        let at = |percent| hundred.percentile(percent).as_millis();
        assert_eq!((at(50), at(90), at(99), at(100)), (50, 90, 99, 100));
        assert_eq!(of([7]).percentile(99), Duration::from_millis(7));
        assert_eq!(of([1, 2]).percentile(99), Duration::from_millis(2), "never too small");
        assert_eq!(of([]).percentile(99), Duration::ZERO);
    }

    #[test]
    fn a_time_at_the_end_of_a_row_is_in_it() {
        let lines = of([1, 2, 2, 6, 20_000]).histogram();
        assert_eq!(lines.len(), ROWS.len() + 1);
        let count = |line: &str| line.split_whitespace().nth(3).unwrap().parse::<usize>().unwrap();
        assert_eq!((count(&lines[0]), count(&lines[1]), count(&lines[2]), count(&lines[3])), (1, 2, 0, 1));
        assert!(lines[13].contains("> 10000 ms"), "{lines:?}");
        assert!(of([]).histogram().is_empty());
    }

    #[test]
    fn short_times_are_told_finely() {
        assert_eq!(millis(Duration::from_micros(1_250)), "1.2");
        assert_eq!(millis(Duration::from_millis(100)), "100");
    }
}
