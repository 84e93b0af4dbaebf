//! SPIFFE_Workload_Endpoint.md: is the endpoint local, guarded by its header, and open to whom it should be?

use std::fs;
use std::process::Command;

use anyhow::{Context, bail};
use passant_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use passant_tests::api::{channel, fetch_x509, selector, with_header, workload_api};
use passant_tests::binaries::binaries;
use passant_tests::conformance::meets;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// The definition that the agent's server is generated from.
const PROTO: &str = include_str!("../../proto/spiffe/workload/workload.proto");

/// What the specification defines, each message with its fields and their numbers.
const METHODS: [&str; 7] = [
    "FetchX509SVID(X509SVIDRequest) returns (stream X509SVIDResponse)",
    "FetchX509Bundles(X509BundlesRequest) returns (stream X509BundlesResponse)",
    "FetchJWTSVID(JWTSVIDRequest) returns (JWTSVIDResponse)",
    "FetchJWTBundles(JWTBundlesRequest) returns (stream JWTBundlesResponse)",
    "ValidateJWTSVID(ValidateJWTSVIDRequest) returns (ValidateJWTSVIDResponse)",
    "FetchWITSVID(WITSVIDRequest) returns (stream WITSVIDResponse)",
    "FetchWITBundles(WITBundlesRequest) returns (stream WITBundlesResponse)",
];
const MESSAGES: [(&str, &[&str]); 17] = [
    ("X509SVIDRequest", &[]),
    (
        "X509SVIDResponse",
        &[
            "repeated X509SVID svids = 1",
            "repeated bytes crl = 2",
            "map<string, bytes> federated_bundles = 3",
        ],
    ),
    (
        "X509SVID",
        &[
            "string spiffe_id = 1",
            "bytes x509_svid = 2",
            "bytes x509_svid_key = 3",
            "bytes bundle = 4",
            "string hint = 5",
        ],
    ),
    ("X509BundlesRequest", &[]),
    ("X509BundlesResponse", &["repeated bytes crl = 1", "map<string, bytes> bundles = 2"]),
    ("JWTSVIDRequest", &["repeated string audience = 1", "string spiffe_id = 2"]),
    ("JWTSVIDResponse", &["repeated JWTSVID svids = 1"]),
    ("JWTSVID", &["string spiffe_id = 1", "string svid = 2", "string hint = 3"]),
    ("JWTBundlesRequest", &[]),
    ("JWTBundlesResponse", &["map<string, bytes> bundles = 1"]),
    ("ValidateJWTSVIDRequest", &["string audience = 1", "string svid = 2"]),
    ("ValidateJWTSVIDResponse", &["string spiffe_id = 1", "google.protobuf.Struct claims = 2"]),
    ("WITSVIDRequest", &["string spiffe_id = 1"]),
    ("WITSVIDResponse", &["repeated WITSVID svids = 1"]),
    (
        "WITSVID",
        &["string spiffe_id = 1", "string wit_svid = 2", "string wit_svid_key = 3", "string hint = 4"],
    ),
    ("WITBundlesRequest", &[]),
    ("WITBundlesResponse", &["map<string, string> bundles = 1"]),
];

#[test]
fn the_service_is_the_standard_one_and_nothing_more() {
    let _met = meets(&["WEND-28", "WAPI-04", "WAPI-05"]);
    let (mut methods, mut messages): (Vec<&str>, Vec<(&str, Vec<&str>)>) = (Vec::new(), Vec::new());
    for line in PROTO.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        if let Some(name) = line.strip_prefix("message ") {
            messages.push((name.trim_end_matches([' ', '{']), Vec::new()));
        } else if let Some(method) = line.strip_prefix("rpc ") {
            methods.push(method.trim_end_matches(';'));
        } else if let (true, Some(message)) = (line.contains(" = "), messages.last_mut()) {
            message.1.push(line.trim_end_matches(';'));
        } else {
            let other = [
                "",
                "}",
                "syntax = \"proto3\";",
                "import \"google/protobuf/struct.proto\";",
                "service SpiffeWorkloadAPI {",
            ];
            assert!(other.contains(&line), "{line}");
        }
    }
    assert_eq!(methods, METHODS);
    let expected: Vec<(&str, Vec<&str>)> =
        MESSAGES.iter().map(|(name, fields)| (*name, fields.to_vec())).collect();
    assert_eq!(messages, expected);
}

