//! What is wrong with a configuration, and what would mend it?

use std::fmt;

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, with its section, as in `socket.path`; empty for a fault of the file itself.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

/// Every fault of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    faults: Vec<Fault>,
}

impl ConfigError {
    /// All `faults` of the file named `file`.
    pub fn new(file: &str, faults: Vec<Fault>) -> Self {
        Self { file: file.to_owned(), faults }
    }

    /// One fault of it.
    pub fn single(file: &str, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(file, vec![Fault { key: key.to_owned(), what: what.into(), remedy: remedy.into() }])
    }

    /// Every fault, in the order of the checks.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration {} cannot be used", self.file)?;
        for Fault { key, what, remedy } in &self.faults {
            if key.is_empty() {
                write!(f, "\n  {what}: {remedy}")?;
            } else {
                write!(f, "\n  {key}: {what}; {remedy}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
