//! `passant svid`: this process as a workload, at the Workload API.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use passant_core::UnixTime;
use passant_core::jwt_svid::JwtSvid;
use passant_core::pem_text::section;
use passant_core::x509_svid::{X509Svid, split_der};
use passant_proto::convert;
use passant_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest, X509svidResponse};
use serde_json::{Value, json};

use crate::args::Svid;
use crate::commands::files;
use crate::connect::{WorkloadApi, refused, workload_api};
use crate::render::{Output, fields};

pub(crate) async fn run(command: Svid, out: &mut Output) -> anyhow::Result<()> {
    match command {
        Svid::X509 { socket, write } => {
            let identities = fetch_x509(&mut workload_api(&socket).await?).await?;
            match write {
                Some(dir) => save(&dir, &identities, out),
                None => show_x509(&identities, out),
            }
        }
        Svid::Jwt { socket, audience, spiffe_id } => {
            let id = spiffe_id.map(String::from).unwrap_or_default();
            let tokens = fetch_jwt(&mut workload_api(&socket).await?, audience, id).await?;
            show_jwt(&tokens, out)
        }
        Svid::Watch { socket } => watch(workload_api(&socket).await?, out).await,
        Svid::Validate { socket, audience, token } => {
            validate(workload_api(&socket).await?, audience, token, out).await
        }
    }
}

/// One identity as the Workload API gave it, read and checked as far as its own form goes.
pub(crate) struct Identity {
    pub(crate) svid: X509Svid,
    pub(crate) chain_der: Vec<Vec<u8>>,
    pub(crate) key_der: Vec<u8>,
    pub(crate) bundle_der: Vec<Vec<u8>>,
    pub(crate) hint: String,
}

/// A whole answer: the identities, the first being the default, and the bundles of other trust domains.
pub(crate) struct Identities {
    pub(crate) svids: Vec<Identity>,
    pub(crate) federated: Vec<(String, Vec<Vec<u8>>)>,
}

/// The present answer of the X.509 stream.
pub(crate) async fn fetch_x509(api: &mut WorkloadApi) -> anyhow::Result<Identities> {
    let mut stream = api.fetch_x509svid(X509svidRequest {}).await.map_err(refused)?.into_inner();
    let answer =
        stream.message().await.map_err(refused)?.context("the agent ended the stream without an answer")?;
    read(answer)
}

/// Checks that nothing mandatory is at its default (SPIFFE Workload API 4.5), and reads the rest.
fn read(answer: X509svidResponse) -> anyhow::Result<Identities> {
    if answer.svids.is_empty() {
        bail!("the agent's answer holds no X509-SVIDs");
    }
    let svids = answer.svids.into_iter().map(|wire| {
        let lacking = [
            ("spiffe_id", wire.spiffe_id.is_empty()),
            ("x509_svid", wire.x509_svid.is_empty()),
            ("x509_svid_key", wire.x509_svid_key.is_empty()),
            ("bundle", wire.bundle.is_empty()),
        ];
        if let Some((field, _)) = lacking.iter().find(|(_, is_lacking)| *is_lacking) {
            bail!("the agent's answer lacks {field} of an X509-SVID for \"{}\"", wire.spiffe_id);
        }
        let chain_der = ders(&wire.x509_svid)?;
        let svid = X509Svid::parse(chain_der.iter().cloned().map(Into::into).collect())
            .with_context(|| format!("the agent's X509-SVID for {} cannot be read", wire.spiffe_id))?;
        let bundle_der = ders(&wire.bundle)?;
        Ok(Identity { svid, chain_der, key_der: wire.x509_svid_key, bundle_der, hint: wire.hint })
    });
    let svids = svids.collect::<anyhow::Result<Vec<_>>>()?;
    let mut federated = Vec::new();
    let bundles: std::collections::BTreeMap<_, _> = answer.federated_bundles.into_iter().collect();
    for (trust_domain, der) in bundles {
        federated.push((trust_domain, ders(&der)?));
    }
    Ok(Identities { svids, federated })
}

/// How many certificates one field of an answer may hold.
const CERTIFICATES: usize = 1024;

/// Certificates that stand back to back.
fn ders(bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    let certificates = split_der(bytes, CERTIFICATES).context("the agent's answer holds no certificates")?;
    Ok(certificates.into_iter().map(|der| der.to_vec()).collect())
}

/// JWT-SVIDs for `audience`, for every identity or for `spiffe_id` alone.
pub(crate) async fn fetch_jwt(
    api: &mut WorkloadApi,
    audience: Vec<String>,
    spiffe_id: String,
) -> anyhow::Result<Vec<JwtSvid>> {
    let answer =
        api.fetch_jwtsvid(JwtsvidRequest { audience, spiffe_id }).await.map_err(refused)?.into_inner();
    let read = |wire: &str| JwtSvid::parse_unverified(wire).context("the agent's JWT-SVID cannot be read");
    answer.svids.iter().map(|wire| read(&wire.svid)).collect()
}

fn pems(certificates: &[Vec<u8>]) -> String {
    certificates.iter().map(|der| section("CERTIFICATE", der)).collect()
}