#[test]
fn only_a_unix_socket_is_taken() {
    let _met = meets(&["WEND-02", "WEND-05", "WEND-06"]);
    let published = include_str!("../../config/agent.toml");
    assert!(published.lines().any(|line| line.contains("socket = \"/run/")), "the default is a unix socket");
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle.pem");
    fs::write(&bundle, "").unwrap();
    let check = |socket: &str| {
        let file = dir.path().join("agent.toml");
        let text = format!(
            "trust_domain = \"example.org\"\nserver_address = \"127.0.0.1:1\"\ndata_dir = {:?}\n[bootstrap]\nbundle = {bundle:?}\n\
             [workload_api]\nsocket = \"{socket}\"\n[node_attestor]\nmethod = \"join_token\"\n",
            dir.path().join("data"),
        );
        fs::write(&file, text).unwrap();
        let output =
            Command::new(&binaries().agent).arg("check").arg("--config").arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(check("/run/passant/api.sock").0, "{}", check("/run/passant/api.sock").1);
    for tcp in ["tcp://0.0.0.0:8000", "tcp://127.0.0.1:8000", "0.0.0.0:8000"] {
        assert!(!check(tcp).0, "{tcp}");
    }
}

#[test]
fn the_command_line_reads_addresses_as_specified() {
    let _met = meets(&["WEND-12", "WEND-13", "WEND-14", "WEND-15", "WEND-16"]);
    let fetch = |env: Option<&str>, flag: Option<&str>| {
        let mut command = Command::new(&binaries().passant);
        command.args(["svid", "x509"]).args(flag.iter().flat_map(|flag| ["--socket", flag]));
        command.env_remove("SPIFFE_ENDPOINT_SOCKET").envs(env.map(|env| ("SPIFFE_ENDPOINT_SOCKET", env)));
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Nothing answers at the good ones; the bad ones are not even tried.
    let unanswered = |said: &str, address: &str| said.contains("no agent answers") && said.contains(address);
    for good in ["unix:///nonexistent/a.sock", "unix:/nonexistent/a.sock"] {
        assert!(unanswered(&fetch(Some(good), None), good), "{good}");
    }
    for bad in [
        "/nonexistent/a.sock",
        "http://nonexistent",
        "npipe:nonexistent",
        "",
        "unix://host/nonexistent/a.sock",
        "unix://nonexistent/a.sock",
        "unix:nonexistent/a.sock",
        "unix:",
        "unix:///nonexistent/a.sock?x=1",
        "unix:///nonexistent/a.sock#f",
        "unix://u@/nonexistent/a.sock",
    ] {
        let said = fetch(Some(bad), None);
        assert!(!said.contains("no agent answers"), "{bad}: {said}");
    }
    let (env, flag) = ("unix:///nonexistent/env.sock", "unix:///nonexistent/flag.sock");
    assert!(unanswered(&fetch(Some(env), Some(flag)), flag));
    assert!(fetch(None, None).contains("SPIFFE_ENDPOINT_SOCKET"));
}

/// The codes with which each of the seven methods answers a request that `prepare` has made.
async fn codes(site: &Site, value: Option<&'static str>) -> anyhow::Result<Vec<(Code, String)>> {
    fn prepared<T>(message: T, value: Option<&'static str>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = value {
            request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static(value));
        }
        request
    }
    let mut api = workload_api(&site.agent_socket("agent")).await?;
    let jwt = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: String::new() };
    let validate = ValidateJwtsvidRequest { audience: "a".into(), svid: "x".into() };
    let results = [
        api.fetch_x509svid(prepared(X509svidRequest {}, value)).await.map(drop),
        api.fetch_x509_bundles(prepared(X509BundlesRequest {}, value)).await.map(drop),
        api.fetch_jwtsvid(prepared(jwt, value)).await.map(drop),
        api.fetch_jwt_bundles(prepared(JwtBundlesRequest {}, value)).await.map(drop),
        api.validate_jwtsvid(prepared(validate, value)).await.map(drop),
        api.fetch_witsvid(prepared(WitsvidRequest::default(), value)).await.map(drop),
        api.fetch_wit_bundles(prepared(WitBundlesRequest {}, value)).await.map(drop),
    ];
    let told = |result: Result<(), tonic::Status>| match result {
        Ok(()) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    };
    Ok(results.into_iter().map(told).collect())
}

