//! SPIFFE_Federation.md, as far as it binds whoever rotates keys or trusts several domains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use passant_core::jwt_svid::JwtSvidError;
use passant_core::{Bundle, JwtSvid, TrustDomain, UnixTime, x509_svid};
use passant_tests::conformance::meets;
use passant_tests::site::{ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::json;

use crate::samples::{
    AUDIENCE, Ca, ID, NOW, Tokens, ders, later, mint_jwt, mint_x509, now, own_bundle, verify_x509,
    x509_bundle,
};

#[test]
fn bundles_of_two_trust_domains_stay_apart() {
    let _met = meets(&["FED-12"]);
    let (own, other) = (Ca::root("example.org"), Ca::root("other.test"));
    let (own_bundle, other_bundle) =
        (x509_bundle("example.org", &[&own]), x509_bundle("other.test", &[&other]));
    assert!(verify_x509(&[&own.leaf(ID)], &own_bundle).is_ok());
    assert!(verify_x509(&[&other.leaf("spiffe://other.test/w")], &other_bundle).is_ok());
    for bundle in [&own_bundle, &other_bundle] {
        assert!(
            verify_x509(&[&other.leaf(ID)], bundle).is_err(),
            "signed by the authority of another domain"
        );
    }

    let (own, other) = (Tokens::of("example.org"), Tokens::of("other.test"));
    let bundles = |name: &TrustDomain| {
        [&own.bundle, &other.bundle].into_iter().find(|bundle| bundle.trust_domain == *name).map(Arc::clone)
    };
    let verify = |token: &str| -> Result<JwtSvid, JwtSvidError> {
        JwtSvid::verify(token, AUDIENCE, &bundles, UnixTime::from_secs(NOW))
    };
    assert!(verify(&own.with_claims(json!({}))).is_ok());
    assert!(verify(&other.with_claims(json!({ "sub": "spiffe://other.test/w" }))).is_ok());
    assert!(verify(&other.with_claims(json!({}))).is_err());
}

/// One key, by what names it in the bundle and in what it signs.
#[derive(Debug, Default)]
struct Key {
    published: Option<UnixTime>,
    first_use: Option<UnixTime>,
    /// The last end of anything seen that it signed.
    needed_until: Option<UnixTime>,
}

/// The keys of a bundle: serial numbers would do for X.509, but the certificate itself is what verifies.
fn keys(bundle: &Bundle) -> Vec<String> {
    let x509 = bundle.x509_authorities.iter().map(|one| format!("{:?}", x509_key(&one.der)));
    x509.chain(bundle.jwt_authorities.iter().map(|one| one.key_id.clone())).collect()
}

fn x509_key(der: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    der.hash(&mut hasher);
    hasher.finish()
}

#[tokio::test]
async fn keys_are_published_before_they_sign_and_stay_while_needed() -> anyhow::Result<()> {
    let _met = meets(&["FED-02", "FED-03", "FED-04"]);
    // Prepared 12 s before the end, activated 8 s before it, gone 24 s after it; the refresh hint is 1 s.
    let site = Site::new(&ServerOptions {
        keys: "ca_ttl = \"24s\"\ndefault_x509_svid_ttl = \"4s\"\ndefault_jwt_svid_ttl = \"4s\"".to_owned(),
        tables: String::new(),
    })?;
    let _server = site.start_server().await?;
    let first = own_bundle(&site).await?;
    let hint = first.refresh_hint.map_or(0, |hint| hint.as_secs());
    assert_eq!(hint, 1);
    let seen = std::cell::RefCell::new(BTreeMap::<String, Key>::new());
    let born = now();
    for name in keys(&first) {
        seen.borrow_mut().insert(name, Key { published: Some(born), ..Key::default() });
    }
    let old: Vec<String> = seen.borrow().keys().cloned().collect();
    eventually("the first keys to leave the bundle", Duration::from_secs(120), || async {
        // A copy fetched before anything of this turn was signed.
        let copy = own_bundle(&site).await?;
        let fetched = now();
        let chain = mint_x509(&site, "spiffe://example.org/ops", 4).await?;
        let token = mint_jwt(&site, "/ops", &[AUDIENCE], 4).await?;
        let published = keys(&copy);
        let mut seen = seen.borrow_mut();
        for name in &published {
            seen.entry(name.clone()).or_default().published.get_or_insert(fetched);
        }
        for (name, key) in seen.iter() {
            let is_needed = key.needed_until.is_some_and(|end| end > fetched);
            assert!(!is_needed || published.contains(name), "{name} left while it was needed: {key:?}");
        }
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        let svid = x509_svid::verify(ders(&chain), &copy, now())?;
        let signer = copy.x509_authorities.iter().find(|one| {
            let mut alone = Bundle::empty(copy.trust_domain.clone());
            alone.x509_authorities.push((*one).clone());
            x509_svid::verify(ders(&chain), &alone, now()).is_ok()
        });
        let bundles = |_: &TrustDomain| Some(Arc::clone(&copy));
        let token = JwtSvid::verify(&token, AUDIENCE, &bundles, now())?;
        let used = [
            (signer.map(|one| format!("{:?}", x509_key(&one.der))), svid.not_after()),
            (
                crate::samples::decode_jwt(token.token())?.0["kid"].as_str().map(str::to_owned),
                token.expires_at(),
            ),
        ];
        for (name, end) in used {
            let key = seen.entry(name.expect("it verified by the copy")).or_default();
            key.first_use.get_or_insert(fetched);
            key.needed_until = key.needed_until.max(Some(end));
        }
        anyhow::ensure!(old.iter().all(|name| !published.contains(name)), "still there");
        Ok(())
    })
    .await?;
    let gone = now();
    assert!(gone >= born.plus(Duration::from_secs(24)), "authorities were pruned before they ended");
    assert!(
        later(0) <= born.plus(Duration::from_secs(24 + 24 + 15)),
        "they stay for as long again, and no longer"
    );
    let seen = seen.into_inner();
    let rotated: Vec<&Key> = seen
        .iter()
        .filter(|(name, key)| !old.contains(name) && key.first_use.is_some())
        .map(|(_, key)| key)
        .collect();
    assert!(rotated.len() >= 2, "one of each kind took over: {seen:?}");
    for key in rotated {
        let (published, used) = (key.published.unwrap_or(gone), key.first_use.unwrap_or(born));
        assert!(used.secs() - published.secs() >= 3 * i64::try_from(hint)?, "{key:?}");
    }
    Ok(())
}
