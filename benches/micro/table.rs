//! How are rows shown?

use std::fmt::Write as _;

use crate::row::{Measured, Ratio, Row, Unit};

/// Every row with its medians. They are of this machine at this hour, and say nothing of another.
pub(crate) fn for_a_person<'a>(rows: &[&Row], measured: impl Fn(&Row) -> Option<&'a Measured>) -> String {
    let mut text =
        format!("{:16} {:>12} {:>12} {:>8} {:>15} {:>7}\n", "row", "floor", "ours", "ratio", "turns", "aim");
    for row in rows {
        let values = measured(row);
        let value = |value: Option<f64>| value.map_or_else(String::new, |value| amount(row.unit, value));
        let ratio = values.and_then(Measured::ratio);
        writeln!(
            text,
            "{:16} {:>12} {:>12} {:>8} {:>15} {:>7}",
            row.key,
            value(values.and_then(Measured::floor)),
            value(values.and_then(Measured::ours)),
            ratio.map_or_else(String::new, |ratio| number(ratio.middle)),
            ratio.map_or_else(String::new, spread),
            aim(row),
        )
        .expect("a string takes all");
    }
    text
}

/// Every row as a ratio. One that was not measured in this run, or had no floor in it, stays empty.
pub(crate) fn in_markdown<'a>(rows: &[&Row], measured: impl Fn(&Row) -> Option<&'a Measured>) -> String {
    let mut text = String::from(
        "| row | ours | floor | by | ours / floor | turns | aim |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let ratio = measured(row).and_then(Measured::ratio);
        let (middle, turns) =
            ratio.map_or_else(Default::default, |ratio| (number(ratio.middle), spread(ratio)));
        let Row { key, ours, floor, unit, .. } = row;
        let unit = match unit {
            Unit::CpuTime => "CPU time",
            Unit::WallTime => "time",
            Unit::Bytes => "bytes",
        };
        writeln!(text, "| `{key}` | {ours} | {floor} | {unit} | {middle} | {turns} | {} |", aim(row))
            .expect("a string takes all");
    }
    text
}

fn spread(ratio: Ratio) -> String {
    format!("{} to {}", number(ratio.least), number(ratio.most))
}

fn aim(row: &Row) -> String {
    row.aim.map_or_else(String::new, |aim| format!("≤ {aim}"))
}

fn number(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

fn amount(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Bytes => format!("{value:.0} B"),
        Unit::CpuTime | Unit::WallTime if value < 10_000.0 => format!("{value:.0} ns"),
        Unit::CpuTime | Unit::WallTime if value < 10_000_000.0 => format!("{:.1} us", value / 1e3),
        Unit::CpuTime | Unit::WallTime => format!("{:.1} ms", value / 1e6),
    }
}
