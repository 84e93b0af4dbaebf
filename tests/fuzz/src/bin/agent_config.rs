//! Is an agent's configuration that is taken a sound one, and does every fault of another name its key and a remedy?
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use passant_agent::config::Config;

fuzz_target!(|text: &str| {
    let config = match Config::parse("agent.toml", text) {
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
    let seconds = Duration::from_secs;
    assert!((seconds(1)..=seconds(60)).contains(&config.sync_interval));
    assert!((seconds(1)..=seconds(480)).contains(&config.evidence_max_age));
    assert!(config.workload_api.socket.is_absolute());
    assert!(!config.workload_attestors.is_empty());
});
