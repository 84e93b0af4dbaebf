//! `passant federation`: from where the server fetches the bundles of foreign trust domains, and how that goes.

use anyhow::{Context, anyhow};
use passant_core::{SpiffeId, TrustDomain, UnixTime};
use passant_proto::convert;
use passant_proto::federation::ListStatusRequest;
use passant_proto::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest,
    ListFederationRelationshipsRequest, RefreshBundleRequest,
};
use passant_proto::types::federation_relationship::BundleEndpointProfile;
use passant_proto::types::{self, FederationRelationship};
use serde_json::{Value, json};
use tonic::Code;

use crate::args::{Federation, FederationFields, ServerSocket, wrong};
use crate::commands::bundle::read_bundle;
use crate::connect::{Server, refused};
use crate::json;
use crate::render::{Output, fields};

/// How many relationships are asked for at once.
const PAGE: i32 = 100;

pub(crate) async fn run(command: Federation, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    check(&command)?;
    let server = Server::connect(socket).await?;
    match command {
        Federation::List => list(&server, out).await,
        Federation::Status => status(&server, out).await,
        Federation::Show { trust_domain } => show(&trust_domain, &server, out).await,
        Federation::Create(fields) => create(fields, &server, out).await,
        Federation::Update(fields) => update(fields, &server, out).await,
        Federation::Delete { trust_domain } => delete(&trust_domain, &server, out).await,
        Federation::Refresh { trust_domain } => {
            let request = RefreshBundleRequest { trust_domain: trust_domain.to_string() };
            let fetched = server.trust_domains().refresh_bundle(request).await;
            fetched.map_err(refused).with_context(|| failed("refresh the bundle of", &trust_domain))?;
            out.print(
                || json!({ "refreshed": trust_domain.to_string() }),
                |to| writeln!(to, "fetched the bundle of {trust_domain}"),
            )
        }
    }
}

/// What clap does not see of the arguments.
fn check(command: &Federation) -> anyhow::Result<()> {
    if let Federation::Create(fields) = command {
        let wrong = |message| Err(wrong(&["federation", "create"], message));
        if fields.url.is_none() {
            return wrong("name the bundle endpoint with --url https://...");
        }
        if fields.spiffe.is_none() && !fields.web {
            return wrong(
                "say how the endpoint proves who it is: --spiffe SPIFFE_ID, or --web for the Web PKI",
            );
        }
    }
    if let Federation::Update(fields) = command
        && fields.is_empty()
    {
        return Err(wrong(&["federation", "update"], "nothing to change was named"));
    }
    Ok(())
}

/// The trust domains that the server has relationships with; none when it does not tell.
pub(crate) async fn trust_domains(server: &Server) -> anyhow::Result<Option<Vec<String>>> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let output_mask = Some(types::FederationRelationshipMask::default());
        let request = ListFederationRelationshipsRequest { output_mask, page_size: PAGE, page_token };
        let page = match server.trust_domains().list_federation_relationships(request).await {
            Ok(page) => page.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(refused(status)),
        };
        all.extend(page.federation_relationships.into_iter().map(|relationship| relationship.trust_domain));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(Some(all));
        }
    }
}

async fn list(server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut rows =
        out.list("federation_relationships", &["TRUST DOMAIN", "BUNDLE ENDPOINT", "PROFILE", "BUNDLE"]);
    let mut page_token = String::new();
    loop {
        let request = ListFederationRelationshipsRequest { output_mask: None, page_size: PAGE, page_token };
        let page = server
            .trust_domains()
            .list_federation_relationships(request)
            .await
            .map_err(refused)?
            .into_inner();
        rows.page(&page.federation_relationships, relationship_json, |relationship| {
            vec![
                relationship.trust_domain.clone(),
                relationship.bundle_endpoint_url.clone(),
                profile_text(relationship),
                bundle_text(relationship),
            ]
        })?;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return rows.end();
        }
    }
}

async fn status(server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut rows = out
        .list("statuses", &["TRUST DOMAIN", "LAST FETCHED", "LAST TRIED", "NEXT", "FAILURES", "LAST ERROR"]);
    let mut page_token = String::new();
    loop {
        let request = ListStatusRequest { page_size: PAGE, page_token };
        let page = server.federation().list_status(request).await.map_err(refused)?.into_inner();
        let json = |status: &passant_proto::federation::RelationshipStatus| {
            json!({
                "trust_domain": status.trust_domain,
                "last_success": status.last_success.to_string(),
                "last_attempt": status.last_attempt.to_string(),
                "last_error": status.last_error,
                "failures": status.failures,
                "next_attempt": status.next_attempt.to_string(),
            })
        };
        rows.page(&page.statuses, json, |status| {
            vec![
                status.trust_domain.clone(),
                instant(status.last_success, "never"),
                instant(status.last_attempt, "never"),
                instant(status.next_attempt, "now"),
                status.failures.to_string(),
                status.last_error.clone(),
            ]
        })?;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return rows.end();
        }
    }
}

