//! How much may callers ask for, as configured?

use std::time::Duration;

use passant_daemon::config::duration;

use super::Check;
use super::raw::{Field, RawLimits, RawRate};
use crate::limits;

/// What callers may ask for. Whoever holds one holds a checked one: nothing is zero, and what one caller may have is no more
/// than what all have together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Attestations from one address.
    pub attestations_per_address: Rate,
    /// Attestations in all.
    pub attestations: Rate,
    /// Signatures for one agent.
    pub signatures_per_agent: Rate,
    /// Signatures in all: for agents, attestations and operators.
    pub signatures: Rate,
    /// SVIDs minted for one administrator, user or holder of a role.
    pub mints_per_caller: Rate,
    /// Lists, counts, synchronizations and explanations of one caller.
    pub lists_per_caller: Rate,
    /// Those of all.
    pub lists: Rate,
    /// The part of `signatures`, `signatures_per_agent`, `lists` and `calls` that stays free for renewals, in percent.
    pub reserved_for_renewals: u32,
    /// Calls of all agents that are worked on.
    pub calls: usize,
    /// Those of one agent.
    pub calls_per_agent: usize,
    /// Calls of all others over the network that are worked on.
    pub strangers_calls: usize,
    /// Those from one address, or of one X509-SVID that is no agent's.
    pub calls_per_address: usize,
    /// Calls of all users of the operator socket that are worked on.
    pub operators_calls: usize,
    /// Those of one user.
    pub calls_per_operator: usize,
    /// How long a call waits for its turn before it is refused.
    pub call_waits: Duration,
    /// Explanations that are found at the same time.
    pub explanations: usize,
    /// Backups that are sent at the same time.
    pub backups: usize,
}

/// How fast something may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many at once, after a time of rest. Not zero.
    pub at_once: u32,
    /// So many in each second after. Not zero.
    pub per_second: u32,
}

/// The most of anything at once.
const AT_ONCE_MOST: u64 = 10_000_000;
/// The most of anything in a second.
const PER_SECOND_MOST: u64 = 1_000_000;
/// The most calls of any kind.
const CALLS_MOST: u64 = 65_536;
/// Three ranks of agents' calls share them, and each needs some.
const CALLS_LEAST: u64 = 16;
/// Agents give up after 30 seconds: they should hear of a refusal before that.
const CALL_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(25));

impl Default for Limits {
    fn default() -> Self {
        let rate = |(at_once, per_second)| Rate { at_once, per_second };
        Self {
            attestations_per_address: rate(limits::ATTESTATIONS_PER_ADDRESS),
            attestations: rate(limits::ATTESTATIONS),
            signatures_per_agent: rate(limits::SIGNATURES_PER_AGENT),
            signatures: rate(limits::SIGNATURES),
            mints_per_caller: rate(limits::MINTS_PER_CALLER),
            lists_per_caller: rate(limits::LISTS_PER_CALLER),
            lists: rate(limits::LISTS),
            reserved_for_renewals: limits::RESERVED_FOR_RENEWALS,
            calls: limits::CALLS,
            calls_per_agent: limits::CALLS_PER_AGENT,
            strangers_calls: limits::STRANGERS_CALLS,
            calls_per_address: limits::CALLS_PER_ADDRESS,
            operators_calls: limits::OPERATORS_CALLS,
            calls_per_operator: limits::CALLS_PER_OPERATOR,
            call_waits: limits::CALL_WAITS,
            explanations: limits::EXPLANATIONS,
            backups: limits::BACKUPS,
        }
    }
}

