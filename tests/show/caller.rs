//! What does one short-lived workload do? The part of a show, and of tests, that is a process of its own.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::{Args, ValueEnum};
use passant_proto::workload::JwtsvidRequest;
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::hostile::{FETCH_X509, call};

#[derive(Args)]
pub(crate) struct CallerArgs {
    /// The Workload API socket.
    #[arg(long)]
    socket: PathBuf,
    /// What to do there.
    #[arg(long)]
    how: How,
}

/// What a workload does between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// Fetches its X509-SVIDs.
    Fetch,
    /// Fetches a JWT-SVID.
    Jwt,
    /// Connects, and is gone.
    Connect,
    /// Sends the beginning of a request, and is gone.
    Half,
    /// Sends a whole request, and is gone before the answer.
    Ask,
}

impl How {
    /// As the command line has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Jwt => "jwt",
            Self::Connect => "connect",
            Self::Half => "half",
            Self::Ask => "ask",
        }
    }

    /// Whether the workload waits for an answer, and fails without.
    pub(crate) const fn is_honest(self) -> bool {
        matches!(self, Self::Fetch | Self::Jwt)
    }
}

/// Does it; success is an answer, for who waits for one.
pub(crate) async fn run(args: CallerArgs) -> ExitCode {
    match act(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn act(CallerArgs { socket, how }: CallerArgs) -> anyhow::Result<()> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let request = [&preface[..], &call(1, FETCH_X509, &[])].concat();
    match how {
        How::Fetch => ensure!(!fetch_x509(&socket).await?.svids.is_empty(), "no SVID"),
        How::Jwt => {
            let request = JwtsvidRequest { audience: vec!["storm".to_owned()], spiffe_id: String::new() };
            let answer = workload_api(&socket).await?.fetch_jwtsvid(with_header(request)).await?;
            ensure!(!answer.into_inner().svids.is_empty(), "no JWT-SVID");
        }
        How::Connect => drop(UnixStream::connect(&socket)?),
        How::Half => UnixStream::connect(&socket)?.write_all(&request[..60])?,
        How::Ask => UnixStream::connect(&socket)?.write_all(&request)?,
    }
    Ok(())
}
