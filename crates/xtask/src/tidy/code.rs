//! What of a Rust file is code, and not comment or string?

/// The same text with everything inside comments, strings and character literals blanked out;
/// lines and columns (in bytes) stay.
pub(super) fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = foreign_end(bytes, at);
        match end {
            Some(end) => {
                for byte in &mut code[at..end] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                at = end;
            }
            None => at += 1,
        }
    }
    // Blanking leaves only whole characters and spaces, because every blanked part is bounded by ASCII.
    String::from_utf8_lossy(&code).into_owned()
}

/// If a comment, string or character literal begins at `at`: where it ends.
fn foreign_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(at + block_comment(rest));
    }
    let in_word = at > 0 && is_word(bytes[at - 1]);
    if !in_word && let Some(length) = raw_string(rest) {
        return Some(at + length);
    }
    match rest[0] {
        b'"' => Some(at + quoted(rest, b'"')),
        b'\'' => character(rest).map(|length| at + length),
        _ => None,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Length of a raw string (`r"..."`, `br#"..."#`) at the start of `rest`.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let start = usize::from(matches!(rest.first(), Some(b'b' | b'c')));
    if rest.get(start) != Some(&b'r') {
        return None;
    }
    let hashes = rest[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    let body = start + 1 + hashes;
    if rest.get(body) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'#'; hashes + 1];
    close[0] = b'"';
    let length = rest[body + 1..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(rest.len(), |length| body + 1 + length + close.len()))
}

/// Length of a literal that begins and ends with `quote`.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of a character literal; `None` for a lifetime or a label.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(quoted(rest, b'\''));
    }
    // One character of one to four bytes, then the closing quote.
    (2..=5)
        .find(|length| rest.get(*length) == Some(&b'\''))
        .filter(|length| std::str::from_utf8(&rest[1..*length]).is_ok_and(|text| text.chars().count() == 1))
        .map(|length| length + 1)
}

/// Whether the byte can be part of an identifier.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(blanked(text), expected, "{text}");
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        check("a // b\nc", "a     \nc");
        check("a /* b /* c */ d */ e", "a                   e");
        check(r#"f("x // \" y", z)"#, r#"f(           , z)"#);
        check(r##"r#"a"b"# + x"##, "         + x");
        check(r"('\'', 'ä', b'x')", "(    ,     , b   )");
    }

    #[test]
    fn lifetimes_and_names_stay() {
        check("fn f<'a>(x: &'a str, y: &'a T) 'l: loop", "fn f<'a>(x: &'a str, y: &'a T) 'l: loop");
        check("for_r(\"a\")", "for_r(   )");
    }
}
