//! How do foreign bundles and federation relationships move?

use std::collections::{BTreeMap, BTreeSet};

use passant_proto::bundle::{
    BatchCreateFederatedBundleRequest, BatchSetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use passant_proto::convert;
use passant_proto::trustdomain::{
    BatchCreateFederationRelationshipRequest, ListFederationRelationshipsRequest,
};
use passant_proto::types;

use super::ledger::{Ledger, Made, hash};
use super::paired;
use super::report::{Kind, Report};
use super::spire::Move;
use crate::connect::{Server, refused};

/// How many are asked for at once, and how many are written at once.
const PAGE: i32 = 100;
/// Bundles in one request: each may be large.
const BUNDLES: usize = 10;

/// Copies foreign bundles and relationships. Gives the names of the trust domains whose bundles are here then.
///
/// # Errors
/// When a server does not answer, or the ledger cannot be written.
pub(super) async fn copy(
    moving: &Move,
    mut ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<BTreeSet<String>> {
    let mut bundles = bundles(&moving.server).await?;
    let before: BTreeSet<String> = bundles.keys().cloned().collect();
    let ours = relationships(&moving.server).await?;
    let theirs = relationships(&moving.spire).await?;
    let mut new = Vec::new();
    for (at, wire) in self::bundles(&moving.spire).await?.into_values().enumerate() {
        let name = wire.trust_domain.clone();
        let bundle = match convert::bundle::foreign_from_wire(&wire) {
            Ok(bundle) => convert::bundle::to_wire(&bundle),
            Err(why) => {
                report.left(Kind::Bundles, Some(at + 1), &name, why.to_string());
                continue;
            }
        };
        match bundles.get(&name) {
            // A server that fetches it itself may well have another one by now.
            Some(held) if ours.contains_key(&name) || is_same(held, &bundle) => {
                report.already(Kind::Bundles, 1)
            }
            Some(_) if theirs.contains_key(&name) => {
                let why = "another bundle is here; it stays until this server fetches one itself";
                report.left(Kind::Bundles, Some(at + 1), &name, why);
            }
            Some(_) => {
                report.left(Kind::Bundles, Some(at + 1), &name, "another bundle is here; it stays as it is");
            }
            None => new.push((at + 1, bundle)),
        }
        if !theirs.contains_key(&name) {
            report.note(format!(
                "SPIRE shows no relationship with {name}: if its configuration federates with it (federates_with), \
                 passant federation create has its bundle fetched here too"
            ));
        }
    }
    for part in new.chunks(BUNDLES) {
        create_bundles(moving, part.to_vec(), &mut bundles, ledger.as_deref_mut(), report).await?;
    }
    let mut new = Vec::new();
    for (at, wire) in theirs.into_values().enumerate() {
        // The bundle is here already, if it could be taken.
        let wire = types::FederationRelationship { trust_domain_bundle: None, ..wire };
        let name = &wire.trust_domain;
        match (convert::federation::from_wire(&wire), ours.get(name)) {
            (Err(why), _) => report.left(Kind::Relationships, Some(at + 1), name, why.to_string()),
            (Ok(_), Some(held)) if hash_of(held) == hash_of(&wire) => report.already(Kind::Relationships, 1),
            (Ok(_), Some(_)) => {
                report.left(
                    Kind::Relationships,
                    Some(at + 1),
                    name,
                    "another one is here; it stays as it is",
                );
            }
            (Ok(_), None) => new.push((at + 1, wire)),
        }
    }
    create_relationships(moving, new, &before, ledger, report).await?;
    Ok(bundles.into_keys().collect())
}

async fn create_bundles(
    moving: &Move,
    new: Vec<(usize, types::Bundle)>,
    here: &mut BTreeMap<String, types::Bundle>,
    ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(ledger) = ledger else {
        report.done(Kind::Bundles, new.len());
        here.extend(new.into_iter().map(|(_, bundle)| (bundle.trust_domain.clone(), bundle)));
        return Ok(());
    };
    let made = |(_, bundle): &(usize, types::Bundle)| Made::Bundle {
        trust_domain: bundle.trust_domain.clone(),
        hash: hash(bundle),
    };
    ledger.write(new.iter().map(made).collect())?;
    let bundle = new.iter().map(|(_, bundle)| bundle.clone()).collect();
    let request =
        BatchCreateFederatedBundleRequest { bundle, output_mask: Some(types::BundleMask::default()) };
    let mut client = moving.server.bundles();
    let answer = client.batch_create_federated_bundle(request).await.map_err(refused)?.into_inner();
    for ((at, bundle), result) in paired(new, answer.results)? {
        let status = result.status.unwrap_or_default();
        if status.code == 0 {
            report.done(Kind::Bundles, 1);
            here.insert(bundle.trust_domain.clone(), bundle);
        } else {
            report.left(Kind::Bundles, Some(at), &bundle.trust_domain, status.message);
        }
    }
    Ok(())
}

async fn create_relationships(
    moving: &Move,
    new: Vec<(usize, types::FederationRelationship)>,
    before: &BTreeSet<String>,
    ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(ledger) = ledger else {
        report.done(Kind::Relationships, new.len());
        return Ok(());
    };
    if new.is_empty() {
        return Ok(());
    }
    let made = |(_, one): &(usize, types::FederationRelationship)| Made::Relationship {
        trust_domain: one.trust_domain.clone(),
        hash: hash_of(one),
    };
    let kept = new.iter().filter(|(_, one)| before.contains(&one.trust_domain));
    let kept = kept.map(|(_, one)| Made::BundleBefore(one.trust_domain.clone()));
    ledger.write(kept.chain(new.iter().map(made)).collect())?;
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: new.iter().map(|(_, one)| one.clone()).collect(),
        output_mask: Some(types::FederationRelationshipMask::default()),
    };
    let mut client = moving.server.trust_domains();
    let answer = client.batch_create_federation_relationship(request).await.map_err(refused)?.into_inner();
    for ((at, one), result) in paired(new, answer.results)? {
        let status = result.status.unwrap_or_default();
        if status.code == 0 {
            report.done(Kind::Relationships, 1);
        } else {
            report.left(Kind::Relationships, Some(at), &one.trust_domain, status.message);
        }
    }
    Ok(())
}

/// Puts bundles back that went with a relationship.
pub(super) async fn put_back(
    bundles: Vec<types::Bundle>,
    server: &Server,
    report: &mut Report,
) -> anyhow::Result<()> {
    for bundles in bundles.chunks(BUNDLES) {
        let request = BatchSetFederatedBundleRequest {
            bundle: bundles.to_vec(),
            output_mask: Some(types::BundleMask::default()),
        };
        let answer =
            server.bundles().batch_set_federated_bundle(request).await.map_err(refused)?.into_inner();
        for (bundle, result) in paired(bundles.to_vec(), answer.results)? {
            let status = result.status.unwrap_or_default();
            if status.code != 0 {
                report.left(Kind::Bundles, None, &bundle.trust_domain, status.message);
            }
        }
    }
    Ok(())
}

/// The foreign bundles of a server, by the names of their trust domains.
pub(super) async fn bundles(server: &Server) -> anyhow::Result<BTreeMap<String, types::Bundle>> {
    let mut all = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = ListFederatedBundlesRequest { output_mask: None, page_size: PAGE, page_token };
        let page = server.bundles().list_federated_bundles(request).await.map_err(refused)?.into_inner();
        all.extend(page.bundles.into_iter().map(|bundle| (bundle.trust_domain.clone(), bundle)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// The relationships of a server, by the names of their trust domains.
pub(super) async fn relationships(
    server: &Server,
) -> anyhow::Result<BTreeMap<String, types::FederationRelationship>> {
    let mut all = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let output_mask = Some(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            bundle_endpoint_profile: true,
            trust_domain_bundle: false,
        });
        let request = ListFederationRelationshipsRequest { output_mask, page_size: PAGE, page_token };
        let page = server.trust_domains().list_federation_relationships(request).await;
        let page = page.map_err(refused)?.into_inner();
        all.extend(page.federation_relationships.into_iter().map(|one| (one.trust_domain.clone(), one)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// What a relationship is, whatever bundle is held.
pub(super) fn hash_of(relationship: &types::FederationRelationship) -> String {
    hash(&types::FederationRelationship { trust_domain_bundle: None, ..relationship.clone() })
}

/// Whether two bundles hold the same authorities.
fn is_same(one: &types::Bundle, other: &types::Bundle) -> bool {
    one.x509_authorities == other.x509_authorities && one.jwt_authorities == other.jwt_authorities
}
