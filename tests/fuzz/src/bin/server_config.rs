//! Is a server's configuration that is taken a sound one, and does every fault of another name its key and a remedy?
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use passant_server::Config;
use passant_server::config::StoreMethod;

fuzz_target!(|text: &str| {
    let config = match Config::parse(text, "server.toml") {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            assert!(!error.faults().is_empty());
            // Each is looked for in all that is said, and thousands fit into one input.
            for fault in error.faults().iter().take(64) {
                assert!(!fault.what.is_empty() && !fault.remedy.is_empty(), "{fault:?}");
                assert!(said.contains(&fault.key) && said.contains(&fault.what), "{said}");
            }
            // Only what is no TOML at all has no key to name.
            assert!(error.faults().len() == 1 || error.faults().iter().all(|fault| !fault.key.is_empty()));
            return;
        }
    };
    assert!(config.store == StoreMethod::Memory || config.data_dir.is_some());
    assert!(!config.node_attestors.is_empty());
    let granted = || config.roles.iter().map(|role| &role.granted_to);
    let is_open = granted().any(|to| !to.uids.is_empty() || !to.gids.is_empty());
    assert!(config.socket.mode & 0o600 == 0o600 && (is_open || config.socket.mode & 0o007 == 0));
    assert!(is_open || config.socket.group.is_some() || config.socket.mode & 0o070 == 0);
    for ttl in [config.default_x509_svid_ttl, config.default_jwt_svid_ttl, config.agent_ttl] {
        assert!(Duration::from_secs(1) <= ttl && ttl <= config.ca_ttl);
    }
    assert!(config.admin_ids.iter().all(|id| !id.is_trust_domain_id()));
    for role in &config.roles {
        assert!(!role.verbs.is_empty());
        assert!(
            role.spiffe_ids.iter().chain(&role.parent_ids).all(|prefix| prefix.is_of(&config.trust_domain))
        );
    }
    assert!(granted().all(|to| !to.spiffe_ids.is_empty() || !to.uids.is_empty() || !to.gids.is_empty()));
});
