//! What does a file of registration entries say?
//!
//! Two shapes are read, both SPIRE's: what `spire-server entry show -output json` prints (and `passant entry list -o json`,
//! `passant entry export`), and what `spire-server entry create -data` takes. An entry by itself, as `passant entry show -o json`
//! prints it, is a file of one. One entry at a time is held in memory.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use anyhow::anyhow;
use passant_proto::options::{KeyScope, Options};
use passant_proto::types;
use passant_proto::types::entry::AdditionalAttributes;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

/// One entry as a file has it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) entry: types::Entry,
    /// What it says beside SPIRE's fields; nothing is as with SPIRE.
    pub(crate) options: Options,
    /// The line of the file on which it begins, from 1.
    pub(crate) line: usize,
    /// Members that are no fields of an entry here: a newer SPIRE may have written them.
    pub(crate) unknown: Vec<String>,
}

/// Hands each entry of a file to `take`, in order, until one is not taken.
///
/// # Errors
/// When the text is not JSON of one of the two shapes, is only a page of a list, or `take` fails; with the line.
pub(crate) fn read(
    file: impl Read,
    mut take: impl FnMut(Written) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let lines = Rc::new(Cell::new(1));
    let file = Counted { inner: BufReader::with_capacity(1 << 16, file), lines: Rc::clone(&lines) };
    let mut json = serde_json::Deserializer::from_reader(file);
    let mut not_taken = None;
    let mut each = |written| {
        take(written).map_err(|error| {
            not_taken = Some(error);
            "stopped"
        })
    };
    let read = json.deserialize_any(Top { lines, each: &mut each }).and_then(|()| json.end());
    match (read, not_taken) {
        (_, Some(error)) => Err(error),
        (Ok(()), None) => Ok(()),
        (Err(error), None) => {
            Err(anyhow!(error).context("this is no file of entries such as `passant entry export` writes"))
        }
    }
}

/// Counts the lines that were read so far.
struct Counted<R> {
    inner: R,
    lines: Rc<Cell<usize>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let ends = buffer[..read].iter().filter(|byte| **byte == b'\n').count();
        self.lines.set(self.lines.get() + ends);
        Ok(read)
    }
}

/// The whole text: a list of entries, an object that holds one as `entries`, or an entry.
struct Top<'a> {
    lines: Rc<Cell<usize>>,
    each: &'a mut dyn FnMut(Written) -> Result<(), &'static str>,
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries, an object with one as \"entries\", or an entry")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        List(self).visit_seq(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        // As with an entry of a list.
        let line = self.lines.get();
        let mut found = false;
        let mut alone = Partial::default();
        while let Some(name) = members.next_key::<String>()? {
            match name.as_str() {
                "entries" if found => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    found = true;
                    let inner = Top { lines: Rc::clone(&self.lines), each: &mut *self.each };
                    members.next_value_seed(List(inner))?;
                }
                "next_page_token" => {
                    if !members.next_value::<Option<String>>()?.unwrap_or_default().is_empty() {
                        let only = "next_page_token is set: this is only one page of a list";
                        return Err(A::Error::custom(only));
                    }
                }
                _ => alone.read(name, &mut members)?,
            }
        }
        match (found, alone.seen.contains("spiffe_id")) {
            (true, false) => Ok(()),
            (true, true) => Err(A::Error::custom("this is an entry and a list of entries at once")),
            (false, true) => {
                let Partial { entry, options, unknown, .. } = alone;
                (self.each)(Written { entry, options, line, unknown }).map_err(A::Error::custom)
            }
            (false, false) => Err(A::Error::missing_field("entries")),
        }
    }
}

struct List<'a>(Top<'a>);

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Top { lines, each } = self.0;
        while let Some(written) = list.next_element_seed(One { lines: &lines })? {
            each(written).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// One entry, read member by member: a name that stands twice would have two readings, and is refused.
struct One<'a> {
    lines: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = Written;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Written, D::Error> {
        // The brace that opens the entry was looked at already, and nothing behind it.
        let line = self.lines.get();
        let Partial { entry, options, unknown, .. } = json.deserialize_map(Members)?;
        Ok(Written { entry, options, line, unknown })
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Partial;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut partial = Partial::default();
        while let Some(name) = members.next_key::<String>()? {
            partial.read(name, &mut members)?;
        }
        Ok(partial)
    }
}

/// An entry of which some members were read.
#[derive(Default)]
struct Partial {
    entry: types::Entry,
    options: Options,
    unknown: Vec<String>,
    seen: BTreeSet<String>,
}

