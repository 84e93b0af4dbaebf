//! Is what an engine says believed as far as the control groups bear it out, and no further?

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::limits::{ENGINE_ANSWER_BYTES, ENGINE_MESSAGE_CHARS};

const A: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
const B: &str = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d";
const IMAGE: &str = "sha256:2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6";
/// Of the containers' first processes; no process of this machine is looked at.
const FIRST: u32 = 4242;

/// An engine that answers what it was told to.
struct Fake {
    dir: TempDir,
    answers: Arc<Mutex<Answers>>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Answers {
    version: Option<String>,
    /// By path, without the version.
    bodies: BTreeMap<String, (u16, Vec<u8>)>,
    /// Paths that were asked for.
    asked: Vec<String>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Fake {
    fn start(version: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("engine.sock")).unwrap();
        let answers =
            Arc::new(Mutex::new(Answers { version: version.map(str::to_owned), ..Answers::default() }));
        let shared = Arc::clone(&answers);
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { dir, answers, serving }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    fn answer(&self, id: &str, status: u16, body: impl Into<Vec<u8>>) {
        let path = format!("/containers/{id}/json");
        self.answers.lock().unwrap().bodies.insert(path, (status, body.into()));
    }

    fn runs(&self, id: &str, container: &Value) {
        self.answer(id, 200, container.to_string());
    }

    fn asked(&self) -> Vec<String> {
        self.answers.lock().unwrap().asked.clone()
    }

    fn docker(&self) -> Docker {
        Docker::new(DockerConfig { docker_socket_path: self.socket(), ..nowhere() })
    }
}

/// No engine is there.
fn nowhere() -> DockerConfig {
    let template = SocketTemplate::parse("/nonexistent/%d.sock").unwrap();
    DockerConfig {
        docker_socket_path: PathBuf::from("/nonexistent/docker.sock"),
        podman_socket_path: PathBuf::from("/nonexistent/podman.sock"),
        docker_socket_path_template: template.clone(),
        podman_socket_path_template: template,
        rootless_users: BTreeSet::new(),
    }
}

async fn serve(mut stream: UnixStream, answers: Arc<Mutex<Answers>>) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let request = String::from_utf8(std::mem::take(&mut head)).unwrap();
        let path = request.strip_prefix("GET ").unwrap().split(' ').next().unwrap().to_owned();
        let answer = {
            let mut answers = answers.lock().unwrap();
            answers.asked.push(path.clone());
            let version = answers.version.as_ref().map(|it| format!("Api-Version: {it}\r\n"));
            let unversioned = path.strip_prefix("/v").and_then(|path| path.find('/').map(|at| &path[at..]));
            let missing = || (404, br#"{"message":"No such container"}"#.to_vec());
            let (status, body) = match path.as_str() {
                "/_ping" => (200, b"OK".to_vec()),
                path => answers.bodies.get(unversioned.unwrap_or(path)).cloned().unwrap_or_else(missing),
            };
            let version = version.unwrap_or_default();
            let mut answer =
                format!("HTTP/1.1 {status} X\r\n{version}Content-Length: {}\r\n\r\n", body.len())
                    .into_bytes();
            answer.extend(body);
            answer
        };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn running(id: &str) -> Value {
    json!({
        "Id": id,
        "State": {"Status": "running", "Running": true, "Pid": FIRST, "More": [1, 2]},
        "Image": IMAGE,
        "Config": {
            "Image": "shop/web:1.2",
            "Labels": {"app": "web", "com.example.tier": "a:b"},
            "Env": ["PATH=/bin", "MODE=a=b"],
        },
    })
}

fn cgroups(text: &str) -> Cgroups {
    Cgroups::parse(text.as_bytes()).unwrap()
}

/// What `docker` finds for a process in the control group `own`, where the first process of the container is in `first`.
async fn found(docker: &Docker, own: &str, first: &str) -> Result<Vec<String>, AttestError> {
    let first = first.to_owned();
    let look = move |pid| {
        assert_eq!(pid, FIRST);
        Ok(first.clone().into_bytes())
    };
    let selectors = docker.of(&cgroups(own), &look).await?;
    Ok(selectors.iter().map(ToString::to_string).collect())
}

async fn refusal(docker: &Docker, own: &str, first: &str) -> String {
    match found(docker, own, first).await {
        Err(AttestError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// The failure with its causes.
async fn failure(docker: &Docker, own: &str) -> String {
    match found(docker, own, own).await {
        Err(AttestError::Failed { what, source: Some(source) }) => {
            let mut told = format!("{what}: {source}");
            let mut cause = source.source();
            while let Some(error) = cause {
                told = format!("{told}: {error}");
                cause = error.source();
            }
            told
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn labels_environment_and_image_are_selectors() {
    let fake = Fake::start(Some("1.41"));
    fake.runs(A, &running(A));
    let own = format!("0::/system.slice/docker-{A}.scope\n");
    let selectors = found(&fake.docker(), &own, &own).await.unwrap();
    let expected = [
        "docker:env:MODE=a=b".to_owned(),
        "docker:env:PATH=/bin".to_owned(),
        "docker:image_config_digest:".to_owned() + IMAGE,
        "docker:image_id:shop/web:1.2".to_owned(),
        "docker:label:app:web".to_owned(),
        "docker:label:com.example.tier:a:b".to_owned(),
    ];
    assert_eq!(selectors, expected);
    assert_eq!(fake.asked(), ["/_ping".to_owned(), format!("/v1.41/containers/{A}/json")]);
}

#[tokio::test]
async fn the_older_version_is_spoken() {
    for (engine, spoken) in [
        (Some("1.24"), "/v1.24"),
        (Some("1.51"), "/v1.51"),
        (Some("1.52"), "/v1.51"),
        (Some("2.0"), "/v1.51"),
        (None, ""),
    ] {
        let fake = Fake::start(engine);
        fake.runs(A, &running(A));
        let own = format!("0::/docker/{A}\n");
        assert_eq!(found(&fake.docker(), &own, &own).await.unwrap().len(), 6);
        assert_eq!(fake.asked()[1], format!("{spoken}/containers/{A}/json"));
    }
    let fake = Fake::start(Some("one/../x"));
    assert!(failure(&fake.docker(), &format!("0::/docker/{A}\n")).await.contains("no version"));
}

#[tokio::test]
async fn an_engine_may_leave_out_what_is_empty() {
    let fake = Fake::start(Some("1.41"));
    let mut container = running(A);
    container["Config"] = json!({"Labels": null, "Env": null, "Image": ""});
    container["Image"] = json!(&IMAGE["sha256:".len()..]);
    fake.runs(A, &container);
    let own = format!("0::/docker/{A}\n");
    let digest = format!("docker:image_config_digest:{IMAGE}");
    let nothing_named = found(&fake.docker(), &own, &own).await.unwrap();
    assert_eq!(nothing_named, [digest]);
    for no_digest in [json!(null), json!(""), json!("latest"), json!("sha256:12")] {
        container["Image"] = no_digest;
        fake.runs(A, &container);
        assert!(found(&fake.docker(), &own, &own).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn processes_of_no_container_ask_nobody() {
    let docker = Docker::new(nowhere());
    for own in ["0::/", "0::/user.slice/user-1000.slice/session-2.scope"] {
        assert_eq!(found(&docker, own, own).await.unwrap(), Vec::<String>::new());
    }
    for runtime in ["cri-containerd", "crio", "nerdctl"] {
        let own = format!("0::/system.slice/{runtime}-{A}.scope");
        assert_eq!(found(&docker, &own, &own).await.unwrap(), Vec::<String>::new(), "{runtime}");
    }
}

#[tokio::test]
async fn a_name_alone_is_not_believed() {
    let fake = Fake::start(Some("1.41"));
    fake.runs(A, &running(A));
    let docker = fake.docker();
    let real = format!("0::/system.slice/docker-{A}.scope\n");
    assert!(found(&docker, &format!("0::/system.slice/docker-{A}.scope/below\n"), &real).await.is_ok());
    for spoof in [
        format!("0::/system.slice/{A}\n"),
        format!("0::/docker-{A}.scope\n"),
        format!("0::/system.slice/docker-{B}.scope/docker-{A}.scope\n"),
        format!("2:cpu:/system.slice/docker-{A}.scope\n0::/\n"),
    ] {
        assert!(refusal(&docker, &spoof, &real).await.contains("not that of the container"), "{spoof}");
    }
    // The engine's process is elsewhere by now, or another has its pid.
    for first in ["0::/\n".to_owned(), format!("0::/system.slice/docker-{B}.scope\n"), "?".to_owned()] {
        assert!(refusal(&docker, &real, &first).await.contains("not that of the container"), "{first}");
    }
    let gone = |_| Err(ErrorKind::NotFound.into());
    let error = docker.of(&cgroups(&real), &gone).await.unwrap_err();
    assert!(matches!(error, AttestError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn only_running_containers_count() {
    let fake = Fake::start(Some("1.41"));
    let own = format!("0::/docker/{A}\n");
    for (running_, pid) in
        [(false, json!(FIRST)), (true, json!(0)), (true, json!(-1)), (true, json!(1_i64 << 40))]
    {
        let mut container = running(A);
        container["State"] = json!({"Running": running_, "Pid": pid});
        fake.runs(A, &container);
        assert!(refusal(&fake.docker(), &own, &own).await.contains("does not run"));
    }
    fake.runs(A, &running(B));
    assert!(refusal(&fake.docker(), &own, &own).await.contains("told of another"));
    let unknown = format!("0::/docker/{B}\n");
    assert!(refusal(&fake.docker(), &unknown, &unknown).await.contains("knows no container"));
    let two = format!("2:cpu:/docker/{A}\n1:cpuset:/docker/{B}\n");
    assert!(refusal(&fake.docker(), &two, &two).await.contains("name two containers"));
}

#[tokio::test]
async fn an_engine_of_a_user_is_believed_only_when_configured() {
    let fake = Fake::start(Some("1.41"));
    fake.runs(A, &running(A));
    let uid = nix::unistd::geteuid().as_raw();
    let socket = fake.dir.path().join(format!("{uid}.sock"));
    std::fs::rename(fake.socket(), &socket).unwrap();
    let template = SocketTemplate::parse(fake.dir.path().join("%d.sock").to_str().unwrap()).unwrap();
    for (template_is_of, runtime) in [("docker", "docker"), ("podman", "libpod")] {
        let mut config = nowhere();
        match template_is_of {
            "docker" => config.docker_socket_path_template = template.clone(),
            _ => config.podman_socket_path_template = template.clone(),
        }
        let slice = format!("0::/user.slice/user-{uid}.slice/user@{uid}.service/user.slice");
        let own = format!("{slice}/{runtime}-{A}.scope\n");
        let unlisted = refusal(&Docker::new(config.clone()), &own, &own).await;
        assert!(unlisted.contains("rootless_users"), "{unlisted}");
        config.rootless_users = BTreeSet::from([uid]);
        assert_eq!(found(&Docker::new(config), &own, &own).await.unwrap().len(), 6);
    }
    assert!(fake.asked().len() == 4, "{:?}", fake.asked());
}

#[tokio::test]
async fn podman_of_root_has_a_socket_of_its_own() {
    let fake = Fake::start(None);
    fake.runs(A, &running(A));
    let docker = Docker::new(DockerConfig { podman_socket_path: fake.socket(), ..nowhere() });
    let own = format!("0::/machine.slice/libpod-{A}.scope/container\n");
    assert_eq!(found(&docker, &own, &own).await.unwrap().len(), 6);
    let own = format!("0::/machine.slice/docker-{A}.scope\n");
    assert!(failure(&docker, &own).await.contains("/nonexistent/docker.sock"));
}

#[tokio::test]
async fn an_engine_that_fails_is_told_of_with_the_remedy() {
    let own = format!("0::/docker/{A}\n");
    let away = failure(&Docker::new(nowhere()), &own).await;
    for part in ["/nonexistent/docker.sock", A, "see that the engine runs", "No such file"] {
        assert!(away.contains(part), "{part}: {away}");
    }
    let fake = Fake::start(Some("1.41"));
    for (status, body, told) in [
        (500, r#"{"message":"it broke"}"#.to_owned(), "it broke".to_owned()),
        (400, "x".repeat(500), "x".repeat(ENGINE_MESSAGE_CHARS) + "\""),
        (200, "{}".to_owned(), "missing field".to_owned()),
        (200, "[".repeat(1000), "not as expected".to_owned()),
        (
            200,
            json!({"Id": "../x", "State": {"Running": true, "Pid": 1}, "Config": {}}).to_string(),
            "64".to_owned(),
        ),
        (200, " ".repeat(ENGINE_ANSWER_BYTES + 1), "at most 1048576 bytes".to_owned()),
    ] {
        fake.answer(A, status, body);
        let failure = failure(&fake.docker(), &own).await;
        assert!(failure.contains(&told), "{told}: {failure}");
    }
    fake.runs(A, &running(A));
    assert!(found(&fake.docker(), &own, &own).await.is_ok(), "it recovers");
}

#[tokio::test]
async fn an_answer_of_the_longest_kind_is_read() {
    let fake = Fake::start(Some("1.41"));
    let own = format!("0::/docker/{A}\n");
    let mut body = running(A).to_string();
    body.push_str(&" ".repeat(ENGINE_ANSWER_BYTES - body.len()));
    fake.answer(A, 200, body);
    assert!(found(&fake.docker(), &own, &own).await.is_ok());
}

#[tokio::test]
async fn a_flood_of_labels_is_left_out_as_a_whole() {
    let fake = Fake::start(Some("1.41"));
    let own = format!("0::/docker/{A}\n");
    let with = |labels: usize| {
        let mut container = running(A);
        container["Config"]["Labels"] = (0..labels).map(|nth| (nth.to_string(), json!("x"))).collect();
        container
    };
    // Two variables, the image and its digest are there too.
    fake.runs(A, &with(CONTAINER_SELECTORS - 4));
    assert_eq!(found(&fake.docker(), &own, &own).await.unwrap().len(), CONTAINER_SELECTORS);
    fake.runs(A, &with(CONTAINER_SELECTORS - 3));
    assert!(refusal(&fake.docker(), &own, &own).await.contains("513 labels"));
    // A long one alone is left out: no entry could ask for it.
    let mut container = running(A);
    container["Config"]["Env"] = json!(["A=".to_owned() + &"x".repeat(9000), "B=1"]);
    fake.runs(A, &container);
    let selectors = found(&fake.docker(), &own, &own).await.unwrap();
    assert!(selectors.contains(&"docker:env:B=1".to_owned()) && selectors.len() == 5, "{selectors:?}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let docker = Docker::new(DockerConfig { docker_socket_path: socket, ..nowhere() });
    assert!(failure(&docker, &format!("0::/docker/{A}\n")).await.contains("in time"));
}

#[tokio::test]
async fn this_very_process_is_asked_about() {
    let (one, _two) = UnixStream::pair().unwrap();
    let peer = Peer::of(&one).unwrap();
    let cgroups = Cgroups::parse(&Process::of(std::process::id()).cgroup().unwrap()).unwrap();
    let answer = Docker::new(nowhere()).attest(&peer).await;
    match cgroups.container().unwrap() {
        None => assert!(answer.unwrap().is_empty()),
        Some(_) => assert!(answer.map_or(true, |selectors| selectors.is_empty())),
    }
}

#[test]
fn sockets_are_absolute_paths() {
    assert_eq!(socket_path("unix:///run/docker.sock"), Ok(PathBuf::from("/run/docker.sock")));
    assert_eq!(socket_path("/run/docker.sock"), Ok(PathBuf::from("/run/docker.sock")));
    for text in ["", "docker.sock", "tcp://127.0.0.1:2375", "unix://run/docker.sock", "npipe:////./pipe/x"] {
        assert!(socket_path(text).is_err(), "{text}");
    }
    let template = SocketTemplate::parse("unix:///run/user/%d/docker.sock").unwrap();
    assert_eq!(template, DockerConfig::default().docker_socket_path_template);
    assert_eq!(template.of(7), Path::new("/run/user/7/docker.sock"));
    for text in ["/run/docker.sock", "/run/%d/%d.sock", "/run/%u/%d.sock", "/%d/%", "run/%d"] {
        assert!(SocketTemplate::parse(text).is_err(), "{text}");
    }
}
