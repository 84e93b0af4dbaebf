//! Did a client always hold what it should? Pure: logs in, violations out, each a sentence.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decisions::{Decision, Fate};
use crate::moment::Moment;
use crate::watch_log::{Fault, Jwt, Line, X509, same_serial};

/// How far before the present X509-SVIDs begin, so that slow clocks accept them.
const BACKDATED: Duration = Duration::from_secs(10);

/// What one watching process wrote, from its start until it was stopped.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: String,
    /// What its SVIDs must be for.
    pub(crate) spiffe_id: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) ended: Moment,
}

/// From the moment the server was killed to the one when it answered again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Away {
    pub(crate) from: Moment,
    pub(crate) to: Moment,
}

impl Away {
    /// How long what it disturbed may take to settle after it: the agent's first waits after failures, on a loaded
    /// machine.
    pub(crate) const SETTLED_IN: Duration = Duration::from_secs(10);

    fn touches(&self, from: Moment, to: Moment) -> bool {
        from <= self.to.plus(Self::SETTLED_IN) && self.from <= to
    }
}

/// How long an SVID is held before the next one comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    least: Duration,
    most: Duration,
}

impl Pace {
    /// The agent looks at its clock this often, and a loaded machine takes a while to deliver.
    const LATE: Duration = Duration::from_secs(10);
    const EARLY: Duration = Duration::from_secs(2);

    /// Renewal comes at half the life, a tenth of it earlier or later; the life begins before the issue.
    pub(crate) fn of(ttl: Duration) -> Self {
        let life = ttl + BACKDATED;
        Self {
            least: life.mul_f64(0.4).saturating_sub(BACKDATED + Self::EARLY),
            most: life.mul_f64(0.6).saturating_sub(BACKDATED) + Self::LATE,
        }
    }

    /// The fewest and the most rotations that fit into `span`.
    pub(crate) fn rotations(&self, span: Duration) -> (u64, u64) {
        let fit = |pace: Duration| span.as_secs() / pace.as_secs().max(1);
        (fit(self.most), fit(self.least) + 1)
    }
}

impl Client {
    /// Its X509-SVIDs as they came; the same one may come again with a changed bundle.
    pub(crate) fn x509(&self) -> Vec<&X509> {
        self.lines
            .iter()
            .filter_map(|line| match line {
                Line::X509(x509) => Some(x509),
                Line::Jwt(_) | Line::Error(_) => None,
            })
            .collect()
    }

    /// Its JWT-SVIDs as they came.
    pub(crate) fn jwt(&self) -> Vec<&Jwt> {
        self.lines
            .iter()
            .filter_map(|line| match line {
                Line::Jwt(jwt) => Some(jwt),
                Line::X509(_) | Line::Error(_) => None,
            })
            .collect()
    }

    /// What failed.
    pub(crate) fn faults(&self) -> Vec<&Fault> {
        self.lines
            .iter()
            .filter_map(|line| match line {
                Line::Error(fault) => Some(fault),
                Line::X509(_) | Line::Jwt(_) => None,
            })
            .collect()
    }

    /// The first line of each different SVID, in the order they came.
    pub(crate) fn svids(&self) -> Vec<&X509> {
        let mut svids: Vec<&X509> = Vec::new();
        for line in self.x509() {
            if svids.last().is_none_or(|last| last.serial != line.serial) {
                svids.push(line);
            }
        }
        svids
    }

    /// When a new SVID took the place of an older one.
    pub(crate) fn rotations(&self) -> Vec<Moment> {
        self.svids().iter().skip(1).map(|svid| svid.received).collect()
    }

