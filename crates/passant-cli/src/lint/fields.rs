//! Which single fields of an entry are findings: powerful flags, long lifetimes?

use std::time::Duration;

use super::{Findings, Limits, Register, Rule};

pub(super) fn check(register: &Register, limits: &Limits, found: &mut Findings<'_>) {
    for (at, entry) in register.entries.iter().enumerate() {
        let id = register.text(entry.spiffe_id);
        if entry.admin {
            found.add(Rule::Admin, vec![at], format!("admin is set: {id} may call the whole server API"));
        }
        if entry.downstream {
            let evidence = format!("downstream is set: {id} may ask for an intermediate authority");
            found.add(Rule::Downstream, vec![at], evidence);
        }
        let ttls = [
            ("X509-SVIDs", entry.x509_svid_ttl, limits.x509_ttl),
            ("JWT-SVIDs", entry.jwt_svid_ttl, limits.jwt_ttl),
        ];
        for (what, ttl, limit) in ttls {
            if Duration::from_secs(u64::try_from(ttl).unwrap_or(0)) > limit {
                let limit = limit.as_secs();
                let evidence = format!("its {what} live for {ttl} s; the limit is {limit} s");
                found.add(Rule::LongTtl, vec![at], evidence);
            }
        }
    }
}
