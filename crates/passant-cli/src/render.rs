//! How are results printed: for people as tables and lines, for programs as JSON?

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

use crate::args::{Cli, Format};
use crate::plain::{self, Plain};

/// The exit code of a command that failed.
const FAILED: u8 = 1;
/// The exit code for arguments that are wrong, as clap has it.
const WRONG: u8 = 2;
/// The exit code of a command that did what it was asked to, and found something to look at: findings, differences.
const NOTEWORTHY: u8 = 3;

/// Standard output, in the format that the user asked for.
pub(crate) struct Output {
    format: Format,
    to: Box<dyn Write>,
    noteworthy: bool,
    failure: Option<anyhow::Error>,
}

impl Output {
    pub(crate) fn stdout(format: Format) -> Self {
        Self::new(format, Box::new(io::stdout()))
    }

    fn new(format: Format, to: Box<dyn Write>) -> Self {
        Self { format, to, noteworthy: false, failure: None }
    }

    /// There is something to look at in what is printed: the exit code says so.
    pub(crate) fn note(&mut self) {
        self.noteworthy = true;
    }

    /// The command failed, of which all is still to be printed. Said before that: it failed, whether or not anybody reads on.
    pub(crate) fn fail(&mut self, error: anyhow::Error) {
        self.failure = Some(error);
    }

    /// Tells what went wrong with a command that ended so, and gives its exit code.
    pub(crate) fn end(self, ended: anyhow::Result<()>) -> u8 {
        // A closed pipe is a reader that has seen enough, as `head` does. What counts is what was done.
        let trouble = ended.err().filter(|error| !is_closed_pipe(error));
        if let Some(wrong) = trouble.as_ref().and_then(|error| error.downcast_ref::<clap::Error>()) {
            // Nothing is left to be told if standard error is closed.
            drop(wrong.print());
            return WRONG;
        }
        let errors: Vec<&anyhow::Error> = self.failure.iter().chain(&trouble).collect();
        for error in &errors {
            self.error(error);
        }
        match (errors.is_empty(), self.noteworthy) {
            (false, _) => FAILED,
            (true, true) => NOTEWORTHY,
            (true, false) => 0,
        }
    }

