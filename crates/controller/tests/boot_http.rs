//! What firmware and iPXE fetch over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Server, config, content, environment, eventually, fake, mac};
use fleet::life::Stage;
use reqwest::{Method, StatusCode};

async fn deploying(server: &Server, name: &str) {
    server.add_node("n1", mac(1), &format!("fake:{}", fake(name))).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::Leasing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_follows_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.boot.kernel_arguments = vec!["console=ttyS0,115200".to_owned()];
    let server = Server::start(&config).await;
    server.add_node("n0", mac(9), "manual:").await;
    assert!(server.script(mac(9)).await.contains("nothing is assigned to n0"));
    deploying(&server, "script").await;

    let script = server.script(mac(1)).await;
    let kernel = format!("kernel {} ", server.url(&format!("/boot/{}/vmlinuz", mac(1).dashed())));
    assert!(script.starts_with("#!ipxe\n") && script.contains(&kernel), "{script}");
    for word in ["rackswarm.mac=52:54:00:00:00:01", "console=ttyS0,115200", "d-1, attempt 1"] {
        assert!(script.contains(word), "{word} is missing in {script}");
    }
    // Asked again, as after a lost packet: another token, and the same attempt.
    let again = server.script(mac(1)).await;
    assert_ne!(script, again);
    let node = server.node("n1").await;
    assert_eq!((node.stage, node.attempt, node.unexpected_total), (Stage::LoadingKernel, 1, 0));

    let efi = server.url("/boot/52:54:00:00:00:09/script?uuid=03000200-0400-0500-0006-000700080009&platform=efi");
    let local = reqwest::get(efi).await.unwrap();
    assert_eq!(local.headers()["cache-control"], "no-store");
    assert!(local.text().await.unwrap().ends_with("exit 1\n"));
    assert!(server.node("n0").await.uuid.is_some());
    for bad in ["/boot/zz/script", "/boot/52-54-00/script"] {
        assert_eq!(reqwest::get(server.url(bad)).await.unwrap().status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_and_initramfs_come_whole_in_parts_and_as_a_head() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    environment(&config);
    let server = Server::start(&config).await;
    deploying(&server, "files").await;
    server.script(mac(1)).await;
    let http = reqwest::Client::new();
    let url = server.url(&format!("/boot/{}/initramfs.img", mac(1).dashed()));

    let head = http.request(Method::HEAD, &url).send().await.unwrap();
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"300001".parse().unwrap()));
    assert_eq!(head.headers()["accept-ranges"], "bytes");
    for (range, status, length, content_range) in [
        ("bytes=0-9", 206, 10, "bytes 0-9/300001"),
        ("bytes=300000-", 206, 1, "bytes 300000-300000/300001"),
        ("bytes=-5", 206, 5, "bytes 299996-300000/300001"),
        ("bytes=300001-", 416, 0, "bytes */300001"),
    ] {
        let part = http.get(&url).header("range", range).send().await.unwrap();
        assert_eq!(part.status().as_u16(), status, "{range}");
        assert_eq!(part.headers()["content-range"], content_range, "{range}");
        assert_eq!(part.bytes().await.unwrap().len(), length, "{range}");
    }
    let whole = http.get(&url).send().await.unwrap();
    assert_eq!(whole.headers()["content-length"], "300001");
    assert_eq!(whole.bytes().await.unwrap(), vec![2u8; 300_001]);
    let kernel = reqwest::get(server.url(&format!("/boot/{}/vmlinuz", mac(1).dashed()))).await.unwrap();
    assert_eq!(kernel.bytes().await.unwrap(), vec![1u8; 200_000]);

    eventually("both files in the timeline", || async {
        let lines = server.operator().timeline(&"n1".parse().unwrap()).await.unwrap();
        let sent = |text: &str| lines.iter().any(|line| line.kind == "kernel_sent" && line.text == text);
        (sent("vmlinuz sent, 200000 bytes") && sent("initramfs.img sent, 300001 bytes")).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_not_taken_whole_is_not_called_sent() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let environment = environment(&config);
    // More than socket buffers take.
    std::fs::write(environment.join("vmlinuz"), vec![1u8; 64 << 20]).unwrap();
    let server = Server::start(&config).await;
    deploying(&server, "half").await;
    server.script(mac(1)).await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET /boot/{}/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n", mac(1).dashed());
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 4096]).await.unwrap();
    drop(stream);
    let whole = reqwest::get(server.url(&format!("/boot/{}/initramfs.img", mac(1).dashed()))).await.unwrap();
    whole.bytes().await.unwrap();
    let lines = eventually("the other file", || async {
        let lines = server.operator().timeline(&"n1".parse().unwrap()).await.unwrap();
        lines.iter().any(|line| line.kind == "kernel_sent").then_some(lines)
    })
    .await;
    assert!(!lines.iter().any(|line| line.text.contains("vmlinuz sent")), "{lines:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loaders_are_served_for_http_boot_and_nothing_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    std::fs::write(config.tftp.root.join("snponly.efi"), b"a loader").unwrap();
    std::fs::write(folder.path().join("secret"), b"not for you").unwrap();
    let server = Server::start(&config).await;
    deploying(&server, "loader").await;
    let url = server.url(&format!("/boot/{}/snponly.efi", mac(1).dashed()));
    let head = reqwest::Client::new().head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "8");
    assert_eq!(reqwest::get(&url).await.unwrap().bytes().await.unwrap(), &b"a loader"[..]);
    let shared = server.url("/boot/loader/snponly.efi");
    assert_eq!(reqwest::get(&shared).await.unwrap().bytes().await.unwrap(), &b"a loader"[..]);
    eventually("the loader in the timeline", || async {
        let kinds = server.kinds("n1").await;
        kinds.iter().any(|kind| kind == "bootloader_sent" || kind == "unexpected").then_some(())
    })
    .await;
    let prefix = format!("/boot/{}", mac(1).dashed());
    for (path, status) in [
        (format!("{prefix}/none.efi"), 404),
        (format!("{prefix}/..%2fsecret"), 403),
        (format!("{prefix}/%2e%2e/secret"), 403),
        (format!("{prefix}/x%00y"), 403),
    ] {
        // Written by hand, because a client would tidy the path.
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(!answer.contains("not for you"));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_boot_environment_is_said_where_it_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&config(folder.path())).await;
    deploying(&server, "missing").await;
    server.script(mac(1)).await;
    let answer = reqwest::get(server.url(&format!("/boot/{}/vmlinuz", mac(1).dashed()))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().await.unwrap().contains("rackswarm bootenv build"));
    eventually("the trouble in the timeline", || async {
        let lines = server.operator().timeline(&"n1".parse().unwrap()).await.unwrap();
        lines.iter().any(|line| line.kind == "trouble" && line.text.contains("bootenv build")).then_some(())
    })
    .await;
    server.stop().await;
}