/// Calls a method by its path, with an empty message.
async fn call(site: &Site, path: &'static str, header: bool) -> anyhow::Result<Code> {
    let mut grpc = tonic::client::Grpc::new(channel(&site.agent_socket("agent")).await?);
    grpc.ready().await?;
    let request = if header { with_header(X509svidRequest {}) } else { Request::new(X509svidRequest {}) };
    let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidRequest>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    Ok(grpc.unary(request, path, codec).await.map_or_else(|status| status.code(), |_| Code::Ok))
}

/// Whether the process listens on a TCP port: a socket of its own that the kernel lists in state LISTEN.
fn listens_on_tcp(pid: u32) -> anyhow::Result<bool> {
    let mut own = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        own.extend(inode.map(str::to_owned));
    }
    let mut found = false;
    for table in ["tcp", "tcp6"] {
        for row in fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default().lines() {
            let columns: Vec<&str> = row.split_whitespace().collect();
            found |= columns.get(3) == Some(&"0A")
                && columns.get(9).is_some_and(|inode| own.contains(&(*inode).to_owned()));
        }
    }
    Ok(found)
}

#[tokio::test]
async fn the_endpoint_is_local_and_guarded_by_its_header() -> anyhow::Result<()> {
    let _met = meets(&[
        "WEND-01", "WEND-03", "WEND-04", "WEND-07", "WEND-08", "WEND-09", "WEND-10", "WEND-11", "WEND-20",
        "WEND-21", "WEND-22", "WEND-29", "WEND-32", "WAPI-57", "WAPI-03", "STAB-01",
    ]);
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let own = std::env::current_exe()?;
    for (path, executable) in [("/test", own.as_path()), ("/cli", &binaries().passant)] {
        let executable = executable.to_str().context("a path of text")?;
        site.register(path, |entry| entry.selectors = vec![selector("unix", &format!("path:{executable}"))])
            .await?;
    }
    let token = site.join_token().await?;
    site.configure_agent(
        "agent",
        "method = \"join_token\"",
        "workload_attestors.unix.discover_workload_path = true",
    )?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    site.agent_serves("agent", &agent).await?;
    let socket = site.agent_socket("agent");

    assert!(!listens_on_tcp(agent.pid())?);
    assert!(listens_on_tcp(server.pid())?, "the look itself works");

    // Two programs of one user, neither with any credential: each gets its own identity.
    let fetched = eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let ids: Vec<&str> = fetched.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    assert_eq!(ids, ["spiffe://example.org/test"]);
    let fetched =
        eventually("an SVID", READY_WITHIN, || async { site.passant_json(&["svid", "x509"]) }).await?;
    assert_eq!(fetched["svids"].as_array().map(Vec::len), Some(1));
    assert_eq!(fetched["svids"][0]["spiffe_id"], "spiffe://example.org/cli");
    // The command line's own calls pass the guard, streaming and unary.
    site.passant_json(&["svid", "jwt", "--audience", "a"])?;

    let missing = (Code::InvalidArgument, "security header missing from request".to_owned());
    for value in [None, Some("True"), Some("TRUE"), Some("false"), Some("1"), Some("")] {
        assert!(codes(&site, value).await?.iter().all(|answer| *answer == missing), "{value:?}");
    }
    let mut twice = with_header(X509svidRequest {});
    twice.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static("true"));
    let refused = workload_api(&socket).await?.fetch_x509svid(twice).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let with_header: Vec<Code> =
        codes(&site, Some("true")).await?.into_iter().map(|(code, _)| code).collect();
    // Not a token is what ValidateJWTSVID was given; the WIT profile is not served.
    let (ok, none) = (Code::Ok, Code::Unimplemented);
    assert_eq!(with_header, [ok, ok, ok, ok, Code::InvalidArgument, none, none]);

    assert_eq!(call(&site, "/SpiffeWorkloadAPI/FetchFoo", true).await?, Code::Unimplemented);
    assert_eq!(call(&site, "/SpiffeWorkloadAPI/FetchFoo", false).await?, Code::InvalidArgument);
    // Other services on the socket: health and reflection, which tell nothing about identities, and Envoy's secret
    // discovery, whose clients do not send the header.
    let secrets = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets";
    assert_eq!(call(&site, secrets, false).await?, Code::Ok);
    for other in
        ["/envoy.service.secret.v3.SecretDiscoveryService/FetchFoo", "/spiffe.broker.API/FetchX509SVID"]
    {
        assert_eq!(call(&site, other, false).await?, Code::Unimplemented, "{other}");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_without_identity_is_denied_and_one_too_early_is_told_to_wait() -> anyhow::Result<()> {
    let _met = meets(&["WEND-24", "WEND-26", "WAPI-33", "WAPI-42", "WAPI-48"]);
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    site.register("/other", |entry| entry.selectors = vec![selector("unix", "uid:4242")]).await?;
    let token = site.join_token().await?;
    server.stop().await?;
    site.configure_agent("agent", "method = \"join_token\"", "")?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    let socket = site.agent_socket("agent");
    eventually("the socket", READY_WITHIN, || async { workload_api(&socket).await.map(drop) }).await?;
    let early: Vec<Code> = codes(&site, Some("true")).await?.into_iter().map(|(code, _)| code).collect();
    assert_eq!(early[..4], [Code::Unavailable; 4]);

    let _server = site.start_server().await?;
    site.agent_serves("agent", &agent).await?;
    let denied = codes(&site, Some("true")).await?;
    assert!(denied[..4].iter().all(|(code, _)| *code == Code::PermissionDenied), "{denied:?}");
    // One that exists and one that does not are denied alike.
    let mut api = workload_api(&socket).await?;
    let mut told = Vec::new();
    for id in ["spiffe://example.org/other", "spiffe://example.org/nobody"] {
        let request = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: id.into() };
        let status = api.fetch_jwtsvid(with_header(request)).await.map(drop).unwrap_err();
        told.push((status.code(), status.message().to_owned()));
    }
    assert_eq!(told[0].0, Code::PermissionDenied);
    assert_eq!(told[0], told[1]);
    Ok(())
}

