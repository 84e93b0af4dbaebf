//! What does a client read whose connection is closed before HTTP/2 has begun on it?

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

/// How long a farewell may take: the client is to read it, not to keep the connection by not reading.
const FAREWELL_WITHIN: Duration = Duration::from_secs(1);
/// What a client may have sent before it reads: its preface and first requests.
const SENT_BEFORE: u64 = 64 * 1024;

/// Farewells that are said at the same time. Beyond, connections are closed without a word: it is a courtesy.
const FAREWELLS: usize = 16;

/// Says farewell to connections that there is no room for, in tasks of its own.
#[derive(Debug)]
pub struct Farewells(Arc<Semaphore>);

impl Default for Farewells {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FAREWELLS)))
    }
}

impl Farewells {
    /// Closes `connection`, and tells it `why` if there are not too many that are told so just now.
    pub fn bid(&self, connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, why: &'static str) {
        if let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() {
            tokio::spawn(async move {
                say(connection, why).await;
                drop(permit);
            });
        }
    }
}

/// An HTTP/2 server's first and last words: its settings, and GOAWAY with ENHANCE_YOUR_CALM and the text `why`, which
/// clients of gRPC show as ResourceExhausted or Unavailable. The text is safe for a stranger, and shorter than 1 KiB.
pub fn words(why: &str) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u8 = 0xb;
    let why = &why.as_bytes()[..why.len().min(1024)];
    let [.., high, low] = (8 + why.len()).to_be_bytes();
    let mut words = SETTINGS.to_vec();
    words.extend([0, high, low, GOAWAY, 0, 0, 0, 0, 0]);
    // The last stream that was worked on: none. Then the error.
    words.extend([0, 0, 0, 0, 0, 0, 0, ENHANCE_YOUR_CALM]);
    words.extend(why);
    words
}

/// Says [`words`] on `connection` and closes it. Takes at most a second; a client that does not read learns nothing.
pub async fn say(mut connection: impl AsyncRead + AsyncWrite + Unpin, why: &str) {
    let said = async {
        connection.write_all(&words(why)).await?;
        connection.shutdown().await?;
        // A socket that is closed with bytes unread would take back what was said.
        tokio::io::copy(&mut connection.take(SENT_BEFORE), &mut tokio::io::sink()).await?;
        Ok::<_, io::Error>(())
    };
    // It is over in any case; that the client did not listen is its own affair.
    drop(tokio::time::timeout(FAREWELL_WITHIN, said).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_of_http2_learns_why() {
        let (near, mut far) = tokio::io::duplex(4096);
        let closing = tokio::spawn(async move { say(near, "too many connections").await });
        far.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "settings come first");
        assert_eq!(read[9..18], [0, 0, 28, 7, 0, 0, 0, 0, 0], "then GOAWAY");
        assert_eq!(read[22..26], [0, 0, 0, 0xb]);
        assert_eq!(&read[26..], b"too many connections");
        drop(far);
        closing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_not_waited_for() {
        let (near, _far) = tokio::io::duplex(8);
        let began = tokio::time::Instant::now();
        say(near, "too many connections").await;
        assert_eq!(began.elapsed(), FAREWELL_WITHIN);
    }
}
