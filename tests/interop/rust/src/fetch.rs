//! Does everything the Workload API hands out verify?

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use spiffe::{JwtSvid, WorkloadApiClient};
use tokio::time::timeout;

use crate::CALL_TIMEOUT;
use crate::document::{describe_jwt, describe_x509, merge, verify};

pub async fn run(audience: &str) -> Result<()> {
    let client = WorkloadApiClient::connect_env().await.context("connect")?;
    let mut report = json!({});
    timeout(CALL_TIMEOUT, x509(&client, &mut report)).await.context("X.509 calls")??;
    timeout(CALL_TIMEOUT, jwt(&client, audience, &mut report)).await.context("JWT calls")??;
    merge(
        &mut report,
        json!({"verified": ["x509_svid", "x509_bundles", "jwt_bundles", "jwt_workload_api", "jwt_offline"]}),
    );
    println!("{report}");
    Ok(())
}

async fn x509(client: &WorkloadApiClient, report: &mut Value) -> Result<()> {
    let context = client.fetch_x509_context().await.context("fetch X.509 context")?;
    for svid in context.svids() {
        verify(svid, context.bundle_set())?;
    }
    let svid = context.default_svid().context("the context holds no SVID")?;
    let bundles = client.fetch_x509_bundles().await.context("fetch X.509 bundles")?;
    verify(svid, &bundles)?;

    let own = bundles.get(svid.spiffe_id().trust_domain()).context("no bundle for our own trust domain")?;
    let mut domains: Vec<_> = bundles.iter().map(|(domain, _)| domain.as_str()).collect();
    domains.sort_unstable();
    merge(report, describe_x509(svid)?);
    merge(
        report,
        json!({
            "svids": context.svids().len(),
            "chain": svid.cert_chain().len(),
            "bundle_authorities": own.authorities().len(),
            "x509_trust_domains": domains,
        }),
    );
    Ok(())
}

async fn jwt(client: &WorkloadApiClient, audience: &str, report: &mut Value) -> Result<()> {
    let other = format!("{audience}-other");
    let svid = client.fetch_jwt_svid([audience], None).await.context("fetch JWT-SVID")?;
    let bundles = client.fetch_jwt_bundles().await.context("fetch JWT bundles")?;

    let validated = client
        .validate_jwt_token(audience, svid.token())
        .await
        .context("validate JWT-SVID through the Workload API")?;
    ensure!(
        validated.spiffe_id() == svid.spiffe_id(),
        "validation says {}, the JWT-SVID is of {}",
        validated.spiffe_id(),
        svid.spiffe_id()
    );
    ensure!(
        client.validate_jwt_token(&other, svid.token()).await.is_err(),
        "the Workload API validated a JWT-SVID for an audience it was not issued for"
    );

    JwtSvid::parse_and_validate(svid.token(), &bundles, &[audience]).context("validate JWT-SVID offline")?;
    ensure!(
        JwtSvid::parse_and_validate(svid.token(), &bundles, &[&other]).is_err(),
        "a JWT-SVID validated for an audience it was not issued for"
    );

    let own =
        bundles.get(svid.spiffe_id().trust_domain()).context("no JWT bundle for our own trust domain")?;
    let mut domains: Vec<_> = bundles.iter().map(|(domain, _)| domain.as_str()).collect();
    domains.sort_unstable();
    merge(
        report,
        json!({
            "jwt_trust_domains": domains,
            "jwt_authorities": own.jwt_authorities().count(),
            "jwt": describe_jwt(&svid)?,
        }),
    );
    Ok(())
}