#[tokio::test]
async fn reflection_tells_what_the_socket_serves() -> anyhow::Result<()> {
    let _met = meets(&["WEND-30", "WEND-34"]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let _agent = site.start_agent("agent").await?;
    let channel = channel(&site.agent_socket("agent")).await?;
    // Without the security header: a tool that looks around does not send it.
    for path in ["grpc.reflection.v1", "grpc.reflection.v1alpha"] {
        let told = reflect(channel.clone(), path, MessageRequest::ListServices(String::new())).await?;
        let MessageResponse::ListServicesResponse(services) = told else { bail!("{told:?}") };
        let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
        let secrets = "envoy.service.secret.v3.SecretDiscoveryService";
        for expected in ["SpiffeWorkloadAPI", "grpc.health.v1.Health", secrets] {
            assert!(names.iter().any(|name| name == expected), "{path}: {names:?}");
        }
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{path}: {names:?}");
        for symbol in ["SpiffeWorkloadAPI", secrets] {
            let symbol = MessageRequest::FileContainingSymbol(symbol.to_owned());
            let told = reflect(channel.clone(), path, symbol).await?;
            let MessageResponse::FileDescriptorResponse(files) = told else { bail!("{told:?}") };
            assert!(!files.file_descriptor_proto.is_empty(), "{path}");
        }
        let unknown = MessageRequest::FileContainingSymbol("NoSuchAPI".to_owned());
        assert!(reflect(channel.clone(), path, unknown).await.is_err(), "{path}");
    }
    Ok(())
}

/// One question to the reflection service of `package`; both versions have the same messages.
async fn reflect(
    channel: tonic::transport::Channel,
    package: &str,
    question: MessageRequest,
) -> anyhow::Result<MessageResponse> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let codec = tonic_prost::ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
    let path = format!("/{package}.ServerReflection/ServerReflectionInfo").parse()?;
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let questions = Request::new(tokio_stream::iter([request]));
    let mut answers = grpc.streaming(questions, path, codec).await?.into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    answer.context("an answer")
}
