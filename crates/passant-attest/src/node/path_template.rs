//! Which agent SPIFFE ID does a configured path template make?
//!
//! SPIRE's `agent_path_template`, as far as it is used: text with `{{ .Name }}` in it. Go's template functions and
//! conditions are not offered; a template that uses one is refused when the configuration is read.

use passant_core::spiffe_id::SpiffeIdError;
use passant_core::{SpiffeId, TrustDomain};
use thiserror::Error;

/// A template whose names are all known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Index into the names that the template was parsed with.
    Name(&'static str),
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PathTemplateError {
    /// The path must be absolute, below `/spire/agent`.
    #[error("agent_path_template must begin with '/'")]
    NotAbsolute,
    /// A placeholder without its end.
    #[error("agent_path_template has '{{{{' without '}}}}'")]
    Unclosed,
    /// Anything but a known name between the braces.
    #[error("agent_path_template has '{{{{ {found} }}}}', expected one of {known}")]
    Unknown {
        /// What stands there.
        found: String,
        /// What may stand there.
        known: String,
    },
}

/// Why this node gets no ID from the template.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderError {
    /// The value is missing, empty, or would make more than one path segment.
    #[error("agent_path_template needs {0}, which this node does not have in a usable form")]
    Unusable(&'static str),
    /// The result is no SPIFFE ID.
    #[error("agent_path_template makes no valid SPIFFE ID")]
    Invalid(#[from] SpiffeIdError),
}

impl PathTemplate {
    /// Parses `text`, in which `{{ .Name }}` may stand for each of `names` (written without the dot).
    ///
    /// # Errors
    /// See [`PathTemplateError`].
    pub fn parse(text: &str, names: &[&'static str]) -> Result<Self, PathTemplateError> {
        if !text.starts_with('/') {
            return Err(PathTemplateError::NotAbsolute);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (inside, behind) = after.split_once("}}").ok_or(PathTemplateError::Unclosed)?;
            let found = inside.trim();
            let name = names.iter().find(|name| found.strip_prefix('.') == Some(**name));
            let name = name.ok_or_else(|| PathTemplateError::Unknown {
                found: found.to_owned(),
                known: names.iter().map(|name| format!("'.{name}'")).collect::<Vec<_>>().join(", "),
            })?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Name(name));
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { parts })
    }

    /// `spiffe://<trust domain>/spire/agent<path>`, with each name replaced by `value_of`.
    ///
    /// A value fills at most one path segment: one with a slash in it, which whoever had the certificate made might have
    /// put there to become another node, is refused.
    ///
    /// # Errors
    /// See [`RenderError`].
    pub fn render(
        &self,
        trust_domain: &TrustDomain,
        value_of: impl Fn(&'static str) -> Option<String>,
    ) -> Result<SpiffeId, RenderError> {
        let mut path = String::from("/spire/agent");
        for part in &self.parts {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Name(name) => {
                    let value = value_of(name).filter(|value| !value.is_empty() && !value.contains('/'));
                    path.push_str(&value.ok_or(RenderError::Unusable(name))?);
                }
            }
        }
        Ok(trust_domain.join(&path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &["PluginName", "Subject.CommonName"];

    fn render(template: &str, common_name: Option<&str>) -> Result<String, RenderError> {
        let value_of = |name| match name {
            "PluginName" => Some("x509pop".to_owned()),
            _ => common_name.map(str::to_owned),
        };
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        PathTemplate::parse(template, NAMES).unwrap().render(&trust_domain, value_of).map(|id| id.to_string())
    }

    #[test]
    fn names_are_replaced() {
        for (template, path) in [
            ("/{{ .PluginName }}/{{.Subject.CommonName}}", "/x509pop/web-1"),
            ("/a{{.PluginName}}b", "/ax509popb"),
            ("/fixed", "/fixed"),
        ] {
            assert_eq!(
                render(template, Some("web-1")),
                Ok(format!("spiffe://example.org/spire/agent{path}")),
                "{template}"
            );
        }
    }

    #[test]
    fn values_cannot_leave_their_segment() {
        for value in [None, Some(""), Some("a/b"), Some("../x")] {
            let unusable = Err(RenderError::Unusable("Subject.CommonName"));
            assert_eq!(render("/x/{{ .Subject.CommonName }}", value), unusable, "{value:?}");
        }
        for value in ["..", "a b", "ä"] {
            let result = render("/x/{{ .Subject.CommonName }}", Some(value));
            assert!(matches!(result, Err(RenderError::Invalid(_))), "{value:?}");
        }
    }

    #[test]
    fn unknown_templates_are_refused() {
        assert_eq!(PathTemplate::parse("x", NAMES), Err(PathTemplateError::NotAbsolute));
        assert_eq!(PathTemplate::parse("/{{ .PluginName", NAMES), Err(PathTemplateError::Unclosed));
        for inside in ["PluginName", ".Nope", "if .PluginName", ".PluginName | lower", ""] {
            let error = PathTemplate::parse(&format!("/{{{{ {inside} }}}}"), NAMES).unwrap_err();
            assert!(matches!(error, PathTemplateError::Unknown { .. }), "{inside}");
            assert!(error.to_string().contains("'.Subject.CommonName'"), "{error}");
        }
    }
}
