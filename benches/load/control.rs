//! How do the processes of a run speak with each other? One asks over a unix socket, the other answers, in JSON.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// One message: ten thousand agents answer with some numbers each.
const MESSAGE: usize = 64 * 1024 * 1024;
/// How long a process may take to be there.
const THERE_WITHIN: Duration = Duration::from_secs(20);

/// Another process of the run. It is killed when this is dropped.
pub(crate) struct Part {
    child: Child,
    stream: UnixStream,
}

impl Part {
    /// Starts this program again with `arguments`, and waits until it can be asked. Its socket is made at `socket`.
    pub(crate) async fn start(socket: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_program(&std::env::current_exe()?, socket, arguments).await
    }

    /// The same for another path of this program.
    pub(crate) async fn start_program(program: &Path, socket: &Path, arguments: &[&str]) -> Result<Self> {
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("failed to listen on {}", socket.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--control").arg(socket).stdin(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("failed to start {}", program.display()))?;
        let accepted = timeout(THERE_WITHIN, listener.accept()).await;
        std::fs::remove_file(socket)?;
        match accepted {
            Ok(Ok((stream, _))) => Ok(Self { child, stream }),
            other => {
                let ended = child.try_wait()?;
                child.kill()?;
                child.wait()?;
                bail!("a process of the run is not there: {other:?}, ended: {ended:?}");
            }
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks, without waiting for the answer: [`Part::answer`] does.
    pub(crate) async fn ask(&mut self, question: &impl Serialize) -> Result<()> {
        write(&mut self.stream, question).await
    }

    /// The answer to what was asked, at most `within` from now.
    pub(crate) async fn answer<A: DeserializeOwned>(&mut self, within: Duration) -> Result<A> {
        let read = timeout(within, read(&mut self.stream));
        let answer = read.await.with_context(|| format!("no answer within {within:?}"))??;
        let answer: Result<A, String> = answer.context("a process of the run has ended")?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where a process that was started by [`Part::start`] hears what it is asked.
pub(crate) struct Asked(UnixStream);

impl Asked {
    /// Connects to who has started this process.
    pub(crate) async fn at(socket: &PathBuf) -> Result<Self> {
        let stream = UnixStream::connect(socket).await;
        Ok(Self(stream.with_context(|| format!("failed to connect to {}", socket.display()))?))
    }

    /// The next question; none when nobody asks any more.
    pub(crate) async fn next<Q: DeserializeOwned>(&mut self) -> Result<Option<Q>> {
        read(&mut self.0).await
    }

    /// Answers it.
    pub(crate) async fn answer<A: Serialize>(&mut self, answer: Result<A>) -> Result<()> {
        write(&mut self.0, &answer.map_err(|error| format!("{error:#}"))).await
    }
}

async fn write(stream: &mut UnixStream, message: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(message)?;
    ensure!(bytes.len() <= MESSAGE, "a message of {} bytes is too long", bytes.len());
    stream.write_u32(u32::try_from(bytes.len())?).await?;
    Ok(stream.write_all(&bytes).await?)
}

async fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<Option<T>> {
    let Ok(length) = stream.read_u32().await else { return Ok(None) };
    let length = usize::try_from(length)?;
    ensure!(length <= MESSAGE, "a message of {length} bytes is too long");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_and_the_end_is_noticed() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        write(&mut one, &vec![1, 2, 3]).await.unwrap();
        assert_eq!(read::<Vec<u8>>(&mut other).await.unwrap(), Some(vec![1, 2, 3]));
        drop(one);
        assert_eq!(read::<Vec<u8>>(&mut other).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_not_read() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        one.write_u32(u32::MAX).await.unwrap();
        assert!(read::<Vec<u8>>(&mut other).await.is_err());
    }
}
