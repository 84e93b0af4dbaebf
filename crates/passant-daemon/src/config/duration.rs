//! How is a span of time written in the configuration?

use std::time::Duration;

/// Parses one or more whole numbers with a unit each, largest first: `90s`, `5m`, `1h30m`, `7d`.
///
/// Units are `d` (24 hours), `h`, `m`, `s`. A number without a unit, a fraction, a sign or a repeated unit is an
/// error, so that `60` is never guessed to be minutes.
///
/// # Errors
/// A sentence that says what was found and what is expected, for the operator.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = "write whole numbers with units d, h, m or s, as in \"90s\", \"1h30m\" or \"7d\"";
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    if rest.is_empty() {
        return Err(format!("is empty; {expected}"));
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 =
            rest[..digits].parse().map_err(|_| format!("\"{text}\" is not a duration; {expected}"))?;
        let unit = match rest[digits..].chars().next() {
            Some('d') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') => 1,
            Some(_) | None => return Err(format!("\"{text}\" has a number without a unit; {expected}")),
        };
        if unit >= last_unit {
            return Err(format!("\"{text}\" repeats a unit or has them out of order; {expected}"));
        }
        last_unit = unit;
        total = number
            .checked_mul(unit)
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or_else(|| format!("\"{text}\" is too long a time; {expected}"))?;
        rest = &rest[digits + 1..];
    }
    Ok(Duration::from_secs(total))
}

/// The shortest way to write `span` that [`parse`] reads back, for messages.
pub fn show(span: Duration) -> String {
    let mut seconds = span.as_secs();
    let mut out = String::new();
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if seconds >= length {
            out.push_str(&format!("{}{unit}", seconds / length));
            seconds %= length;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::{parse, show};
    use std::time::Duration;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, seconds) in
            [("1s", 1), ("5m", 300), ("1h", 3_600), ("1h30m", 5_400), ("7d", 604_800), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in [
            "",
            "60",
            "h",
            "1.5h",
            "-1h",
            "1h1h",
            "5m1h",
            "1 h",
            "1w",
            "1ü",
            "99999999999999999999s",
            "300000000000000d",
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains("\"90s\""), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for seconds in [0, 1, 59, 60, 3_661, 86_400, 694_861] {
            let span = Duration::from_secs(seconds);
            assert_eq!(parse(&show(span)), Ok(span));
        }
    }
}
