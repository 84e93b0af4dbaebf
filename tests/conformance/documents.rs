//! STABILITY.md and the RFCs leaned on: is it said what is implemented, and does no secret stand where others read?

use std::path::Path;

use passant_tests::api::fetch_x509;
use passant_tests::conformance::meets;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::Value;

use crate::samples::{AUDIENCE, decode_jwt, mint_jwt};

#[test]
fn the_readme_names_the_revision_of_the_specifications() {
    let _met = meets(&["STAB-02"]);
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    for said in ["665a28f", "1 July 2026", "69464c3", "16 June 2026"] {
        assert!(readme.contains(said), "README does not name {said}");
    }
}

/// Every member of every object in `value`.
fn members(value: &Value, seen: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                seen.push(name.clone());
                members(value, seen);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| members(value, seen)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn private_members_of_keys_are_shown_nowhere() -> anyhow::Result<()> {
    let _met = meets(&["RFC-25"]);
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let (header, claims) = decode_jwt(&mint_jwt(&site, "/web", &[AUDIENCE], 60).await?)?;
    let mut shown = vec![header, claims];
    for format in ["spiffe", "jwks"] {
        let bundle = site.passant(["bundle", "show", "--format", format])?;
        shown.push(serde_json::from_slice(&bundle.stdout)?);
    }
    shown.push(site.passant_json(&["bundle", "show"])?);
    let mut names = Vec::new();
    shown.iter().for_each(|one| members(one, &mut names));
    assert!(names.iter().any(|name| name == "kid"), "{names:?}");
    for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        assert!(!names.iter().any(|name| name == private), "{private} is shown");
    }
    for log in [server.log(), agent.log()] {
        assert!(!log.is_empty());
        assert!(!log.contains("\"d\":") && !log.contains("PRIVATE KEY"));
    }
    Ok(())
}
