//! What must a workload hold, by what the server itself says of entries and bundles? And does it?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::ensure;
use passant_proto::bundle::{GetBundleRequest, ListFederatedBundlesRequest};
use passant_proto::types;
use passant_tests::site::{Site, TRUST_DOMAIN};
use ring::digest::{SHA256, digest};

use crate::handshakes::spiffe_id;
use crate::held::Watch;
use crate::registrar::Registrar;

/// What the server has.
pub(crate) struct Truth {
    pub(crate) entries: Vec<types::Entry>,
    /// Of each trust domain, the own one too.
    x509: BTreeMap<String, Vec<String>>,
    jwt: BTreeMap<String, Vec<String>>,
}

/// What one workload must hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// SPIFFE ID, hint and DNS names of each of its SVIDs.
    svids: BTreeSet<(String, String, Vec<String>)>,
    x509: BTreeMap<String, Vec<String>>,
    jwt: BTreeMap<String, Vec<String>>,
}

impl Truth {
    /// Asks the server for everything.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn read(site: &Site, registrar: &Registrar) -> anyhow::Result<Self> {
        let mut api = site.operator().await?.bundles();
        let own = api.get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner();
        // Few enough for one page.
        let federated =
            api.list_federated_bundles(ListFederatedBundlesRequest::default()).await?.into_inner();
        let (mut x509, mut jwt) = (BTreeMap::new(), BTreeMap::new());
        for bundle in federated.bundles.into_iter().chain([own]) {
            let mut prints: Vec<String> =
                bundle.x509_authorities.iter().map(|authority| fingerprint(&authority.asn1)).collect();
            let mut ids: Vec<String> = bundle.jwt_authorities.into_iter().map(|key| key.key_id).collect();
            prints.sort();
            ids.sort();
            x509.insert(bundle.trust_domain.clone(), prints);
            jwt.insert(bundle.trust_domain, ids);
        }
        Ok(Self { entries: registrar.list().await?, x509, jwt })
    }

    /// The X.509 authorities of the own trust domain.
    pub(crate) fn own_x509(&self) -> Option<&Vec<String>> {
        self.x509.get(TRUST_DOMAIN)
    }

    /// What is due to a process of the executable `path` on the node that stands for `node`.
    pub(crate) fn of_workload(&self, node: &str, path: &Path) -> Due {
        let value = format!("path:{}", path.display());
        let is_its = |entry: &&types::Entry| {
            let is_here = entry.parent_id.as_ref().is_some_and(|parent| parent.path == node);
            is_here && matches!(&entry.selectors[..], [one] if one.r#type == "unix" && one.value == value)
        };
        let its: Vec<&types::Entry> = self.entries.iter().filter(is_its).collect();
        let domains: BTreeSet<&str> = its
            .iter()
            .flat_map(|entry| entry.federates_with.iter().map(String::as_str))
            .chain([TRUST_DOMAIN])
            .collect();
        let of_those = |all: &BTreeMap<String, Vec<String>>| {
            let some = all.iter().filter(|(domain, _)| domains.contains(domain.as_str()));
            some.map(|(domain, names)| (domain.clone(), names.clone())).collect()
        };
        let svid = |entry: &&types::Entry| {
            let id = entry.spiffe_id.clone().unwrap_or_default();
            (spiffe_id(&id.path), entry.hint.clone(), entry.dns_names.clone())
        };
        Due { svids: its.iter().map(svid).collect(), x509: of_those(&self.x509), jwt: of_those(&self.jwt) }
    }
}

