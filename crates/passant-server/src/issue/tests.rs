//! Is what is issued what was ordered, for whom it was ordered, and on record?

mod downstream;
mod grounds;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use passant_core::csr;
use passant_core::jwt_svid::JwtSvid;
use passant_core::keys::KeyType;
use passant_core::x509_svid::X509Svid;
use passant_core::{EntryId, Reason, Refusal, SpiffeId, StopTarget, TrustDomain};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{IssuedJwt, IssuedX509};
use crate::caller::{Actor, AgentCaller};
use crate::record::{DecisionKind, Outcome};
use crate::rig::{HOUR, MINUTE, Rig, START, Settings, domain, id, operator, selectors};
use crate::state::change::Change;
use crate::state::node::AttestedNode;
use crate::state::samples::stop;
use crate::state::{Authority, Phase};

/// A CSR by openssl: RSA 2048, URI:spiffe://example.org/w.
const RSA_2048: &[u8] = include_bytes!("../../../passant-core/src/testdata/rsa2048.csr.der");
/// The same with a key of 1024 bits.
const RSA_1024: &[u8] = include_bytes!("../../../passant-core/src/testdata/rsa1024.csr.der");

fn refused<T>(result: &Result<T, Refusal>) -> (Reason, &str) {
    let refusal = result.as_ref().err().expect("must be refused");
    (refusal.reason, refusal.public.as_str())
}

async fn one(rig: &Rig, entry: &str, csr: Vec<u8>) -> Result<IssuedX509, Refusal> {
    let (caller, _) = rig.agent("a").await;
    rig.issuer.x509_batch(&caller, vec![(entry.to_owned(), csr)]).await.pop().unwrap()
}

fn agent() -> SpiffeId {
    id("/spire/agent/spoken/a")
}

fn of_operator(rig: &Rig) -> Actor {
    rig.callers.actor(&operator()).unwrap()
}

#[tokio::test]
async fn a_leaf_says_what_its_entry_says_and_verifies() {
    for key_type in [KeyType::EcP256, KeyType::EcP384] {
        let rig = Rig::with(Settings { key_type, ..Settings::default() }).await;
        let entry = rig
            .entry("w", &agent(), |e| {
                e.dns_names = vec!["w.example.org".to_owned(), "*.example.org".to_owned()]
            })
            .await;
        let csr = rig.csr(Some(&entry.spiffe_id));
        let issued = one(&rig, "w", csr.clone()).await.unwrap();
        let svid = issued.svid();
        assert_eq!(*svid.id(), entry.spiffe_id);
        assert_eq!(svid.dns_names(), entry.dns_names);
        assert_eq!(svid.public_key(), csr::Csr::parse(&csr).unwrap().public_key());
        assert_eq!(svid.not_before(), START.minus(Duration::from_secs(10)));
        assert_eq!(svid.not_after(), START.plus(HOUR));
        assert!(svid.serial().as_bytes().len() >= 16);
        assert_eq!(svid.chain().len(), 1, "no root in the chain");
        for now in [svid.not_before(), START, svid.not_after()] {
            svid.verify(&rig.bundle(), now).unwrap();
        }
        let (caller, _) = rig.agent("a").await;
        verified(&rig, &rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await.unwrap(), "db");
    }
}

