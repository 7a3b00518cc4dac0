//! TFTP against the clients that Debian has, in network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Host, Memory, Network, Service, eventually};
use rackswarm_boot::dhcp::DhcpConfig;
use rackswarm_boot::tftp::TftpConfig;
use wire::tftp::{FileRequest, Mode, Options, Packet};

const SERVER: &str = "10.77.0.1";
const SIZES: [usize; 7] = [0, 1, 511, 512, 513, 1 << 20, 20 << 20];

struct Rig {
    director: Arc<Memory>,
    client: Host,
    folder: tempfile::TempDir,
    _service: Service,
    _network: Network,
}

impl Rig {
    fn new() -> Self {
        let network = Network::new();
        let server = network.host(Some("10.77.0.1/24"));
        let client = network.host(Some("10.77.0.2/24"));
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("loaders");
        fs::create_dir(&root).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("leak")).unwrap();
        for bytes in SIZES {
            fs::write(root.join(format!("f{bytes}")), content(bytes)).unwrap();
        }
        let director = Arc::new(Memory::default());
        let tftp = TftpConfig { root, ..TftpConfig::default() };
        let service = server.serve(DhcpConfig::default(), tftp, &director).unwrap();
        Self { director, client, folder, _service: service, _network: network }
    }

    /// Runs a client for every size; `FILE` and `OUT` are replaced in its
    /// arguments.
    fn fetch_all(&self, program: &str, arguments: &[&str]) {
        for bytes in sizes(program) {
            let out = self.folder.path().join(format!("out{bytes}"));
            let arguments: Vec<String> = arguments
                .iter()
                .map(|argument| argument.replace("FILE", &format!("f{bytes}")).replace("OUT", out.to_str().unwrap()))
                .collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let said = self.client.must(program, &arguments);
            assert_same(&out, bytes, &format!("{program} {arguments:?}: {said}"));
        }
    }
}

/// curl 7.88 ends with error 71 on an empty file, from dnsmasq's server too.
fn sizes(program: &str) -> impl Iterator<Item = usize> {
    let smallest = usize::from(program == "curl");
    SIZES.into_iter().filter(move |bytes| *bytes >= smallest)
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|position| (position.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn assert_same(path: &Path, bytes: usize, what: &str) {
    // Some clients create no file for an empty one.
    let got = fs::read(path).unwrap_or_default();
    assert_eq!(got.len(), bytes, "{what}");
    assert!(got == content(bytes), "{what}: content differs");
    let _ = fs::remove_file(path);
}

#[test]
fn tftp_hpa_reads_every_size() {
    let rig = Rig::new();
    rig.fetch_all("tftp", &["-m", "binary", SERVER, "-c", "get", "FILE", "OUT"]);
    eventually("the last file is reported", || rig.director.sent.lock().unwrap().len() == SIZES.len());
}

#[test]
fn atftp_reads_every_size_with_large_blocks_and_windows() {
    let rig = Rig::new();
    rig.fetch_all("atftp", &["-g", "-r", "FILE", "-l", "OUT", SERVER]);
    let blocks = ["--option", "blksize 1468", "--option", "tsize 0", "--option", "timeout 2"];
    let target = ["-g", "-r", "FILE", "-l", "OUT", SERVER];
    rig.fetch_all("atftp", &[&blocks[..], &target].concat());
    let windows = ["--option", "blksize 65464", "--option", "windowsize 8"];
    rig.fetch_all("atftp", &[&windows[..], &target].concat());
}

#[test]
fn curl_reads_every_size() {
    let rig = Rig::new();
    rig.fetch_all("curl", &["-sS", "-m", "60", "-o", "OUT", &format!("tftp://{SERVER}/FILE")]);
    let large = ["-sS", "-m", "60", "--tftp-blksize", "1400", "-o", "OUT"];
    rig.fetch_all("curl", &[&large[..], &[&format!("tftp://{SERVER}/boot/52-54-00-01-02-03/FILE")]].concat());
    eventually("the last file is reported", || rig.director.sent.lock().unwrap().len() == 2 * sizes("curl").count());
    let sent = rig.director.sent.lock().unwrap();
    let mac = "52:54:00:01:02:03".parse().unwrap();
    assert!(sent.contains(&(Some(mac), "f1048576".to_owned(), 1 << 20)), "{sent:?}");
    assert!(sent.contains(&(None, "f513".to_owned(), 513)), "{sent:?}");
}

#[test]
fn busybox_reads_every_size() {
    let rig = Rig::new();
    rig.fetch_all("busybox", &["tftp", "-g", "-b", "1428", "-r", "FILE", "-l", "OUT", SERVER]);
}

#[test]
fn nothing_outside_the_folder_is_served_and_nothing_is_taken() {
    let rig = Rig::new();
    let out = rig.folder.path().join("out");
    let out_text = out.to_str().unwrap();
    for file in ["../secret", "leak", "f1/../../secret", "..\\secret", "boot/52-54-00-01-02-03/../../../secret"] {
        let said = rig.client.run("tftp", &["-m", "binary", SERVER, "-c", "get", file, out_text]);
        let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.contains("not allowed"), "{file}: {said}");
        assert!(fs::read(&out).unwrap_or_default().is_empty(), "{file} was sent");
    }
    let secret = rig.folder.path().join("secret");
    let said = rig.client.run("tftp", &["-m", "binary", SERVER, "-c", "put", secret.to_str().unwrap(), "upload"]);
    let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(said.contains("takes no files"), "{said}");
    assert!(!rig.folder.path().join("loaders/upload").exists());
    let said = rig.client.run("tftp", &["-m", "ascii", SERVER, "-c", "get", "f513", out_text]);
    assert!(String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).contains("octet"));
}

