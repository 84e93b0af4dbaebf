//! Does a server below get an authority that can sign for it, and nobody else one?

use passant_core::keys::{RcgenKey, SigningKey};
use passant_core::serial::Serial;
use passant_core::{UnixTime, x509_svid};
use rcgen::{CertificateParams, Issuer, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;

use super::*;
use crate::authority::AuthorityFacts;
use crate::caller::DownstreamCaller;
use crate::rig::peer;

/// A server below, by the entry `below`.
async fn below(rig: &Rig, end: Option<UnixTime>) -> DownstreamCaller {
    let entry = rig.entry("below", &agent(), |e| (e.downstream, e.expires_at) = (true, end)).await;
    let svid = rig.issuer.mint_x509(&Actor::root(), &rig.csr(Some(&entry.spiffe_id)), None).await.unwrap();
    settled(rig).await;
    rig.callers.downstream(&peer(&svid)).unwrap()
}

/// Waits until the record says of all that was decided what became of it: what is written next is of what comes next.
async fn settled(rig: &Rig) {
    while rig.decisions().values().any(|(_, outcome)| outcome.is_none()) {
        tokio::task::yield_now().await;
    }
}

fn certificate(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

/// The chain of an X509-SVID that `key`, certified by `chain`, signs for `spiffe_id`.
fn signed_below(
    rig: &Rig,
    key: &dyn SigningKey,
    chain: &[CertificateDer<'static>],
    spiffe_id: &SpiffeId,
) -> Vec<CertificateDer<'static>> {
    let validity = certificate(&chain[0]).validity().clone();
    let facts = AuthorityFacts {
        trust_domain_id: &domain().id(),
        public_key: key.public_key(),
        serial: &Serial::random(&rig.host),
        not_before: UnixTime::from_secs(validity.not_before.timestamp()),
        not_after: UnixTime::from_secs(validity.not_after.timestamp()),
    };
    let own = facts.params_below().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(spiffe_id.as_str().try_into().unwrap())];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (leaf.not_before, leaf.not_after) = (own.not_before, own.not_after);
    let leaf = leaf
        .signed_by(&rcgen::KeyPair::generate().unwrap(), &Issuer::from_params(&own, RcgenKey(key)))
        .unwrap();
    std::iter::once(leaf.into()).chain(chain.iter().cloned()).collect()
}

#[tokio::test]
async fn what_an_authority_below_signs_verifies_under_the_bundle() {
    for key_type in [KeyType::EcP256, KeyType::EcP384] {
        let rig = Rig::with(Settings { key_type, ..Settings::default() }).await;
        let caller = below(&rig, None).await;
        let key = rig.key();
        let csr = csr::make(&*key, Some(&domain().id())).unwrap();
        let issued = rig.issuer.downstream(&caller, &csr, None).await.unwrap();
        assert_eq!(*issued.roots(), *rig.bundle());
        assert_eq!(issued.chain().len(), 1, "no root in the chain");
        let workload = SpiffeId::parse("spiffe://example.org/far/below").unwrap();
        let chain = signed_below(&rig, &*key, issued.chain(), &workload);
        let svid = x509_svid::verify(chain.clone(), &rig.bundle(), rig.now()).unwrap();
        assert_eq!(*svid.id(), workload);
        // Not without the authority between, nor with the authority as an identity of its own.
        for bad in [vec![chain[0].clone()], issued.chain().to_vec()] {
            assert!(x509_svid::verify(bad, &rig.bundle(), rig.now()).is_err());
        }
    }
}

#[tokio::test]
async fn a_stopped_entry_makes_no_server_below() {
    let rig = Rig::new().await;
    let caller = below(&rig, None).await;
    rig.issuer.downstream(&caller, &rig.csr(None), None).await.unwrap();
    let changes = vec![Change::PutStop(stop(StopTarget::Entry(EntryId::parse("below").unwrap())))];
    let journal = rig.journal.clone();
    settled(&rig).await;
    *rig.disk.meanwhile.lock().unwrap() = Some(Box::new(move || {
        tokio::spawn(async move { journal.submit(move |_| Ok((changes, ()))).await.unwrap() });
    }));
    for moment in ["while it is signed", "before"] {
        let refusal = rig.issuer.downstream(&caller, &rig.csr(None), None).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::Denied, "{moment}");
    }
}