#[tokio::test]
async fn leaf_and_authority_keep_the_profile() {
    let rig = Rig::new().await;
    rig.entry("w", &agent(), |e| e.dns_names = vec!["w.example.org".to_owned()]).await;
    let issued = one(&rig, "w", rig.csr(None)).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.svid().chain()[0]).unwrap();
    let bundle = rig.bundle();
    let (_, root) = X509Certificate::from_der(&bundle.x509_authorities[0].der).unwrap();

    assert_eq!(leaf.subject().to_string(), "C=US, O=Passant, CN=w.example.org");
    assert_eq!(leaf.issuer(), root.subject());
    assert!(root.subject().to_string().starts_with("C=US, O=Passant, serialNumber="));
    let constraints = leaf.basic_constraints().unwrap().expect("is written out");
    assert!(!constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(extended.value.server_auth && extended.value.client_auth);
    leaf.verify_signature(Some(root.public_key())).unwrap();

    assert!(root.is_ca() && root.basic_constraints().unwrap().unwrap().critical);
    let usage = root.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature(), "X509-45");
    assert!(root.extended_key_usage().unwrap().is_none());
    let key_id = |certificate: &X509Certificate<'_>| {
        certificate.extensions().iter().find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(key_id) = extension.parsed_extension() else {
                return None;
            };
            Some(key_id.0.to_vec())
        })
    };
    assert!(key_id(&leaf).is_some());
    assert_eq!(key_id(&root).as_deref(), issued.svid().authority_key_id());
}

#[tokio::test]
async fn answers_are_in_the_order_of_the_requests_each_for_itself() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w1", &agent(), |_| {}).await;
    rig.entry("w2", &agent(), |_| {}).await;
    rig.entry("theirs", &id("/spire/agent/spoken/b"), |_| {}).await;
    let csr = |name: Option<&str>| rig.csr(name.map(id).as_ref());
    let mut forged = csr(None);
    *forged.last_mut().unwrap() ^= 1;
    let two_names = {
        let mut params = rcgen::CertificateParams::default();
        for uri in ["spiffe://example.org/workload/w1", "spiffe://example.org/workload/w2"] {
            params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        }
        params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    };
    let requests = [
        ("w2", csr(Some("/workload/w2"))),
        ("", csr(None)),
        ("w1", Vec::new()),
        ("nobody", csr(None)),
        ("theirs", csr(None)),
        ("../w1", csr(None)),
        ("w1", b"no CSR".to_vec()),
        ("w1", forged),
        ("w1", csr(Some("/workload/w2"))),
        ("w1", two_names),
        ("w1", RSA_1024.to_vec()),
        ("w1", csr(None)),
    ];
    let requests = requests.into_iter().map(|(entry, csr)| (entry.to_owned(), csr)).collect();
    let answers = rig.issuer.x509_batch(&caller, requests).await;

    assert_eq!(*answers[0].as_ref().unwrap().svid().id(), id("/workload/w2"));
    assert_eq!(refused(&answers[1]), (Reason::Invalid, "missing entry ID"));
    assert_eq!(refused(&answers[2]), (Reason::Invalid, "missing CSR"));
    for at in [3, 4, 5] {
        assert_eq!(refused(&answers[at]), (Reason::NotFound, "entry not found or not authorized"), "{at}");
    }
    assert_eq!(refused(&answers[6]), (Reason::Invalid, "CSR is malformed"));
    assert_eq!(refused(&answers[7]), (Reason::Invalid, "CSR signature is invalid"));
    for at in [8, 9] {
        let (reason, text) = refused(&answers[at]);
        assert_eq!(reason, Reason::Invalid);
        assert!(text.contains("\"spiffe://example.org/workload/w2\" as a URI SAN"), "{text}");
    }
    assert_eq!(refused(&answers[10]).0, Reason::Invalid);
    assert_eq!(*answers[11].as_ref().unwrap().svid().id(), id("/workload/w1"));
    assert_eq!(answers.len(), 12);
}

#[tokio::test]
async fn a_large_batch_is_issued_whole() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w", &agent(), |_| {}).await;
    let csr = rig.csr(None);
    let answers = rig.issuer.x509_batch(&caller, vec![("w".to_owned(), csr); 100]).await;
    let serials: BTreeSet<_> = answers.iter().map(|a| a.as_ref().unwrap().svid().serial().clone()).collect();
    assert_eq!(serials.len(), 100);
    assert!(rig.issuer.x509_batch(&caller, Vec::new()).await.is_empty());
}