impl Check {
    pub(super) fn limits(&mut self, field: Field<RawLimits>) -> Option<Limits> {
        let raw = self.optional("limits", field)?.unwrap_or_default();
        self.unknown("limits.", &raw.unknown, RawLimits::KEYS);
        let usual = Limits::default();
        let attestations_per_address = self.rate(
            "attestations_per_address",
            raw.attestations_per_address,
            usual.attestations_per_address,
        );
        let attestations = self.rate("attestations", raw.attestations, usual.attestations);
        let signatures_per_agent =
            self.rate("signatures_per_agent", raw.signatures_per_agent, usual.signatures_per_agent);
        let signatures = self.rate("signatures", raw.signatures, usual.signatures);
        let mints_per_caller = self.rate("mints_per_caller", raw.mints_per_caller, usual.mints_per_caller);
        let lists_per_caller = self.rate("lists_per_caller", raw.lists_per_caller, usual.lists_per_caller);
        let lists = self.rate("lists", raw.lists, usual.lists);
        for (key, each, key_of_all, all) in [
            ("attestations_per_address", attestations_per_address, "attestations", attestations),
            ("signatures_per_agent", signatures_per_agent, "signatures", signatures),
            ("mints_per_caller", mints_per_caller, "signatures", signatures),
            ("lists_per_caller", lists_per_caller, "lists", lists),
        ] {
            if let (Some(each), Some(all)) = (each, all) {
                self.within(key, ".at_once", each.at_once, key_of_all, all.at_once);
                self.within(key, ".per_second", each.per_second, key_of_all, all.per_second);
            }
        }
        let reserved = self.limit(
            "reserved_for_renewals",
            raw.reserved_for_renewals,
            (10, 90),
            u64::from(usual.reserved_for_renewals),
        );
        let calls = self.places("calls", raw.calls, CALLS_LEAST, usual.calls);
        let calls_per_agent = self.places("calls_per_agent", raw.calls_per_agent, 1, usual.calls_per_agent);
        let strangers_calls = self.places("strangers_calls", raw.strangers_calls, 1, usual.strangers_calls);
        let calls_per_address =
            self.places("calls_per_address", raw.calls_per_address, 1, usual.calls_per_address);
        let operators_calls = self.places("operators_calls", raw.operators_calls, 1, usual.operators_calls);
        let calls_per_operator =
            self.places("calls_per_operator", raw.calls_per_operator, 1, usual.calls_per_operator);
        for (key, each, key_of_all, all) in [
            ("calls_per_agent", calls_per_agent, "calls", calls),
            ("calls_per_address", calls_per_address, "strangers_calls", strangers_calls),
            ("calls_per_operator", calls_per_operator, "operators_calls", operators_calls),
        ] {
            if let (Some(each), Some(all)) = (each, all) {
                self.within(key, "", each, key_of_all, all);
            }
        }
        let call_waits = self.call_waits(raw.call_waits, usual.call_waits);
        let explanations = self.limit("explanations", raw.explanations, (1, 64), usual.explanations as u64);
        let backups = self.limit("backups", raw.backups, (1, 64), usual.backups as u64);
        Some(Limits {
            attestations_per_address: attestations_per_address?,
            attestations: attestations?,
            signatures_per_agent: signatures_per_agent?,
            signatures: signatures?,
            mints_per_caller: mints_per_caller?,
            lists_per_caller: lists_per_caller?,
            lists: lists?,
            reserved_for_renewals: u32::try_from(reserved?).ok()?,
            calls: calls?,
            calls_per_agent: calls_per_agent?,
            strangers_calls: strangers_calls?,
            calls_per_address: calls_per_address?,
            operators_calls: operators_calls?,
            calls_per_operator: calls_per_operator?,
            call_waits: call_waits?,
            explanations: usize::try_from(explanations?).ok()?,
            backups: usize::try_from(backups?).ok()?,
        })
    }

    /// What is left out of a rate stands at its default.
    fn rate(&mut self, key: &str, field: Field<RawRate>, usual: Rate) -> Option<Rate> {
        let section = format!("limits.{key}");
        let raw = self.optional(&section, field)?.unwrap_or_default();
        self.unknown(&format!("{section}."), &raw.unknown, RawRate::KEYS);
        let at_once =
            self.limit(&format!("{key}.at_once"), raw.at_once, (1, AT_ONCE_MOST), u64::from(usual.at_once));
        let per_second = self.limit(
            &format!("{key}.per_second"),
            raw.per_second,
            (1, PER_SECOND_MOST),
            u64::from(usual.per_second),
        );
        let (at_once, per_second) = (u32::try_from(at_once?).ok()?, u32::try_from(per_second?).ok()?);
        Some(Rate { at_once, per_second })
    }

    fn places(&mut self, key: &str, field: Field<u64>, least: u64, usual: usize) -> Option<usize> {
        let places = self.limit(key, field, (least, CALLS_MOST), usual as u64)?;
        usize::try_from(places).ok()
    }

    fn limit(&mut self, key: &str, field: Field<u64>, (least, most): (u64, u64), usual: u64) -> Option<u64> {
        let key = format!("limits.{key}");
        match self.optional(&key, field)?.unwrap_or(usual) {
            given if (least..=most).contains(&given) => Some(given),
            given => self.fault(
                &key,
                format!("{given} is out of range"),
                format!("use {least} to {most}; the default is {usual}"),
            ),
        }
    }

    /// One caller could never have more than all together, so whoever writes that means something else.
    fn within<T: PartialOrd + std::fmt::Display>(
        &mut self,
        key: &str,
        part: &str,
        each: T,
        of: &str,
        all: T,
    ) {
        if each > all {
            self.note(
                &format!("limits.{key}{part}"),
                format!("{each} for one is more than limits.{of}{part} leaves to all together ({all})"),
                format!("use at most {all}, or raise limits.{of}{part}"),
            );
        }
    }