impl Partial {
    /// Reads the member `name`.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: String, members: &mut A) -> Result<(), A::Error> {
        // The same field under its two names counts as twice, too.
        let field = match name.as_str() {
            "entry_id" => "id",
            "entryExpiry" => "expires_at",
            name => name,
        };
        if !self.seen.insert(field.to_owned()) {
            return Err(A::Error::custom(format_args!("{field} is given twice")));
        }
        let entry = &mut self.entry;
        match field {
            "id" => entry.id = or_default(members)?,
            "spiffe_id" => entry.spiffe_id = members.next_value::<Id>()?.0,
            "parent_id" => entry.parent_id = members.next_value::<Id>()?.0,
            "selectors" => entry.selectors = selectors(or_default(members)?),
            "x509_svid_ttl" => entry.x509_svid_ttl = seconds(field, members)?,
            "jwt_svid_ttl" => entry.jwt_svid_ttl = seconds(field, members)?,
            "federates_with" => entry.federates_with = federates_with(or_default(members)?),
            "admin" => entry.admin = or_default(members)?,
            "downstream" => entry.downstream = or_default(members)?,
            "expires_at" => entry.expires_at = members.next_value::<Number>()?.0,
            "dns_names" => entry.dns_names = or_default(members)?,
            "revision_number" => entry.revision_number = members.next_value::<Number>()?.0,
            "store_svid" => entry.store_svid = or_default(members)?,
            "hint" => entry.hint = or_default(members)?,
            "created_at" => entry.created_at = members.next_value::<Number>()?.0,
            "additional_attributes" => {
                let more: Option<Attributes> = members.next_value()?;
                entry.additional_attributes = more.map(|more| more.taken(&mut self.unknown));
            }
            "options" => {
                let told: Option<Told> = members.next_value()?;
                self.options = told.map(|told| told.taken(&mut self.unknown)).unwrap_or_default();
            }
            _ => {
                members.next_value::<IgnoredAny>()?;
                self.unknown.push(name);
            }
        }
        Ok(())
    }
}

/// `null` is what is not there.
fn or_default<'de, A: MapAccess<'de>, T: serde::Deserialize<'de> + Default>(
    members: &mut A,
) -> Result<T, A::Error> {
    Ok(members.next_value::<Option<T>>()?.unwrap_or_default())
}

fn seconds<'de, A: MapAccess<'de>>(field: &str, members: &mut A) -> Result<i32, A::Error> {
    let number = members.next_value::<Number>()?.0;
    i32::try_from(number).map_err(|_| {
        A::Error::custom(format_args!("{field}: {number} seconds are more than can be asked for"))
    })
}

fn selectors(written: Vec<Selector>) -> Vec<types::Selector> {
    written.into_iter().map(|Selector { kind, value }| types::Selector { r#type: kind, value }).collect()
}

/// A trust domain may be written as its SPIFFE ID.
fn federates_with(written: Vec<String>) -> Vec<String> {
    let bare = |name: String| name.strip_prefix("spiffe://").map(str::to_owned).unwrap_or(name);
    written.into_iter().map(bare).collect()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Selector {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    value: String,
}

#[derive(serde::Deserialize)]
struct Attributes {
    #[serde(default)]
    disable_x509_svid_prefetch: bool,
    #[serde(default)]
    jwt_svid_include_jti: bool,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

impl Attributes {
    fn taken(self, unknown: &mut Vec<String>) -> AdditionalAttributes {
        unknown.extend(self.others.keys().map(|name| format!("additional_attributes.{name}")));
        AdditionalAttributes {
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
        }
    }
}

#[derive(serde::Deserialize)]
struct Told {
    #[serde(default)]
    key_scope: Scope,
    #[serde(default)]
    strict: bool,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scope {
    #[default]
    Node,
    Instance,
}

impl Told {
    fn taken(self, unknown: &mut Vec<String>) -> Options {
        unknown.extend(self.others.keys().map(|name| format!("options.{name}")));
        let key_scope = match self.key_scope {
            Scope::Node => KeyScope::Unspecified,
            Scope::Instance => KeyScope::Instance,
        };
        Options { key_scope: key_scope.into(), strict: self.strict, ..Options::default() }
    }
}

/// A SPIFFE ID as text, or in its two parts. Only the form is looked at: what is allowed is for the server to say.
struct Id(Option<types::Spiffeid>);

impl<'de> serde::Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(IdVisitor).map(Self)
    }
}

struct IdVisitor;

impl<'de> Visitor<'de> for IdVisitor {
    type Value = Option<types::Spiffeid>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a SPIFFE ID: spiffe://trust-domain/path, or an object with trust_domain and path")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let rest = text.strip_prefix("spiffe://");
        let rest = rest.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))?;
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Ok(Some(types::Spiffeid { trust_domain: name.to_owned(), path: path.to_owned() }))
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts {
            trust_domain: String,
            #[serde(default)]
            path: String,
        }
        let parts: Parts =
            serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(members))?;
        Ok(Some(types::Spiffeid { trust_domain: parts.trust_domain, path: parts.path }))
    }
}

/// A whole number, or one written as text as protobuf's JSON does with 64 bits.
struct Number(i64);