#[tokio::test]
async fn rsa_keys_of_workloads_are_certified_as_they_are() {
    let rig = Rig::new().await;
    rig.entry("w", &agent(), |e| e.spiffe_id = id("/w")).await;
    let issued = one(&rig, "w", RSA_2048.to_vec()).await.unwrap();
    assert_eq!(issued.svid().public_key(), csr::Csr::parse(RSA_2048).unwrap().public_key());
    issued.svid().verify(&rig.bundle(), rig.now()).unwrap();
}

#[tokio::test]
async fn the_earliest_of_ttl_entry_end_and_authority_end_counts() {
    let rig = Rig::new().await;
    let end = START.plus(20 * MINUTE);
    rig.entry("short", &agent(), |e| e.x509_svid_ttl = Some(MINUTE)).await;
    rig.entry("ending", &agent(), |e| e.expires_at = Some(end)).await;
    rig.entry("long", &agent(), |e| e.x509_svid_ttl = Some(100 * HOUR)).await;
    for (entry, expected) in [("short", START.plus(MINUTE)), ("ending", end), ("long", START.plus(24 * HOUR))]
    {
        let issued = one(&rig, entry, rig.csr(None)).await.unwrap();
        assert_eq!(issued.svid().not_after(), expected, "{entry}");
    }
}

#[tokio::test]
async fn an_entry_issues_until_the_second_before_its_end() {
    let rig = Rig::new().await;
    let end = START.plus(MINUTE);
    rig.entry("w", &agent(), |e| e.expires_at = Some(end)).await;
    let (caller, _) = rig.agent("a").await;
    rig.clock.set(end.minus(Duration::from_secs(1)));
    assert_eq!(one(&rig, "w", rig.csr(None)).await.unwrap().svid().not_after(), end);
    let token = rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await.unwrap();
    assert_eq!(token.svid().expires_at(), end);
    rig.clock.set(end);
    let expected = (Reason::NotFound, "entry not found or not authorized");
    assert_eq!(refused(&one(&rig, "w", rig.csr(None)).await), expected);
    assert_eq!(refused(&rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await), expected);
}

#[tokio::test]
async fn what_is_stopped_while_it_is_signed_does_not_leave_the_server() {
    type Stop = fn(&Rig, &AgentCaller) -> Vec<Change>;
    let ban: Stop = |rig, caller| {
        let node = rig.node(caller.id());
        vec![Change::PutNode(Arc::new(AttestedNode { serial: None, ..AttestedNode::clone(&node) }))]
    };
    let evict: Stop = |_, caller| vec![Change::DeleteNode(caller.id().clone())];
    let delete: Stop = |_, _| vec![Change::DeleteEntry(EntryId::parse("w").unwrap())];
    let stop_entry: Stop =
        |_, _| vec![Change::PutStop(stop(StopTarget::Entry(EntryId::parse("w").unwrap())))];
    let stop_agent: Stop = |_, caller| vec![Change::PutStop(stop(StopTarget::Agent(caller.id().clone())))];
    for (stop, expected) in [
        (ban, Reason::Denied),
        (evict, Reason::Denied),
        (delete, Reason::NotFound),
        (stop_entry, Reason::NotFound),
        (stop_agent, Reason::NotFound),
    ] {
        for is_token in [false, true] {
            let rig = Rig::new().await;
            let (caller, _) = rig.agent("a").await;
            rig.entry("w", &agent(), |_| {}).await;
            let (journal, changes) = (rig.journal.clone(), stop(&rig, &caller));
            let stopped = Arc::new(tokio::sync::Notify::new());
            let told = Arc::clone(&stopped);
            *rig.disk.meanwhile.lock().unwrap() = Some(Box::new(move || {
                tokio::spawn(async move {
                    journal.submit(move |_| Ok((changes, ()))).await.unwrap();
                    told.notify_one();
                });
            }));
            let refused = if is_token {
                rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await.map(drop).unwrap_err()
            } else {
                let requests = vec![("w".to_owned(), rig.csr(None))];
                rig.issuer.x509_batch(&caller, requests).await.remove(0).map(drop).unwrap_err()
            };
            stopped.notified().await;
            assert_eq!(refused.reason, expected, "{refused}");
        }
    }
}

