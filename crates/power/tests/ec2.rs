//! The EC2 driver and set against moto's server, for the contract of the API, and against an endpoint of our own, for what
//! moto does not enforce: signatures, client tokens and throttling.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use power::{Advice, BootDevice, NextBoot, Outcome, Source, State, Wish, open, open_set};
use rackswarm_power as power;
use tempfile::TempDir;

struct Moto {
    server: Child,
    address: String,
    _folder: TempDir,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn credentials(folder: &Path) -> String {
    let path = folder.join("credentials");
    std::fs::write(&path, "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = hunter2\n").unwrap();
    path.display().to_string()
}

fn moto() -> Moto {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/power-venv/bin/moto_server");
    assert!(program.exists(), "moto is not in target/power-venv; run `cargo xtask test`, which installs it");
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Command::new(program)
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .env("MOTO_ENABLE_AMI_VALIDATION", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address =
        format!("ec2+http://127.0.0.1:{port}?region=us-east-1&credentials_file={}", credentials(folder.path()));
    let moto = Moto { server, address, _folder: folder };
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "moto's server does not come up");
        std::thread::sleep(Duration::from_millis(200));
    }
    moto
}

/// An image that moto knows from the start.
const AMI: &str = "ami-12c6146b";

fn wish(token: &str, count: u32) -> Wish {
    Wish {
        token: token.into(),
        count,
        image: Some(AMI.into()),
        instance_type: Some("t3.small".into()),
        ..Wish::default()
    }
}

