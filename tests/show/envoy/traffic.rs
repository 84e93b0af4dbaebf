//! Does everything that is sent through come back?

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Connections that last from the beginning to the end.
const LASTING: usize = 8;
/// Between two lines on each, and between two new connections.
const PAUSE: Duration = Duration::from_millis(50);
/// A line that has not come back by then is lost.
const LOST: Duration = Duration::from_secs(20);

/// Starts what sends all back that it is sent, and says where.
pub(super) async fn echo() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Ok(address)
}

/// Sends one line on a new connection to `to`, and waits for it to come back.
pub(super) async fn one_line(to: SocketAddr) -> anyhow::Result<()> {
    line(&mut BufStream::new(TcpStream::connect(to).await?), 0).await
}

/// Lines under way all the time: on connections that last, and on new ones.
pub(super) struct Traffic {
    stop: watch::Sender<bool>,
    lasting: JoinSet<Tally>,
    new: JoinHandle<Tally>,
}

/// What became of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connections: usize,
    pub(super) lines: usize,
    /// What was lost.
    pub(super) faults: Vec<String>,
}

impl Traffic {
    pub(super) fn start(to: SocketAddr) -> Self {
        let stop = watch::Sender::new(false);
        let lasting = (0..LASTING).map(|_| lasting(to, stop.subscribe())).collect();
        let new = tokio::spawn(new(to, stop.subscribe()));
        Self { stop, lasting, new }
    }

    /// Ends it, and tells of those that lasted and of those that were new.
    pub(super) async fn stop(self) -> anyhow::Result<(Tally, Tally)> {
        self.stop.send_replace(true);
        let mut lasting = Tally::default();
        for one in self.lasting.join_all().await {
            lasting.connections += one.connections;
            lasting.lines += one.lines;
            lasting.faults.extend(one.faults);
        }
        Ok((lasting, self.new.await?))
    }
}

async fn lasting(to: SocketAddr, stop: watch::Receiver<bool>) -> Tally {
    let mut tally = Tally { connections: 1, ..Tally::default() };
    let through = async {
        let mut stream = BufStream::new(TcpStream::connect(to).await?);
        while !*stop.borrow() {
            line(&mut stream, tally.lines).await?;
            tally.lines += 1;
            sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    if let Err(why) = through.await {
        tally.faults.push(format!("a connection that had carried {} lines: {why:#}", tally.lines));
    }
    tally
}

async fn new(to: SocketAddr, stop: watch::Receiver<bool>) -> Tally {
    let mut tally = Tally::default();
    while !*stop.borrow() {
        match one_line(to).await {
            Ok(()) => tally.lines += 1,
            Err(why) => tally.faults.push(format!("new connection {}: {why:#}", tally.connections)),
        }
        tally.connections += 1;
        sleep(PAUSE).await;
    }
    tally
}

async fn line(stream: &mut BufStream<TcpStream>, number: usize) -> anyhow::Result<()> {
    let (sent, mut got) = (format!("{number}\n"), String::new());
    let exchange = async {
        stream.write_all(sent.as_bytes()).await?;
        stream.flush().await?;
        stream.read_line(&mut got).await
    };
    timeout(LOST, exchange).await.context("it was not answered")??;
    ensure!(got == sent, "it ended with {got:?} instead of {sent:?}");
    Ok(())
}
