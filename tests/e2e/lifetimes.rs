//! Does everything end when it should, and is it renewed before?

use std::time::Duration;

use anyhow::Context;
use passant_core::{Host, UnixTime, x509_svid};
use passant_proto::workload::{X509svidRequest, X509svidResponse};
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use tonic::Code;

fn svid(answer: &X509svidResponse) -> anyhow::Result<x509_svid::X509Svid> {
    Ok(x509_svid::X509Svid::parse(x509_svid::split_der(&answer.svids[0].x509_svid, 16)?)?)
}

#[tokio::test]
async fn svids_are_renewed_on_an_open_stream_before_they_expire() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |entry| entry.x509_svid_ttl = 12).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let mut api = workload_api(&socket).await?;
    let mut stream = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    let mut held = svid(&stream.message().await?.context("a message")?)?;
    let mut renewals = 0;
    while renewals < 2 {
        let next =
            tokio::time::timeout(Duration::from_secs(20), stream.message()).await??.context("a message")?;
        let now = Host::system().now();
        let next = svid(&next)?;
        assert!(
            now <= held.not_after(),
            "the old SVID expired at {} and is replaced at {now}",
            held.not_after()
        );
        assert!(now <= next.not_after());
        renewals += i32::from(next.serial() != held.serial());
        held = next;
    }
    Ok(())
}

#[tokio::test]
async fn no_svid_outlives_its_entry_and_none_is_minted_after_it() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let _agent = site.start_agent("agent").await?;
    let end = Host::system().now().plus(Duration::from_secs(12));
    site.register("/brief", |entry| entry.expires_at = end.secs()).await?;
    let socket = site.agent_socket("agent");
    let latest = std::cell::Cell::new(UnixTime::from_secs(0));
    let denied = eventually("the end", Duration::from_secs(60), || async {
        let answer = fetch_x509(&socket).await;
        let now = Host::system().now();
        match answer {
            Ok(answer) => {
                let not_after = svid(&answer)?.not_after();
                assert!(not_after <= end, "valid until {not_after}, the entry ends at {end}");
                assert!(now <= end, "served at {now}, the entry ended at {end}");
                latest.set(not_after);
                anyhow::bail!("it is served")
            }
            Err(status) if now < end => anyhow::bail!("not yet: {status}"),
            Err(status) => Ok(status),
        }
    })
    .await?;
    let latest = latest.get();
    assert!(latest > UnixTime::from_secs(0), "it was never served");
    assert!(matches!(denied.code(), Code::PermissionDenied | Code::Unavailable), "{denied}");
    // Once the agent has heard of the end from the server, the answer is a denial.
    eventually("the denial", READY_WITHIN, || async {
        match fetch_x509(&socket).await {
            Err(status) if status.code() == Code::PermissionDenied => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await
}
