//! Could these objects be the state of a server?
//!
//! Each object is held against the rules by which it was made, and all of them against each other. Asked of a backup and
//! of a data directory; a running server made its objects by these rules in the first place.

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_core::bundle::{Bundle, JwtAuthority, X509Authority};
use passant_core::{Entry, Stop, TrustDomain, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::authority_id;
use crate::backup::Holds;
use crate::state::change::{Change, Revision};
use crate::state::{AttestedNode, Authority, AuthorityKind, JoinToken, Phase};

/// Takes puts one after the other, and keeps only what has to be compared with others.
#[derive(Debug)]
pub(crate) struct Audit {
    trust_domain: TrustDomain,
    revision: Revision,
    holds: Holds,
    /// Kind and key of the object before.
    last: Option<(u8, String)>,
    /// The kinds that have been taken, a bit each.
    kinds: u8,
    authorities: Vec<Authority>,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Audit {
    /// Of a store for `trust_domain` that stands at `revision`.
    pub(crate) const fn new(trust_domain: TrustDomain, revision: Revision) -> Self {
        Self {
            trust_domain,
            revision,
            holds: Holds {
                bundles: 0,
                relationships: 0,
                authorities: 0,
                join_tokens: 0,
                nodes: 0,
                entries: 0,
                stops: 0,
            },
            last: None,
            kinds: 0,
            authorities: Vec::new(),
            bundles: BTreeMap::new(),
        }
    }

    /// How many objects were taken.
    pub(crate) const fn holds(&self) -> Holds {
        self.holds
    }

    /// Takes the next object. Within a kind they come in the order of their keys.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn take(&mut self, object: &Change) -> Result<(), String> {
        let kind = match object {
            Change::PutBundle(bundle) => {
                bundle_is_sound(bundle)?;
                self.bundles.insert(bundle.trust_domain.clone(), Arc::clone(bundle));
                0
            }
            Change::PutFederation(relationship) => {
                if relationship.trust_domain == self.trust_domain {
                    return Err(format!(
                        "federation with {}, which is the own trust domain",
                        self.trust_domain
                    ));
                }
                1
            }
            Change::PutAuthority(authority) => {
                authority_is_sound(authority)?;
                self.authorities.push(authority.clone());
                2
            }
            Change::PutToken(token) => {
                self.token_is_sound(token)?;
                3
            }
            Change::PutNode(node) => {
                self.node_is_sound(node)?;
                4
            }
            Change::PutEntry(entry) => {
                self.entry_is_sound(entry)?;
                5
            }
            Change::PutStop(stop) => {
                self.stop_is_sound(stop)?;
                6
            }
            Change::DeleteBundle(_)
            | Change::DeleteFederation(_)
            | Change::DeleteAuthority(_)
            | Change::DeleteToken(_)
            | Change::DeleteNode(_)
            | Change::DeleteEntry(_)
            | Change::DeleteStop(_) => return Err("a delete is no object".to_owned()),
        };
        let key = object.key();
        let follows = match &self.last {
            Some((before, last)) if *before == kind => *last < key,
            // A kind that comes again after another one could bring the same object again.
            Some(_) => self.kinds & (1 << kind) == 0,
            None => true,
        };
        if !follows {
            return Err(format!("{key} comes twice, or in the wrong place"));
        }
        self.kinds |= 1 << kind;
        self.last = Some((kind, key));
        self.holds.count(object);
        Ok(())
    }

    /// What is wrong with all that was taken, as a whole.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
            for phase in [Phase::Active, Phase::Prepared] {
                let some = self.authorities.iter().filter(|a| a.kind == kind && a.phase == phase).count();
                if some > 1 {
                    faults.push(format!("{some} {kind:?} authorities are {phase:?} at once"));
                }
            }
        }
        match self.bundles.get(&self.trust_domain) {
            Some(bundle) => self.compare_bundle(bundle, &mut faults),
            None if self.authorities.is_empty() => {}
            None => faults.push("there are authorities, and no bundle of the own trust domain".to_owned()),
        }
        faults
    }

    /// The own bundle holds the authorities, all of them. Others were appended to it by operators and servers below.
    fn compare_bundle(&self, bundle: &Bundle, faults: &mut Vec<String>) {
        for authority in &self.authorities {
            let is_published = match &authority.certificate {
                Some(der) => bundle.x509_authorities.iter().any(|published| published.der == *der),
                None => bundle
                    .jwt_authority(authority.id.as_str())
                    .is_some_and(|published| published.public_key == authority.public_key),
            };
            if !is_published {
                faults.push(format!("authority {} is not in the bundle", authority.id));
            }
            if authority.published > bundle.sequence {
                faults.push(format!("authority {} was published in a later bundle", authority.id));
            }
        }
    }

    fn entry_is_sound(&self, entry: &Entry) -> Result<(), String> {
        let draft = entry.to_draft();
        draft
            .register(&self.trust_domain, entry.id.clone(), entry.revision, entry.created_at)
            .map_err(|error| format!("entry {}: {error}", entry.id))?;
        if entry.revision > self.revision.number() {
            return Err(format!("entry {} is newer than the whole", entry.id));
        }
        Ok(())
    }

    fn stop_is_sound(&self, stop: &Stop) -> Result<(), String> {
        if let Some(agent) = stop.target.agent()
            && !(agent.is_member_of(&self.trust_domain) && agent.is_agent())
        {
            return Err(format!("stop of {}: it names no agent of {}", stop.target, self.trust_domain));
        }
        if stop.revision > self.revision.number() {
            return Err(format!("stop of {} is newer than the whole", stop.target));
        }
        Ok(())
    }

    fn node_is_sound(&self, node: &AttestedNode) -> Result<(), String> {
        if !node.id.is_member_of(&self.trust_domain) || !node.id.is_agent() {
            return Err(format!("node {}: it is no agent of {}", node.id, self.trust_domain));
        }
        if node.is_banned() && node.pending.is_some() {
            return Err(format!("node {}: it is banned and has a renewed SVID", node.id));
        }
        Ok(())
    }

    fn token_is_sound(&self, token: &JoinToken) -> Result<(), String> {
        let foreign = token.alias.as_ref().filter(|alias| !alias.is_member_of(&self.trust_domain));
        if let Some(alias) = foreign {
            return Err(format!("join token {}: {alias} is foreign", token.hash));
        }
        let agent = token.spent.as_ref().map(|spent| &spent.agent_id);
        match agent.filter(|id| !id.is_member_of(&self.trust_domain) || !id.is_agent()) {
            Some(id) => Err(format!("join token {}: {id} is no agent of this trust domain", token.hash)),
            None => Ok(()),
        }
    }
}

