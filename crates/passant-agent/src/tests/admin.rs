//! What are the administrators of a node told, over its admin socket?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use passant_attest::peer::Peer;
use passant_attest::workload::WorkloadMethod;
use passant_attest::workload::unix::UnixConfig;
use passant_core::{Instance, Stop, StopReason, StopTarget};
use passant_proto::node::ExplainRequest;
use passant_proto::node::node_client::NodeClient;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use super::Rig;
use crate::admin::Admin;
use crate::attest::Attestation;
use crate::cache::Stops;
use crate::testing::{id, secs};

#[tokio::test]
async fn administrators_of_the_node_are_told_why_a_process_has_no_identity() {
    let rig = Rig::new();
    let own = nix::unistd::geteuid().as_raw();
    rig.fake.register(&[("b", own + 1)]);
    let agent = rig.start();
    agent.ready().await;
    let path = rig.dir.path().join("data/admin.sock");
    let unix = WorkloadMethod::Unix(UnixConfig::default()).attestor(&rig.host);
    let attestation = Arc::new(Attestation::new(vec![Arc::from(unix)], secs(300), Arc::default()));
    let admin = Admin::bind(&path, attestation, "boot".to_owned()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let serving = tokio::spawn(admin.serving(Arc::clone(&agent.vitals), agent.stop.clone()).unwrap());
    let socket = path.clone();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://node").connect_with_connector(connect).await.unwrap();
    let mut client = NodeClient::new(channel);
    let mut ask = async |pid, spiffe_id: &str| {
        let asked = ExplainRequest { pid, spiffe_id: spiffe_id.to_owned() };
        client.explain(asked).await.map(tonic::Response::into_inner)
    };
    let told = ask(std::process::id(), "spiffe://example.org/b").await.unwrap();
    assert_eq!(told.agent_id, "spiffe://example.org/spire/agent/join_token/token-1");
    assert!(told.attested && told.selectors.iter().any(|it| it.value == format!("uid:{own}")), "{told:?}");
    let causes = told.explanation.unwrap().causes;
    assert_eq!(causes[0].code, "selectors_missing");
    assert!(causes[0].says.contains(&format!("(it has unix:uid:{own})")), "{causes:?}");
    // The node alone is well.
    assert_eq!(ask(0, "").await.unwrap().explanation.unwrap().causes, []);
    assert_eq!(ask(0, "b").await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let unknown = ask(u32::MAX, "").await.unwrap();
    assert!(!unknown.attested);
    assert_eq!(unknown.explanation.unwrap().causes[0].code, "no_such_process");
    // What an operator stopped is told before anything else.
    let start = Peer::of_pid(std::process::id()).unwrap().start_time();
    let target = StopTarget::Instance {
        agent: id("/spire/agent/join_token/token-1"),
        instance: Instance::new("boot", std::process::id(), start).unwrap(),
    };
    let reason = StopReason::parse("found in a log").unwrap();
    let stop =
        Stop { target, id: "s".to_owned(), reason, by: String::new(), since: rig.host.now(), revision: 0 };
    agent.cache.learn_stops(Stops::new(vec![stop]));
    let causes = ask(std::process::id(), "").await.unwrap().explanation.unwrap().causes;
    assert!(causes[0].code == "stopped" && causes[0].says.contains("found in a log"), "{causes:?}");
    agent.stop().await;
    serving.await.unwrap();
    assert!(!path.exists());
}