    /// Times at which it held an X509-SVID or was handed a JWT-SVID that had expired, or none at all.
    pub(crate) fn expired(&self) -> Vec<String> {
        let name = &self.name;
        let lines = self.x509();
        let Some(last) = lines.last() else { return vec![format!("{name} never got an X509-SVID")] };
        let nexts = lines.iter().skip(1).map(|next| next.received).chain([self.ended]);
        let mut violations: Vec<String> = lines
            .iter()
            .zip(nexts)
            .filter(|(held, until)| *until > held.not_after)
            .map(|(held, until)| {
                format!("{name} held serial {} until {until}, valid until {}", held.serial, held.not_after)
            })
            .collect();
        violations.extend(
            lines
                .iter()
                .filter(|line| line.received > line.not_after)
                .map(|line| format!("{name} received serial {} expired", line.serial)),
        );
        violations.extend(self.jwt().iter().filter(|jwt| jwt.received >= jwt.expires_at).map(|jwt| {
            format!("{name} received a JWT-SVID at {} that ended {}", jwt.received, jwt.expires_at)
        }));
        debug_assert!(last.received <= self.ended.plus(BACKDATED), "the log is read after the end");
        violations
    }

    /// What came and was not for it, not valid yet, or did not verify.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let name = &self.name;
        let mut violations = Vec::new();
        for line in self.x509() {
            let at = line.received;
            if line.spiffe_id != self.spiffe_id {
                violations
                    .push(format!("{name} received {} at {at}, expected {}", line.spiffe_id, self.spiffe_id));
            }
            if !line.verified {
                violations.push(format!("{name}: serial {} did not verify at {at}", line.serial));
            }
            if at < line.not_before {
                violations.push(format!("{name}: serial {} was not valid yet at {at}", line.serial));
            }
        }
        for jwt in self.jwt().iter().filter(|jwt| jwt.spiffe_id != self.spiffe_id) {
            violations.push(format!(
                "{name} received a JWT-SVID for {}, expected {}",
                jwt.spiffe_id, self.spiffe_id
            ));
        }
        violations
    }

    /// What its library reported as failed.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures_that(|_| true)
    }

    /// The same from its first X509-SVID on: SPIRE's agent says "no identity issued" of one that it has yet to have minted.
    pub(crate) fn failures_once_served(&self) -> Vec<String> {
        let served = self.svids().first().map(|svid| svid.received);
        self.failures_that(|fault| {
            fault.code != "PermissionDenied" || served.is_none_or(|served| fault.received >= served)
        })
    }

    fn failures_that(&self, count: impl Fn(&Fault) -> bool) -> Vec<String> {
        let tell = |fault: &Fault| {
            format!("{} at {}: {} ({}): {}", self.name, fault.received, fault.of, fault.code, fault.error)
        };
        self.faults().into_iter().filter(|fault| count(fault)).map(tell).collect()
    }

    /// Rotations that came too early, too late, or not at all.
    pub(crate) fn out_of_pace(&self, pace: Pace, away: Option<Away>) -> Vec<String> {
        let svids = self.svids();
        let mut violations = Vec::new();
        for (nth, pair) in svids.windows(2).enumerate() {
            let (from, to) = (pair[0].received, pair[1].received);
            let held = to.since(from);
            // The first SVID was minted before the client came.
            if nth > 0 && held < pace.least {
                violations.push(format!("{} held serial {} for {held:?} only", self.name, pair[0].serial));
            }
            violations.extend(self.too_long(pace, away, from, to));
        }
        violations.extend(svids.last().and_then(|last| self.too_long(pace, away, last.received, self.ended)));
        violations
    }

    fn too_long(&self, pace: Pace, away: Option<Away>, from: Moment, to: Moment) -> Option<String> {
        let disturbed = away.filter(|away| away.touches(from, to));
        let allowance = disturbed.map_or(Duration::ZERO, |away| away.to.since(away.from) + Away::SETTLED_IN);
        (to.since(from) > pace.most + allowance)
            .then(|| format!("{} saw no rotation between {from} and {to}", self.name))
    }

    /// X509-SVIDs that the server's decision record shows as issued to it while it watched, and that it did not see.
    ///
    /// Not counted are those whose answer may have been lost with the server's crash, and those of the last seconds.
    pub(crate) fn unseen(&self, decisions: &[Decision], away: Option<Away>) -> Vec<String> {
        const DELIVERED_IN: Duration = Duration::from_secs(5);
        let svids = self.svids();
        let Some(first) = svids.first() else { return vec![format!("{} saw nothing", self.name)] };
        let seen: Vec<String> = svids.iter().map(|svid| same_serial(&svid.serial)).collect();
        decisions
            .iter()
            .filter(|decision| decision.is_x509_of(&self.spiffe_id) && decision.fate == Fate::Signed)
            .filter(|decision| decision.at > first.received && decision.at.plus(DELIVERED_IN) < self.ended)
            .filter(|decision| {
                away.is_none_or(|away| decision.at.plus(DELIVERED_IN) < away.from || decision.at > away.from)
            })
            .filter(|decision| !seen.contains(&same_serial(&decision.serial)))
            .map(|decision| {
                format!("{} did not see serial {} of {}", self.name, decision.serial, decision.at)
            })
            .collect()
    }
}

