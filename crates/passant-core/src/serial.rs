//! What is a certificate's serial number?

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host::Host;
use crate::limits::SERIAL_BYTES;

/// How many random bytes a serial that we draw has: 127 bits are left once the top bit is cleared, so that serials
/// never meet and never tell how many were issued.
const RANDOM_BYTES: usize = 16;

/// A certificate serial number: a positive integer of 1 to 20 bytes (RFC 5280 4.1.2.2).
///
/// Held as big-endian magnitude without leading zeros, so that equal numbers are equal values. Written as lower-case
/// hexadecimal, two digits a byte; SPIRE's API writes it in decimal ([`Serial::to_decimal`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

/// Why some bytes or a text are no serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SerialError {
    /// Zero, or no byte at all.
    #[error("serial number is zero or empty")]
    Zero,
    /// A DER integer whose sign bit is set.
    #[error("serial number is negative")]
    Negative,
    /// More than 20 bytes.
    #[error("serial number is longer than 20 bytes")]
    TooLong,
    /// Not pairs of hexadecimal digits.
    #[error("serial number is not in hexadecimal")]
    NotHex,
    /// Something else than digits.
    #[error("serial number is not in decimal digits")]
    NotDecimal,
}

impl Serial {
    /// Takes the content bytes of a DER INTEGER (two's complement, big endian), as a certificate holds it.
    ///
    /// # Errors
    /// When the number is negative, zero, or longer than 20 bytes without its sign byte.
    pub fn from_der_content(content: &[u8]) -> Result<Self, SerialError> {
        match content.first() {
            Some(first) if first & 0x80 != 0 => Err(SerialError::Negative),
            _ => Self::from_magnitude(content),
        }
    }

    /// Takes an unsigned big-endian number; leading zeros are dropped.
    ///
    /// # Errors
    /// When the number is zero or longer than 20 bytes.
    pub fn from_magnitude(bytes: &[u8]) -> Result<Self, SerialError> {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let magnitude = &bytes[zeros..];
        if magnitude.is_empty() {
            return Err(SerialError::Zero);
        }
        if magnitude.len() > SERIAL_BYTES {
            return Err(SerialError::TooLong);
        }
        Ok(Self(magnitude.to_vec()))
    }

    /// Draws a serial of 16 random bytes whose top bit is clear and whose first byte is not zero, so that its DER form is
    /// always 16 bytes long.
    pub fn random(host: &Host) -> Self {
        let mut bytes: [u8; RANDOM_BYTES] = host.random_bytes();
        bytes[0] = (bytes[0] & 0x7f).max(1);
        Self(bytes.to_vec())
    }

    /// The unsigned big-endian magnitude, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Parses the number in decimal, as SPIRE's API writes it.
    ///
    /// # Errors
    /// When it is no number in digits, zero, or longer than 20 bytes.
    pub fn from_decimal(text: &str) -> Result<Self, SerialError> {
        // 20 bytes make at most 49 digits; more of them are zeros or too much.
        let digits = text.trim_start_matches('0');
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SerialError::NotDecimal);
        }
        if digits.len() > 49 {
            return Err(SerialError::TooLong);
        }
        let mut magnitude = vec![0_u8; SERIAL_BYTES + 1];
        for digit in digits.bytes() {
            let mut carry = u16::from(digit - b'0');
            for byte in magnitude.iter_mut().rev() {
                let [high, low] = (u16::from(*byte) * 10 + carry).to_be_bytes();
                (*byte, carry) = (low, u16::from(high));
            }
        }
        Self::from_magnitude(&magnitude)
    }

    /// The number in decimal, as SPIRE's API writes it.
    pub fn to_decimal(&self) -> String {
        // Schoolbook conversion into base 10^9, least significant limb first. 20 bytes make at most 6 limbs.
        const BASE: u64 = 1_000_000_000;
        let mut limbs: Vec<u64> = vec![0];
        for byte in &self.0 {
            let mut carry = u64::from(*byte);
            for limb in &mut limbs {
                let value = *limb * 256 + carry;
                *limb = value % BASE;
                carry = value / BASE;
            }
            if carry > 0 {
                limbs.push(carry);
            }
        }
        let mut digits = String::new();
        for limb in limbs.iter().rev() {
            let part = if digits.is_empty() { limb.to_string() } else { format!("{limb:09}") };
            digits.push_str(&part);
        }
        digits
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    /// Parses pairs of hexadecimal digits in either case, most significant first.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SerialError::NotHex);
        }
        let digit =
            |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        let bytes: Vec<u8> =
            text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
        Self::from_magnitude(&bytes)
    }
}

