//! How are results printed: for people as tables and lines, for programs as JSON?

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use crate::args::{Cli, Format};

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
        clap_complete::generate(shell, &mut Cli::command(), "passant", &mut self.to);
        Ok(())
    }

    /// Writes an error and its causes to standard error, once.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        let text = error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let line = match self.format {
            Format::Json => serde_json::json!({ "error": text }).to_string(),
            Format::Table => format!("passant: {text}"),
        };
        // Nothing is left to be told if standard error is closed.
        drop(writeln!(io::stderr(), "{line}"));
    }
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