async fn done(answer: impl Future<Output = power::Result<Outcome>>) {
    assert_eq!(answer.await.unwrap(), Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_made_driven_and_ended() {
    let moto = moto();
    let set = open_set(&moto.address).unwrap();
    assert_eq!(set.list().await.unwrap(), []);
    let taken = set.acquire(&wish("web", 2)).await.unwrap();
    assert_eq!(taken.len(), 2);
    let again = set.acquire(&wish("web", 2)).await.unwrap();
    let ids = |list: &[power::Resource]| {
        let mut ids: Vec<String> = list.iter().map(|one| one.id.clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&again), ids(&taken), "the same token, the same instances");
    assert_eq!(set.acquire(&wish("web", 3)).await.unwrap().len(), 3, "one more was wished for");
    assert_eq!(set.list().await.unwrap().len(), 3);
    assert_eq!(again[0].held_by.as_deref(), Some("web"));
    assert!(!again[0].macs.is_empty() && !again[0].addresses.is_empty(), "{:?}", again[0]);

    let driver = open(&again[0].power).unwrap();
    done(driver.on()).await;
    assert_eq!(driver.state().await.unwrap(), State::On);
    done(driver.off()).await;
    done(driver.off()).await;
    assert_eq!(driver.state().await.unwrap(), State::Off);
    let image = set.add_image("gold", &Source::Machine(again[0].id.clone())).await.unwrap();
    assert_eq!(set.add_image("gold", &Source::Machine(again[0].id.clone())).await.unwrap().id, image.id);
    assert!(set.images().await.unwrap().iter().any(|one| one.name == "gold"));
    done(driver.cycle()).await;
    assert_eq!(driver.state().await.unwrap(), State::On);
    done(driver.reset()).await;
    assert_eq!(driver.state().await.unwrap(), State::On);
    assert_eq!(driver.next_boot().await.unwrap(), NextBoot::Always(BootDevice::Disk));
    done(driver.boot_next(BootDevice::Disk)).await;
    let error = driver.boot_next(BootDevice::Network).await.unwrap_err().to_string();
    assert!(error.contains("cannot boot from the network"), "{error}");
    let error = set.add_image("live", &Source::Machine(again[0].id.clone())).await.unwrap_err().to_string();
    assert!(error.contains("stop it first"), "{error}");

    done(set.release(&again[0].id)).await;
    done(set.release(&again[0].id)).await;
    assert_eq!(set.list().await.unwrap().len(), 2);
    assert!(driver.on().await.unwrap_err().to_string().contains("for ever"));
    assert_eq!(set.acquire(&wish("web", 3)).await.unwrap().len(), 3, "an ended one is replaced");
    refusals(set.as_ref()).await;
}

async fn refusals(set: &dyn power::ResourceSet) {
    let error = set.acquire(&Wish { image: None, ..wish("x", 1) }).await.unwrap_err().to_string();
    assert!(error.contains("needs an image"), "{error}");
    let error = set.acquire(&Wish { image: Some("ami-00000000".into()), ..wish("x", 1) }).await.unwrap_err();
    assert!(error.to_string().contains("list the set's images"), "{error}");
    assert_eq!(error.advice(), Advice::Refuse);
    done(set.release("i-00000000000000000")).await;
    let registered = set.add_image("snap", &Source::Place("disk.raw".into())).await.unwrap_err().to_string();
    assert!(registered.contains("snap-"), "{registered}");
}

/// An endpoint that notes what it is sent and answers what it is told to.
async fn endpoint(answers: Vec<(u16, &'static str)>) -> (String, Arc<Mutex<Vec<(HeaderMap, String)>>>, TempDir) {
    let seen: Arc<Mutex<Vec<(HeaderMap, String)>>> = Arc::default();
    let (notes, answers) = (Arc::clone(&seen), Arc::new(Mutex::new(answers.into_iter())));
    let app = Router::new().route(
        "/",
        post(move |headers: HeaderMap, body: String| async move {
            notes.lock().unwrap().push((headers, body));
            let (status, text) = answers.lock().unwrap().next().unwrap_or((500, ""));
            (StatusCode::from_u16(status).unwrap(), text)
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let folder = tempfile::tempdir().unwrap();
    let address = format!("ec2+http://{at}?region=lab&credentials_file={}", credentials(folder.path()));
    (address, seen, folder)
}

const NONE: &str = "<R><reservationSet/></R>";
const MADE: &str = "<R><instancesSet><item><instanceId>i-1</instanceId><instanceState><name>pending</name></instanceState></item></instancesSet></R>";

fn parameter(body: &str, name: &str) -> Option<String> {
    body.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}="))).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_again_with_the_same_client_token() {
    let throttled = "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow down</Message></Error></Errors></Response>";
    let (address, seen, _folder) = endpoint(vec![(200, NONE), (503, throttled), (500, ""), (200, MADE)]).await;
    let made = open_set(&address).unwrap().acquire(&wish("web", 1)).await.unwrap();
    assert_eq!((made[0].id.as_str(), made[0].state), ("i-1", State::Unknown));
    let seen = seen.lock().unwrap();
    let tokens: Vec<_> = seen.iter().filter_map(|(_, body)| parameter(body, "ClientToken")).collect();
    assert_eq!(tokens.len(), 3);
    assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
    for (headers, body) in seen.iter() {
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(
            authorization.contains("/lab/ec2/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature=")
        );
        assert!(!authorization.contains("hunter2") && !body.contains("hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cloud_refuses_is_told_with_what_to_do() {
    let denied =
        "<Response><Errors><Error><Code>AuthFailure</Code><Message>no such key</Message></Error></Errors></Response>";
    let (address, seen, folder) = endpoint(vec![(401, denied), (200, "<html>a login page<br></html>")]).await;
    let set = open_set(&address).unwrap();
    let error = set.list().await.unwrap_err();
    assert!(
        error.to_string().contains("AuthFailure: no such key") && error.to_string().contains("credentials file"),
        "{error}"
    );
    assert_eq!(error.advice(), Advice::Refuse);
    assert_eq!(seen.lock().unwrap().len(), 1, "a refused key is not tried again");
    let error = set.list().await.unwrap_err().to_string();
    assert!(error.contains("is this an EC2 endpoint"), "{error}");
    std::fs::write(folder.path().join("credentials"), "nothing\n").unwrap();
    let error = set.list().await.unwrap_err().to_string();
    assert!(error.contains("aws_secret_access_key"), "{error}");
}