impl TryFrom<String> for Serial {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, SerialError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 2 * SERIAL_BYTES];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(&self.0) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0x0f)]]);
        }
        f.write_str(std::str::from_utf8(&digits[..2 * self.0.len()]).unwrap_or_default())
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn der_integers_are_positive_and_at_most_twenty_bytes() {
        let check = |content: &[u8], expected: Result<&str, SerialError>| {
            assert_eq!(
                Serial::from_der_content(content).map(|serial| serial.to_string()),
                expected.map(str::to_owned)
            );
        };
        check(&[], Err(SerialError::Zero));
        check(&[0], Err(SerialError::Zero));
        check(&[1], Ok("01"));
        check(&[0x7f], Ok("7f"));
        check(&[0x80], Err(SerialError::Negative));
        check(&[0x00, 0x80], Ok("80"));
        check(&[0x7f; 20], Ok(&"7f".repeat(20)));
        check(&[0x7f; 21], Err(SerialError::TooLong));
    }

    #[test]
    fn decimal_is_what_spire_writes() {
        let check = |hex: &str, decimal: &str| {
            let serial: Serial = hex.parse().unwrap();
            assert_eq!(serial.to_decimal(), decimal);
            assert_eq!(Serial::from_decimal(decimal), Ok(serial));
        };
        check("01", "1");
        check("ff", "255");
        check("3b9aca00", "1000000000");
        check("ffffffffffffffff", "18446744073709551615");
        check("0de0b6b3a7640000", "1000000000000000000");
        check(&"ff".repeat(20), "1461501637330902918203684832716283019655932542975");
    }

    #[test]
    fn decimal_is_digits_that_make_a_serial_number() {
        let most = "1461501637330902918203684832716283019655932542975";
        for (text, expected) in [
            ("", SerialError::Zero),
            ("000", SerialError::Zero),
            ("-1", SerialError::NotDecimal),
            ("0x1", SerialError::NotDecimal),
            ("\u{663}", SerialError::NotDecimal),
            ("1461501637330902918203684832716283019655932542976", SerialError::TooLong),
            (&"9".repeat(49), SerialError::TooLong),
            (&"9".repeat(5_000), SerialError::TooLong),
        ] {
            assert_eq!(Serial::from_decimal(text), Err(expected), "{text}");
        }
        assert_eq!(Serial::from_decimal(&format!("00{most}")), Serial::from_decimal(most));
    }

    #[test]
    fn hexadecimal_only() {
        assert_eq!("0".parse::<Serial>(), Err(SerialError::NotHex));
        assert_eq!("0g".parse::<Serial>(), Err(SerialError::NotHex));
        assert_eq!("+1".parse::<Serial>(), Err(SerialError::NotHex));
        assert_eq!("0001".parse::<Serial>().unwrap(), "01".parse().unwrap());
        assert_eq!("AB".parse::<Serial>().unwrap().to_string(), "ab");
        assert_eq!("ab".repeat(21).parse::<Serial>(), Err(SerialError::TooLong));
    }

    #[test]
    fn random_serials_fill_sixteen_bytes_and_differ() {
        let host = Host::system();
        let drawn: std::collections::BTreeSet<Serial> = (0..64).map(|_| Serial::random(&host)).collect();
        assert_eq!(drawn.len(), 64);
        for serial in drawn {
            assert_eq!(serial.as_bytes().len(), 16);
            assert_eq!(Serial::from_der_content(serial.as_bytes()), Ok(serial));
        }
    }

    proptest! {
        #[test]
        fn text_forms_give_the_same_number_back(bytes in prop::collection::vec(any::<u8>(), 1..=20)) {
            if let Ok(serial) = Serial::from_magnitude(&bytes) {
                prop_assert_eq!(serial.to_string().parse::<Serial>(), Ok(serial.clone()));
                let json = serde_json::to_string(&serial).unwrap();
                prop_assert_eq!(serde_json::from_str::<Serial>(&json).unwrap(), serial);
            }
        }

        #[test]
        fn decimal_agrees_with_the_machine(number in 1u128..) {
            let serial = Serial::from_magnitude(&number.to_be_bytes()).unwrap();
            prop_assert_eq!(serial.to_decimal(), number.to_string());
            prop_assert_eq!(Serial::from_decimal(&number.to_string()), Ok(serial));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,48}") {
            if let Ok(serial) = text.parse::<Serial>() {
                prop_assert!(text.to_ascii_lowercase().ends_with(&serial.to_string()));
            }
        }
    }
}
