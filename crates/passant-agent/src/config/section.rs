//! How is one table of the configuration read so that every fault in it is found?
//!
//! A key is taken out as it is read; what is left at the end is unknown, and is refused with the nearest known key.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use passant_daemon::config::{Fault, duration, quoted, suggest};
use toml::{Table, Value};

/// A table under reading.
pub(super) struct Section<'a> {
    /// With a dot at its end, or empty at the root.
    prefix: String,
    table: Table,
    known: BTreeSet<&'static str>,
    faults: &'a mut Vec<Fault>,
}

impl<'a> Section<'a> {
    pub(super) const fn root(table: Table, faults: &'a mut Vec<Fault>) -> Self {
        Self { prefix: String::new(), table, known: BTreeSet::new(), faults }
    }

    pub(super) fn fault(&mut self, key: &str, what: &str, remedy: &str) {
        let key = format!("{}{key}", self.prefix);
        self.faults.push(Fault { key, what: what.to_owned(), remedy: remedy.to_owned() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.known.insert(key);
        self.table.contains_key(key)
    }

    pub(super) fn string(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key)?;
        match value.as_str() {
            Some("") => {
                self.fault(key, "is empty", "give it a value or remove it");
                None
            }
            Some(text) => Some(text.to_owned()),
            None => self.wrong_type(key, &value, "a text in quotes"),
        }
    }

    /// A list of texts; empty when absent.
    pub(super) fn strings(&mut self, key: &'static str) -> Vec<String> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let texts = value.as_array().and_then(|items| {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        texts
            .or_else(|| self.wrong_type(key, &value, "a list of texts: [\"one\", \"two\"]"))
            .unwrap_or_default()
    }

    /// A list of numbers from 0 to 2^32 - 1; empty when absent.
    pub(super) fn numbers(&mut self, key: &'static str, wanted: &str) -> Vec<u32> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let number = |item: &Value| item.as_integer().and_then(|number| u32::try_from(number).ok());
        let numbers = value.as_array().and_then(|items| items.iter().map(number).collect());
        numbers.or_else(|| self.wrong_type(key, &value, wanted)).unwrap_or_default()
    }

    /// A text or a list of them; none when absent.
    pub(super) fn one_or_more(&mut self, key: &'static str) -> Vec<String> {
        match self.table.get(key) {
            Some(Value::String(_)) => self.string(key).into_iter().collect(),
            Some(_) | None => self.strings(key),
        }
    }

    pub(super) fn required(&mut self, key: &'static str, remedy: &str) -> Option<String> {
        let missing = !self.table.contains_key(key);
        let text = self.string(key);
        if missing {
            self.fault(key, "is missing", remedy);
        }
        text
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        value.as_bool().or_else(|| self.wrong_type(key, &value, "true or false"))
    }

    pub(super) fn integer(&mut self, key: &'static str) -> Option<i64> {
        let value = self.take(key)?;
        value.as_integer().or_else(|| self.wrong_type(key, &value, "a whole number"))
    }

    /// A duration between `bounds`, both in seconds and allowed.
    pub(super) fn duration(&mut self, key: &'static str, default: Duration, bounds: (u64, u64)) -> Duration {
        let Some(text) = self.string(key) else { return default };
        match duration::parse(&text) {
            Ok(span) if (bounds.0..=bounds.1).contains(&span.as_secs()) => return span,
            Ok(_) => {
                let what = format!("\"{text}\" is out of bounds");
                self.fault(
                    key,
                    &what,
                    &format!(
                        "write a time from {} to {} seconds, as in \"{}s\"",
                        bounds.0,
                        bounds.1,
                        default.as_secs()
                    ),
                );
            }
            Err(what) => self.fault(key, &what, &format!("for instance \"{}s\"", default.as_secs())),
        }
        default
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some(text) = self.string(key) else { return default };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.fault(key, &format!("\"{text}\" is not known here"), &format!("write {}", names.join(" or ")));
        default
    }

    /// What `parse` makes of the text, or a fault.
    pub(super) fn parse<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        text: Option<String>,
        parse: impl Fn(&str) -> Result<T, E>,
        remedy: &str,
    ) -> Option<T> {
        match parse(&text?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(key, &error.to_string(), remedy);
                None
            }
        }
    }

    /// Reads the table `key` with `read`; an absent one is read as empty.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let table = match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => return self.wrong_type(key, &other, &format!("a table: [{}{key}]", self.prefix)),
        };
        let prefix = format!("{}{key}.", self.prefix);
        let mut section = Section { prefix, table, known: BTreeSet::new(), faults: self.faults };
        let value = read(&mut section);
        section.finish();
        value
    }

    /// Lets unknown keys pass, because what they belong to is itself unknown.
    pub(super) fn ignore_rest(&mut self) {
        self.table.clear();
    }

    /// Refuses what was not read.
    pub(super) fn finish(&mut self) {
        let known: Vec<&str> = self.known.iter().copied().collect();
        for (key, _) in std::mem::take(&mut self.table) {
            self.fault(&quoted(&key), "unknown key", &suggest(&key, &known));
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.insert(key);
        self.table.remove(key)
    }

    fn wrong_type<T>(&mut self, key: &str, found: &Value, wanted: &str) -> Option<T> {
        let what = format!("has the wrong type, {}", found.type_str());
        self.fault(key, &what, &format!("write {wanted}"));
        None
    }
}