async fn show(trust_domain: &TrustDomain, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let relationship = held(trust_domain, server).await.with_context(|| failed("show", trust_domain))?;
    out.print(|| relationship_json(&relationship), |to| tell(to, &relationship))
}

async fn held(trust_domain: &TrustDomain, server: &Server) -> anyhow::Result<FederationRelationship> {
    let request =
        GetFederationRelationshipRequest { trust_domain: trust_domain.to_string(), output_mask: None };
    Ok(server.trust_domains().get_federation_relationship(request).await.map_err(refused)?.into_inner())
}

async fn create(args: FederationFields, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let trust_domain = args.trust_domain.clone();
    let endpoint = args.spiffe.clone();
    let (wire, _) = wire(args)?;
    let has_bundle = wire.trust_domain_bundle.is_some();
    let request =
        BatchCreateFederationRelationshipRequest { federation_relationships: vec![wire], output_mask: None };
    let answer =
        server.trust_domains().batch_create_federation_relationship(request).await.map_err(refused)?;
    let results = answer.into_inner().results.into_iter();
    let results = results.map(|result| (result.status, result.federation_relationship));
    one("create", &trust_domain, results.collect(), out)?;
    match endpoint.and_then(|endpoint| needs(&trust_domain, &endpoint, has_bundle)) {
        Some(needs) => out.announce(|to| writeln!(to, "{needs}")),
        None => Ok(()),
    }
}

/// What the first fetch needs besides: the endpoint proves itself by the bundle of its own trust domain, which need not be
/// the one that is fetched.
fn needs(trust_domain: &TrustDomain, endpoint: &SpiffeId, has_bundle: bool) -> Option<String> {
    let prover = endpoint.trust_domain();
    if prover == *trust_domain && has_bundle {
        return None;
    }
    Some(format!(
        "The endpoint proves itself by the bundle of {prover}, which has to be here for the first fetch: passant bundle set \
         {prover} FILE"
    ))
}

async fn update(args: FederationFields, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let trust_domain = args.trust_domain.clone();
    let (wire, mask) = wire(args)?;
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![wire],
        input_mask: Some(mask),
        output_mask: None,
    };
    let answer =
        server.trust_domains().batch_update_federation_relationship(request).await.map_err(refused)?;
    let results = answer.into_inner().results.into_iter();
    let results = results.map(|result| (result.status, result.federation_relationship));
    one("update", &trust_domain, results.collect(), out)
}

async fn delete(trust_domain: &TrustDomain, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec![trust_domain.to_string()] };
    let answer =
        server.trust_domains().batch_delete_federation_relationship(request).await.map_err(refused)?;
    let result =
        answer.into_inner().results.into_iter().next().context("the server answered with no result")?;
    let status = result.status.unwrap_or_default();
    accepted(&status).with_context(|| failed("delete", trust_domain))?;
    out.print(
        || json!({ "results": [{ "status": json::status(&status), "trust_domain": result.trust_domain }] }),
        |to| writeln!(to, "deleted the federation relationship with {trust_domain}, and its bundle"),
    )
}

/// The message for the fields that were given, and which these are.
fn wire(
    args: FederationFields,
) -> anyhow::Result<(FederationRelationship, types::FederationRelationshipMask)> {
    let profile = match args.spiffe {
        Some(id) => {
            let endpoint_spiffe_id = id.to_string();
            Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id }))
        }
        None => args.web.then_some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
    };
    let bundle = match args.bundle {
        Some(file) => Some(read_bundle(args.trust_domain.clone(), &file, args.bundle_format)?),
        None => None,
    };
    let mask = types::FederationRelationshipMask {
        bundle_endpoint_url: args.url.is_some(),
        bundle_endpoint_profile: profile.is_some(),
        trust_domain_bundle: bundle.is_some(),
    };
    let wire = FederationRelationship {
        trust_domain: args.trust_domain.to_string(),
        bundle_endpoint_url: args.url.unwrap_or_default(),
        bundle_endpoint_profile: profile,
        trust_domain_bundle: bundle.as_ref().map(convert::bundle::to_wire),
    };
    Ok((wire, mask))
}

/// Prints the one result of a batch, and fails if it was refused.
fn one(
    what: &str,
    trust_domain: &TrustDomain,
    results: Vec<(Option<types::Status>, Option<FederationRelationship>)>,
    out: &mut Output,
) -> anyhow::Result<()> {
    let (status, relationship) = results.into_iter().next().context("the server answered with no result")?;
    let (status, relationship) = (status.unwrap_or_default(), relationship.unwrap_or_default());
    accepted(&status).with_context(|| failed(what, trust_domain))?;
    out.print(
        || json!({ "results": [{ "status": json::status(&status), "federation_relationship": relationship_json(&relationship) }] }),
        |to| tell(to, &relationship),
    )
}