impl<'de> serde::Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(NumberVisitor).map(Self)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_unit<E>(self) -> Result<i64, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, value: i64) -> Result<i64, E> {
        Ok(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<i64, E> {
        i64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<i64, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> anyhow::Result<Vec<Written>> {
        let mut found = Vec::new();
        read(text.as_bytes(), |written| {
            found.push(written);
            Ok(())
        })?;
        Ok(found)
    }

    const SHOWN: &str = r#"{
"entries": [
  {"id": "one", "spiffe_id": {"trust_domain": "example.org", "path": "/web"},
   "parent_id": {"trust_domain": "example.org", "path": "/node"}, "selectors": [{"type": "unix", "value": "uid:1"}],
   "x509_svid_ttl": 60, "federates_with": ["other.test"], "admin": true, "expires_at": "1790000000",
   "dns_names": ["web"], "revision_number": "7", "hint": "blue", "created_at": "5", "jwt_svid_ttl": 0,
   "additional_attributes": {"jwt_svid_include_jti": true}},

  {"id": "two"}
], "next_page_token": ""}"#;

    const DATA: &str = r#"{"entries": [{"entry_id": "one", "spiffe_id": "spiffe://example.org/web",
        "parent_id": "spiffe://example.org/node", "selectors": [{"type": "unix", "value": "uid:1"}],
        "x509_svid_ttl": 60, "federates_with": ["spiffe://other.test"], "admin": true, "entryExpiry": 1790000000,
        "dns_names": ["web"], "revision_number": 7, "hint": "blue", "created_at": 5,
        "additional_attributes": {"jwt_svid_include_jti": true}}]}"#;

    #[test]
    fn both_shapes_of_spire_say_the_same() {
        let (shown, data) = (all(SHOWN).unwrap(), all(DATA).unwrap());
        assert_eq!(shown[0].entry, data[0].entry);
        let entry = &shown[0].entry;
        assert_eq!((entry.expires_at, entry.x509_svid_ttl, entry.admin), (1_790_000_000, 60, true));
        assert_eq!(entry.federates_with, ["other.test"]);
        assert!(entry.additional_attributes.unwrap().jwt_svid_include_jti);
        assert_eq!((shown[0].line, shown[1].line), (3, 9));
    }

    #[test]
    fn a_bare_list_is_a_file_too_and_null_is_nothing() {
        let found =
            all(r#"[{"id": null, "selectors": null, "spiffe_id": null, "expires_at": null}]"#).unwrap();
        assert_eq!(found[0].entry, types::Entry::default());
        assert!(all("[]").unwrap().is_empty());
    }

    #[test]
    fn an_entry_by_itself_is_a_file_of_one() {
        let found = all(
            "\n{\"id\": \"one\",\n\"spiffe_id\": {\"trust_domain\": \"example.org\", \"path\": \"/a\"}, \"owner\": 1}",
        );
        let found = found.unwrap();
        assert_eq!((found.len(), found[0].entry.id.as_str(), found[0].line), (1, "one", 2));
        assert_eq!(found[0].unknown, ["owner"]);
        // Beside a list, members that no list has are nothing to us.
        assert!(all(r#"{"version": 2, "entries": []}"#).unwrap().is_empty());
    }

    #[test]
    fn members_that_no_entry_has_are_named() {
        let found =
            all(r#"[{"id": "a", "owner": {"x": [1]}, "additional_attributes": {"new": 1}}]"#).unwrap();
        assert_eq!(found[0].unknown, ["owner", "additional_attributes.new"]);
    }

    #[test]
    fn what_is_no_whole_file_of_entries_is_refused() {
        for (text, says) in [
            ("", "EOF"),
            ("7", "a list of entries"),
            ("{}", "entries"),
            (r#"{"entries": [{"id": "a"}], "next_page_token": "x"}"#, "one page"),
            (r#"{"spiffe_id": null, "entries": []}"#, "at once"),
            (r#"{"id": "a"}"#, "entries"),
            (r#"{"entries": [], "entries": []}"#, "duplicate field"),
            (r#"[{"id": "a", "entry_id": "b"}]"#, "id is given twice"),
            (r#"[{"id": "a"}] x"#, "trailing"),
            (r#"[{"spiffe_id": "example.org/web"}]"#, "spiffe://trust-domain/path"),
            (r#"[{"spiffe_id": {"trust_domain": "a", "host": "b"}}]"#, "host"),
            ("[\n{\"x509_svid_ttl\": 3000000000}]", "line 2"),
            (r#"[{"expires_at": "soon"}]"#, "whole number"),
            (r#"[{"selectors": [{"kind": "unix"}]}]"#, "kind"),
            (r#"[{"id": "a""#, "EOF"),
        ] {
            let error = format!("{:#}", all(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_not_taken_ends_the_reading() {
        let mut seen = 0;
        let stopped = read(SHOWN.as_bytes(), |_| {
            seen += 1;
            anyhow::bail!("enough")
        });
        assert_eq!((stopped.unwrap_err().to_string().as_str(), seen), ("enough", 1));
    }
}
