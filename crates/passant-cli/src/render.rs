//! How are results printed: for people as tables and lines, for programs as JSON?

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use crate::args::{Cli, Format};

/// How a command ended that did what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing more to say.
    Fine,
    /// There is something to look at: findings, or differences.
    Noteworthy,
}

/// The exit code of [`Verdict::Noteworthy`]. 1 is for errors, 2 for arguments that are wrong.
pub(crate) const NOTEWORTHY: u8 = 3;

/// Standard output, in the format that the user asked for.
pub(crate) struct Output {
    format: Format,
    to: Box<dyn Write>,
}

impl Output {
    pub(crate) fn stdout(format: Format) -> Self {
        Self { format, to: Box::new(io::stdout()) }
    }

    /// Prints `json` when JSON was asked for, else what `people` writes.
    pub(crate) fn print(
        &mut self,
        json: impl FnOnce() -> Value,
        people: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Json => writeln!(self.to, "{}", json())?,
            Format::Table => people(&mut *self.to)?,
        }
        self.to.flush()?;
        Ok(())
    }

    /// Prints a table with `header`, or `json`.
    pub(crate) fn table(
        &mut self,
        json: impl FnOnce() -> Value,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> anyhow::Result<()> {
        self.print(json, |to| {
            let mut table = Table::new();
            table.load_style(NOTHING).set_header(header.to_vec());
            if io::stdout().is_terminal() {
                table.set_content_arrangement(ContentArrangement::Dynamic);
            }
            for row in rows {
                table.add_row(row);
            }
            writeln!(to, "{}", table.trim_fmt())
        })
    }

    /// Writes the completion script for `shell`.
    pub(crate) fn completion(&mut self, shell: Shell) -> anyhow::Result<()> {
        // Into memory first: clap_complete panics where it cannot write.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "passant", &mut script);
        self.to.write_all(&script)?;
        self.to.flush()?;
        Ok(())
    }

    /// Writes an error and its causes to standard error, once.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let text = with_causes(error);
        let line = match self.format {
            Format::Json => serde_json::json!({ "error": text }).to_string(),
            Format::Table => format!("passant: {text}"),
        };
        // Nothing is left to be told if standard error is closed.
        drop(writeln!(io::stderr(), "{line}"));
    }
}

/// Whether the only trouble is that nobody reads standard output any more.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The error with its causes, except those that its own words already hold.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

/// Lines of `name: value` in two columns.
pub(crate) fn fields(to: &mut dyn Write, fields: &[(&str, &dyn Display)]) -> io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        let value = value.to_string();
        if !value.is_empty() {
            writeln!(to, "{name:<width$}  {value}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_error_and_no_panic() {
        for format in [Format::Table, Format::Json] {
            let mut out = Output { format, to: Box::new(Closed) };
            let printed = out.table(|| Value::Null, &["A"], [vec!["a".to_owned()]]);
            assert!(is_closed_pipe(&printed.unwrap_err()));
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut out = Output { format: Format::Table, to: Box::new(Closed) };
            assert!(is_closed_pipe(&out.completion(shell).unwrap_err()));
        }
        let full = anyhow::Error::new(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!is_closed_pipe(&full));
    }

    #[test]
    fn a_cause_is_told_once() {
        let error =
            anyhow::anyhow!("no such file").context("transport error: no such file").context("no server");
        assert_eq!(with_causes(&error), "no server: transport error: no such file");
    }
}
