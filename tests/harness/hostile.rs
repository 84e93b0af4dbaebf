//! What can a hostile client send? HTTP/2 by hand, frame by frame, over any byte stream.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A second address of this machine, for whoever attacks: what an address may have is bounded, and the honest have another.
pub const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
/// ENHANCE_YOUR_CALM: what HTTP/2 says to who floods.
pub const ENHANCE_YOUR_CALM: u32 = 0xb;

/// How long a server may take to end a connection that deserves it.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Connects to `address` from [`ELSEWHERE`].
///
/// # Errors
/// When nothing listens there.
pub async fn tcp_from_elsewhere(address: &str) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(ELSEWHERE, 0))?;
    Ok(socket.connect(address.parse()?).await?)
}

/// One frame.
///
/// # Panics
/// When the payload does not fit a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The HPACK bytes of one header, never indexed.
///
/// # Panics
/// When name or value is longer than 126 bytes.
pub fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
        [&[length.expect("a short text")], text.as_bytes()].concat()
    };
    [&[0][..], &text(name), &text(value)].concat()
}

/// The header block of a call of `path`, as a client of gRPC with the Workload API's security header sends it.
pub fn call_headers(path: &str) -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", path),
        header(":authority", "localhost"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
        header("workload.spiffe.io", "true"),
    ]
    .concat()
}

/// A call of `path` on `stream`, with the message `body`.
pub fn call(stream: u32, path: &str, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    let message = [&[0][..], &length, body].concat();
    [frame(HEADERS, END_HEADERS, stream, &call_headers(path)), frame(DATA, END_STREAM, stream, &message)]
        .concat()
}