#[tokio::test]
async fn nothing_is_minted_for_what_is_stopped_until_it_is_resumed() {
    let rig = Rig::new().await;
    let (caller, conn) = rig.agent("a").await;
    let once = AttestedNode { can_reattest: false, ..AttestedNode::clone(&rig.node(&agent())) };
    rig.commit(vec![Change::PutNode(once.into())]).await;
    rig.entry("w", &agent(), |_| {}).await;
    rig.entry("other", &agent(), |_| {}).await;
    let entry = StopTarget::Entry(EntryId::parse("w").unwrap());
    let not_there = (Reason::NotFound, "entry not found or not authorized");
    let of_operator = of_operator(&rig);
    let mint = async |entry: &str| {
        let requests = vec![(entry.to_owned(), rig.csr(None))];
        let svid = rig.issuer.x509_batch(&caller, requests).await.remove(0).map(drop);
        let token = rig.issuer.jwt(&caller, entry, vec!["db".to_owned()]).await.map(drop);
        assert_eq!(svid.is_ok(), token.is_ok());
        svid.and(token)
    };
    for target in [entry, StopTarget::Agent(agent())] {
        let is_entry = matches!(target, StopTarget::Entry(_));
        rig.commit(vec![Change::PutStop(stop(target.clone()))]).await;
        let stopped = mint("w").await;
        assert_eq!(refused(&stopped), not_there, "{target}");
        let told = stopped.unwrap_err().source.unwrap().to_string();
        assert!(told.contains("stopped"), "the record learns why: {told}");
        assert_eq!(mint("other").await.is_ok(), is_entry);
        let csr = rig.csr(Some(&id("/workload/w")));
        let by_hand = rig.issuer.mint_x509(&of_operator, &csr, None).await.map(drop);
        let audience = vec!["db".to_owned()];
        let token = rig.issuer.mint_jwt(&of_operator, id("/workload/w"), audience, None).await.map(drop);
        for minted in [by_hand, token] {
            assert_eq!(minted.is_err(), is_entry, "of an agent that is stopped others may have it");
            assert!(minted.err().is_none_or(|refusal| refusal.reason == Reason::Precondition));
        }
        // A stopped agent stays one.
        rig.callers.agent(&conn).await.unwrap();
        rig.issuer.renew(&caller, &rig.csr(None)).await.unwrap();
        rig.commit(vec![Change::DeleteStop(target)]).await;
        mint("w").await.unwrap();
    }
}

#[tokio::test]
async fn what_an_authority_signed_that_was_tainted_or_revoked_meanwhile_is_not_handed_out() {
    for is_revoked in [false, true] {
        for what in ["workload", "token", "node", "renewal", "minted"] {
            let rig = Rig::new().await;
            let (caller, _) = rig.agent("a").await;
            rig.entry("w", &agent(), |_| {}).await;
            let row = rig.node(&agent());
            // It cannot attest again, and so renews.
            let once = AttestedNode { can_reattest: false, ..AttestedNode::clone(&row) };
            rig.commit(vec![Change::PutNode(once.into())]).await;
            let stop = |one: &Authority| {
                if is_revoked {
                    return Change::DeleteAuthority(one.id.clone());
                }
                Change::PutAuthority(Authority { tainted: true, phase: Phase::Retired, ..one.clone() })
            };
            let (journal, changes) = (rig.journal.clone(), rig.state().authorities().map(stop).collect());
            let csr = rig.csr(None);
            *rig.disk.meanwhile.lock().unwrap() = Some(Box::new(move || {
                tokio::spawn(async move { journal.submit(move |_| Ok((changes, ()))).await.unwrap() });
            }));
            let answer = match what {
                "workload" => {
                    rig.issuer.x509_batch(&caller, vec![("w".to_owned(), csr)]).await.remove(0).map(drop)
                }
                "token" => rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await.map(drop),
                "node" => rig.attest("spoken", "b", &csr).await.map(drop),
                "renewal" => rig.issuer.renew(&caller, &csr).await.map(drop),
                _ => {
                    rig.issuer.mint_jwt(&Actor::root(), id("/w"), vec!["db".to_owned()], None).await.map(drop)
                }
            };
            let refused = answer.unwrap_err();
            assert_eq!(refused.reason, Reason::Unavailable, "{what}: {refused}");
            assert!(refused.public.contains("tainted or revoked"), "{what}: {refused}");
            let pending = rig.node(&agent()).pending.clone();
            assert_eq!(pending, None, "{what}");
        }
    }
}

