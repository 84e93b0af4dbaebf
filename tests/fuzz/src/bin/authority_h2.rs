//! Does h2 take behind the `:authority` filter every request that it takes without, just as it was sent?
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::request::Parts;
use libfuzzer_sys::fuzz_target;
use passant_agent::workload_api::filter::Filter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|frames: &[u8]| {
    let raw = [PREFACE, frames].concat();
    let (mut filter, mut mended) = (Filter::new(), Vec::new());
    filter.push(&raw, &mut mended);
    filter.finish(&mut mended);
    let (without, with) = (requests(&raw), requests(&mended));
    assert!(with.len() >= without.len(), "{without:?} became {with:?}");
    for (without, with) in without.iter().zip(&with) {
        assert_eq!((&without.method, &without.uri), (&with.method, &with.uri));
        assert_eq!(without.headers, with.headers);
    }
});

/// The requests that h2 reads from a connection that brings `bytes` and ends.
fn requests(bytes: &[u8]) -> Vec<Parts> {
    let mut context = Context::from_waker(Waker::noop());
    let mut handshake = std::pin::pin!(h2::server::handshake(Connection { unread: bytes.to_vec(), at: 0 }));
    let Poll::Ready(Ok(mut connection)) = handshake.as_mut().poll(&mut context) else { return Vec::new() };
    let mut requests = Vec::new();
    let mut open = Vec::new();
    while let Poll::Ready(Some(Ok((request, respond)))) = connection.poll_accept(&mut context) {
        let (parts, body) = request.into_parts();
        requests.push(parts);
        // Dropped, they would end their streams.
        open.push((body, respond));
    }
    requests
}

/// Brings its bytes, and takes whatever is written.
struct Connection {
    unread: Vec<u8>,
    at: usize,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = self.unread.len().min(self.at + buf.remaining());
        buf.put_slice(&self.unread[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
