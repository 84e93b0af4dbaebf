//! What is a row of the table?

/// One question, the floor that it is measured against, and what came out.
#[derive(Debug)]
pub(crate) struct Row {
    /// Names it on the command line; unique.
    pub(crate) key: &'static str,
    /// What is measured, in a few words.
    pub(crate) ours: &'static str,
    /// What stands below the fraction line.
    pub(crate) floor: &'static str,
    /// The largest ratio that we aim at, if there is an aim.
    pub(crate) aim: Option<f64>,
    /// What the values count.
    pub(crate) unit: Unit,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds on the wall.
    WallTime,
    /// Nanoseconds that a core worked for it.
    CpuTime,
    /// Bytes.
    Bytes,
}

/// What one row has brought: for each turn the values of the floor and of ours, in the row's unit.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) turns: Vec<Turn>,
}

/// The floor, then ours, right after each other.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) floor: Vec<f64>,
    pub(crate) ours: Vec<f64>,
}

impl Measured {
    /// The ratio of the medians over all turns, and the smallest and largest ratio of a single turn's medians. `None`
    /// where nothing, or no floor, was measured.
    pub(crate) fn ratio(&self) -> Option<Ratio> {
        let per_turn: Vec<f64> = self.turns.iter().filter_map(Turn::ratio).collect();
        let least = per_turn.iter().copied().reduce(f64::min)?;
        let most = per_turn.iter().copied().reduce(f64::max)?;
        Some(Ratio { middle: median(per_turn)?, least, most })
    }

    /// The median of the floor over all turns.
    pub(crate) fn floor(&self) -> Option<f64> {
        median(self.turns.iter().flat_map(|turn| turn.floor.iter().copied()).collect())
    }

    /// The median of ours over all turns.
    pub(crate) fn ours(&self) -> Option<f64> {
        median(self.turns.iter().flat_map(|turn| turn.ours.iter().copied()).collect())
    }
}

impl Turn {
    fn ratio(&self) -> Option<f64> {
        Some(median(self.ours.clone())? / median(self.floor.clone())?).filter(|ratio| ratio.is_finite())
    }
}

/// Ours over the floor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    /// The median of the turns.
    pub(crate) middle: f64,
    /// The turn that was best for us.
    pub(crate) least: f64,
    /// The turn that was worst for us.
    pub(crate) most: f64,
}

/// The middle value; the mean of the two middle ones. `None` of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let above = values.len() / 2;
    let upper = *values.get(above)?;
    match values.len() % 2 {
        0 => values.get(above - 1).map(|lower| f64::midpoint(*lower, upper)),
        _ => Some(upper),
    }
}
