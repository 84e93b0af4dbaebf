//! How do the two servers come to trust what the other signed, and when do SPIRE's agents?

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use passant_proto::bundle::AppendBundleRequest;
use passant_proto::{convert, types};

use super::ledger::{Ledger, Made, hex};
use super::report::{Kind, Report};
use super::spire::Move;
use crate::connect::{Server, refused};
use crate::progress::Progress;

/// Why an authority that the one server distrusts is named.
const BELIEVED: &str =
    "it is tainted at the one server, and believed at the other until it is taken out there";

/// Copies authorities both ways. Tainted ones are left where they are: nobody should begin to trust them.
///
/// # Errors
/// When a bundle cannot be read, or a server refuses what is appended.
pub(super) async fn exchange(
    moving: &Move,
    ours: &types::Bundle,
    theirs: &types::Bundle,
    ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    // What this version could not verify with is not appended.
    convert::bundle::from_wire(theirs)
        .context("an authority in the bundle of the SPIRE server cannot be used here")?;
    let here = missing(theirs, ours, Kind::AuthoritiesHere, report);
    let there = missing(ours, theirs, Kind::AuthoritiesThere, report);
    if !theirs.wit_authorities.is_empty() {
        report.note("WIT authorities are not carried: this server does not serve the WIT-SVID profile");
    }
    let Some(ledger) = ledger else { return Ok(()) };
    withdrawn(ledger, ours, theirs, report);
    if let Some(request) = here {
        let x509 = request.x509_authorities.iter().map(|one| Made::X509Authority(hex(&one.asn1)));
        let jwt = request.jwt_authorities.iter().map(|one| Made::JwtAuthority(one.key_id.clone()));
        ledger.write(x509.chain(jwt).collect())?;
        append(&moving.server, request)
            .await
            .context("failed to append SPIRE's authorities to this bundle")?;
    }
    if let Some(request) = there {
        // Before and after it: whoever is cut off in between waits too long rather than too short.
        ledger.write(vec![Made::Told(now()?)])?;
        append(&moving.spire, request)
            .await
            .context("failed to append this server's authorities to the bundle of the SPIRE server")?;
        ledger.write(vec![Made::Told(now()?)])?;
    }
    Ok(())
}

/// Names what an import appended here and SPIRE has no more: it was revoked there, or has ended.
fn withdrawn(ledger: &Ledger, ours: &types::Bundle, theirs: &types::Bundle, report: &mut Report) {
    let why = "SPIRE has it no more; passant import undo --authorities-only takes it out here";
    let x509 = ours.x509_authorities.iter().filter(|one| {
        ledger.tells(&Made::X509Authority(hex(&one.asn1)))
            && !theirs.x509_authorities.iter().any(|known| known.asn1 == one.asn1)
    });
    let jwt = ours.jwt_authorities.iter().filter(|one| {
        ledger.tells(&Made::JwtAuthority(one.key_id.clone()))
            && !theirs.jwt_authorities.iter().any(|known| known.key_id == one.key_id)
    });
    x509.for_each(|_| report.left(Kind::AuthoritiesHere, None, "an X.509 authority", why));
    jwt.for_each(|one| report.left(Kind::AuthoritiesHere, None, &one.key_id, why));
}

async fn append(to: &Server, request: AppendBundleRequest) -> anyhow::Result<()> {
    to.bundles().append_bundle(request).await.map_err(refused)?;
    Ok(())
}

/// What of `from` is to be appended to `to`.
fn missing(
    from: &types::Bundle,
    to: &types::Bundle,
    kind: Kind,
    report: &mut Report,
) -> Option<AppendBundleRequest> {
    let mut request = AppendBundleRequest::default();
    for authority in &from.x509_authorities {
        let held = to.x509_authorities.iter().find(|known| known.asn1 == authority.asn1);
        if held.is_some_and(|known| authority.tainted && !known.tainted) {
            report.left(kind, None, "an X.509 authority", BELIEVED);
        } else if held.is_some() {
            report.already(kind, 1);
        } else if authority.tainted {
            report.left(kind, None, "an X.509 authority", "it is tainted");
        } else {
            report.done(kind, 1);
            request.x509_authorities.push(authority.clone());
        }
    }
    for authority in &from.jwt_authorities {
        let held = to.jwt_authorities.iter().find(|known| known.key_id == authority.key_id);
        let is_same = held.is_some_and(|known| known.public_key == authority.public_key);
        if is_same && held.is_some_and(|known| authority.tainted && !known.tainted) {
            report.left(kind, None, &authority.key_id, BELIEVED);
        } else if is_same {
            report.already(kind, 1);
        } else if held.is_some() {
            report.left(kind, None, &authority.key_id, "another JWT authority has this key ID");
        } else if authority.tainted {
            report.left(kind, None, &authority.key_id, "it is tainted");
        } else {
            report.done(kind, 1);
            request.jwt_authorities.push(authority.clone());
        }
    }
    (!request.x509_authorities.is_empty() || !request.jwt_authorities.is_empty()).then_some(request)
}