fn authority_is_sound(authority: &Authority) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("authority {}: {what}", authority.id));
    if authority_id(&authority.public_key) != authority.id {
        return wrong("its ID is not that of its public key");
    }
    match (authority.kind, &authority.certificate) {
        (AuthorityKind::X509, Some(der)) => {
            let Ok((_, certificate)) = X509Certificate::from_der(der) else {
                return wrong("its certificate cannot be read");
            };
            if certificate.public_key().raw != authority.public_key.as_slice() {
                return wrong("its certificate is of another key");
            }
            if UnixTime::from_secs(certificate.validity().not_after.timestamp()) != authority.not_after {
                return wrong("its certificate has another end");
            }
            Ok(())
        }
        (AuthorityKind::Jwt, None) => Ok(()),
        (AuthorityKind::X509, None) => wrong("it has no certificate"),
        (AuthorityKind::Jwt, Some(_)) => wrong("it has a certificate"),
    }
}

fn bundle_is_sound(bundle: &Bundle) -> Result<(), String> {
    let wrong = |error| format!("bundle of {}: {error}", bundle.trust_domain);
    for authority in &bundle.x509_authorities {
        X509Authority::from_der(&authority.der).map_err(wrong)?;
    }
    for authority in &bundle.jwt_authorities {
        JwtAuthority::new(&authority.key_id, &authority.public_key, authority.expires_at).map_err(wrong)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{entry, node, trust_domain};

    #[test]
    fn each_object_is_taken_once_and_each_kind_in_one_piece() {
        let entry = |name: &str| Change::PutEntry(entry(name, "/w", "/n/1"));
        let node = || Change::PutNode(node("/spire/agent/x/1", &[]));
        let taken = |objects: &[Change]| {
            let mut audit = Audit::new(trust_domain(), Revision::new(99));
            objects.iter().map(|object| audit.take(object)).collect::<Result<Vec<()>, String>>()
        };
        taken(&[entry("e1"), entry("e2"), node()]).unwrap();
        for wrong in [vec![entry("e1"), entry("e1")], vec![entry("e1"), node(), entry("e1")]] {
            assert!(taken(&wrong).unwrap_err().contains("comes twice"));
        }
    }
}