/// Deploys to a machine whose platform hands it the kernel; answers the agent that the kernel line leads to.
async fn handed(server: &Server, machine: &str) -> common::Agent {
    server.add_node("n1", mac(1), &format!("fake:{machine}?boot=kernel")).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    server.until_stage("n1", Stage::LoadingKernel).await;
    let seen = power::fake::machine(machine).unwrap();
    let kernel = seen.kernel.expect("it was handed one");
    assert!(kernel.kernel.ends_with("vmlinuz") && kernel.initramfs.ends_with("initramfs"), "{kernel:?}");
    assert_eq!((seen.on, seen.starts, seen.next_boot), (true, 1, None));
    server.agent(mac(1), &kernel.line)
}

/// The guest has restarted, at which such a machine goes off.
async fn goes_off(machine: &str) {
    power::open(&format!("fake:{machine}")).unwrap().off().await.unwrap();
}

async fn is_started_again(machine: &str) {
    let on = || async { power::fake::machine(machine).filter(|seen| seen.on && seen.starts == 2) };
    eventually("it was started from its disk", on).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_handed_its_kernel_needs_no_network_boot_and_is_started_from_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    environment(&config);
    let server = Server::start(&config).await;
    let machine = fake("handed");
    let agent = handed(&server, &machine).await;
    let assignment = agent.register().await;
    let deployed = agent.install(&assignment).await;
    server.until_stage("n1", Stage::Rebooting).await;
    assert_eq!(power::fake::machine(&machine).unwrap().starts, 1, "it is still at work");
    goes_off(&machine).await;
    is_started_again(&machine).await;
    server.client(deployed.node_token.clone()).prove(&common::proof(&deployed)).await.unwrap();
    let node = server.until_stage("n1", Stage::Running).await;
    assert_eq!((node.tries, node.unexpected_total), (1, 0));
    let kinds = server.kinds("n1").await;
    assert!(
        kinds.iter().any(|kind| kind == "kernel_handed") && !kinds.iter().any(|kind| kind == "powered_on"),
        "{kinds:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_still_starts_a_machine_from_its_disk_that_was_handed_its_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    environment(&config);
    let server = Server::start(&config).await;
    let machine = fake("handed-away");
    let agent = handed(&server, &machine).await;
    let assignment = agent.register().await;
    agent.install(&assignment).await;
    server.stop().await;
    goes_off(&machine).await;
    let server = Server::start(&config).await;
    is_started_again(&machine).await;
    assert_eq!(server.node("n1").await.stage, Stage::Rebooting);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_boot_environment_a_machine_that_is_handed_its_kernel_is_left_alone_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.deploy.attempts = 1;
    let server = Server::start(&config).await;
    let machine = fake("handed-nothing");
    server.add_node("n1", mac(1), &format!("fake:{machine}?boot=kernel")).await;
    server.import("debian", content(1)).await.unwrap();
    server.deploy("debian", &["n1"]).await;
    let reason = server.until_stage("n1", Stage::Failed).await.reason.unwrap();
    assert!(reason.contains("vmlinuz") && reason.contains("rackswarm bootenv build"), "{reason}");
    assert_eq!(power::fake::machine(&machine), None, "nothing was asked of it");
    server.stop().await;
}