/// SVIDs that clients hold and the decision record does not know, and serials that two clients hold.
pub(crate) fn unrecorded(clients: &[Client], decisions: &[Decision]) -> Vec<String> {
    let recorded: BTreeMap<String, &Decision> =
        decisions.iter().map(|decision| (same_serial(&decision.serial), decision)).collect();
    let mut holders: BTreeMap<String, &str> = BTreeMap::new();
    let mut violations = Vec::new();
    for client in clients {
        for svid in client.svids() {
            let serial = same_serial(&svid.serial);
            if !recorded.get(&serial).is_some_and(|decision| decision.is_x509_of(&svid.spiffe_id)) {
                violations.push(format!("serial {serial} of {} is not on record", client.name));
            }
            if let Some(other) =
                holders.insert(serial, &client.spiffe_id).filter(|id| *id != client.spiffe_id)
            {
                violations
                    .push(format!("serial {} is held by {} and by {other}", svid.serial, client.spiffe_id));
            }
        }
    }
    violations
}

#[cfg(test)]
pub(crate) mod made_up {
    //! Logs for tests.

    use super::*;

    pub(crate) const ID: &str = "spiffe://example.org/w";

    pub(crate) fn at(millis: u64) -> Moment {
        Moment::from_secs(1_000_000).plus(Duration::from_millis(millis))
    }

    /// An SVID received at `second`, valid from 10 s before until 60 s after.
    pub(crate) fn svid(serial: &str, second: u64) -> Line {
        Line::X509(X509 {
            received: at(second * 1000),
            spiffe_id: ID.to_owned(),
            serial: serial.to_owned(),
            not_before: Moment::from_secs(1_000_000 + i64::try_from(second).unwrap() - 10),
            not_after: at((second + 60) * 1000),
            verified: true,
        })
    }

    pub(crate) fn client(lines: Vec<Line>, ended: u64) -> Client {
        Client { name: "go-01".to_owned(), spiffe_id: ID.to_owned(), lines, ended: at(ended * 1000) }
    }
}

#[cfg(test)]
mod tests {
    use super::made_up::{ID, at, client, svid};
    use super::*;

    fn decision(serial: &str, millis: u64, fate: Fate) -> Decision {
        Decision {
            kind: "x509_svid".to_owned(),
            serial: serial.to_owned(),
            spiffe_id: ID.to_owned(),
            at: at(millis),
            not_after: at(millis + 60_000),
            fate,
        }
    }

    #[test]
    fn an_svid_held_to_its_last_second_is_no_violation_and_one_held_longer_is() {
        let fine = client(vec![svid("a", 0), svid("b", 60), svid("c", 90)], 150);
        assert_eq!(fine.expired(), Vec::<String>::new());
        assert_eq!(client(vec![svid("a", 0), svid("b", 61)], 62).expired().len(), 1);
        assert_eq!(client(vec![svid("a", 0)], 61).expired().len(), 1, "at the end too");
        assert_eq!(client(vec![], 1).expired().len(), 1, "and holding nothing");
    }

    #[test]
    fn an_expired_jwt_svid_is_a_violation_from_its_very_second() {
        let jwt = |received, expires_at| {
            Line::Jwt(Jwt { received: at(received), spiffe_id: ID.to_owned(), expires_at: at(expires_at) })
        };
        assert_eq!(client(vec![svid("a", 0), jwt(999, 1000)], 2).expired().len(), 0);
        assert_eq!(client(vec![svid("a", 0), jwt(1000, 1000)], 2).expired().len(), 1);
    }

