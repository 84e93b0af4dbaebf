//! What is wrong with a configuration, and what would mend it?

use std::fmt;

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, with its section: `socket.mode`. Empty for a fault of the file itself.
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
    pub(crate) fn new(file: &str, faults: Vec<Fault>) -> Self {
        Self { file: file.to_owned(), faults }
    }

    pub(crate) fn single(file: &str, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(file, vec![Fault { key: key.to_owned(), what: what.into(), remedy: remedy.into() }])
    }

    /// One fault in `section`, said by an error with its causes.
    pub(crate) fn caused(file: &str, section: &str, error: &dyn std::error::Error) -> Self {
        let mut what = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            what = format!("{what}: {cause}");
            source = cause.source();
        }
        Self::single(file, section, what, "mend it, or take this node attestor out")
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