fn identity_json(identity: &Identity) -> Value {
    let base64 = |ders: &[Vec<u8>]| ders.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>();
    json!({
        "spiffe_id": identity.svid.id().as_str(),
        "serial_number": identity.svid.serial().to_decimal(),
        "not_before": identity.svid.not_before().secs().to_string(),
        "not_after": identity.svid.not_after().secs().to_string(),
        "x509_svid": base64(&identity.chain_der),
        "x509_svid_key": STANDARD.encode(&identity.key_der),
        "bundle": base64(&identity.bundle_der),
        "hint": identity.hint,
    })
}

fn identities_json(identities: &Identities) -> Value {
    let federated = identities.federated.iter().map(|(trust_domain, ders)| {
        (trust_domain.clone(), ders.iter().map(|der| Value::from(STANDARD.encode(der))).collect::<Value>())
    });
    json!({
        "svids": identities.svids.iter().map(identity_json).collect::<Value>(),
        "federated_bundles": federated.collect::<serde_json::Map<_, _>>(),
    })
}

pub(crate) fn describe(to: &mut dyn std::io::Write, identity: &Identity) -> std::io::Result<()> {
    let svid = &identity.svid;
    fields(
        to,
        &[
            ("SPIFFE ID", svid.id()),
            ("hint", &identity.hint),
            ("serial", svid.serial()),
            ("valid from", &svid.not_before()),
            ("valid until", &svid.not_after()),
            ("authorities", &format!("{} in the bundle", identity.bundle_der.len())),
        ],
    )
}

fn show_x509(identities: &Identities, out: &mut Output) -> anyhow::Result<()> {
    out.print(
        || identities_json(identities),
        |to| {
            for identity in &identities.svids {
                describe(to, identity)?;
                write!(to, "{}", pems(&identity.chain_der))?;
            }
            writeln!(to, "The key is not shown; --write DIR writes it with mode 0600.")
        },
    )
}

fn save(dir: &Path, identities: &Identities, out: &mut Output) -> anyhow::Result<()> {
    for (n, identity) in identities.svids.iter().enumerate() {
        files::write_public(dir, &format!("svid.{n}.pem"), &pems(&identity.chain_der))?;
        files::write_secret(dir, &format!("svid.{n}.key"), &section("PRIVATE KEY", &identity.key_der))?;
        files::write_public(dir, &format!("bundle.{n}.pem"), &pems(&identity.bundle_der))?;
        for (m, (_, bundle)) in identities.federated.iter().enumerate() {
            files::write_public(dir, &format!("federated_bundle.{n}.{m}.pem"), &pems(bundle))?;
        }
    }
    let (count, dir) = (identities.svids.len(), dir.display().to_string());
    out.print(
        || json!({ "written": dir, "svids": count }),
        |to| {
            for (n, identity) in identities.svids.iter().enumerate() {
                writeln!(to, "wrote svid.{n}.pem, svid.{n}.key and bundle.{n}.pem to {dir}")?;
                describe(to, identity)?;
            }
            Ok(())
        },
    )
}

fn show_jwt(tokens: &[JwtSvid], out: &mut Output) -> anyhow::Result<()> {
    let token_json = |svid: &JwtSvid| {
        json!({
            "spiffe_id": svid.id().as_str(),
            "audience": svid.audience(),
            "expires_at": svid.expires_at().secs().to_string(),
            "svid": svid.token(),
        })
    };
    out.print(
        || json!({ "svids": tokens.iter().map(token_json).collect::<Value>() }),
        |to| {
            for svid in tokens {
                fields(
                    to,
                    &[
                        ("SPIFFE ID", svid.id()),
                        ("audience", &svid.audience().join(" ")),
                        ("valid until", &svid.expires_at()),
                    ],
                )?;
                writeln!(to, "{}", svid.token())?;
            }
            Ok(())
        },
    )
}

async fn watch(mut api: WorkloadApi, out: &mut Output) -> anyhow::Result<()> {
    let mut stream = api.fetch_x509svid(X509svidRequest {}).await.map_err(refused)?.into_inner();
    let host = passant_core::Host::system();
    while let Some(answer) = stream.message().await.map_err(refused)? {
        let identities = read(answer)?;
        let received: UnixTime = host.now();
        out.print(
            || {
                let mut json = identities_json(&identities);
                for svid in json["svids"].as_array_mut().into_iter().flatten() {
                    // A log of updates is no place for keys.
                    if let Some(fields) = svid.as_object_mut() {
                        fields.remove("x509_svid_key");
                    }
                }
                json["received"] = Value::from(received.to_string());
                json
            },
            |to| {
                writeln!(to, "{received}: {} X509-SVID(s)", identities.svids.len())?;
                identities.svids.iter().try_for_each(|identity| describe(to, identity))
            },
        )?;
    }
    bail!("the agent ended the stream")
}

async fn validate(
    mut api: WorkloadApi,
    audience: String,
    token: String,
    out: &mut Output,
) -> anyhow::Result<()> {
    let token = if token == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("failed to read the token from standard input")?;
        text.trim().to_owned()
    } else {
        token
    };
    let request = ValidateJwtsvidRequest { audience, svid: token };
    let answer = api.validate_jwtsvid(request).await.map_err(refused)?.into_inner();
    let claims = Value::Object(convert::workload::claims(&answer));
    out.print(
        || json!({ "spiffe_id": answer.spiffe_id, "claims": claims }),
        |to| {
            writeln!(to, "valid: {}", answer.spiffe_id)?;
            writeln!(to, "{claims:#}")
        },
    )
}