    fn call_waits(&mut self, field: Field<String>, usual: Duration) -> Option<Duration> {
        let key = "limits.call_waits";
        let (least, most) = CALL_WAITS;
        let range = format!(
            "use {} to {}: agents give up after 30s; the default is \"{}\"",
            duration::show(least),
            duration::show(most),
            duration::show(usual)
        );
        match self.optional(key, field)?.map(|text| (duration::parse(&text), text)) {
            None => Some(usual),
            Some((Ok(wait), _)) if (least..=most).contains(&wait) => Some(wait),
            Some((Ok(_), text)) => self.fault(key, format!("\"{text}\" is out of range"), range),
            Some((Err(said), _)) => self.fault(key, said, range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Limits, Rate};
    use crate::config::Config;

    fn parse(limits: &str) -> Result<Limits, Vec<(String, String)>> {
        let text = format!("trust_domain = \"example.org\"\ndata_dir = \"/d\"\n[limits]\n{limits}\n");
        Config::parse(&text, "server.toml").map(|config| config.limits).map_err(|error| {
            error.faults().iter().map(|fault| (fault.key.clone(), fault.remedy.clone())).collect()
        })
    }

    #[test]
    fn what_is_left_out_stands_at_its_default() {
        assert_eq!(parse("").unwrap(), Limits::default());
        let given = parse("signatures_per_agent = { per_second = 7 }\ncalls_per_agent = 3").unwrap();
        let usual = Limits::default();
        let rate = Rate { per_second: 7, ..usual.signatures_per_agent };
        assert_eq!(given, Limits { signatures_per_agent: rate, calls_per_agent: 3, ..usual });
    }

    #[test]
    fn both_ends_of_each_range_are_taken_and_nothing_beyond() {
        for (sound, beyond) in [
            (
                ["lists.at_once = 2000", "lists.at_once = 10000000"],
                ["lists.at_once = 0", "lists.at_once = 10000001"],
            ),
            (
                ["mints_per_caller.per_second = 1", "signatures.per_second = 1000000"],
                ["mints_per_caller.per_second = 0", "signatures.per_second = 1000001"],
            ),
            (
                ["reserved_for_renewals = 10", "reserved_for_renewals = 90"],
                ["reserved_for_renewals = 9", "reserved_for_renewals = 91"],
            ),
            (["calls = 16", "calls = 65536"], ["calls = 15", "calls = 65537"]),
            (
                ["calls_per_agent = 1", "calls_per_agent = 2048"],
                ["calls_per_agent = 0", "calls_per_agent = 2049"],
            ),
            (
                ["call_waits = \"1s\"", "call_waits = \"25s\""],
                ["call_waits = \"0s\"", "call_waits = \"26s\""],
            ),
            (["explanations = 1", "explanations = 64"], ["explanations = 0", "explanations = 65"]),
            (["backups = 1", "backups = 64"], ["backups = 0", "backups = 65"]),
        ] {
            for sound in sound {
                assert!(parse(sound).is_ok(), "{sound}: {:?}", parse(sound));
            }
            for beyond in beyond {
                let faults = parse(beyond).expect_err(beyond);
                let key = format!("limits.{}", beyond.split(' ').next().unwrap());
                assert!(
                    faults.iter().any(|(at, remedy)| *at == key && remedy.starts_with("use ")),
                    "{faults:?}"
                );
            }
        }
    }

    #[test]
    fn one_caller_is_not_promised_more_than_all_have_together() {
        for (text, key) in [
            ("signatures.at_once = 19999", "limits.signatures_per_agent.at_once"),
            ("signatures_per_agent.per_second = 10001", "limits.signatures_per_agent.per_second"),
            ("attestations.per_second = 49", "limits.attestations_per_address.per_second"),
            ("lists.at_once = 1999", "limits.lists_per_caller.at_once"),
            ("mints_per_caller.at_once = 100001", "limits.mints_per_caller.at_once"),
            ("strangers_calls = 15", "limits.calls_per_address"),
            ("calls_per_operator = 257", "limits.calls_per_operator"),
        ] {
            let faults = parse(text).expect_err(text);
            assert!(faults.iter().any(|(at, _)| at == key), "{text}: {faults:?}");
        }
    }

    #[test]
    fn slips_are_told_with_their_key() {
        for (text, key) in [
            ("signatures_per_agnet = { at_once = 1 }", "limits.signatures_per_agnet"),
            ("signatures = { at_onse = 1 }", "limits.signatures.at_onse"),
            ("signatures = 5", "limits.signatures"),
            ("lists.at_once = -1", "limits.lists.at_once"),
            ("lists.per_second = \"many\"", "limits.lists.per_second"),
            ("call_waits = 10", "limits.call_waits"),
        ] {
            let faults = parse(text).expect_err(text);
            assert_eq!(faults.iter().map(|(at, _)| at.as_str()).collect::<Vec<_>>(), [key], "{text}");
        }
    }
}
