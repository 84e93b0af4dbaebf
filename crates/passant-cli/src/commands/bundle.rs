//! `passant bundle`: the trust domain's bundle, and those of foreign trust domains.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use passant_core::TrustDomain;
use passant_core::bundle::Bundle as Authorities;
use passant_core::limits::BUNDLE_DOCUMENT_BYTES;
use passant_proto::bundle::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest, batch_delete_federated_bundle_request::Mode,
};
use passant_proto::{convert, types};
use serde_json::json;
use tonic::Code;

use crate::args::{Bundle, BundleFile, BundleFormat, DeleteMode, ServerSocket};
use crate::connect::{Server, refused};
use crate::json;
use crate::render::Output;

/// How many bundles are asked for at once.
const PAGE: i32 = 100;

pub(crate) async fn run(command: Bundle, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    match command {
        Bundle::Show { trust_domain, format } => show(trust_domain.as_ref(), format, &server, out).await,
        Bundle::List => list(&server, out).await,
        Bundle::Count => {
            let count = server.bundles().count_bundles(CountBundlesRequest {}).await.map_err(refused)?;
            let count = count.into_inner().count;
            out.print(|| json!({ "count": count }), |to| writeln!(to, "{count}"))
        }
        Bundle::Set { trust_domain, file, format } => set(trust_domain, &file, format, &server, out).await,
        Bundle::Delete { trust_domain, mode } => delete(&trust_domain, mode, &server, out).await,
    }
}

async fn show(
    trust_domain: Option<&TrustDomain>,
    format: BundleFormat,
    server: &Server,
    out: &mut Output,
) -> anyhow::Result<()> {
    let wire = match trust_domain {
        None => server.bundles().get_bundle(GetBundleRequest { output_mask: None }).await.map_err(refused)?,
        Some(trust_domain) => {
            let request =
                GetFederatedBundleRequest { trust_domain: trust_domain.to_string(), output_mask: None };
            let bundle = server.bundles().get_federated_bundle(request).await.map_err(refused);
            bundle.with_context(|| {
                format!(
                    "failed to show the bundle of {trust_domain}; passant bundle list shows which there are"
                )
            })?
        }
    };
    let wire = wire.into_inner();
    let bundle = convert::bundle::from_wire(&wire).context("the server's bundle cannot be read")?;
    let text = match format {
        BundleFormat::Pem => bundle.to_pem(),
        BundleFormat::Spiffe => bundle.to_spiffe_json()?,
        BundleFormat::Jwks => bundle.to_jwks_json(),
    };
    out.print(|| json::bundle(&wire), |to| writeln!(to, "{}", text.trim_end()))
}

async fn list(server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut rows = out.list(
        "bundles",
        &["TRUST DOMAIN", "X.509 AUTHORITIES", "JWT AUTHORITIES", "SEQUENCE", "REFRESH HINT"],
    );
    let mut page_token = String::new();
    loop {
        let request = ListFederatedBundlesRequest { output_mask: None, page_size: PAGE, page_token };
        let page = server.bundles().list_federated_bundles(request).await.map_err(refused)?.into_inner();
        rows.page(&page.bundles, json::bundle, |bundle| {
            vec![
                bundle.trust_domain.clone(),
                bundle.x509_authorities.len().to_string(),
                bundle.jwt_authorities.len().to_string(),
                bundle.sequence_number.to_string(),
                format!("{}s", bundle.refresh_hint),
            ]
        })?;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return rows.end();
        }
    }
}

async fn set(
    trust_domain: TrustDomain,
    file: &Path,
    format: Option<BundleFile>,
    server: &Server,
    out: &mut Output,
) -> anyhow::Result<()> {
    let bundle = read_bundle(trust_domain, file, format)?;
    let request =
        BatchSetFederatedBundleRequest { bundle: vec![convert::bundle::to_wire(&bundle)], output_mask: None };
    let answer = server.bundles().batch_set_federated_bundle(request).await.map_err(refused)?.into_inner();
    let result = answer.results.into_iter().next().context("the server answered with no result")?;
    let (status, wire) = (result.status.unwrap_or_default(), result.bundle.unwrap_or_default());
    let trust_domain = &bundle.trust_domain;
    accepted(&status, || format!("failed to set the bundle of {trust_domain}"))?;
    out.print(
        || json!({ "results": [{ "status": json::status(&status), "bundle": json::bundle(&wire) }] }),
        |to| {
            let (x509, jwt) = (bundle.x509_authorities.len(), bundle.jwt_authorities.len());
            writeln!(to, "set the bundle of {trust_domain}: {x509} X.509 authorities, {jwt} JWT authorities")
        },
    )
}