/// The second from which on SPIRE's agents can be expected to trust this server.
pub(super) fn known_from(ledger: &Ledger, wait: Duration) -> Option<i64> {
    let wait = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
    ledger.told().map(|told| told.saturating_add(wait))
}

/// Waits for that second. SPIRE tells nobody what its agents have fetched, so there is nothing better to wait for.
pub(super) async fn wait_until(second: i64) -> anyhow::Result<()> {
    let left = usize::try_from(second.saturating_sub(now()?)).unwrap_or(0);
    if left > 0 {
        // Nobody minds a line that is not seen.
        drop(writeln!(
            io::stderr(),
            "waiting {left} s, so that SPIRE's agents fetch its bundle; --no-wait goes on at once"
        ));
    }
    let mut progress = Progress::of("seconds waited for SPIRE's agents to fetch its bundle", left);
    for _ in 0..left {
        tokio::time::sleep(Duration::from_secs(1)).await;
        progress.add(1);
    }
    Ok(())
}

/// This second, in Unix seconds.
#[expect(
    clippy::disallowed_methods,
    reason = "the command line has no host; it waits by the clock of its machine"
)]
pub(super) fn now() -> anyhow::Result<i64> {
    let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH) else {
        bail!("the clock stands before 1970")
    };
    Ok(i64::try_from(since.as_secs())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_and_untainted_is_appended() {
        let x509 = |byte, tainted| types::X509Certificate { asn1: vec![byte], tainted };
        let jwt = |id: &str, byte, tainted| types::JwtKey {
            key_id: id.to_owned(),
            public_key: vec![byte],
            tainted,
            ..types::JwtKey::default()
        };
        let from = types::Bundle {
            x509_authorities: vec![x509(1, false), x509(2, true), x509(3, false)],
            jwt_authorities: vec![
                jwt("a", 1, false),
                jwt("b", 2, false),
                jwt("c", 3, true),
                jwt("d", 4, false),
            ],
            ..types::Bundle::default()
        };
        let to = types::Bundle {
            x509_authorities: vec![x509(1, false)],
            jwt_authorities: vec![jwt("a", 1, false), jwt("b", 9, false)],
            ..types::Bundle::default()
        };
        let mut report = Report::of_import(false);
        let request = missing(&from, &to, Kind::AuthoritiesHere, &mut report).unwrap();
        assert_eq!(
            (request.x509_authorities, request.jwt_authorities),
            (vec![x509(3, false)], vec![jwt("d", 4, false)])
        );
        assert_eq!(missing(&to, &to, Kind::AuthoritiesThere, &mut report), None);
        let tainted = types::Bundle {
            x509_authorities: vec![x509(1, true)],
            jwt_authorities: vec![jwt("a", 1, true)],
            ..types::Bundle::default()
        };
        let mut report = Report::of_import(false);
        assert_eq!(missing(&tainted, &to, Kind::AuthoritiesHere, &mut report), None);
        assert_eq!(report.count_left(Kind::AuthoritiesHere), 2, "what is distrusted there is named");
        let mut report = Report::of_import(false);
        missing(&tainted, &tainted, Kind::AuthoritiesHere, &mut report);
        assert_eq!(report.count_left(Kind::AuthoritiesHere), 0, "both servers distrust it");
    }

    #[test]
    fn what_was_appended_and_spire_has_no_more_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain = passant_core::TrustDomain::parse("example.org").unwrap();
        let mut ledger = Ledger::open(&dir.path().join("ledger"), &trust_domain).unwrap();
        ledger.write(vec![Made::X509Authority(hex(&[1])), Made::JwtAuthority("a".to_owned())]).unwrap();
        let bundle = |x509: &[u8], jwt: &[&str]| types::Bundle {
            x509_authorities: x509
                .iter()
                .map(|byte| types::X509Certificate { asn1: vec![*byte], tainted: false })
                .collect(),
            jwt_authorities: jwt
                .iter()
                .map(|id| types::JwtKey { key_id: (*id).to_owned(), ..types::JwtKey::default() })
                .collect(),
            ..types::Bundle::default()
        };
        let ours = bundle(&[1, 2], &["a", "own"]);
        for (theirs, left) in [(bundle(&[], &[]), 2), (bundle(&[1], &[]), 1), (bundle(&[1], &["a"]), 0)] {
            let mut report = Report::of_import(false);
            withdrawn(&ledger, &ours, &theirs, &mut report);
            assert_eq!(report.count_left(Kind::AuthoritiesHere), left);
        }
    }
}
