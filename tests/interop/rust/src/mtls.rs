//! Do two workloads recognise each other by their SVIDs?
//!
//! The protocol on top of TLS is the same for every peer: the client sends one line, the server answers with
//! the client's SPIFFE ID, a space and the line.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use spiffe_rustls_tokio::{TlsAcceptor, TlsConnector};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::CALL_TIMEOUT;

pub async fn serve(listen: &str, authorize: &str, count: u32) -> Result<()> {
    let source = open_source().await?;
    let config = mtls_server(source).authorize(authorizer::exact([authorize])?).build()?;
    let acceptor = TlsAcceptor::new(Arc::new(config));
    let listener = TcpListener::bind(listen).await.with_context(|| format!("bind {listen}"))?;
    println!("{}", json!({"address": listener.local_addr()?.to_string()}));
    for _ in 0..count {
        let (stream, _) = listener.accept().await?;
        let line = match timeout(CALL_TIMEOUT, serve_line(&acceptor, stream)).await {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => json!({"error": format!("{error:#}")}),
            Err(elapsed) => json!({"error": elapsed.to_string()}),
        };
        println!("{line}");
    }
    Ok(())
}

async fn serve_line(acceptor: &TlsAcceptor, stream: TcpStream) -> Result<Value> {
    let (stream, identity) = acceptor.accept(stream).await.context("handshake")?;
    let peer = identity.require_spiffe_id()?.to_string();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.context("read line")?;
    stream.write_all(format!("{peer} {line}").as_bytes()).await.context("write line")?;
    stream.shutdown().await.context("close")?;
    Ok(json!({"peer_id": peer, "line": line.trim_end_matches('\n')}))
}

pub async fn connect(addr: SocketAddr, authorize: &str, line: &str) -> Result<()> {
    let source = open_source().await?;
    let own = source.svid()?.spiffe_id().to_string();
    let config = mtls_client(source).authorize(authorizer::exact([authorize])?).build()?;
    let connector = TlsConnector::new(Arc::new(config));
    let (peer, reply) =
        timeout(CALL_TIMEOUT, send_line(&connector, addr, line)).await.context("exchange")??;
    ensure!(reply == format!("{own} {line}\n"), "server answered {reply:?}");
    println!("{}", json!({"peer_id": peer, "own_id": own, "echo": line}));
    Ok(())
}

async fn send_line(connector: &TlsConnector, addr: SocketAddr, line: &str) -> Result<(String, String)> {
    let name = ServerName::from(addr.ip());
    let (stream, identity) = connector.connect_addr(addr, name).await.context("handshake")?;
    let peer = identity.require_spiffe_id()?.to_string();
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{line}\n").as_bytes()).await.context("write line")?;
    stream.flush().await.context("write line")?;
    let mut reply = String::new();
    stream.read_line(&mut reply).await.context("read line")?;
    Ok((peer, reply))
}

async fn open_source() -> Result<X509Source> {
    timeout(CALL_TIMEOUT, X509Source::new()).await.context("open X509Source")?.context("open X509Source")
}