#[tokio::test]
async fn an_expired_authority_signs_nothing() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w", &agent(), |_| {}).await;
    // The loop that calls `tick` has been held up for a day.
    rig.clock.advance(24 * HOUR);
    let answer = rig.issuer.x509_batch(&caller, vec![("w".to_owned(), rig.csr(None))]).await.pop().unwrap();
    assert_eq!(refused(&answer), (Reason::Unavailable, "no authority is valid at this moment"));
    assert_eq!(refused(&rig.issuer.server_svid().await).0, Reason::Unavailable);
}

#[tokio::test]
async fn every_signature_has_one_durable_intent_and_an_outcome() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w", &agent(), |e| e.jwt_svid_include_jti = true).await;
    let x509 = rig.issuer.x509_batch(&caller, vec![("w".to_owned(), rig.csr(None))]).await.remove(0).unwrap();
    let jwt = rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await.unwrap();
    let server = rig.issuer.server_svid().await.unwrap();
    rig.record.close().await;
    let decisions = rig.decisions();
    let kinds: Vec<_> = decisions.values().map(|(decision, _)| decision.kind).collect();
    for (kind, times) in [
        (DecisionKind::X509Authority, 1),
        (DecisionKind::JwtAuthority, 1),
        (DecisionKind::NodeSvid, 1),
        (DecisionKind::X509Svid, 1),
        (DecisionKind::JwtSvid, 1),
        (DecisionKind::ServerSvid, 1),
    ] {
        assert_eq!(kinds.iter().filter(|k| **k == kind).count(), times, "{kind:?}");
    }
    assert!(decisions.values().all(|(_, outcome)| *outcome == Some(Outcome::Signed)));

    let (decision, _) = &decisions[&x509.svid().serial().to_string()];
    assert_eq!(decision.spiffe_id, id("/workload/w"));
    assert_eq!(decision.entry.as_ref().map(|(entry, revision)| (entry.as_str(), *revision)), Some(("w", 3)));
    assert_eq!(decision.key_hash, csr::key_hash(x509.svid().public_key()));
    assert_eq!(decision.not_after, x509.svid().not_after());
    assert_eq!(decision.caller, format!("agent {}", agent()));
    assert_eq!(decision.authority.as_ref(), Some(rig.authorities.x509().id()));
    let jti = jwt.svid().claims()["jti"].as_str().unwrap();
    assert_eq!(decisions[jti].0.kind, DecisionKind::JwtSvid);
    assert_eq!(decisions[&server.svid.svid().serial().to_string()].0.spiffe_id, domain().server_id());
}

