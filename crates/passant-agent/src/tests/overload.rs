//! Does an agent keep to what an overloaded server says?

use std::time::Duration;

use tokio::time::Instant;

use super::{Rig, paths, serves};
use crate::testing::{secs, until};

/// How long after its last call of `name` the agent makes the next one.
async fn pause_before_next(rig: &Rig, name: &'static str) -> Duration {
    let next = rig.fake.calls(name) + 1;
    until("it asks", || rig.fake.calls(name) >= next).await;
    let began = Instant::now();
    until("it asks again", || rig.fake.calls(name) > next).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_server_is_asked_again_when_it_said_so_and_no_svid_is_given_up() {
    for (name, said) in [("BatchNewX509SVID", 70), ("RenewAgent", 90), ("SyncAuthorizedEntries", 40)] {
        let rig = Rig::new();
        let agent = rig.start();
        let mut workload = agent.subscribe(1);
        serves(&mut workload, &["/a"]).await;
        rig.fake.world().overloaded.insert(name, secs(said));
        let began = Instant::now();
        for _ in 0..3 {
            let pause = pause_before_next(&rig, name).await;
            // As long as it said, a fifth more at most, and the grain of this test.
            assert!((secs(said)..=secs(said + said / 5 + 6)).contains(&pause), "{name}: {pause:?}");
            assert_eq!(paths(&mut workload), ["/a"], "{name}");
        }
        // SVIDs of an hour are renewed at half of it: there is time left to recover in.
        assert!(began.elapsed() < secs(3_300), "{name}: {:?}", began.elapsed());
        rig.fake.world().overloaded.clear();
        agent.ready().await;
        assert_eq!(paths(&mut workload), ["/a"], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_waits_does_not_make_the_agent_come_before_its_time() {
    let rig = Rig::new();
    rig.fake.world().overloaded.insert("SyncAuthorizedEntries", secs(60));
    let agent = rig.start();
    until("it asks", || rig.fake.calls("SyncAuthorizedEntries") == 1).await;
    let began = Instant::now();
    while rig.fake.calls("SyncAuthorizedEntries") == 1 {
        // As the Workload API does: each request waits a little, and is then told to come again.
        assert!(paths(&mut agent.subscribe(1)).is_empty());
        tokio::time::sleep(secs(3)).await;
    }
    assert!(began.elapsed() >= secs(60), "{:?}", began.elapsed());
    rig.fake.world().overloaded.clear();
    serves(&mut agent.subscribe(1), &["/a"]).await;
}
