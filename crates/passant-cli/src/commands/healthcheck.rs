//! `passant healthcheck`: whether a daemon can be relied on.

use anyhow::bail;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::{Healthcheck, ServerSocket};
use crate::connect::{Server, refused, workload_channel};
use crate::render::Output;

pub(crate) async fn run(args: Healthcheck, server: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let (name, channel) = if args.agent {
        ("agent", workload_channel(&args.socket).await?)
    } else {
        ("server", Server::connect(server).await?.channel())
    };
    let request = HealthCheckRequest { service: String::new() };
    let answer = HealthClient::new(channel).check(request).await.map_err(refused)?.into_inner();
    let status = answer.status();
    if status != ServingStatus::Serving {
        bail!(
            "the {name} is not ready ({}); /ready on its probe port and its log say why",
            status.as_str_name()
        );
    }
    out.print(|| json!({ "status": status.as_str_name() }), |to| writeln!(to, "The {name} is ready."))
}
