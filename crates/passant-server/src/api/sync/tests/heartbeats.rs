//! What does a heartbeat confirm, and when does it come?

use super::*;

#[tokio::test(start_paused = true)]
async fn a_heartbeat_comes_at_least_so_often() {
    let post = Post::new().await;
    let (_, peer) = post.rig.agent("a").await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle().await;
    for _ in 0..5 {
        let began = Instant::now();
        client.take().await.unwrap();
        let took = began.elapsed();
        assert!(
            (WATCH_HEARTBEAT * 3 / 4..=WATCH_HEARTBEAT + Duration::from_millis(1)).contains(&took),
            "{took:?}"
        );
    }
    assert_eq!(client.beats, 5);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_of_many_watches_go_out_together() {
    let post = Post::new().await;
    let mut beats = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (_, peer) = post.rig.agent(&format!("a{number}")).await;
        let mut client = Client::default();
        client.watch(&post, &peer, hello(&Client::default()));
        client.settle().await;
        beats.spawn(async move {
            client.take().await.unwrap();
            (client.beats, Instant::now())
        });
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    while let Some(beat) = beats.join_next().await {
        let (beats, at) = beat.unwrap();
        let past = at.duration_since(post.with.ticks.until(at));
        assert!(beats == 1 && past <= Duration::from_millis(2), "{past:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_by_the_next_heartbeat_when_the_agents_authority_is_gone() {
    let post = Post::new().await;
    let (_, peer) = post.rig.agent("a").await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle().await;
    client.take().await.unwrap();
    assert_eq!(client.beats, 1);
    let mut bundle = Bundle::clone(&post.rig.state().bundle().unwrap());
    bundle.sequence += 1;
    bundle.x509_authorities.clear();
    post.rig.commit(vec![Change::PutBundle(Arc::new(bundle))]).await;
    let began = Instant::now();
    client.settle().await;
    assert_eq!(client.end().await.code(), Code::Unauthenticated);
    assert!(began.elapsed() <= WATCH_HEARTBEAT + Duration::from_millis(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_confirmed_of_which_nobody_was_told() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle().await;
    // Its version is kept meanwhile.
    while post.rig.state().node(a.id()).unwrap().agent_version.is_none() {
        tokio::task::yield_now().await;
    }
    client.settle_all(&post, a.id()).await;
    // The hub is gone, and the server goes on.
    post.stop.cancel();
    tokio::task::yield_now().await;
    client.take().await.unwrap();
    assert!(client.beats > 0, "nothing has changed");
    post.put("e1", a.id(), |_| {}).await;
    assert!(tokio::time::timeout(WATCH_HEARTBEAT * 3, client.take()).await.is_err(), "{}", client.beats);
}
