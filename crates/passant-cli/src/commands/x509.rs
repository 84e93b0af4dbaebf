//! `passant x509 mint`: an X509-SVID minted by the server for an operator, with a key made here.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use passant_core::keys::{KeyType, SigningKey};
use passant_core::pem_text::section;
use passant_core::{Host, SpiffeId, UnixTime, csr};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::svid::MintX509svidRequest;
use serde_json::json;

use crate::args::{ServerSocket, X509};
use crate::commands::entry::wire_secs;
use crate::commands::files;
use crate::connect::{Server, refused};
use crate::render::Output;

pub(crate) async fn run(command: X509, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let X509::Mint { spiffe_id, ttl, dns_names, write } = command;
    let server = Server::connect(socket).await?;
    let key = Host::system().keys.generate(KeyType::EcP256)?;
    let minted = mint(&server, &*key, &spiffe_id, &dns_names, ttl).await?;
    match write {
        Some(dir) => {
            save(&dir, &minted)?;
            let written = dir.display().to_string();
            out.print(
                || json!({ "written": written }),
                |to| writeln!(to, "wrote svid.pem, key.pem and bundle.pem to {written}"),
            )
        }
        None => show(&minted, out),
    }
}

/// An X509-SVID with its key and the authorities that it verifies against.
struct Minted<'a> {
    spiffe_id: &'a SpiffeId,
    chain: Vec<Vec<u8>>,
    key: &'a dyn SigningKey,
    authorities: Vec<Vec<u8>>,
    expires_at: UnixTime,
}

async fn mint<'a>(
    server: &Server,
    key: &'a dyn SigningKey,
    spiffe_id: &'a SpiffeId,
    dns_names: &[String],
    ttl: Option<Duration>,
) -> anyhow::Result<Minted<'a>> {
    let csr = csr::make_with_dns_names(key, Some(spiffe_id), dns_names)
        .context("failed to make a certificate signing request")?;
    let request = MintX509svidRequest { csr, ttl: ttl.map(wire_secs).unwrap_or_default() };
    let svid = server.svids().mint_x509svid(request).await.map_err(refused)?.into_inner().svid;
    let svid = svid.context("the server answered without an SVID")?;
    let bundle = server
        .bundles()
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(refused)?
        .into_inner();
    let authorities = bundle.x509_authorities.into_iter().map(|authority| authority.asn1).collect();
    Ok(Minted {
        spiffe_id,
        chain: svid.cert_chain,
        key,
        authorities,
        expires_at: UnixTime::from_secs(svid.expires_at),
    })
}

fn pems(certificates: &[Vec<u8>]) -> String {
    certificates.iter().map(|der| section("CERTIFICATE", der)).collect()
}

fn save(dir: &Path, minted: &Minted<'_>) -> anyhow::Result<()> {
    files::write_public(dir, "svid.pem", &pems(&minted.chain))?;
    files::write_secret(dir, "key.pem", &section("PRIVATE KEY", minted.key.pkcs8().expose()))?;
    files::write_public(dir, "bundle.pem", &pems(&minted.authorities))
}

fn show(minted: &Minted<'_>, out: &mut Output) -> anyhow::Result<()> {
    let base64 = |ders: &[Vec<u8>]| ders.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>();
    out.print(
        || {
            json!({
                "spiffe_id": minted.spiffe_id.as_str(),
                "expires_at": minted.expires_at.secs().to_string(),
                "x509_svid": base64(&minted.chain),
                "private_key": STANDARD.encode(minted.key.pkcs8().expose()),
                "root_cas": base64(&minted.authorities),
            })
        },
        |to| {
            writeln!(to, "X509-SVID for {}, until {}", minted.spiffe_id, minted.expires_at)?;
            write!(to, "{}", pems(&minted.chain))?;
            writeln!(to, "Private key")?;
            write!(to, "{}", section("PRIVATE KEY", minted.key.pkcs8().expose()))?;
            writeln!(to, "Bundle")?;
            write!(to, "{}", pems(&minted.authorities))
        },
    )
}