#[test]
fn a_client_that_leaves_in_the_middle_disturbs_nobody() {
    let rig = Rig::new();
    let leave = rig.client.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let options = Options { transfer_bytes: Some(0), window_blocks: Some(4), ..Options::default() };
        let request = FileRequest { file: "f1048576".to_owned(), mode: Mode::Octet, options };
        socket.send_to(&Packet::Read(request).encode(), (SERVER, 69)).unwrap();
        let mut buffer = [0; 2_000];
        let (bytes, server) = socket.recv_from(&mut buffer).unwrap();
        let Ok(Packet::OptionAck(accepted)) = Packet::parse(&buffer[..bytes]) else { panic!("no options") };
        assert_eq!(accepted.transfer_bytes, Some(1 << 20));
        for last in [0, 4, 8] {
            socket.send_to(&Packet::Ack { block: last }.encode(), server).unwrap();
            for block in last + 1..=last + 4 {
                let (bytes, _) = socket.recv_from(&mut buffer).unwrap();
                assert!(matches!(Packet::parse(&buffer[..bytes]), Ok(Packet::Data { block: got, .. }) if got == block));
            }
        }
        let farewell = Packet::Error { code: 0, text: "enough".to_owned() };
        socket.send_to(&farewell.encode(), server).unwrap();
    });
    leave.join().unwrap();
    // And one that is simply gone: its port answers with ICMP.
    let vanish = rig.client.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let request = FileRequest { file: "f1048576".to_owned(), mode: Mode::Octet, options: Options::default() };
        socket.send_to(&Packet::Read(request).encode(), (SERVER, 69)).unwrap();
    });
    vanish.join().unwrap();
    rig.fetch_all("curl", &["-sS", "-m", "60", "-o", "OUT", &format!("tftp://{SERVER}/FILE")]);
    eventually("the last file is reported", || rig.director.sent.lock().unwrap().len() == sizes("curl").count());
    assert!(rig.director.troubles.lock().unwrap().is_empty());
}

#[test]
fn a_rack_reads_at_once() {
    let rig = Rig::new();
    let clients: Vec<_> = (0..40)
        .map(|number| {
            let url = format!("tftp://{SERVER}/boot/52-54-00-00-00-{number:02x}/f1048576");
            rig.client.start("curl", &["-sS", "-m", "60", "--tftp-blksize", "1428", "-o", "/dev/null", &url])
        })
        .collect();
    eventually("all 40 have the file", || rig.director.sent.lock().unwrap().len() == clients.len());
    let mut macs: Vec<_> = rig.director.sent.lock().unwrap().iter().filter_map(|(mac, _, _)| *mac).collect();
    macs.sort_unstable();
    macs.dedup();
    assert_eq!(macs.len(), 40);
}
