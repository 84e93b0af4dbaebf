//! Does h2 take behind the `:authority` filter every request that it takes without, just as it was sent?
#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll, Waker};

use http::request::Parts;
use libfuzzer_sys::fuzz_target;
use passant_agent::workload_api::filter::Filter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A request that h2 takes: GET http / of an authority named by the static table's first name.
const REQUEST: &[u8] = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a";
/// What it compares is really read; else nothing that it says would mean anything.
static READS: Once = Once::new();

fuzz_target!(|frames: &[u8]| {
    READS.call_once(|| {
        let read = requests(&[PREFACE, REQUEST].concat()).expect("a connection without fault");
        assert_eq!(read[&1].uri, "http://a/");
    });
    let raw = [PREFACE, frames].concat();
    let (mut filter, mut mended) = (Filter::new(), Vec::new());
    filter.push(&raw, &mut mended);
    filter.finish(&mut mended);
    // A stream that h2 would refuse is open behind the filter, and what its client does wrong there ends the connection.
    let (Some(without), Some(with)) = (requests(&raw), requests(&mended)) else { return };
    for (stream, without) in &without {
        let with = with.get(stream).unwrap_or_else(|| panic!("{without:?} is lost"));
        assert_eq!((&without.method, &without.uri), (&with.method, &with.uri));
        assert_eq!(without.headers, with.headers);
    }
});

/// The requests, by stream, that h2 reads from a connection that brings `bytes` and stays open; `None` if it ends it.
fn requests(bytes: &[u8]) -> Option<BTreeMap<u32, Parts>> {
    let mut context = Context::from_waker(Waker::noop());
    let mut handshake = std::pin::pin!(h2::server::handshake(Connection { unread: bytes.to_vec(), at: 0 }));
    let Poll::Ready(Ok(mut connection)) = handshake.as_mut().poll(&mut context) else { return None };
    let mut requests = BTreeMap::new();
    let mut open = Vec::new();
    loop {
        match connection.poll_accept(&mut context) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                let (parts, body) = request.into_parts();
                requests.insert(respond.stream_id().into(), parts);
                // Dropped, they would end their streams.
                open.push((body, respond));
            }
            Poll::Ready(_) => return None,
            Poll::Pending => return Some(requests),
        }
    }
}

/// Brings its bytes and stays open, and takes whatever is written.
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
        // Of requests that still wait when a connection ends, h2 tells nobody.
        if self.at == self.unread.len() {
            return Poll::Pending;
        }
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
