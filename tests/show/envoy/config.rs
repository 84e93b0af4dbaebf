//! What is each Envoy told to do?
//!
//! The outer one takes plain connections and the inner one TLS: outer to inner is mutual TLS, by secrets of the agent alone.

use std::net::SocketAddr;
use std::path::Path;

use passant_tests::site::TRUST_DOMAIN;
use serde_json::{Value, json};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// Takes TLS from `client` alone, and passes it on to `echo`. Asks by its SPIFFE ID `own`, and for all bundles.
pub(super) fn inner(socket: &Path, own: &str, client: &str, echo: SocketAddr) -> Value {
    let agent = "agent_socket";
    let socket_of_clients = json!({
        "name": "tls",
        "typed_config": {
            "@type": format!("{TLS}.DownstreamTlsContext"),
            "require_client_certificate": true,
            // Each connection shows its certificate: none goes on from an earlier one.
            "disable_stateless_session_resumption": true,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [secret(own, agent)],
                "combined_validation_context": expecting(client, "ALL", agent),
            },
        },
    });
    let mut listener = listener("mtls", "echo");
    listener["filter_chains"][0]["transport_socket"] = socket_of_clients;
    envoy("inner", &json!({}), &[listener], &[agent_cluster(agent, socket), cluster("echo", echo)])
}

/// Takes plain connections on `right`, and passes them on by TLS to `inner` at `to`. On `wrong` it expects somebody else
/// there, and on `bare` it shows no certificate. Asks by the words that SPIRE knows, and checks chains without Envoy's
/// validator of X509-SVIDs.
pub(super) fn outer(socket: &Path, inner: &str, to: SocketAddr) -> Value {
    // As meshes call their clusters: no legal authority of a URL, which is what Envoy makes of it.
    let agent = "outbound|443||agent";
    let stranger = format!("spiffe://{TRUST_DOMAIN}/stranger");
    let over_tls = |name: &str, expected: &str, bundle: &str, shown: &[Value]| {
        let mut cluster = cluster(name, to);
        cluster["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": format!("{TLS}.UpstreamTlsContext"),
                "max_session_keys": 0,
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": shown,
                    "combined_validation_context": expecting(expected, bundle, agent),
                },
            },
        });
        cluster
    };
    let own = [secret("default", agent)];
    let clusters = [
        agent_cluster(agent, socket),
        over_tls("right", inner, "ROOTCA", &own),
        over_tls("wrong", &stranger, &format!("spiffe://{TRUST_DOMAIN}"), &own),
        over_tls("bare", inner, "ROOTCA", &[]),
    ];
    let listeners = ["right", "wrong", "bare"].map(|name| listener(name, name));
    envoy("outer", &json!({ "disable_spiffe_cert_validation": true }), &listeners, &clusters)
}

/// Asks for a bundle where it needs a certificate of its own, which no Envoy takes.
pub(super) fn confused(socket: &Path, to: SocketAddr) -> Value {
    let agent = "agent";
    let mut wrong = cluster("wrong", to);
    wrong["transport_socket"] = json!({
        "name": "tls",
        "typed_config": {
            "@type": format!("{TLS}.UpstreamTlsContext"),
            "common_tls_context": { "tls_certificate_sds_secret_configs": [secret("ROOTCA", agent)] },
        },
    });
    envoy("confused", &json!({}), &[listener("wrong", "wrong")], &[agent_cluster(agent, socket), wrong])
}

fn envoy(id: &str, metadata: &Value, listeners: &[Value], clusters: &[Value]) -> Value {
    json!({
        "node": { "id": id, "cluster": "show", "metadata": metadata },
        "admin": { "address": loopback(0) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn loopback(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

fn listener(name: &str, cluster: &str) -> Value {
    json!({
        "name": name,
        "address": loopback(0),
        "filter_chains": [{
            "filters": [{
                "name": "tcp",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name,
                    "cluster": cluster,
                },
            }],
        }],
    })
}

fn cluster(name: &str, to: SocketAddr) -> Value {
    json!({
        "name": name,
        "connect_timeout": "10s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": loopback(to.port()) } }] }],
        },
    })
}

fn agent_cluster(name: &str, socket: &Path) -> Value {
    json!({
        "name": name,
        "connect_timeout": "10s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "pipe": { "path": socket } } } }] }],
        },
    })
}

fn secret(name: &str, agent: &str) -> Value {
    json!({
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": agent } }],
            },
        },
    })
}

/// Whom the other side has to be, by the bundle called so.
fn expecting(spiffe_id: &str, bundle: &str, agent: &str) -> Value {
    json!({
        "default_validation_context": {
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": spiffe_id } }],
        },
        "validation_context_sds_secret_config": secret(bundle, agent),
    })
}
