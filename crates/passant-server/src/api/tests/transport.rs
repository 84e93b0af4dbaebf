//! Do the ports let in whom they should, and close when they should?

use std::sync::Arc;

use passant_core::bundle::Bundle;
use passant_core::host::ManualClock;
use passant_core::{Host, Reason};
use passant_proto::bundle::GetBundleRequest;
use tokio::io::AsyncReadExt;

use super::rig::{Rig, bundles, client_config, handshake, refusal};

#[tokio::test]
async fn a_certificate_of_another_authority_ends_the_handshake() {
    let (rig, foreign) = (Rig::start().await, Rig::start().await);
    let impostor = foreign.agent().await;
    // With TLS 1.3 the client learns of it on its first use of the connection.
    let called = match rig.remote(Some(&impostor)).await {
        Ok(channel) => bundles(channel)
            .get_bundle(GetBundleRequest { output_mask: None })
            .await
            .map(|_| ())
            .map_err(|_| ()),
        Err(_) => Err(()),
    };
    assert_eq!(called, Err(()));
}

#[tokio::test]
async fn a_client_that_trusts_another_bundle_does_not_connect() {
    let rig = Rig::start().await;
    let nothing = Arc::new(Bundle::empty(super::rig::trust_domain()));
    assert!(handshake(rig.running.address(), client_config(nothing, &rig.host, None)).await.is_err());
}

#[tokio::test]
async fn http2_is_agreed_on_and_sessions_are_not_resumed() {
    let rig = Rig::start().await;
    let config = client_config(rig.running.bundle(), &rig.host, None);
    let mut config = rustls::ClientConfig::clone(&config);
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    for _ in 0..2 {
        let tls = handshake(rig.running.address(), Arc::clone(&config)).await.unwrap();
        let session = tls.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    let mut http1 = rustls::ClientConfig::clone(&client_config(rig.running.bundle(), &rig.host, None));
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(handshake(rig.running.address(), Arc::new(http1)).await.is_err());
}

#[tokio::test]
async fn both_tls_versions_are_served() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let whole = client_config(rig.running.bundle(), &rig.host, Some(&agent));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let narrow = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(super::rig::verifier(rig.running.bundle(), &rig.host))
            .with_client_cert_resolver(Arc::clone(&whole.client_auth_cert_resolver));
        let mut narrow = narrow;
        narrow.alpn_protocols = vec![b"h2".to_vec()];
        let tls = handshake(rig.running.address(), Arc::new(narrow)).await.unwrap();
        assert_eq!(tls.get_ref().1.protocol_version(), Some(version.version));
    }
}

#[tokio::test]
async fn an_unknown_method_does_not_exist_for_anybody() {
    let rig = Rig::start().await;
    for channel in [rig.local().await, rig.stranger().await] {
        let elsewhere =
            tower::util::MapRequest::new(channel, |mut request: http::Request<tonic::body::Body>| {
                *request.uri_mut() =
                    http::Uri::from_static("http://x/spire.api.server.debug.v1.Debug/GetInfo");
                request
            });
        let mut client = passant_proto::bundle::bundle_client::BundleClient::new(elsewhere);
        let answer = client.get_bundle(GetBundleRequest { output_mask: None }).await;
        assert_eq!(refusal(answer).reason, Reason::Unimplemented);
    }
}

#[tokio::test]
async fn a_stopped_server_is_gone_with_its_socket() {
    let rig = Rig::start().await;
    let mut client = bundles(rig.local().await);
    client.get_bundle(GetBundleRequest { output_mask: None }).await.unwrap();
    // An idle connection of a stranger does not hold the server up.
    let config = client_config(rig.running.bundle(), &rig.host, None);
    let address = rig.running.address();
    let mut idle = handshake(address, Arc::clone(&config)).await.unwrap();
    let socket = rig.running.socket().to_owned();
    assert!(socket.exists());
    rig.running.shutdown().await;
    assert!(!socket.exists());
    assert!(handshake(address, config).await.is_err());
    let mut rest = Vec::new();
    drop(idle.read_to_end(&mut rest).await);
    assert!(client.get_bundle(GetBundleRequest { output_mask: None }).await.is_err());
}

#[tokio::test]
async fn the_server_renews_its_own_svid_without_closing_its_port() {
    let clock = Arc::new(ManualClock::new(Host::system().now()));
    let rig = Rig::start_on(Host { clock: Arc::clone(&clock) as _, ..Host::system() }, "").await;
    let config = client_config(rig.running.bundle(), &rig.host, None);
    let shown = async || {
        let tls = handshake(rig.running.address(), Arc::clone(&config)).await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let first = shown().await;
    assert_eq!(shown().await, first);
    // Past the latest point of renewal of one hour.
    clock.advance(std::time::Duration::from_secs(40 * 60));
    // Any change wakes the rotation; until it is done, the old one is shown.
    rig.join_token("", None).await;
    let renewed = async {
        while shown().await == first {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), renewed).await.unwrap();
}