fn accepted(status: &types::Status) -> anyhow::Result<()> {
    match status.code {
        0 => Ok(()),
        code => Err(anyhow!("{} ({:?})", status.message, Code::from_i32(code))),
    }
}

fn failed(what: &str, trust_domain: &TrustDomain) -> String {
    format!(
        "failed to {what} the federation relationship with {trust_domain}; passant federation list shows which there are"
    )
}

/// With the names of SPIRE's `federation list -output json`.
fn relationship_json(relationship: &FederationRelationship) -> Value {
    let mut json = json!({
        "trust_domain": relationship.trust_domain,
        "bundle_endpoint_url": relationship.bundle_endpoint_url,
    });
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => json["https_web"] = json!({}),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            json["https_spiffe"] = json!({ "endpoint_spiffe_id": profile.endpoint_spiffe_id });
        }
        None => {}
    }
    if let Some(bundle) = &relationship.trust_domain_bundle {
        json["trust_domain_bundle"] = json::bundle(bundle);
    }
    json
}

fn tell(to: &mut dyn std::io::Write, relationship: &FederationRelationship) -> std::io::Result<()> {
    fields(
        to,
        &[
            ("trust domain", &relationship.trust_domain),
            ("bundle endpoint", &relationship.bundle_endpoint_url),
            ("profile", &profile_text(relationship)),
            ("bundle", &bundle_text(relationship)),
        ],
    )
}

fn profile_text(relationship: &FederationRelationship) -> String {
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => "https_web".to_owned(),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            format!("https_spiffe {}", profile.endpoint_spiffe_id)
        }
        None => "unknown".to_owned(),
    }
}

fn bundle_text(relationship: &FederationRelationship) -> String {
    match &relationship.trust_domain_bundle {
        Some(bundle) => format!("sequence {}", bundle.sequence_number),
        None => "none yet".to_owned(),
    }
}

fn instant(secs: i64, zero: &str) -> String {
    if secs == 0 { zero.to_owned() } else { UnixTime::from_secs(secs).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> FederationFields {
        FederationFields {
            trust_domain: TrustDomain::parse("other.test").unwrap(),
            url: None,
            spiffe: None,
            web: false,
            bundle: None,
            bundle_format: None,
        }
    }

    #[test]
    fn only_named_fields_are_masked() {
        let nothing = types::FederationRelationshipMask::default();
        assert_eq!(wire(named()).unwrap().1, nothing);
        let url = Some("https://other.test/bundle".to_owned());
        let (sent, mask) = wire(FederationFields { url, ..named() }).unwrap();
        assert_eq!(mask, types::FederationRelationshipMask { bundle_endpoint_url: true, ..nothing });
        assert_eq!(sent.bundle_endpoint_url, "https://other.test/bundle");
        assert!(sent.bundle_endpoint_profile.is_none() && sent.trust_domain_bundle.is_none());
    }

    #[test]
    fn the_bundle_that_is_needed_is_that_of_the_endpoint() {
        let needs = |endpoint: &str, has_bundle| {
            let trust_domain = TrustDomain::parse("other.test").unwrap();
            needs(&trust_domain, &SpiffeId::parse(endpoint).unwrap(), has_bundle)
        };
        assert!(
            needs("spiffe://other.test/e", false).unwrap().contains("passant bundle set other.test FILE")
        );
        assert_eq!(needs("spiffe://other.test/e", true), None);
        for has_bundle in [true, false] {
            let told = needs("spiffe://hub.test/e", has_bundle).unwrap();
            assert!(told.contains("passant bundle set hub.test FILE"), "{told}");
        }
    }

    #[test]
    fn a_profile_is_told_by_its_name() {
        let profile_of = |args: FederationFields| {
            let (sent, mask) = wire(args).unwrap();
            assert!(mask.bundle_endpoint_profile);
            (relationship_json(&sent), profile_text(&sent))
        };
        let (json, text) = profile_of(FederationFields { web: true, ..named() });
        assert_eq!((&json["https_web"], text.as_str()), (&json!({}), "https_web"));
        let id = "spiffe://other.test/bundle-endpoint";
        let spiffe = Some(SpiffeId::parse(id).unwrap());
        let (json, text) = profile_of(FederationFields { spiffe, ..named() });
        assert_eq!(json["https_spiffe"]["endpoint_spiffe_id"], id);
        assert_eq!(text, format!("https_spiffe {id}"));
        assert!(json.get("https_web").is_none() && json.get("trust_domain_bundle").is_none());
    }
}
