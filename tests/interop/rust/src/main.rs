//! Do the Rust SPIFFE libraries (spiffe, spiffe-rustls) work against Passant?
//!
//! Prints the same JSON as the Go and Python peers; `../README.md` describes it. The Workload API's address
//! comes from `SPIFFE_ENDPOINT_SOCKET`.

mod document;
mod fetch;
mod mtls;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

/// Bounds one call and one exchange of lines.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Parser)]
#[command(about = "Rust peer of Passant's interoperability tests")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Name the peer libraries and their versions
    Version,
    /// Fetch and verify every kind of document once
    Fetch {
        #[arg(long)]
        audience: String,
    },
    /// Log each update of an X.509 watch
    Watch {
        /// File the JSON lines are appended to
        #[arg(long)]
        log: String,
        /// How long to watch, such as 90s
        #[arg(long, value_parser = duration, default_value = "60s")]
        duration: Duration,
        /// Also fetch a JWT-SVID for this audience again and again
        #[arg(long)]
        jwt_audience: Option<String>,
        #[arg(long, value_parser = duration, default_value = "3s")]
        jwt_interval: Duration,
    },
    /// Accept mutual TLS by SVID and echo lines
    MtlsServer {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        /// SPIFFE ID a client must have
        #[arg(long)]
        authorize: String,
        /// Connections to handle before the end, refused ones included
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// Connect by mutual TLS by SVID and send one line
    MtlsClient {
        #[arg(long)]
        addr: std::net::SocketAddr,
        /// SPIFFE ID the server must have
        #[arg(long)]
        authorize: String,
        #[arg(long, default_value = "hello from rust")]
        line: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Version => version(),
        Command::Fetch { audience } => fetch::run(&audience).await,
        Command::Watch { log, duration, jwt_audience, jwt_interval } => {
            watch::run(&log, duration, jwt_audience.as_deref(), jwt_interval).await
        }
        Command::MtlsServer { listen, authorize, count } => mtls::serve(&listen, &authorize, count).await,
        Command::MtlsClient { addr, authorize, line } => mtls::connect(addr, &authorize, &line).await,
    }
}

/// Reads a duration as the Go peer does: a number of ms, s or m.
fn duration(text: &str) -> Result<Duration> {
    for (unit, factor) in [("ms", 0.001), ("s", 1.0), ("m", 60.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(Duration::from_secs_f64(number.parse::<f64>()? * factor));
        }
    }
    bail!("{text:?} has no unit (ms, s, m)")
}

/// Prints what the lock file says about the libraries under judgement.
fn version() -> Result<()> {
    const LOCK: &str = include_str!("../Cargo.lock");
    for peer in ["spiffe", "spiffe-rustls", "tonic", "rustls"] {
        let package = format!("name = \"{peer}\"\nversion = \"");
        let start = LOCK.find(&package).with_context(|| format!("{peer} is not locked"))? + package.len();
        let version = LOCK[start..].split('"').next().context("the lock file is broken")?;
        println!("{peer} {version}");
    }
    Ok(())
}
