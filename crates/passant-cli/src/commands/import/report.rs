//! What is said of an import or of its undoing: how much was done, what was left, and why.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::plain::line;
use crate::render::Output;

/// What is left out that a table for people names; JSON names all.
const NAMED: usize = 20;

/// Everything that was done and left.
pub(super) struct Report {
    pub(super) dry_run: bool,
    /// What is done to things, such as "made".
    doing: &'static str,
    /// Why nothing was done to a thing without that being a fault, such as "there already".
    already: &'static str,
    rows: Vec<Row>,
    left: Vec<Left>,
    notes: Vec<String>,
}

/// How much was done of one kind.
struct Row {
    kind: Kind,
    done: usize,
    already: usize,
    left: usize,
}

/// What can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Authorities of SPIRE in this server's bundle.
    AuthoritiesHere,
    /// Authorities of this server in SPIRE's bundle.
    AuthoritiesThere,
    Bundles,
    Relationships,
    Entries,
    Agents,
}

/// One thing that could not be carried.
struct Left {
    kind: Kind,
    /// Its place in SPIRE's list, counted from 1.
    at: Option<usize>,
    name: String,
    why: String,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::AuthoritiesHere,
        Self::AuthoritiesThere,
        Self::Bundles,
        Self::Relationships,
        Self::Entries,
        Self::Agents,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::AuthoritiesHere => "authorities of SPIRE, in this bundle",
            Self::AuthoritiesThere => "authorities of this server, in SPIRE's bundle",
            Self::Bundles => "foreign bundles",
            Self::Relationships => "federation relationships",
            Self::Entries => "entries",
            Self::Agents => "agents",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::AuthoritiesHere => "authorities_here",
            Self::AuthoritiesThere => "authorities_there",
            Self::Bundles => "bundles",
            Self::Relationships => "federation_relationships",
            Self::Entries => "entries",
            Self::Agents => "agents",
        }
    }
}

impl Report {
    pub(super) fn of_import(dry_run: bool) -> Self {
        Self::new(dry_run, if dry_run { "TO COPY" } else { "COPIED" }, "THERE")
    }

    pub(super) fn of_undo(dry_run: bool) -> Self {
        Self::new(dry_run, if dry_run { "TO REMOVE" } else { "REMOVED" }, "GONE")
    }

    fn new(dry_run: bool, doing: &'static str, already: &'static str) -> Self {
        let rows = Kind::ALL.into_iter().map(|kind| Row { kind, done: 0, already: 0, left: 0 }).collect();
        Self { dry_run, doing, already, rows, left: Vec::new(), notes: Vec::new() }
    }

    /// Whether nothing was left.
    pub(super) fn is_complete(&self) -> bool {
        self.left.is_empty()
    }

    /// Whether anything of this kind was left.
    pub(super) fn has_left(&self, kind: Kind) -> bool {
        self.left.iter().any(|one| one.kind == kind)
    }

    /// How many of this kind were left.
    #[cfg(test)]
    pub(super) fn count_left(&self, kind: Kind) -> usize {
        self.left.iter().filter(|one| one.kind == kind).count()
    }

    /// So many more were done, or would be.
    pub(super) fn done(&mut self, kind: Kind, more: usize) {
        self.row(kind).done += more;
    }

    /// So many more need nothing.
    pub(super) fn already(&mut self, kind: Kind, more: usize) {
        self.row(kind).already += more;
    }

    /// One is left as it is.
    pub(super) fn left(&mut self, kind: Kind, at: Option<usize>, name: &str, why: impl Into<String>) {
        self.row(kind).left += 1;
        self.left.push(Left { kind, at, name: name.to_owned(), why: why.into() });
    }

    /// Something that is good to know.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn row(&mut self, kind: Kind) -> &mut Row {
        &mut self.rows[kind as usize]
    }

    /// Prints all of it. The exit code tells whether something was left.
    pub(super) fn tell(&self, more: &[(&str, Value)], out: &mut Output) -> anyhow::Result<()> {
        if !self.left.is_empty() {
            out.note();
        }
        out.print(|| self.json(more), |to| self.text(to))
    }

    fn json(&self, more: &[(&str, Value)]) -> Value {
        let mut json = json!({ "dry_run": self.dry_run, "notes": self.notes });
        for row in &self.rows {
            json[row.kind.key()] = json!({ "done": row.done, "already": row.already, "left": row.left });
        }
        let left = self
            .left
            .iter()
            .map(|one| json!({ "kind": one.kind.key(), "at": one.at, "name": one.name, "why": one.why }));
        json["left"] = left.collect();
        for (key, value) in more {
            json[*key] = value.clone();
        }
        json
    }

    fn text(&self, to: &mut dyn Write) -> io::Result<()> {
        let widths = self.rows.iter().map(|row| row.kind.name().len());
        let wide = widths.max().unwrap_or(0);
        writeln!(to, "{:wide$}  {:>9}  {:>7}  {:>7}", "", self.doing, self.already, "LEFT")?;
        for Row { kind, done, already, left } in &self.rows {
            writeln!(to, "{:wide$}  {done:>9}  {already:>7}  {left:>7}", kind.name())?;
        }
        if !self.left.is_empty() {
            writeln!(to, "\nLeft as it is:")?;
        }
        for Left { kind, at, name, why } in self.left.iter().take(NAMED) {
            let at = at.map(|at| format!(" {at}")).unwrap_or_default();
            writeln!(to, "  {}{at}: {}: {}", kind.key(), line(name), line(why))?;
        }
        if let more @ 1.. = self.left.len().saturating_sub(NAMED) {
            writeln!(to, "  and {more} more; -o json names all")?;
        }
        for note in &self.notes {
            writeln!(to, "\nnote: {}", line(note))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_row() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
    }

    #[test]
    fn what_is_left_is_counted_and_named_with_its_place() {
        let mut report = Report::of_import(true);
        report.done(Kind::Entries, 2);
        for at in 1..=NAMED + 3 {
            report.left(Kind::Entries, Some(at), "e", "it is wrong");
        }
        report.note("good to\nknow");
        let mut text = Vec::new();
        report.text(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in ["TO COPY", "entries 20: e: it is wrong", "and 3 more", "note: good to\\nknow"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(!text.contains("entries 21"));
        let json = report.json(&[("move_from", json!(7))]);
        assert_eq!((&json["entries"]["left"], &json["left"][22]["at"]), (&json!(NAMED + 3), &json!(23)));
        assert_eq!((&json["move_from"], &json["dry_run"]), (&json!(7), &json!(true)));
    }
}