/// A connection of HTTP/2 whose client keeps no rule that it does not want to keep.
#[derive(Debug)]
pub struct Hostile<S> {
    stream: S,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With this error and text.
    GoAway(u32, String),
    /// Without a word.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Hostile<S> {
    /// Says the preface, and that so many bytes may be sent on each stream. That the other side has closed the connection
    /// shows when it is read.
    pub async fn open(stream: S, window: u32) -> Self {
        const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
        let settings = [&INITIAL_WINDOW_SIZE[..], &window.to_be_bytes()].concat();
        let words = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &settings)].concat();
        let mut opened = Self { stream };
        opened.flood(1, |_| words.clone()).await;
        opened
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the other side has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Sends `piece` until it is accepted no more, or `count` times. An end of the connection is no error: it is what the
    /// other side is expected to do.
    pub async fn flood(&mut self, count: usize, mut piece: impl FnMut(usize) -> Vec<u8>) {
        /// A server that has stopped reading need not be waited for.
        const STUCK: Duration = Duration::from_millis(500);
        for n in 0..count {
            let sent = tokio::time::timeout(STUCK, self.stream.write_all(&piece(n))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// The next frame: its kind, stream and payload.
    ///
    /// # Errors
    /// At the end of the connection.
    pub async fn next(&mut self) -> anyhow::Result<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut payload).await?;
        Ok((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn ended(mut self) -> anyhow::Result<End> {
        let read = async {
            let mut end = End::Closed;
            while let Ok((kind, _, payload)) = self.next().await {
                if kind == GOAWAY
                    && let Some((code, why)) = payload.get(4..).and_then(<[u8]>::split_first_chunk)
                {
                    end = End::GoAway(u32::from_be_bytes(*code), String::from_utf8_lossy(why).into_owned());
                }
            }
            end
        };
        tokio::time::timeout(ENDS_WITHIN, read).await.context("the connection was not ended")
    }
}

/// A way to misuse HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    /// Streams are opened and reset at once.
    RapidReset,
    /// A stream is sent frames without content.
    EmptyData,
    /// A header block never ends.
    Continuation,
    /// A request has more headers than anybody needs.
    ManyHeaders,
    /// What asks for an acknowledgement is sent without end, and the acknowledgements are not read.
    Pings,
    /// The same with settings.
    Settings,
    /// Windows are opened beyond what they can be.
    WindowOverflow,
    /// Streams are begun that must not be.
    EvenStreams,
    /// Not HTTP/2 at all.
    Rubbish,
}

impl Abuse {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::RapidReset,
        Self::EmptyData,
        Self::Continuation,
        Self::ManyHeaders,
        Self::Pings,
        Self::Settings,
        Self::WindowOverflow,
        Self::EvenStreams,
        Self::Rubbish,
    ];

    /// Whether the other side must end the connection; the other abuses only cost their own connection.
    pub fn is_ended(self) -> bool {
        match self {
            Self::RapidReset
            | Self::EmptyData
            | Self::Continuation
            | Self::WindowOverflow
            | Self::EvenStreams
            | Self::Rubbish => true,
            Self::ManyHeaders | Self::Pings | Self::Settings => false,
        }
    }

    /// Does it, on a connection that is open, with calls of `path`.
    pub async fn commit<S: AsyncRead + AsyncWrite + Unpin>(self, on: &mut Hostile<S>, path: &str) {
        let headers = call_headers(path);
        let open = |stream| frame(HEADERS, END_HEADERS, stream, &headers);
        let stream = |n: usize| u32::try_from(2 * n + 1).unwrap_or(u32::MAX);
        match self {
            Self::RapidReset => {
                let reset = |n| frame(RST_STREAM, 0, stream(n), &8_u32.to_be_bytes());
                // Many in one write, so that they are there before the first is looked at.
                on.flood(20, |round| {
                    (round * 500..(round + 1) * 500)
                        .flat_map(|n| [open(stream(n)), reset(n)].concat())
                        .collect()
                })
                .await;
            }
            Self::EmptyData => {
                on.flood(1, |_| open(1)).await;
                let many: Vec<u8> = std::iter::repeat_n(frame(DATA, 0, 1, &[]), 500).flatten().collect();
                on.flood(200, |_| many.clone()).await;
            }
            Self::Continuation => {
                on.flood(1, |_| frame(HEADERS, 0, 1, &headers)).await;
                let more: Vec<u8> =
                    std::iter::repeat_n(header("x-more", "of the same, and no end of it"), 300)
                        .flatten()
                        .collect();
                on.flood(2000, |_| frame(CONTINUATION, 0, 1, &more)).await;
            }
            Self::ManyHeaders => {
                let many: Vec<u8> =
                    (0..300).flat_map(|n| header(&format!("x-{n}"), &"v".repeat(100))).collect();
                on.flood(200, |n| {
                    let (first, rest) = many.split_at(many.len() / 2);
                    [
                        frame(HEADERS, END_STREAM, stream(n), &[&headers[..], first].concat()[..16_000]),
                        frame(CONTINUATION, END_HEADERS, stream(n), &rest[..rest.len().min(16_000)]),
                    ]
                    .concat()
                })
                .await;
            }
            Self::Pings => {
                let many: Vec<u8> = std::iter::repeat_n(frame(PING, 0, 0, &[7; 8]), 1000).flatten().collect();
                on.flood(1000, |_| many.clone()).await;
            }
            Self::Settings => {
                let many: Vec<u8> = std::iter::repeat_n(frame(SETTINGS, 0, 0, &[]), 1000).flatten().collect();
                on.flood(1000, |_| many.clone()).await;
            }
            Self::WindowOverflow => {
                on.flood(4, |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())).await;
            }
            Self::EvenStreams => on.flood(1, |_| open(2)).await,
            Self::Rubbish => on.flood(64, |n| vec![u8::try_from(n % 251).unwrap_or(0); 4096]).await,
        }
    }
}

/// What a stranger may call on the server.
pub const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
/// What every process may call on the agent.
pub const FETCH_X509: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// Fails unless the connection was ended as floods are, with words that name the reason.
///
/// # Errors
/// When it was not.
pub fn assert_told(end: &End, word: &str) -> anyhow::Result<()> {
    match end {
        End::GoAway(ENHANCE_YOUR_CALM, why) if why.contains(word) => Ok(()),
        End::GoAway(..) | End::Closed => bail!("expected ENHANCE_YOUR_CALM with \"{word}\", got {end:?}"),
    }
}
