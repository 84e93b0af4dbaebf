//! How does the filter sit on an accepted connection?

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Filter;

/// One read from the socket. HTTP/2 requests of this API are far smaller.
const READ: usize = 4096;

/// A byte stream whose read half passes through a [`Filter`]; the write half is untouched.
#[derive(Debug)]
pub(crate) struct MendedStream<S> {
    inner: S,
    filter: Filter,
    /// Filtered bytes that were not read yet start at `read`.
    ready: Vec<u8>,
    read: usize,
    is_ended: bool,
}

impl<S> MendedStream<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, filter: Filter::new(), ready: Vec::new(), read: 0, is_ended: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MendedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.read < this.ready.len() {
                let end = this.ready.len().min(this.read + buf.remaining());
                buf.put_slice(&this.ready[this.read..end]);
                this.read = end;
                if this.read == this.ready.len() {
                    this.ready.clear();
                    this.read = 0;
                }
                return Poll::Ready(Ok(()));
            }
            if this.is_ended {
                return Poll::Ready(Ok(()));
            }
            if this.filter.is_through() {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut bytes = [0; READ];
            let mut chunk = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                this.is_ended = true;
                this.filter.finish(&mut this.ready);
            } else {
                this.filter.push(chunk.filled(), &mut this.ready);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MendedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn both_halves_carry_every_byte_to_the_end() {
        let (mut client, server) = duplex(7);
        let mut server = MendedStream::new(server);
        let sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x02\x04\0\0\0\0\0ab\0\0\x09\x01";
        let write = async {
            client.write_all(sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let read = async {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            server.write_all(b"pong").await.unwrap();
            server.shutdown().await.unwrap();
            received
        };
        let (answer, received) = tokio::join!(write, read);
        assert_eq!(received, sent);
        assert_eq!(answer, b"pong");
    }
}
