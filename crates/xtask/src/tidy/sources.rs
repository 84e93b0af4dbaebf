//! Does a source file keep the house rules?

use super::File;
use super::code::{blanked, is_word};

/// More lines than this, not counting tests, hold two ideas.
const MAX_LINES: usize = 800;

/// Where machines of ours keep things; in halves, so that this file passes its own check.
const MACHINE_PATHS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// What must not stand in code, and what to do instead.
const FORBIDDEN: [(&str, &str); 3] = [
    ("#[ignore", "a test that does not run proves nothing: make it run, or delete it"),
    ("#[should_panic", "assert on the error value"),
    ("thread::sleep", "use tokio's paused time, or wait for a condition"),
];

/// The crate that may use server and agent, and in which of its files.
const CLI: &str = "crates/passant-cli/src/";
const CLI_MAY: [&str; 3] = ["dev", "commands/store", "commands/audit"];

/// Every fault as `path:line: what is wrong and what would help`.
pub(super) fn check(file: &File) -> Vec<String> {
    let mut faults = Vec::new();
    machine_paths(&file.text, &mut faults);
    if file.path.ends_with(".rs") && !file.path.starts_with("crates/passant-proto/src/gen/") {
        let code = blanked(&file.text);
        question(&file.text, &mut faults);
        forbidden(&code, &mut faults);
        allows(&code, &mut faults);
        if file.path.starts_with("crates/") {
            selects(&code, &mut faults);
            length(&code, &mut faults);
        }
        if let Some(name) = file.path.strip_prefix(CLI)
            && !CLI_MAY.iter().any(|may| name.starts_with(may))
        {
            layers(&code, &mut faults);
        }
    }
    faults.into_iter().map(|fault| format!("{}:{}: {}", file.path, fault.line, fault.says)).collect()
}

struct Fault {
    line: usize,
    says: String,
}

fn fault(text: &str, at: usize, says: impl Into<String>) -> Fault {
    Fault { line: text[..at].matches('\n').count() + 1, says: says.into() }
}

fn machine_paths(text: &str, faults: &mut Vec<Fault>) {
    for path in MACHINE_PATHS {
        for (at, _) in text.match_indices(path) {
            let before = text[..at].bytes().next_back();
            // After a name it is the middle of a path or of a URL.
            if !before.is_some_and(|byte| is_word(byte) || b"./-~}$*".contains(&byte)) {
                faults.push(fault(text, at, format!("{path} is a path of one machine: use a relative one")));
            }
        }
    }
}

fn question(text: &str, faults: &mut Vec<Fault>) {
    if !text.starts_with("//! ") {
        faults.push(fault(text, 0, "say in a first line `//!` which question this file answers"));
    }
}

fn forbidden(code: &str, faults: &mut Vec<Fault>) {
    for (what, instead) in FORBIDDEN {
        for (at, _) in code.match_indices(what) {
            faults.push(fault(code, at, format!("`{what}`: {instead}")));
        }
    }
}

/// Finds `allow(` inside attributes, `cfg_attr` included.
fn allows(code: &str, faults: &mut Vec<Fault>) {
    for (at, _) in code.match_indices('#') {
        let inner = code[at + 1..].trim_start_matches('!');
        if !inner.starts_with('[') {
            continue;
        }
        let attribute = &inner[..closing(inner)];
        let found = attribute.match_indices("allow(").any(|(at, _)| !is_word(attribute.as_bytes()[at - 1]));
        if found {
            faults.push(fault(code, at, "`allow` outlives its cause: use `expect` with a reason"));
        }
    }
}

