//! How is a secret kept from logs, and from memory once it is done with?

use std::fmt;

use zeroize::Zeroize;

/// A value that is overwritten when dropped and never printed or serialized.
///
/// Cloning is left out on purpose: share an `Arc<Secret<_>>`.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes `value` into custody.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the moment of its use.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new(String::from("hunter2"))), "[secret]");
    }
}
