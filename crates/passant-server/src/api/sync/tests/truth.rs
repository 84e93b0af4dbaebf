//! Does a watching agent come to hold the truth, whatever happens?

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put {
        entry: u8,
        path: u8,
        parent: u8,
        selector: bool,
        federates: bool,
        strict: bool,
    },
    Delete(u8),
    Selectors {
        agent: u8,
        which: u8,
    },
    Stop(u8),
    StopAgent,
    Resume(u8),
    ResumeAgent,
    Bundle(u8),
    OwnBundle,
    Take,
    Ack,
    /// The connection is lost, and the agent comes back with what it has.
    Return,
    /// It comes back, and its last answer is lost with the connection.
    Heal,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6_u8, 0..3_u8, 0..7_u8, any::<[bool; 3]>()).prop_map(|(entry, path, parent, [selector, federates, strict])| {
            Step::Put { entry, path, parent, selector, federates, strict }
        }),
        3 => (0..6_u8).prop_map(Step::Delete),
        2 => (0..2_u8, 0..3_u8).prop_map(|(agent, which)| Step::Selectors { agent, which }),
        1 => (0..6_u8).prop_map(Step::Stop),
        1 => Just(Step::StopAgent),
        1 => (0..6_u8).prop_map(Step::Resume),
        1 => Just(Step::ResumeAgent),
        1 => (0..3_u8).prop_map(Step::Bundle),
        1 => Just(Step::OwnBundle),
        6 => Just(Step::Take),
        4 => Just(Step::Ack),
        2 => Just(Step::Return),
        1 => Just(Step::Heal),
    ]
}

async fn play(steps: Vec<Step>) {
    let post = Post::new().await;
    let ((a, peer), (b, _)) = (post.rig.agent("a").await, post.rig.agent("b").await);
    let parents = [
        a.id().clone(),
        b.id().clone(),
        domain().server_id(),
        id("/w/0"),
        id("/w/1"),
        id("/w/2"),
        id("/nowhere"),
    ];
    let name = |entry: u8| EntryId::parse(&format!("e{entry}")).unwrap();
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    for step in steps {
        match step {
            Step::Put { entry, path, parent, selector, federates, strict } => {
                let parent = &parents[usize::from(parent)];
                let change = |draft: &mut EntryDraft| {
                    draft.spiffe_id = id(&format!("/w/{path}"));
                    draft.selectors = selectors(&[if selector { "spoken:yes" } else { "x:y" }]);
                    draft.federates_with.extend(federates.then(other_trust_domain));
                    draft.options = EntryOptions { key_scope: KeyScope::Instance, strict };
                };
                post.put(name(entry).as_str(), parent, change).await;
            }
            Step::Delete(entry) => post.delete(name(entry).as_str()).await,
            Step::Selectors { agent, which } => {
                let node = post.rig.node([&a, &b][usize::from(agent)].id());
                let have: &[&str] = [&["spoken:yes"][..], &["spoken:yes", "x:y"], &[]][usize::from(which)];
                let node = AttestedNode { selectors: selectors(have), ..AttestedNode::clone(&node) };
                post.rig.commit(vec![Change::PutNode(Arc::new(node))]).await;
            }
            Step::Stop(entry) => {
                post.rig.commit(vec![Change::PutStop(anew(&post, StopTarget::Entry(name(entry))))]).await;
            }
            Step::StopAgent => {
                post.rig.commit(vec![Change::PutStop(anew(&post, StopTarget::Agent(a.id().clone())))]).await;
            }
            Step::Resume(entry) => {
                post.rig.commit(vec![Change::DeleteStop(StopTarget::Entry(name(entry)))]).await;
            }
            Step::ResumeAgent => {
                post.rig.commit(vec![Change::DeleteStop(StopTarget::Agent(a.id().clone()))]).await;
            }
            Step::Bundle(0) => post.rig.commit(vec![Change::DeleteBundle(other_trust_domain())]).await,
            Step::Bundle(sequence) => {
                let other = bundle(other_trust_domain(), sequence.into(), 20);
                post.rig.commit(vec![Change::PutBundle(other)]).await;
            }
            Step::OwnBundle => {
                let own = post.rig.bundle();
                let next = Bundle { sequence: own.sequence + 1, ..Bundle::clone(&own) };
                post.rig.commit(vec![Change::PutBundle(Arc::new(next))]).await;
            }
            // Short of what would cut it off, all steps together.
            Step::Take => drop(tokio::time::timeout(Duration::from_secs(1), client.take()).await),
            Step::Ack => client.ack(),
            Step::Return | Step::Heal => {
                if matches!(step, Step::Heal) {
                    // What it is sent meanwhile, it never sees.
                    drop(tokio::time::timeout(Duration::from_millis(1), client.next()).await);
                }
                let again = hello(&client);
                client.watch(&post, &peer, again);
            }
        }
    }
    client.settle_all(&post, a.id()).await;
    let state = post.rig.state();
    assert_eq!(client.entries, post.truth(a.id()));
    let federates = state
        .authorized_entries(a.id(), post.rig.now())
        .iter()
        .any(|entry| entry.federates_with.contains(&other_trust_domain()));
    let other = state.bundle_of(&other_trust_domain()).filter(|_| federates);
    let bundles = state.bundle().into_iter().chain(other);
    let bundles: BTreeMap<_, _> =
        bundles.map(|bundle| (bundle.trust_domain.to_string(), bundle.sequence)).collect();
    assert_eq!(client.bundles.iter().filter(|(name, _)| bundles.contains_key(*name)).count(), bundles.len());
    assert!(bundles.iter().all(|(name, sequence)| client.bundles[name] == *sequence));
    if let Some(served) = client.bundles.keys().find(|name| !bundles.contains_key(*name)) {
        assert!(!federates, "{served} is gone");
    }
    let node = state.node(a.id()).unwrap();
    let of_agent = |stop: &&Arc<Stop>| match &stop.target {
        StopTarget::Entry(id) => state.entry(id).is_some_and(|entry| {
            passant_core::authorized::is_authorized(&*state, a.id(), &node.selectors, entry, post.rig.now())
        }),
        StopTarget::Agent(agent) | StopTarget::Instance { agent, .. } => agent == a.id(),
    };
    let stops: BTreeSet<String> = state.stops().filter(of_agent).map(|stop| stop.id.clone()).collect();
    assert_eq!(client.stops, stops);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_an_agent_comes_to_hold_the_truth(steps in proptest::collection::vec(any_step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(play(steps));
    }
}

/// A stop that is told from an earlier one of the same target.
fn anew(post: &Post, target: StopTarget) -> Arc<Stop> {
    let id = format!("{target} {}", post.revision().number());
    Arc::new(Stop { id, ..Stop::clone(&stop(target)) })
}
