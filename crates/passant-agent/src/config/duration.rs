//! How is a span of time written in the configuration?

use std::time::Duration;

const EXPECTED: &str = "write whole numbers with units d, h, m or s, as in \"90s\" or \"1h30m\"";

/// Reads one or more whole numbers with a unit each, largest first: `90s`, `5m`, `1h30m`, `7d`. A number without unit, a
/// fraction or a sign is an error, so that `60` is never guessed to be minutes.
///
/// # Errors
/// A sentence for the operator.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration; {EXPECTED}");
    let mut rest = text;
    let mut total = 0_u64;
    let mut last_unit = u64::MAX;
    while !rest.is_empty() || last_unit == u64::MAX {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest.as_bytes().get(digits) {
            Some(b'd') => 86_400,
            Some(b'h') => 3_600,
            Some(b'm') => 60,
            Some(b's') => 1,
            Some(_) | None => return Err(wrong()),
        };
        if unit >= last_unit {
            return Err(wrong());
        }
        last_unit = unit;
        total = number.checked_mul(unit).and_then(|secs| total.checked_add(secs)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units_in_falling_order() {
        for (text, secs) in [("1s", 1), ("5m", 300), ("1h30m", 5_400), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for wrong in ["", "60", "h", "1.5h", "-1h", "1h1h", "5m1h", "1 h", "1ü", "99999999999999999999s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
