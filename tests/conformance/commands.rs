//! The Workload API's rules for clients: does the command line keep them, whoever answers?

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use passant_core::keys::KeyType;
use passant_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use passant_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use passant_tests::binaries::binaries;
use passant_tests::conformance::meets;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status};

use crate::samples::{Ca, ID, new_signing_key};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An endpoint that gives one answer to everybody.
struct Fake {
    x509: Result<Vec<X509svidResponse>, Code>,
    calls: Arc<AtomicUsize>,
}

impl Fake {
    fn refuse<T>(&self) -> Result<Response<T>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Err(Status::new(self.x509.as_ref().err().copied().unwrap_or(Code::Unimplemented), "a reason to tell"))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Fake {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;
    type FetchWITSVIDStream = Messages<WitsvidResponse>;
    type FetchWITBundlesStream = Messages<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        match &self.x509 {
            Err(_) => self.refuse(),
            Ok(messages) => {
                self.calls.fetch_add(1, Ordering::SeqCst);
                let messages = messages.clone().into_iter().map(Ok);
                Ok(Response::new(Box::pin(tokio_stream::iter(messages).chain(tokio_stream::pending()))))
            }
        }
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.refuse()
    }

    async fn fetch_jwtsvid(&self, _: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        self.refuse()
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.refuse()
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.refuse()
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        self.refuse()
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        self.refuse()
    }
}

/// Serves `x509` in `dir`, and counts the calls.
fn serve(dir: &Path, x509: Result<Vec<X509svidResponse>, Code>) -> anyhow::Result<Arc<AtomicUsize>> {
    let calls = Arc::new(AtomicUsize::new(0));
    let socket = dir.join("api.sock");
    if socket.exists() {
        std::fs::remove_file(&socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    let service = SpiffeWorkloadApiServer::new(Fake { x509, calls: Arc::clone(&calls) });
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    Ok(calls)
}

async fn passant(dir: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(&binaries().passant);
    let socket = format!("unix://{}", dir.join("api.sock").display());
    command.args(arguments).env("SPIFFE_ENDPOINT_SOCKET", socket);
    // Elsewhere, since the endpoint answers from here.
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_final_refusal_is_told_and_not_tried_again() -> anyhow::Result<()> {
    let _met = meets(&["WEND-23", "WEND-33"]);
    let dir = tempfile::tempdir()?;
    for code in [Code::InvalidArgument, Code::Unimplemented] {
        let calls = serve(dir.path(), Err(code))?;
        let commands: [&[&str]; 4] = [
            &["svid", "x509"],
            &["svid", "watch"],
            &["svid", "jwt", "--audience", "a"],
            &["svid", "validate", "--audience", "a", "token"],
        ];
        for (n, command) in commands.iter().enumerate() {
            let output = passant(dir.path(), command).await?;
            assert!(!output.status.success(), "{command:?}");
            let said = said(&output);
            assert!(said.contains("a reason to tell") && said.contains(&format!("{code:?}")), "{said}");
            assert_eq!(calls.load(Ordering::SeqCst), n + 1, "{command:?} called more than once");
        }
    }
    Ok(())
}

/// A whole answer.
fn good() -> X509svidResponse {
    let ca = Ca::root("example.org");
    let svid = X509svid {
        spiffe_id: ID.to_owned(),
        x509_svid: ca.leaf(ID),
        x509_svid_key: new_signing_key(KeyType::EcP256).pkcs8().expose().clone(),
        bundle: ca.der,
        hint: String::new(),
    };
    X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: BTreeMap::new() }
}

#[tokio::test]
async fn an_answer_that_lacks_a_field_is_dropped() -> anyhow::Result<()> {
    let _met = meets(&["WAPI-16"]);
    let dir = tempfile::tempdir()?;
    let kept = dir.path().join("identity");
    let kept = kept.to_str().unwrap_or_default();
    let write = ["svid", "x509", "--write", kept];
    let first = good();
    serve(dir.path(), Ok(vec![first.clone()]))?;
    let output = passant(dir.path(), &write).await?;
    assert!(output.status.success(), "{}", said(&output));
    let read = || -> anyhow::Result<Vec<Vec<u8>>> {
        ["svid.0.pem", "svid.0.key", "bundle.0.pem"]
            .iter()
            .map(|name| Ok(std::fs::read(Path::new(kept).join(name))?))
            .collect()
    };
    let before = read()?;

    for field in ["X509-SVIDs", "spiffe_id", "x509_svid", "x509_svid_key", "bundle"] {
        let mut answer = good();
        match field {
            "spiffe_id" => answer.svids[0].spiffe_id.clear(),
            "x509_svid" => answer.svids[0].x509_svid.clear(),
            "x509_svid_key" => answer.svids[0].x509_svid_key.clear(),
            "bundle" => answer.svids[0].bundle.clear(),
            _ => answer.svids.clear(),
        }
        serve(dir.path(), Ok(vec![answer]))?;
        let output = passant(dir.path(), &write).await?;
        assert!(!output.status.success(), "{field} is missing");
        assert!(said(&output).contains(field), "{field}: {}", said(&output));
        assert_eq!(read()?, before, "what was written before is kept");
    }
    Ok(())
}
