//! Which updates does a long-lived `X509Source` receive, and when?

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use spiffe::{WorkloadApiClient, X509Context, X509Source};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::CALL_TIMEOUT;
use crate::document::{describe_jwt, describe_x509, merge, verify};

pub async fn run(log: &str, duration: Duration, audience: Option<&str>, every: Duration) -> Result<()> {
    let file =
        OpenOptions::new().append(true).create(true).open(log).with_context(|| format!("open {log}"))?;
    let log = Log { file };
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        () = sleep(duration) => Ok(()),
        _ = terminated.recv() => Ok(()),
        result = watch_x509(&log) => result,
        result = watch_jwt(audience, every, &log) => result,
    }
}

/// Follows the source, which reconnects by itself, until it gives up.
async fn watch_x509(log: &Log) -> Result<()> {
    let source = X509Source::new().await.context("open X509Source")?;
    let mut updates = source.updated();
    let mut seen = None;
    loop {
        let state = source.state();
        if let Some(cause) = state.withdrawal() {
            log.failed("x509", &format!("{cause:#}"))?;
        }
        if state.is_closed() {
            bail!("the source gave up");
        }
        if let Ok(context) = state.context()
            && seen.as_ref() != Some(&context)
        {
            log.x509(&context)?;
            seen = Some(context);
        }
        updates.changed().await.context("wait for an update")?;
    }
}

/// Fetches again and again; never returns if there is no audience.
async fn watch_jwt(audience: Option<&str>, every: Duration, log: &Log) -> Result<()> {
    let Some(audience) = audience else { return std::future::pending().await };
    let client = WorkloadApiClient::connect_env().await.context("connect")?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(CALL_TIMEOUT, client.fetch_jwt_svid([audience], None)).await {
            Ok(Ok(svid)) => log.write("jwt", describe_jwt(&svid)?)?,
            Ok(Err(error)) => log.failed("jwt", &error.to_string())?,
            Err(elapsed) => log.failed("jwt", &elapsed.to_string())?,
        }
    }
}

/// Appends JSON lines, each by one write so that a reader never sees half of one.
struct Log {
    file: File,
}

impl Log {
    fn x509(&self, context: &X509Context) -> Result<()> {
        let svid = context.default_svid().context("the context holds no SVID")?;
        let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain());
        let mut line = describe_x509(svid)?;
        merge(
            &mut line,
            json!({
                "svids": context.svids().len(),
                "bundle_authorities": bundle.map_or(0, |bundle| bundle.authorities().len()),
                "verified": verify(svid, context.bundle_set()).is_ok(),
            }),
        );
        self.write("x509", line)
    }

    fn failed(&self, of: &str, error: &str) -> Result<()> {
        self.write("error", json!({"of": of, "code": "Unknown", "error": error}))
    }

    fn write(&self, kind: &str, mut line: Value) -> Result<()> {
        let received = OffsetDateTime::now_utc().format(&Rfc3339)?;
        merge(&mut line, json!({"kind": kind, "received": received}));
        (&self.file).write_all(format!("{line}\n").as_bytes()).context("write log")
    }
}