impl Due {
    /// Holds what a watch has against it.
    ///
    /// # Errors
    /// What it has otherwise.
    pub(crate) fn is_held_by(&self, watch: &Watch) -> anyhow::Result<()> {
        let held: BTreeSet<_> = watch
            .svids
            .iter()
            .map(|svid| (svid.spiffe_id.clone(), svid.hint.clone(), svid.dns_names.clone()))
            .collect();
        let lacking: Vec<_> = self.svids.difference(&held).collect();
        let beyond: Vec<_> = held.difference(&self.svids).collect();
        ensure!(lacking.is_empty() && beyond.is_empty(), "it lacks {lacking:?}, and has {beyond:?} beyond");
        ensure!(watch.svids.len() == held.len(), "it holds an SVID twice");
        ensure!(watch.bundles == self.x509, "its bundles are {:?}, due are {:?}", watch.bundles, self.x509);
        ensure!(
            watch.jwt_bundles == self.jwt,
            "its JWT bundles are {:?}, due are {:?}",
            watch.jwt_bundles,
            self.jwt
        );
        Ok(())
    }
}

/// As the Go peer names certificates.
fn fingerprint(der: &[u8]) -> String {
    digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use passant_tests::api::{selector, wire_id};

    use super::*;
    use crate::held::Svid;
    use crate::moment::Moment;

    fn entry(path: &str, node: &str, executable: &str, federates_with: &[&str]) -> types::Entry {
        types::Entry {
            spiffe_id: wire_id(TRUST_DOMAIN, path),
            parent_id: wire_id(TRUST_DOMAIN, node),
            selectors: vec![selector("unix", &format!("path:{executable}"))],
            federates_with: federates_with.iter().map(|domain| (*domain).to_owned()).collect(),
            hint: "h".to_owned(),
            ..types::Entry::default()
        }
    }

    fn named(domains: &[&str]) -> BTreeMap<String, Vec<String>> {
        domains.iter().map(|domain| ((*domain).to_owned(), vec![format!("of {domain}")])).collect()
    }

    fn truth() -> Truth {
        let entries = vec![
            entry("/w", "/node", "/bin/w", &["a.test", "gone.test"]),
            entry("/x", "/other", "/bin/w", &[]),
            entry("/y", "/node", "/bin/y", &["b.test"]),
        ];
        let all = [TRUST_DOMAIN, "a.test", "b.test"];
        Truth { entries, x509: named(&all), jwt: named(&all) }
    }

    fn watch() -> Watch {
        let svid = Svid {
            spiffe_id: spiffe_id("/w"),
            hint: "h".to_owned(),
            dns_names: Vec::new(),
            serial: "1".to_owned(),
            not_after: Moment::from_secs(0),
            signer: String::new(),
        };
        let bundles = named(&[TRUST_DOMAIN, "a.test"]);
        Watch { svids: vec![svid], bundles: bundles.clone(), jwt_bundles: bundles, ..Watch::default() }
    }

    #[test]
    fn a_workload_is_due_what_its_own_entries_on_its_node_say_and_no_more() {
        let due = truth().of_workload("/node", Path::new("/bin/w"));
        due.is_held_by(&watch()).unwrap();
    }

    #[test]
    fn whatever_differs_is_noticed() {
        let due = truth().of_workload("/node", Path::new("/bin/w"));
        let refuses = |change: fn(&mut Watch)| {
            let mut watch = watch();
            change(&mut watch);
            assert!(due.is_held_by(&watch).is_err(), "{watch:?}");
        };
        refuses(|watch| watch.svids.clear());
        refuses(|watch| watch.svids.push(watch.svids[0].clone()));
        refuses(|watch| watch.svids[0].hint.clear());
        refuses(|watch| watch.svids[0].dns_names.push("d".to_owned()));
        refuses(|watch| watch.svids[0].spiffe_id.push('x'));
        refuses(|watch| watch.bundles = named(&[TRUST_DOMAIN]));
        refuses(|watch| watch.bundles = named(&[TRUST_DOMAIN, "a.test", "b.test"]));
        refuses(|watch| watch.jwt_bundles = named(&[TRUST_DOMAIN]));
        refuses(|watch| drop(watch.bundles.insert(TRUST_DOMAIN.to_owned(), Vec::new())));
    }
}
