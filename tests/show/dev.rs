//! Is what `passant dev` prints worth something to others? openssl verifies the X509-SVID, go-spiffe the JWT-SVID.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::wait::eventually;

use crate::peers::{self, Peer};
use crate::report::{Report, say};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// How long `passant dev` may take until all is printed.
const PRINTED_WITHIN: Duration = Duration::from_secs(60);

/// Runs the show.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    peers::build(report)?;
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let mut command = Command::new(&binaries().passant);
    command.args(["dev", "--data-dir"]).arg(&data);
    let mut dev = Daemon::start(command, &dir.path().join("printed"))?;
    let printed = eventually("passant dev to print all", PRINTED_WITHIN, || {
        let (ended, printed) = (dev.ended(), dev.log());
        async move {
            if let Some(status) = ended? {
                return Ok(Err(format!("it ended: {status}; it printed:\n{printed}")));
            }
            ensure!(printed.contains("Ctrl-C"), "so far:\n{printed}");
            Ok(Ok(printed))
        }
    })
    .await?;
    let printed = match printed {
        Ok(printed) => printed,
        Err(why) => bail!(why),
    };
    say(printed.trim_end());
    report.fact(
        "openssl verifies the printed X509-SVID against the printed bundle",
        verify(dir.path(), &printed),
    );
    let socket = data.join("agent.sock");
    report.fact("go-spiffe validates the printed JWT-SVID", validate(&socket, &printed).await);
    report.fact("it stops at Ctrl-C", interrupt(dev).await);
    Ok(())
}

/// Takes the first certificate block as the SVID's chain and the last one as the bundle: that is the order of printing.
fn verify(dir: &Path, printed: &str) -> anyhow::Result<String> {
    let certificates = certificates(printed);
    ensure!(
        certificates.len() >= 2,
        "an SVID and a bundle are expected, {} certificates found",
        certificates.len()
    );
    let (svid, bundle) = (dir.join("svid.pem"), dir.join("bundle.pem"));
    std::fs::write(&svid, &certificates[0])?;
    std::fs::write(&bundle, certificates[1..].concat())?;
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile"])
        .args([&bundle, &svid])
        .stdin(Stdio::null())
        .output()
        .context("failed to start openssl")?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "openssl verify: {}", said.trim());
    ensure!(certificates[0] != certificates[1], "the SVID and the bundle are the same certificate");
    Ok(String::new())
}

/// The certificates in PEM, whatever stands around them or before each line.
fn certificates(printed: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = printed;
    while let Some(begin) = rest.find(BEGIN) {
        let Some(end) = rest[begin..].find(END) else { break };
        let block = &rest[begin..begin + end + END.len()];
        let lines: Vec<&str> = block.lines().map(str::trim).collect();
        found.push(lines.join("\n") + "\n");
        rest = &rest[begin + end + END.len()..];
    }
    found
}

/// The first word that has the three parts of a signed token.
fn token(printed: &str) -> Option<&str> {
    printed.split_whitespace().find(|word| word.starts_with("eyJ") && word.matches('.').count() == 2)
}

async fn validate(socket: &Path, printed: &str) -> anyhow::Result<String> {
    let token = token(printed).context("no token is printed")?;
    let told = Peer::Go.program().json(socket, &["validate", "--token", token]).await?;
    Ok(format!("{} for {}", told["spiffe_id"], told["audience"]))
}

async fn interrupt(mut dev: Daemon) -> anyhow::Result<String> {
    dev.signal(nix::sys::signal::Signal::SIGINT)?;
    let status = dev.wait(Duration::from_secs(20)).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_tokens_are_found_among_other_words() {
        let printed = format!(
            "X509-SVID\n  {BEGIN}\n  AAAA\n  {END}\nbundle:\n{BEGIN}\nBBBB\n{END}\nJWT-SVID\n  eyJa.eyJb.c\n"
        );
        assert_eq!(certificates(&printed), ["AAAA", "BBBB"].map(|body| format!("{BEGIN}\n{body}\n{END}\n")));
        assert_eq!(token(&printed), Some("eyJa.eyJb.c"));
        assert_eq!(token("no token. here. at all"), None);
        assert!(certificates(BEGIN).is_empty());
    }
}
