//! Which flags has `passant lint`?

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::span;
use crate::lint::Rule;

/// Every finding says what was seen, what may come of it and what to do. The rules are described in the README of
/// crates/passant-cli.
#[derive(Args)]
pub(crate) struct Lint {
    /// Look at the entries of this file (- for standard input) instead of the server's: what
    /// `passant entry export`, `passant entry list -o json` and `spire-server entry show -output json` print
    pub(crate) file: Option<PathBuf>,
    /// The agents there are: what `agent list` prints as JSON. With a file, parents are not looked for without it
    #[arg(long, value_name = "FILE")]
    pub(crate) agents: Option<PathBuf>,
    /// The foreign bundles there are: what `bundle list` or `federation list` print as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) bundles: Option<PathBuf>,
    /// Print a SARIF 2.1.0 log. Code scanning, which shows findings in files, takes that of a FILE only
    #[arg(long)]
    pub(crate) sarif: bool,
    /// The least finding that makes the exit code 3
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    pub(crate) fail_on: FailOn,
    /// Take a finding for right: those of a rule, or only those with this subject or about this entry id or SPIFFE ID. One
    /// about several entries is taken for right when all of them are named
    #[arg(long, value_name = "RULE[=ID]", value_parser = accept)]
    pub(crate) accept: Vec<Accept>,
    /// The longest lifetime of X509-SVIDs that is no finding
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = span)]
    pub(crate) max_x509_svid_ttl: Duration,
    /// The longest lifetime of JWT-SVIDs that is no finding
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = span)]
    pub(crate) max_jwt_svid_ttl: Duration,
    /// The fewest selectors that are no finding; one that names a single program, pod or unit is always enough
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub(crate) min_selectors: usize,
}

/// From which level on findings make a command fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Errors.
    Error,
    /// Warnings and errors.
    Warning,
    /// All.
    Note,
    /// None.
    Never,
}

/// A finding that is as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    /// Of this rule.
    pub(crate) rule: Rule,
    /// With this subject, or about this entry or SPIFFE ID; about any if none.
    pub(crate) of: Option<String>,
}

/// `RULE` or `RULE=ID`.
fn accept(text: &str) -> Result<Accept, String> {
    let (name, of) = text.split_once('=').map_or((text, None), |(name, of)| (name, Some(of)));
    let rule = Rule::from_str(name, false).map_err(|_| {
        let names: Vec<&str> = Rule::value_variants().iter().map(|rule| rule.name()).collect();
        format!("\"{name}\" is no rule: the rules are {}", names.join(", "))
    })?;
    match of {
        Some("") => Err(format!("\"{text}\" names nothing behind the =: write {name}=ID, or {name} alone")),
        of => Ok(Accept { rule, of: of.map(str::to_owned) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_a_rule_and_perhaps_whose() {
        let of = |of: Option<&str>| Ok(Accept { rule: Rule::Admin, of: of.map(str::to_owned) });
        assert_eq!(accept("admin"), of(None));
        assert_eq!(accept("admin=spiffe://example.org/a"), of(Some("spiffe://example.org/a")));
        assert!(accept("admin=").unwrap_err().contains("admin=ID"));
        assert!(accept("admins").unwrap_err().contains("few-selectors"));
    }
}
