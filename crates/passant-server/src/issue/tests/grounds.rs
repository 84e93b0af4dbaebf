//! Are the grounds on which an agent asks looked at, and put on record?

use std::sync::Arc;

use passant_core::{EntryOptions, Evidence, Instance, KeyScope, Stop, StopReason, StopTarget};

use super::*;
use crate::issue::{Plea, Wanted};
use crate::limits::{EVIDENCE_AGE, EVIDENCE_AHEAD};
use crate::record::Grounds;
use crate::rig::selectors;
use crate::state::change::Change;

fn process(have: &[&str], attested_at: passant_core::UnixTime) -> Plea {
    Plea::Process(Arc::new(Evidence {
        selectors: selectors(have),
        instance: Instance::parse("boot/7/9").unwrap(),
        attestors: vec!["unix".to_owned()],
        attested_at,
    }))
}

async fn pleaded(rig: &Rig, plea: Plea) -> Result<IssuedX509, Refusal> {
    let (caller, _) = rig.agent("a").await;
    let wanted = Wanted { entry_id: "w".to_owned(), csr: rig.csr(None), plea };
    rig.issuer.x509_pleaded(&caller, vec![wanted]).await.pop().unwrap()
}

fn stop(agent: &SpiffeId) -> Change {
    let instance = Instance::parse("boot/7/9").unwrap();
    Change::PutStop(Arc::new(Stop {
        target: StopTarget::Instance { agent: agent.clone(), instance },
        id: "s".to_owned(),
        reason: StopReason::parse("it asked for what it should not know").unwrap(),
        by: "uid 0".to_owned(),
        since: START,
        revision: 1,
    }))
}

#[tokio::test]
async fn evidence_bears_out_the_entry_and_is_of_this_time() {
    let rig = Rig::new().await;
    rig.entry("w", &agent(), |_| {}).await;
    let second = Duration::from_secs(1);
    let mine = ["unix:uid:1", "unix:gid:1"];
    for (plea, expected) in [
        (process(&mine, START), None),
        (process(&["unix:uid:1"], START), None),
        (process(&["unix:gid:1"], START), Some(Reason::Denied)),
        (process(&[], START), Some(Reason::Denied)),
        (process(&mine, START.plus(EVIDENCE_AHEAD)), None),
        (process(&mine, START.plus(EVIDENCE_AHEAD).plus(second)), Some(Reason::Invalid)),
        (process(&mine, START.minus(EVIDENCE_AGE)), None),
        (process(&mine, START.minus(EVIDENCE_AGE).minus(second)), Some(Reason::Invalid)),
        (Plea::Prefetch, None),
        (Plea::Untold, None),
    ] {
        let issued = pleaded(&rig, plea.clone()).await;
        assert_eq!(issued.err().map(|refusal| refusal.reason), expected, "{plea:?}");
        let (caller, _) = rig.agent("a").await;
        let issued = rig.issuer.jwt_pleaded(&caller, "w", vec!["db".to_owned()], &plea).await;
        assert_eq!(issued.err().map(|refusal| refusal.reason), expected, "{plea:?}");
    }
}

#[tokio::test]
async fn the_record_says_on_what_grounds() {
    let rig = Rig::new().await;
    rig.entry("w", &agent(), |_| {}).await;
    let instance = Instance::parse("boot/7/9").unwrap();
    let attested = Grounds::Attested { instance, attestors: vec!["unix".to_owned()], at: START };
    for (plea, expected) in [
        (process(&["unix:uid:1"], START), attested),
        (Plea::Prefetch, Grounds::Prefetched),
        (Plea::Untold, Grounds::Untold),
    ] {
        let issued = pleaded(&rig, plea).await.unwrap();
        let decisions = rig.decisions();
        let (decision, _) = &decisions[&issued.svid().serial().to_string()];
        assert_eq!(decision.grounds, Some(expected));
    }
    let of_others = rig.decisions().into_values().filter(|(one, _)| one.entry.is_none());
    assert!(of_others.into_iter().all(|(decision, _)| decision.grounds.is_none()));
}

#[tokio::test]
async fn a_stopped_process_gets_nothing_and_others_do() {
    let rig = Rig::new().await;
    rig.entry("w", &agent(), |_| {}).await;
    rig.commit(vec![stop(&id("/spire/agent/spoken/b"))]).await;
    pleaded(&rig, process(&["unix:uid:1"], START)).await.unwrap();
    // Stopped while the disk is waited for.
    let (journal, (caller, _)) = (rig.journal.clone(), rig.agent("a").await);
    *rig.disk.meanwhile.lock().unwrap() = Some(Box::new(move || {
        tokio::spawn(async move { journal.submit(|_| Ok((vec![stop(&agent())], ()))).await.unwrap() });
    }));
    let plea = process(&["unix:uid:1"], START);
    let wanted = Wanted { entry_id: "w".to_owned(), csr: rig.csr(None), plea };
    let refusal = rig.issuer.x509_pleaded(&caller, vec![wanted]).await.pop().unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::Denied);
    let refusal = pleaded(&rig, process(&["unix:uid:1"], START)).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.public.as_str()), (Reason::Denied, "the process is stopped"));
    pleaded(&rig, Plea::Prefetch).await.unwrap();
}

#[tokio::test]
async fn a_strict_entry_is_not_there_for_who_says_nothing() {
    let rig = Rig::new().await;
    let strict = EntryOptions { key_scope: KeyScope::Instance, strict: true };
    rig.entry("w", &agent(), |draft| draft.options = strict).await;
    let expected = (Reason::NotFound, "entry not found or not authorized");
    assert_eq!(refused(&pleaded(&rig, Plea::Untold).await), expected);
    pleaded(&rig, process(&["unix:uid:1"], START)).await.unwrap();
}