    /// Prints `json` when JSON was asked for, else what `people` writes.
    pub(crate) fn print(
        &mut self,
        json: impl FnOnce() -> Value,
        people: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Json => writeln!(self.to, "{}", json())?,
            Format::Table => people(&mut Plain(&mut *self.to))?,
        }
        self.to.flush()?;
        Ok(())
    }

    /// The same for JSON that is too long to be held: `json` writes it piece by piece.
    pub(crate) fn print_long(
        &mut self,
        json: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        people: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut to = BufWriter::new(&mut *self.to);
        match self.format {
            Format::Json => {
                json(&mut to)?;
                writeln!(to)?;
            }
            Format::Table => people(&mut Plain(&mut to))?,
        }
        Ok(to.flush()?)
    }

    /// Prints for people alone what goes before something that is done. A reader who has gone does not hold that up.
    pub(crate) fn announce(
        &mut self,
        people: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        if self.is_json() {
            return Ok(());
        }
        let mut to = Plain(&mut *self.to);
        match people(&mut to).and_then(|()| to.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Prints a table with `header`, or `json`.
    pub(crate) fn table(
        &mut self,
        json: impl FnOnce() -> Value,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> anyhow::Result<()> {
        self.print(json, |to| print_table(to, header, rows))
    }

    /// A list that comes page by page and is printed so: however long it is, one page of it is in memory.
    pub(crate) fn list(&mut self, name: &'static str, header: &'static [&'static str]) -> Listing<'_> {
        Listing {
            format: self.format,
            to: BufWriter::new(&mut *self.to),
            name,
            header,
            printed: Printed::Nothing,
        }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Where to write what is the same in every format, byte by byte.
    pub(crate) fn writer(&mut self) -> &mut dyn Write {
        &mut *self.to
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
    fn error(&self, error: &anyhow::Error) {
        let text = with_causes(error);
        let line = match self.format {
            Format::Json => serde_json::json!({ "error": text }).to_string(),
            Format::Table => format!("passant: {text}"),
        };
        // Nothing is left to be told if standard error is closed.
        drop(writeln!(Plain(io::stderr()), "{line}"));
    }
}

fn print_table(
    to: &mut dyn Write,
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for row in rows {
        table.add_row(plain_row(row));
    }
    writeln!(to, "{}", table.trim_fmt())
}

/// What is in a cell stays in it.
fn plain_row(row: Vec<String>) -> Vec<String> {
    row.into_iter().map(|cell| plain::line(&cell).into_owned()).collect()
}

/// A list that is being printed. Ends with [`Listing::end`].
pub(crate) struct Listing<'a> {
    format: Format,
    to: BufWriter<&'a mut dyn Write>,
    name: &'static str,
    header: &'static [&'static str],
    printed: Printed,
}

/// How far a list has come.
enum Printed {
    Nothing,
    /// As JSON, so many items.
    Items(usize),
    /// Not yet: a table of one page is set as a whole.
    FirstPage(Vec<Vec<String>>),
    /// Rows, with the widths of the first page's columns.
    Rows(Vec<usize>),
}

impl Listing<'_> {
    /// Prints one page.
    pub(crate) fn page<T>(
        &mut self,
        items: &[T],
        json: impl Fn(&T) -> Value,
        row: impl Fn(&T) -> Vec<String>,
    ) -> anyhow::Result<()> {
        if self.format == Format::Json {
            return self.json_page(items, json);
        }
        let rows = items.iter().map(|item| plain_row(row(item)));
        match &mut self.printed {
            Printed::Nothing | Printed::Items(_) => self.printed = Printed::FirstPage(rows.collect()),
            Printed::FirstPage(first) => {
                let first = std::mem::take(first);
                let widths = widths(self.header, &first);
                let header = self.header.iter().map(|&name| name.to_owned()).collect();
                for row in std::iter::once(header).chain(first).chain(rows) {
                    print_row(&mut self.to, &widths, &row)?;
                }
                self.printed = Printed::Rows(widths);
            }
            Printed::Rows(widths) => {
                for row in rows {
                    print_row(&mut self.to, widths, &row)?;
                }
            }
        }
        Ok(())
    }

    fn json_page<T>(&mut self, items: &[T], json: impl Fn(&T) -> Value) -> anyhow::Result<()> {
        let mut count = self.begin_json()?;
        for item in items {
            if count > 0 {
                write!(self.to, ",")?;
            }
            write!(self.to, "{}", json(item))?;
            count += 1;
        }
        self.printed = Printed::Items(count);
        Ok(())
    }

    /// Opens the list if that is still to be done; says how many items it has.
    fn begin_json(&mut self) -> anyhow::Result<usize> {
        match &self.printed {
            Printed::Items(count) => Ok(*count),
            Printed::Nothing | Printed::FirstPage(_) | Printed::Rows(_) => {
                write!(self.to, "{{\"{}\":[", self.name)?;
                Ok(0)
            }
        }
    }

    /// Ends the list: all of it was printed.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        if self.format == Format::Json {
            self.begin_json()?;
            writeln!(self.to, "],\"next_page_token\":\"\"}}")?;
        } else if let Printed::FirstPage(rows) = std::mem::replace(&mut self.printed, Printed::Nothing) {
            print_table(&mut self.to, self.header, rows)?;
        }
        Ok(self.to.flush()?)
    }
}

/// The widths of columns, in characters.
fn widths(header: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let mut widths: Vec<usize> = header.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

/// Prints one row as the whole table does; a cell that is too long pushes the others.
fn print_row(to: &mut impl Write, widths: &[usize], row: &[String]) -> io::Result<()> {
    let line: String =
        row.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} ", width = *width)).collect();
    writeln!(to, "{}", line.trim_end())
}

/// Whether the only trouble is that nobody reads standard output any more.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
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

/// Lines of `name: value` in two columns, a value on one line.
pub(crate) fn fields(to: &mut dyn Write, fields: &[(&str, &dyn Display)]) -> io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in fields {
        let value = value.to_string();
        if !value.is_empty() {
            writeln!(to, "{name:<width$}  {}", plain::line(&value))?;
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
            let mut out = Output::new(format, Box::new(Closed));
            let printed = out.table(|| Value::Null, &["A"], [vec!["a".to_owned()]]);
            assert!(is_closed_pipe(&printed.unwrap_err()));
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut out = Output::new(Format::Table, Box::new(Closed));
            assert!(is_closed_pipe(&out.completion(shell).unwrap_err()));
        }
        let full = anyhow::Error::new(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!is_closed_pipe(&full));
    }

    #[test]
    fn what_was_done_counts_and_not_who_reads_of_it() {
        let closed = || Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        let out = || Output::new(Format::Table, Box::new(Closed));
        assert_eq!((out().end(Ok(())), out().end(closed())), (0, 0));
        assert_eq!(out().end(Err(anyhow::anyhow!("refused"))), FAILED);
        let mut noted = out();
        noted.note();
        assert_eq!(noted.end(closed()), NOTEWORTHY);
        let mut failed = out();
        failed.note();
        failed.fail(anyhow::anyhow!("refused"));
        assert_eq!(failed.end(closed()), FAILED);
        let wrong =
            Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, "a name is missing");
        assert_eq!(out().end(Err(wrong.into())), WRONG);
    }

    #[test]
    fn what_is_announced_holds_nothing_up_unless_it_cannot_be_kept() {
        let mut out = Output::new(Format::Table, Box::new(Closed));
        out.announce(|to| writeln!(to, "about to")).unwrap();
        assert!(out.announce(|_| Err(io::ErrorKind::StorageFull.into())).is_err());
    }

    /// Standard output that can be looked at.
    #[derive(Clone, Default)]
    struct Seen(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn listed(format: Format, pages: &[&[&str]]) -> String {
        let seen = Seen::default();
        let mut out = Output::new(format, Box::new(seen.clone()));
        let mut list = out.list("words", &["WORD", "AGAIN"]);
        for page in pages {
            let json = |word: &&str| Value::from(*word);
            list.page(page, json, |word| vec![(*word).to_owned(), (*word).to_owned()]).unwrap();
        }
        list.end().unwrap();
        String::from_utf8(seen.0.take()).unwrap()
    }

    #[test]
    fn a_list_is_the_same_however_many_pages_it_has() {
        let json = r#"{"words":["a","b","c"],"next_page_token":""}"#;
        assert_eq!(listed(Format::Json, &[&["a", "b", "c"]]).trim_end(), json);
        assert_eq!(listed(Format::Json, &[&["a"], &[], &["b", "c"]]).trim_end(), json);
        assert_eq!(listed(Format::Json, &[]).trim_end(), r#"{"words":[],"next_page_token":""}"#);
        let whole = listed(Format::Table, &[&["a", "longest", "c"]]);
        assert_eq!(listed(Format::Table, &[&["a", "longest"], &["c"]]), whole);
        assert_eq!(whole.lines().count(), 4);
    }

    #[test]
    fn cells_and_values_cannot_move_the_cursor() {
        let hostile = "a\u{1b}[1A\nb";
        let listed = listed(Format::Table, &[&[hostile, "c"], &[hostile]]);
        assert!(!listed.contains('\u{1b}') && listed.lines().count() == 4, "{listed}");
        let seen = Seen::default();
        let mut out = Output::new(Format::Table, Box::new(seen.clone()));
        out.table(|| Value::Null, &["A"], [vec![hostile.to_owned()]]).unwrap();
        out.print(|| Value::Null, |to| fields(to, &[("hint", &hostile)])).unwrap();
        out.print(|| Value::Null, |to| writeln!(to, "\u{1b}[2J")).unwrap();
        let printed = String::from_utf8(seen.0.take()).unwrap();
        assert!(!printed.contains('\u{1b}') && printed.lines().count() == 4, "{printed}");
    }

    #[test]
    fn a_cause_is_told_once() {
        let error =
            anyhow::anyhow!("no such file").context("transport error: no such file").context("no server");
        assert_eq!(with_causes(&error), "no server: transport error: no such file");
    }
}
