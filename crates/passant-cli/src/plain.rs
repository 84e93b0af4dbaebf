//! How is what others wrote shown on a terminal, which takes some characters for commands to itself?
//!
//! A selector or a hint may hold any character. One that moves the cursor could put other words in the place of those that
//! an operator is asked to agree to.

use std::borrow::Cow;
use std::io::{self, Write};

/// A text on one line, with what a terminal would not show as it stands written out: `\u{1b}`, `\n`, `\t`.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    written_out(text, |c| is_command(c) || matches!(c, '\n' | '\t'))
}

/// Writes text on, and writes out what a terminal would take for a command. Lines and tabs stay: they are the writer's own.
/// Texts of others go through [`line()`] before.
pub(crate) struct Plain<W>(pub(crate) W);

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(chunk) = bytes.utf8_chunks().next() else { return Ok(0) };
        self.0.write_all(written_out(chunk.valid(), is_command).as_bytes())?;
        if !chunk.invalid().is_empty() {
            self.0.write_all("\u{fffd}".as_bytes())?;
        }
        Ok(chunk.valid().len() + chunk.invalid().len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Control characters, and those that change the direction in which text is read.
fn is_command(c: char) -> bool {
    let turns =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && !matches!(c, '\n' | '\t'))
}

fn written_out(text: &str, which: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&which) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if which(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: &[u8]) -> String {
        let mut to = Vec::new();
        Plain(&mut to).write_all(bytes).unwrap();
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn a_terminal_gets_no_commands() {
        for (text, one_line, stream) in [
            ("unix:uid:1", "unix:uid:1", "unix:uid:1"),
            ("\u{1b}[2K\rok", r"\u{1b}[2K\rok", r"\u{1b}[2K\rok"),
            ("a\u{9b}2Jb\u{7f}", r"a\u{9b}2Jb\u{7f}", r"a\u{9b}2Jb\u{7f}"),
            ("\u{202e}nimda", r"\u{202e}nimda", r"\u{202e}nimda"),
            ("a\nb\tc", r"a\nb\tc", "a\nb\tc"),
            ("Zürich 漢", "Zürich 漢", "Zürich 漢"),
        ] {
            assert_eq!(line(text), one_line);
            assert_eq!(plain(text.as_bytes()), stream);
        }
    }

    #[test]
    fn what_is_no_text_is_marked() {
        assert_eq!(plain(b"a\xffb\x1bc\xe2\x82"), "a\u{fffd}b\\u{1b}c\u{fffd}");
    }
}
