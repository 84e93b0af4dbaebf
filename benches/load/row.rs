//! What is a row of the report?

use std::collections::BTreeMap;

use serde::Serialize;

use crate::numbers::{Spread, quantiles};

/// One question.
#[derive(Debug)]
pub(crate) struct Row {
    /// Names it on the command line; unique.
    pub(crate) key: &'static str,
    /// What is measured, in a few words.
    pub(crate) what: &'static str,
    /// What stands below the fraction line; empty where nothing does.
    pub(crate) floor: &'static str,
    /// What the values count.
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// Nothing: it is measured to be known.
    None,
    /// At most so many times the floor.
    Ratio(f64),
    /// At most so much, in the row's unit.
    AtMost(f64),
    /// At most so many times the floor, and at most so much.
    Both(f64, f64),
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) ours: f64,
    pub(crate) floor: Option<f64>,
    /// If it is about many: how they are spread.
    pub(crate) spread: Option<Spread>,
    /// The values that 0, 1, ..., 100 percent of them do not exceed, for plots.
    pub(crate) quantiles: Vec<f64>,
    /// Whatever else was counted meanwhile.
    pub(crate) notes: BTreeMap<&'static str, f64>,
}

impl Measured {
    pub(crate) fn of(ours: f64, floor: Option<f64>) -> Self {
        Self { ours, floor, ..Self::default() }
    }

    /// With the distribution of `values`.
    pub(crate) fn over(mut self, values: &[f64]) -> Self {
        self.spread = Spread::of(values);
        self.quantiles = quantiles(values);
        self
    }

    /// With something else that was counted.
    pub(crate) fn note(mut self, what: &'static str, value: f64) -> Self {
        self.notes.insert(what, value);
        self
    }

    /// Ours over the floor.
    pub(crate) fn ratio(&self) -> Option<f64> {
        Some(self.ours / self.floor?).filter(|ratio| ratio.is_finite())
    }

    /// Whether `target` is met; none where there is no target, or no floor to hold against.
    pub(crate) fn meets(&self, target: Target) -> Option<bool> {
        match target {
            Target::None => None,
            Target::Ratio(most) => self.ratio().map(|ratio| ratio <= most),
            Target::AtMost(most) => Some(self.ours <= most),
            Target::Both(ratio, most) => self.ratio().map(|held| held <= ratio && self.ours <= most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_up_to_its_bound() {
        let measured = Measured::of(14.0, Some(10.0));
        assert_eq!(measured.meets(Target::Ratio(1.4)), Some(true));
        assert_eq!(measured.meets(Target::Ratio(1.39)), Some(false));
        assert_eq!(measured.meets(Target::AtMost(14.0)), Some(true));
        assert_eq!(measured.meets(Target::Both(2.0, 13.0)), Some(false));
        assert_eq!(measured.meets(Target::None), None);
        assert_eq!(Measured::of(1.0, None).meets(Target::Ratio(2.0)), None);
        assert_eq!(Measured::of(1.0, Some(0.0)).ratio(), None);
    }
}