/// The bundle of `trust_domain` in a file.
pub(crate) fn read_bundle(
    trust_domain: TrustDomain,
    file: &Path,
    format: Option<BundleFile>,
) -> anyhow::Result<Authorities> {
    let text = read(file).with_context(|| format!("failed to read {}", file.display()))?;
    parse(trust_domain, &text, format)
        .with_context(|| format!("{} holds no bundle that can be taken", file.display()))
}

/// A bundle's text, as far as bundles go.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let from: Box<dyn Read> =
        if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    let most = u64::try_from(BUNDLE_DOCUMENT_BYTES).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    // One byte more, so that what is too large is seen to be.
    from.take(most.saturating_add(1)).read_to_end(&mut text)?;
    Ok(text)
}

fn parse(trust_domain: TrustDomain, text: &[u8], format: Option<BundleFile>) -> anyhow::Result<Authorities> {
    let is_json = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let format = format.unwrap_or(if is_json { BundleFile::Spiffe } else { BundleFile::Pem });
    let bundle = match format {
        BundleFile::Pem => Authorities::from_pem(trust_domain, text)?,
        BundleFile::Spiffe => Authorities::from_spiffe_json(trust_domain, text)?,
    };
    if bundle.x509_authorities.is_empty() && bundle.jwt_authorities.is_empty() {
        bail!("there is no authority in it: nothing of that trust domain would be believed");
    }
    Ok(bundle)
}

async fn delete(
    trust_domain: &TrustDomain,
    mode: DeleteMode,
    server: &Server,
    out: &mut Output,
) -> anyhow::Result<()> {
    let mode = match mode {
        DeleteMode::Restrict => Mode::Restrict,
        DeleteMode::Delete => Mode::Delete,
        DeleteMode::Dissociate => Mode::Dissociate,
    };
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: vec![trust_domain.to_string()],
        mode: mode.into(),
    };
    let answer = server.bundles().batch_delete_federated_bundle(request).await.map_err(refused)?.into_inner();
    let result = answer.results.into_iter().next().context("the server answered with no result")?;
    let status = result.status.unwrap_or_default();
    accepted(&status, || {
        let hint = if Code::from_i32(status.code) == Code::FailedPrecondition {
            "; --mode dissociate takes it out of the entries that federate with it, --mode delete deletes them"
        } else if Code::from_i32(status.code) == Code::NotFound {
            "; passant bundle list shows which there are"
        } else {
            ""
        };
        format!("failed to delete the bundle of {trust_domain}{hint}")
    })?;
    out.print(
        || json!({ "results": [{ "status": json::status(&status), "trust_domain": result.trust_domain }] }),
        |to| writeln!(to, "deleted the bundle of {trust_domain}"),
    )
}

/// Fails with what the server said, unless it agreed.
fn accepted(status: &types::Status, what: impl FnOnce() -> String) -> anyhow::Result<()> {
    if status.code == 0 {
        return Ok(());
    }
    Err(anyhow::anyhow!("{} ({:?})", status.message, Code::from_i32(status.code)).context(what()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, format: Option<BundleFile>) -> Result<usize, String> {
        let trust_domain = TrustDomain::parse("other.test").unwrap();
        parse(trust_domain, text.as_bytes(), format)
            .map(|bundle| bundle.jwt_authorities.len())
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_form_of_a_bundle_is_told_by_its_text() {
        let key = r#"{"kty":"EC","crv":"P-256","kid":"k","use":"jwt-svid",
            "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let document = format!("\n {{\"keys\": [{key}]}}");
        assert_eq!(parsed(&document, None), Ok(1));
        assert!(parsed(&document, Some(BundleFile::Pem)).is_err());
        assert!(parsed("-----BEGIN NOTHING-----", None).is_err());
    }

    #[test]
    fn a_bundle_without_authorities_is_not_set() {
        assert!(parsed(r#"{"keys": []}"#, None).unwrap_err().contains("no authority"));
    }
}