#[tokio::test]
async fn nothing_is_signed_once_the_record_cannot_be_written() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w", &agent(), |_| {}).await;
    let signed = rig.decisions().len();
    rig.disk.is_full.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let requests = vec![("w".to_owned(), rig.csr(None)), (String::new(), Vec::new())];
        let answers = rig.issuer.x509_batch(&caller, requests).await;
        let expected = "the decision record cannot be written: nothing is signed";
        assert_eq!(refused(&answers[0]), (Reason::Unavailable, expected));
        assert_eq!(refused(&answers[1]), (Reason::Invalid, "missing entry ID"));
        assert_eq!(
            refused(&rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await).0,
            Reason::Unavailable
        );
        assert_eq!(refused(&rig.issuer.server_svid().await).0, Reason::Unavailable);
        assert_eq!(refused(&rig.attest("spoken", "b", &rig.csr(None)).await).0, Reason::Unavailable);
        // The disk has room again, but a gap in the record is for the operator to look at.
        rig.disk.is_full.store(false, Ordering::SeqCst);
    }
    assert!(rig.state().node(&id("/spire/agent/spoken/b")).is_none());
    assert_eq!(rig.decisions().len(), signed);
}

fn verified(rig: &Rig, jwt: &IssuedJwt, audience: &str) -> JwtSvid {
    let bundle = rig.bundle();
    let bundles = |name: &TrustDomain| (*name == domain()).then(|| Arc::clone(&bundle));
    JwtSvid::verify(jwt.svid().token(), audience, &bundles, rig.now()).unwrap()
}

#[tokio::test]
async fn a_token_says_what_its_entry_says_and_verifies() {
    let issuer = Some("https://issuer.example.org".to_owned());
    let rig = Rig::with(Settings { jwt_issuer: issuer, ..Settings::default() }).await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w", &agent(), |_| {}).await;
    rig.entry("named", &agent(), |e| {
        e.jwt_svid_include_jti = true;
        e.jwt_svid_ttl = Some(MINUTE);
    })
    .await;
    let audience = vec!["db".to_owned(), String::new(), "queue".to_owned()];
    let plain = rig.issuer.jwt(&caller, "w", audience.clone()).await.unwrap();
    let svid = verified(&rig, &plain, "queue");
    assert_eq!(
        (svid.id(), svid.audience()),
        (&id("/workload/w"), &["db".to_owned(), "queue".to_owned()][..])
    );
    assert_eq!((svid.issued_at(), svid.expires_at()), (Some(START), START.plus(5 * MINUTE)));
    let claims: BTreeSet<&str> = svid.claims().keys().map(String::as_str).collect();
    assert_eq!(claims, BTreeSet::from(["sub", "aud", "exp", "iat", "iss"]));

    let one = rig.issuer.jwt(&caller, "named", audience.clone()).await.unwrap();
    let two = rig.issuer.jwt(&caller, "named", audience).await.unwrap();
    let jti = |jwt: &IssuedJwt| jwt.svid().claims()["jti"].as_str().unwrap().to_owned();
    assert_eq!(jti(&one).len(), 22, "16 bytes in base64url");
    assert_ne!(jti(&one), jti(&two));
    assert_eq!(one.svid().expires_at(), START.plus(MINUTE));
}

#[tokio::test]
async fn audiences_are_needed_and_bounded() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    rig.entry("w", &agent(), |_| {}).await;
    let many = |count: usize| (0..count).map(|n| format!("service-{n}")).collect::<Vec<_>>();
    for (audience, is_allowed) in [
        (Vec::new(), false),
        (vec![String::new()], false),
        (many(32), true),
        (many(33), false),
        (vec!["a".repeat(2048)], true),
        (vec!["a".repeat(2049)], false),
    ] {
        let answer = rig.issuer.jwt(&caller, "w", audience).await;
        match is_allowed {
            true => assert!(answer.is_ok()),
            false => assert_eq!(refused(&answer).0, Reason::Invalid),
        }
    }
    assert_eq!(
        refused(&rig.issuer.jwt(&caller, "nobody", vec!["db".to_owned()]).await),
        (Reason::NotFound, "entry not found or not authorized")
    );
}