#[tokio::test]
async fn an_authority_below_keeps_the_profile() {
    let rig = Rig::new().await;
    let caller = below(&rig, None).await;
    let key = rig.key();
    let csr = csr::make(&*key, None).unwrap();
    let issued = rig.issuer.downstream(&caller, &csr, Some(HOUR)).await.unwrap();
    let found = certificate(&issued.chain()[0]);
    let bundle = rig.bundle();
    let root = certificate(&bundle.x509_authorities[0].der);

    found.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(found.issuer(), root.subject());
    assert_eq!(found.public_key().raw, key.public_key());
    let subject = found.subject().to_string();
    assert!(subject.starts_with("C=US, O=Passant, serialNumber="), "{subject}");
    assert!(subject.ends_with(", OU=DOWNSTREAM-1"), "{subject}");
    let constraints = found.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint.is_none());
    let usage = found.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature(), "X509-45");
    assert!(found.extended_key_usage().unwrap().is_none());
    let names = found.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [x509_parser::extensions::GeneralName::URI("spiffe://example.org")]
    );
    assert_eq!(found.validity().not_before.timestamp(), START.minus(Duration::from_secs(10)).secs());
    assert_eq!(found.validity().not_after.timestamp(), START.plus(HOUR).secs());
    let issuer = found.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() else { return None };
        id.key_identifier.as_ref()
    });
    let active = rig.authorities.x509();
    assert_eq!(issuer.unwrap().0, active.key_id());

    // Two servers below have two names, or clients could take one for the other.
    let other = rig.issuer.downstream(&caller, &rig.csr(None), Some(HOUR)).await.unwrap();
    assert_ne!(certificate(&other.chain()[0]).subject(), found.subject());
}

#[tokio::test]
async fn an_authority_below_ends_with_its_entry_and_the_authority_above() {
    let ends = async |rig: &Rig, caller: &DownstreamCaller, ttl| {
        let issued = rig.issuer.downstream(caller, &rig.csr(None), ttl).await.unwrap();
        UnixTime::from_secs(certificate(&issued.chain()[0]).validity().not_after.timestamp())
    };
    let rig = Rig::new().await;
    let caller = below(&rig, None).await;
    let of_authority = START.plus(24 * HOUR);
    assert_eq!(ends(&rig, &caller, Some(MINUTE)).await, START.plus(MINUTE));
    assert_eq!(ends(&rig, &caller, None).await, of_authority);
    rig.clock.advance(HOUR);
    for ttl in [None, Some(100_000 * HOUR), Some(23 * HOUR + Duration::from_secs(1))] {
        assert_eq!(ends(&rig, &caller, ttl).await, of_authority);
    }

    let rig = Rig::new().await;
    let end = START.plus(2 * HOUR);
    let caller = below(&rig, Some(end)).await;
    assert_eq!(ends(&rig, &caller, None).await, end);
    assert_eq!(ends(&rig, &caller, Some(HOUR)).await, START.plus(HOUR));
    rig.clock.set(end.minus(Duration::from_secs(1)));
    assert_eq!(ends(&rig, &caller, None).await, end);
    rig.clock.set(end);
    let answer = rig.issuer.downstream(&caller, &rig.csr(None), None).await;
    assert_eq!(refused(&answer).0, Reason::Denied);
}

#[tokio::test]
async fn only_the_key_of_a_sound_csr_is_certified() {
    let rig = Rig::new().await;
    let caller = below(&rig, None).await;
    let mut forged = rig.csr(None);
    *forged.last_mut().unwrap() ^= 1;
    for (csr, why) in [
        (Vec::new(), "missing CSR"),
        (b"no CSR".to_vec(), "malformed"),
        (forged, "signature"),
        (RSA_1024.to_vec(), "key"),
        // Not even its own name: it would be an authority that names a workload.
        (rig.csr(Some(caller.id())), "expected \"spiffe://example.org\""),
        (
            rig.csr(Some(&SpiffeId::parse("spiffe://other.test").unwrap())),
            "expected \"spiffe://example.org\"",
        ),
    ] {
        let answer = rig.issuer.downstream(&caller, &csr, None).await;
        let (reason, said) = refused(&answer);
        assert_eq!(reason, Reason::Invalid, "{said}");
        assert!(said.contains(why), "{said}");
    }
    rig.record.close().await;
    let of_kind = |kind| rig.decisions().values().filter(|(decision, _)| decision.kind == kind).count();
    assert_eq!(of_kind(DecisionKind::DownstreamX509Ca), 0);
}

