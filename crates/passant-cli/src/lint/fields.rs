//! Which single fields of an entry are findings: powerful flags, long lifetimes?

use std::time::Duration;

use super::{Findings, Limits, Register, Rule};

pub(super) fn check(register: &Register, limits: &Limits, found: &mut Findings<'_>) {
    for (at, entry) in register.entries.iter().enumerate() {
        let id = register.text(entry.spiffe_id);
        if entry.admin {
            let evidence = format!("admin is set: {id} may call the whole server API");
            found.add(Rule::Admin, vec![at], &evidence);
        }
        if entry.downstream {
            let evidence = format!("downstream is set: {id} may ask for an intermediate authority");
            found.add(Rule::Downstream, vec![at], &evidence);
        }
        let ttls = [
            ("X509-SVIDs", entry.x509_svid_ttl, limits.x509_ttl),
            ("JWT-SVIDs", entry.jwt_svid_ttl, limits.jwt_ttl),
        ];
        let long = ttls
            .into_iter()
            .filter(|(_, ttl, limit)| Duration::from_secs(u64::try_from(*ttl).unwrap_or(0)) > *limit);
        let long = long.map(|(what, ttl, limit)| {
            format!("its {what} live for {ttl} s; the limit is {} s", limit.as_secs())
        });
        let long: Vec<String> = long.collect();
        if !long.is_empty() {
            found.add(Rule::LongTtl, vec![at], &long.join("; and "));
        }
    }
}