#[tokio::test]
async fn an_operator_mints_what_the_csr_names() {
    let rig = Rig::new().await;
    let caller = of_operator(&rig);
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = |uris: &[&str], dns_names: &[&str]| {
        let names = dns_names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        for uri in uris {
            params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into().unwrap()));
        }
        params.serialize_request(&key).unwrap().der().to_vec()
    };
    let good = csr(&["spiffe://example.org/w"], &["w.example.org"]);
    let issued = rig.issuer.mint_x509(&caller, &good, Some(MINUTE)).await.unwrap();
    assert_eq!(*issued.svid().id(), id("/w"));
    assert_eq!(issued.svid().dns_names(), ["w.example.org"]);
    assert_eq!(issued.svid().not_after(), START.plus(MINUTE));
    issued.svid().verify(&rig.bundle(), rig.now()).unwrap();
    let defaulted = rig.issuer.mint_x509(&caller, &good, None).await.unwrap();
    assert_eq!(defaulted.svid().not_after(), START.plus(HOUR));

    for (uris, dns_names) in [
        (&[][..], &[][..]),
        (&["spiffe://example.org/w", "spiffe://example.org/v"], &[]),
        (&["https://example.org/w"], &[]),
        (&["spiffe://other.test/w"], &[]),
        (&["spiffe://example.org"], &[]),
        (&["spiffe://example.org/spire/server"], &[]),
        (&["spiffe://example.org/spire/agent/join_token/x"], &[]),
        (&["spiffe://example.org/w"], &["not a name"]),
    ] {
        let answer = rig.issuer.mint_x509(&caller, &csr(uris, dns_names), None).await;
        assert_eq!(refused(&answer).0, Reason::Invalid, "{uris:?} {dns_names:?}");
    }
    assert_eq!(refused(&rig.issuer.mint_x509(&caller, &[], None).await), (Reason::Invalid, "missing CSR"));
}

#[tokio::test]
async fn an_operator_mints_tokens_for_workloads_only() {
    let rig = Rig::new().await;
    let caller = of_operator(&rig);
    let mint =
        |id: &str| rig.issuer.mint_jwt(&caller, SpiffeId::parse(id).unwrap(), vec!["db".to_owned()], None);
    let issued = mint("spiffe://example.org/w").await.unwrap();
    assert_eq!(*verified(&rig, &issued, "db").id(), id("/w"));
    for bad in ["spiffe://other.test/w", "spiffe://example.org", "spiffe://example.org/spire/server"] {
        assert_eq!(refused(&mint(bad).await).0, Reason::Invalid, "{bad}");
    }
}

#[tokio::test]
async fn the_server_has_an_svid_of_its_own_key() {
    let rig = Rig::with(Settings { ca_ttl: 20 * MINUTE, ..Settings::default() }).await;
    let server = rig.issuer.server_svid().await.unwrap();
    let svid: &X509Svid = server.svid.svid();
    assert_eq!(*svid.id(), domain().server_id());
    assert_eq!(svid.public_key(), server.key.public_key());
    assert_eq!(svid.not_after(), START.plus(20 * MINUTE), "never beyond the authority");
    svid.verify(&rig.bundle(), rig.now()).unwrap();
}

#[tokio::test]
async fn entries_of_an_alias_are_the_nodes_too() {
    let rig = Rig::new().await;
    let (caller, _) = rig.agent("a").await;
    let alias = rig
        .entry("alias", &domain().server_id(), |e| {
            e.spiffe_id = id("/cluster");
            e.selectors = selectors(&["spoken:yes"]);
        })
        .await;
    rig.entry("w", &alias.spiffe_id, |_| {}).await;
    let answers = rig.issuer.x509_batch(&caller, vec![("w".to_owned(), rig.csr(None))]).await;
    assert!(answers[0].is_ok());
    rig.commit(vec![Change::DeleteEntry(alias.id.clone())]).await;
    let answers = rig.issuer.x509_batch(&caller, vec![("w".to_owned(), rig.csr(None))]).await;
    assert_eq!(refused(&answers[0]).0, Reason::NotFound);
}
