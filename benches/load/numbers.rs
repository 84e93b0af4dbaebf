//! How do counts become figures, and many figures a few?

use serde::{Deserialize, Serialize};

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "nothing here is counted beyond 2 to the 53")]
pub(crate) const fn figure(count: usize) -> f64 {
    count as f64
}

/// How the values of one kind are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of `values`, in any order; none of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let most = *sorted.last()?;
        let at = |percent: usize| quantile(&sorted, percent);
        Some(Self { count: sorted.len(), p50: at(50), p90: at(90), p99: at(99), most })
    }
}

/// The value that `percent` of the sorted values do not exceed.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// The values that 0, 1, ..., 100 percent of `values` do not exceed; none of no values.
pub(crate) fn quantiles(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { Vec::new() } else { (0..=100).map(|percent| quantile(&sorted, percent)).collect() }
}

/// The middle value of `values`; none of no values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.p50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        let spread = Spread::of(&values).unwrap();
        assert_eq!((spread.p50, spread.p90, spread.p99, spread.most), (100.0, 180.0, 198.0, 200.0));
        let one = Spread::of(&[7.0]).unwrap();
        assert_eq!((one.count, one.p50, one.p99), (1, 7.0, 7.0));
        assert_eq!(Spread::of(&[]), None);
    }
}