#[tokio::test]
async fn an_authority_below_is_on_record() {
    let rig = Rig::new().await;
    let caller = below(&rig, None).await;
    let issued = rig.issuer.downstream(&caller, &rig.csr(None), Some(HOUR)).await.unwrap();
    rig.record.close().await;

    let found = certificate(&issued.chain()[0]);
    let decisions = rig.decisions();
    let mut made = decisions.values().filter(|(one, _)| one.kind == DecisionKind::DownstreamX509Ca);
    let (decision, outcome) = made.next().unwrap();
    assert!(made.next().is_none());
    assert_eq!(*outcome, Some(Outcome::Signed));
    assert_eq!(decision.serial.parse::<Serial>().unwrap().as_bytes(), found.serial.to_bytes_be());
    assert_eq!(decision.spiffe_id, domain().id());
    let revision = rig.state().entry(caller.entry()).unwrap().revision;
    assert_eq!(decision.entry, Some((caller.entry().clone(), revision)));
    assert_eq!(decision.key_hash, csr::key_hash(found.public_key().raw));
    assert_eq!(decision.not_after, START.plus(HOUR));
    assert_eq!(decision.caller, "downstream spiffe://example.org/workload/below");
    assert_eq!(decision.reason, "entry makes the caller a downstream server");
    assert_eq!(decision.authority.as_ref(), Some(rig.authorities.x509().id()));
}

#[tokio::test]
async fn no_authority_below_is_signed_once_the_record_cannot_be_written() {
    let rig = Rig::new().await;
    let caller = below(&rig, None).await;
    rig.disk.is_full.store(true, Ordering::SeqCst);
    let answer = rig.issuer.downstream(&caller, &rig.csr(None), Some(HOUR)).await;
    let expected = "the decision record cannot be written: nothing is signed";
    assert_eq!(refused(&answer), (Reason::Unavailable, expected));
}

/// What takes the right of the caller, or the authority above, away, and why it is refused then.
type Stop = (&'static str, fn(&Rig) -> Vec<Change>, Reason);

fn stops() -> [Stop; 5] {
    fn entry(rig: &Rig, change: fn(&mut passant_core::Entry)) -> Vec<Change> {
        let held = Arc::clone(rig.state().entry(&EntryId::parse("below").unwrap()).unwrap());
        let mut entry = passant_core::Entry::clone(&held);
        change(&mut entry);
        vec![Change::PutEntry(Arc::new(entry))]
    }
    [
        ("deleted", |_| vec![Change::DeleteEntry(EntryId::parse("below").unwrap())], Reason::Denied),
        ("no longer downstream", |rig| entry(rig, |e| e.downstream = false), Reason::Denied),
        ("of another", |rig| entry(rig, |e| e.spiffe_id = id("/other")), Reason::Denied),
        (
            "tainted",
            |rig| {
                let taint = |one: &Authority| Authority { tainted: true, ..one.clone() };
                rig.state().authorities().map(|one| Change::PutAuthority(taint(one))).collect()
            },
            Reason::Unavailable,
        ),
        (
            "revoked",
            |rig| rig.state().authorities().map(|one| Change::DeleteAuthority(one.id.clone())).collect(),
            Reason::Unavailable,
        ),
    ]
}

#[tokio::test]
async fn whose_right_is_gone_or_whose_authority_is_tainted_gets_none() {
    for (what, changes, reason) in stops() {
        let rig = Rig::new().await;
        let caller = below(&rig, None).await;
        rig.commit(changes(&rig)).await;
        let answer = rig.issuer.downstream(&caller, &rig.csr(None), None).await;
        assert_eq!(refused(&answer).0, reason, "{what}");
        rig.record.close().await;
        let is_made = |(decision, _): &(Arc<_>, _)| {
            let decision: &crate::record::Decision = decision;
            decision.kind == DecisionKind::DownstreamX509Ca
        };
        assert!(!rig.decisions().values().any(is_made), "{what}: nothing was to be signed");
    }
}

#[tokio::test]
async fn an_authority_whose_ground_is_gone_meanwhile_is_not_handed_out() {
    let changed: fn(&Rig) -> Vec<Change> = |rig| {
        let held = Arc::clone(rig.state().entry(&EntryId::parse("below").unwrap()).unwrap());
        let entry = passant_core::Entry { revision: held.revision + 1, ..passant_core::Entry::clone(&held) };
        vec![Change::PutEntry(Arc::new(entry))]
    };
    for (what, changes, reason) in stops().into_iter().chain([("changed", changed, Reason::Unavailable)]) {
        let rig = Rig::new().await;
        let caller = below(&rig, None).await;
        let (journal, changes) = (rig.journal.clone(), changes(&rig));
        let stopped = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&stopped);
        *rig.disk.meanwhile.lock().unwrap() = Some(Box::new(move || {
            tokio::spawn(async move {
                journal.submit(move |_| Ok((changes, ()))).await.unwrap();
                told.notify_one();
            });
        }));
        let answer = rig.issuer.downstream(&caller, &rig.csr(None), None).await;
        stopped.notified().await;
        assert_eq!(refused(&answer).0, reason, "{what}");
    }
}
