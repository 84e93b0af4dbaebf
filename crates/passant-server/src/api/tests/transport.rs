//! Do the ports let in whom they should, and close when they should?

use std::sync::Arc;

use passant_core::bundle::Bundle;
use passant_core::host::ManualClock;
use passant_core::{Host, Reason};
use passant_proto::bundle::GetBundleRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::rig::{Rig, bundles, client_config, entry, handshake, refusal};

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

/// Opens HTTP/2 by hand; the number of streams that the server allows, `None` when it closes instead.
async fn streams_allowed(tls: &mut TlsStream<TcpStream>) -> Option<u32> {
    const SETTINGS: u8 = 4;
    const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok()?;
    let mut head = [0; 9];
    tls.read_exact(&mut head).await.ok()?;
    assert_eq!(head[3], SETTINGS);
    let mut settings = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
    tls.read_exact(&mut settings).await.ok()?;
    let setting = settings.chunks(6).find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS);
    setting.map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()))
}

#[tokio::test]
async fn who_is_no_agent_gets_few_streams() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let made = rig.register(vec![entry(agent.svid.id(), "/w", "unix:uid:1")]).await;
    let workload = rig.svid_of(&agent, &made[0].id).await;
    for (identity, expected) in [(None, 4), (Some(&workload), 4), (Some(&agent), 128)] {
        let config = client_config(rig.running.bundle(), &rig.host, identity);
        let mut tls = handshake(rig.running.address(), config).await.unwrap();
        assert_eq!(streams_allowed(&mut tls).await, Some(expected));
    }
}

#[tokio::test]
async fn one_agent_does_not_take_the_connections_of_all() {
    let rig = Rig::start().await;
    let (greedy, modest) = (rig.agent().await, rig.agent().await);
    let connect = async |agent| {
        let config = client_config(rig.running.bundle(), &rig.host, Some(agent));
        let mut tls = handshake(rig.running.address(), config).await.unwrap();
        let is_served = streams_allowed(&mut tls).await.is_some();
        is_served.then_some(tls)
    };
    let mut held = Vec::new();
    for _ in 0..crate::limits::CONNECTIONS_PER_AGENT {
        held.push(connect(&greedy).await.unwrap());
    }
    assert!(connect(&greedy).await.is_none());
    assert!(connect(&modest).await.is_some());
    held.pop();
    let again = async {
        while connect(&greedy).await.is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), again).await.unwrap();
}

#[tokio::test]
async fn an_unknown_method_does_not_exist_for_anybody() {
    let rig = Rig::start().await;
    for channel in [rig.local().await, rig.stranger().await] {
        let elsewhere =
            tower::util::MapRequest::new(channel, |mut request: http::Request<tonic::body::Body>| {
                *request.uri_mut() =
                    http::Uri::from_static("http://x/spire.api.server.debug.v9.Debug/GetInfo");
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