/// Where the bracket that opens `text` closes.
fn closing(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' => depth += 1,
            b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn selects(code: &str, faults: &mut Vec<Fault>) {
    for (at, what) in code.match_indices("select!") {
        if at > 0 && is_word(code.as_bytes()[at - 1]) {
            continue;
        }
        let body = code[at + what.len()..].trim_start().trim_start_matches(['{', '(', '[']).trim_start();
        if !body.starts_with("biased;") {
            faults.push(fault(
                code,
                at,
                "`select!` must begin with `biased;`: else chance decides the order",
            ));
        }
    }
}

fn length(code: &str, faults: &mut Vec<Fault>) {
    let tests = code.find("\n#[cfg(test)]\nmod ").map_or(code.len(), |at| at + 1);
    let lines = code[..tests].lines().count();
    if lines > MAX_LINES {
        faults.push(fault(code, 0, format!("{lines} lines before the tests, at most {MAX_LINES}: split it")));
    }
}

fn layers(code: &str, faults: &mut Vec<Fault>) {
    for what in ["passant_server", "passant_agent"] {
        for (at, _) in code.match_indices(what) {
            faults.push(fault(
                code,
                at,
                format!(
                    "`{what}` is for dev.rs, commands/store.rs and commands/audit.rs only: the command line talks to sockets"
                ),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_faults(path: &str, text: &str, expected: usize) {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let faults = check(&file);
        assert_eq!(faults.len(), expected, "{faults:?} in {text}");
    }

    fn check_code(code: &str, expected: usize) {
        check_faults("crates/passant-core/src/a.rs", &format!("//! What?\n{code}\n"), expected);
    }

    #[test]
    fn every_file_says_its_question() {
        check_faults("crates/a/src/lib.rs", "//! What?\n", 0);
        check_faults("crates/a/src/lib.rs", "fn a() {}\n", 1);
        check_faults("tests/e2e/main.rs", "", 1);
        check_faults("crates/passant-proto/src/gen/types.rs", "// Generated\n#[allow(x)]\n", 0);
    }

    #[test]
    fn select_is_biased() {
        check_code("fn a() { tokio::select! {\n    biased;\n    x = y => {} } }", 0);
        check_code("fn a() { tokio::select! {\n    // first\n    biased;\n    x = y => {} } }", 0);
        check_code("fn a() { select!(x = y => {}) }", 1);
        check_code("// select! {}", 0);
        check_code("fn a() { preselect!(x) }", 0);
    }

    #[test]
    fn allow_is_refused_in_attributes_only() {
        check_code("#[allow(dead_code)]", 1);
        check_code("#![allow(dead_code, reason = \"]\")]", 1);
        check_code("#[cfg_attr(test, allow(dead_code))]", 1);
        check_code("#[expect(clippy::disallow(x))]", 0);
        check_code("fn a(b: B) { b.allow(c); [0; 4]; }", 0);
    }

    #[test]
    fn sleeping_ignored_and_panicking_tests_are_refused() {
        check_code("#[ignore]\n#[should_panic(expected = \"x\")]", 2);
        check_code("fn a() { std::thread::sleep(b) }", 1);
        check_code("/// Like `thread::sleep`, without `#[ignore]`.", 0);
    }

    #[test]
    fn length_counts_up_to_the_tests() {
        let lines = |count: usize| "//\n".repeat(count);
        check_code(&format!("{}#[cfg(test)]\nmod tests {{\n{}}}", lines(799), lines(900)), 0);
        check_code(&format!("{}#[cfg(test)]\nmod tests {{}}", lines(800)), 1);
        check_code(&lines(800), 1);
    }

    #[test]
    fn paths_of_one_machine_are_refused_in_any_file() {
        let path = MACHINE_PATHS[0];
        check_faults("README.md", &format!("see {path}x"), 1);
        check_faults("README.md", &format!("{path}x"), 1);
        check_faults("README.md", &format!("spiffe://example.org{path}x"), 0);
    }

    #[test]
    fn only_dev_store_and_audit_use_server_and_agent() {
        let text = "//! What?\nuse passant_server::Server;\n";
        check_faults("crates/passant-cli/src/dev.rs", text, 0);
        check_faults("crates/passant-cli/src/commands/store.rs", text, 0);
        check_faults("crates/passant-cli/src/commands/audit.rs", text, 0);
        check_faults("crates/passant-cli/src/entry.rs", text, 1);
    }
}