    #[test]
    fn what_is_for_somebody_else_or_does_not_verify_is_wrong() {
        let changed = |change: fn(&mut X509)| {
            let mut line = svid("a", 0);
            if let Line::X509(x509) = &mut line {
                change(x509);
            }
            client(vec![line], 1).wrong().len()
        };
        assert_eq!(changed(|_| {}), 0);
        assert_eq!(changed(|x509| x509.verified = false), 1);
        assert_eq!(changed(|x509| x509.spiffe_id.push('x')), 1);
        assert_eq!(changed(|x509| x509.not_before = x509.received.plus(Duration::from_millis(1))), 1);
    }

    #[test]
    fn pace_is_half_the_life_give_or_take() {
        let pace = Pace::of(Duration::from_secs(60));
        assert_eq!((pace.least, pace.most), (Duration::from_secs(16), Duration::from_secs(42)));
        assert_eq!(pace.rotations(Duration::from_secs(120)), (2, 8));
    }

    #[test]
    fn a_rotation_that_did_not_come_is_noticed_unless_the_server_was_away() {
        let pace = Pace::of(Duration::from_secs(60));
        let steady = client(vec![svid("a", 0), svid("b", 25), svid("c", 50)], 80);
        assert_eq!(steady.out_of_pace(pace, None), Vec::<String>::new());
        let missed = client(vec![svid("a", 0), svid("b", 25), svid("c", 75)], 80);
        assert_eq!(missed.out_of_pace(pace, None).len(), 1);
        let away = Away { from: at(48_000), to: at(50_000) };
        assert_eq!(missed.out_of_pace(pace, Some(away)).len(), 0);
        let elsewhen = Away { from: at(10_000), to: at(11_000) };
        assert_eq!(missed.out_of_pace(pace, Some(elsewhen)).len(), 1);
        let hasty = client(vec![svid("a", 0), svid("b", 25), svid("c", 30)], 40);
        assert_eq!(hasty.out_of_pace(pace, None).len(), 1);
        let silent = client(vec![svid("a", 0)], 50);
        assert_eq!(silent.out_of_pace(pace, None).len(), 1, "no rotation at all");
    }

    #[test]
    fn every_signed_serial_must_be_seen_except_those_lost_in_the_crash() {
        let watcher = client(vec![svid("0A", 0), svid("0b", 25)], 80);
        let seen = decision("b", 24_900, Fate::Signed);
        assert_eq!(watcher.unseen(&[decision("a", 0, Fate::Signed), seen], None), Vec::<String>::new());
        let missed = || [decision("c", 50_000, Fate::Signed)];
        assert_eq!(watcher.unseen(&missed(), None).len(), 1);
        assert_eq!(watcher.unseen(&[decision("c", 50_000, Fate::Unknown)], None).len(), 0);
        let crash = Away { from: at(51_000), to: at(52_000) };
        assert_eq!(watcher.unseen(&missed(), Some(crash)).len(), 0);
        let long_after = Away { from: at(20_000), to: at(22_000) };
        assert_eq!(watcher.unseen(&missed(), Some(long_after)).len(), 1);
        assert_eq!(
            watcher.unseen(&[decision("c", 78_000, Fate::Signed)], None).len(),
            0,
            "just before the end"
        );
    }

    #[test]
    fn what_is_held_is_on_record_and_held_once() {
        let record = [decision("a", 0, Fate::Signed)];
        let one = || client(vec![svid("0a", 0)], 1);
        assert_eq!(unrecorded(&[one()], &record), Vec::<String>::new());
        assert_eq!(unrecorded(&[client(vec![svid("b", 0)], 1)], &record).len(), 1);
        let other = Client { spiffe_id: "spiffe://example.org/other".to_owned(), ..one() };
        assert_eq!(unrecorded(&[one(), other], &record).len(), 1);
    }
}
