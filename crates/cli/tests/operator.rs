//! What an operator types, against a real controller on loopback with scripted machines.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;

use api::agent::{Assignment, Heartbeat, Orders, Proof, Register, Report, ReportKind, Token};
use api::client::Client;
use common::{PATIENCE, Server, boot_token, json, on};
use fleet::disk::Disk;
use fleet::node::{Beat, Progress};
use serde_json::Value;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator@example";

/// A machine that does as firmware, loader, agent and deployed system do, without a disk.
struct Machine<'a> {
    server: &'a Server,
    mac: &'a str,
}

impl Machine<'_> {
    fn client(&self, token: &str) -> Client {
        Client::new(&self.server.url, Token(token.to_owned())).unwrap()
    }

    fn disk(&self) -> Disk {
        Disk {
            path: "/dev/vda".into(),
            size_bytes: 1 << 30,
            serial: Some(format!("D-{}", self.mac)),
            ..Disk::default()
        }
    }

    /// From the boot script to the answer of the agent's registration.
    fn boot(&self) -> (Client, Assignment) {
        let agent = self.client(&boot_token(self.server, self.mac));
        let register = Register {
            uuid: None,
            macs: vec![self.mac.to_owned()],
            memory_bytes: 1 << 30,
            processors: 1,
            product: "Scripted Machine".into(),
            disks: vec![self.disk()],
            agent_version: "test".into(),
            findings: Default::default(),
        };
        match on(agent.register(&register)).unwrap() {
            Orders::Install(assignment) => (agent, *assignment),
            other => panic!("{other:?}"),
        }
    }

    fn say(&self, agent: &Client, assignment: &Assignment, what: ReportKind) {
        on(agent.report(&Report { attempt: assignment.attempt, what })).unwrap();
    }

    fn fetch(&self, agent: &Client, assignment: &Assignment) {
        let text = format!("{}: it is blank", self.disk());
        self.say(agent, assignment, ReportKind::FetchStarted { disk: self.disk().identity(), text });
        let total_bytes = assignment.size_bytes;
        let progress = Progress { done_bytes: total_bytes / 2, total_bytes, peers: 1, ..Progress::default() };
        self.say(agent, assignment, ReportKind::Progress(progress));
    }

    fn finish(&self, agent: &Client, assignment: &Assignment) {
        self.say(agent, assignment, ReportKind::ImageVerified { text: "all is there".into() });
        self.say(agent, assignment, ReportKind::PostActionsDone);
        let system = self.client(&assignment.post.node_token.0);
        let proof = Proof {
            digest: assignment.digest,
            disk: self.disk().identity(),
            attempt: assignment.attempt,
            boot_id: "b".into(),
            kernel: "6.1".into(),
        };
        on(system.prove(&proof)).unwrap();
        on(system.beat(&Heartbeat { beat: Beat { uptime_seconds: 60, ..Beat::default() } })).unwrap();
    }
}

/// A command that runs in the background; its lines are kept.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    fn start(server: &Server, arguments: &[&str]) -> Self {
        let mut child =
            server.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line with `words` in it.
    fn says(&mut self, words: &str) {
        while !self.seen.iter().any(|line| line.contains(words)) {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("`{words}` was not said, but {:#?}", self.seen),
            }
        }
    }

    /// Waits for its end; exit status, everything on standard output, and on standard error.
    fn end(mut self) -> (i32, String, String) {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), self.seen.join("\n"), errors)
    }

    fn interrupt(self) -> (i32, String, String) {
        let script = format!("kill -INT {}", self.child.id());
        assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
        self.end()
    }
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// 3 MiB that are not zeros, and 1 MiB that is.
fn image(folder: &Path) -> String {
    let mut content: Vec<u8> = (0..3u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    content.resize(4 << 20, 0);
    write(folder, "disk.raw", content)
}

fn with_image(folder: &Path, settings: &str) -> Server {
    let server = Server::start(folder, settings);
    server.run(&["image", "import", &image(folder), "--name", "debian", "--format", "raw"]).ok();
    server
}

#[test]
fn racks_and_nodes_keep_what_is_not_said_anew() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let keys = write(folder.path(), "keys", format!("{KEY}\n"));

    assert!(server.run(&["node", "list"]).ok().contains("no nodes yet"));
    assert!(server.run(&["rack", "set", "r1", "--authorized-keys", &keys]).ok().contains("r1 is added"));
    assert!(server.run(&["rack", "set", "r1", "--no-grow"]).ok().contains("authorized keys: 1"));
    let add = ["node", "add", "n1", "--rack", "r1", "--mac", "52:54:00:00:00:01", "--disk-serial", "D-1"];
    assert!(server.run(&add).ok().contains("serial D-1"));
    let again = server.run(&add);
    assert_eq!(again.code, 1);
    assert!(again.stderr.starts_with("rackswarm: ") && again.stderr.contains("n1"), "{}", again.stderr);

    server.run(&["node", "set", "n1", "--network", "static:10.0.0.7/24,10.0.0.1", "--address", "10.0.0.7"]).ok();
    server.run(&["node", "set", "n1", "--no-grow", "--power", "fake:cli-settings"]).ok();
    let node = json(&server.run(&["node", "show", "n1", "--json"]).ok());
    assert_eq!(node["post"]["network"]["static"]["gateway"], "10.0.0.1");
    assert_eq!(node["post"]["grow_root"], false);
    assert_eq!(node["disk"]["serial"], "D-1");
    assert_eq!(node["power"], "fake:cli-settings");
    let nothing = server.run(&["node", "set", "n1"]);
    assert!(nothing.code == 1 && nothing.stderr.contains("nothing to change"), "{}", nothing.stderr);

    let shown = server.run(&["node", "show", "n1"]).ok();
    assert!(shown.contains("waits for") && shown.contains("10.0.0.7/24, gateway 10.0.0.1"), "{shown}");
    let racks = json(&server.run(&["rack", "list", "--json"]).ok());
    assert_eq!(racks[0]["stages"]["enrolled"], 1);
    assert!(server.run(&["rack", "list"]).ok().contains("1 enrolled"));
    assert_eq!(server.run(&["rack", "remove", "r1"]).code, 1);
    server.run(&["node", "remove", "n1"]).ok();
    server.run(&["rack", "remove", "r1"]).ok();
    let gone = server.run(&["node", "show", "n1"]);
    assert!(gone.code == 1 && gone.stderr.contains("n1"), "{}", gone.stderr);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn images_are_imported_once_and_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_image(folder.path(), "");
    let images = json(&server.run(&["image", "list", "--json"]).ok());
    assert_eq!(images[0]["size_bytes"], 4 << 20);
    assert_eq!(images[0]["used_bytes"], 3 << 20);
    assert!(server.run(&["image", "list"]).ok().contains("4.00 MiB"));
    assert!(server.run(&["image", "show", "debian"]).ok().contains("infohash"));
    let foreign = write(folder.path(), "foreign", b"QFI\xfb and nothing behind");
    let refused = server.run(&["image", "import", &foreign, "--name", "broken"]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    server.run(&["image", "remove", "debian"]).ok();
    assert!(server.run(&["image", "list"]).ok().contains("no images yet"));
    let missing = server.run(&["deploy", "debian", "--nodes", "n1"]);
    assert!(missing.code == 1 && missing.stderr.contains("debian"), "{}", missing.stderr);
}

#[test]
fn a_watched_deployment_survives_the_controller_and_ends_when_all_have_proved() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_image(folder.path(), "[deploy]\npause_seconds = 0\n");
    server.run(&["rack", "set", "r1"]).ok();
    for (name, mac) in [("n1", "52:54:00:00:01:01"), ("n2", "52:54:00:00:01:02")] {
        server
            .run(&["node", "add", name, "--rack", "r1", "--mac", mac, "--power", &format!("fake:cli-watch-{name}")])
            .ok();
    }
    let mut watch = Running::start(&server, &["deploy", "debian", "--rack", "r1", "--watch"]);
    watch.says("d-1: debian onto 2 nodes");
    let first = Machine { server: &server, mac: "52:54:00:00:01:01" };
    let (agent, assignment) = first.boot();
    first.fetch(&agent, &assignment);
    watch.says("n1: fetching");
    assert!(server.run(&["node", "list"]).ok().contains("50 %"));
    first.finish(&agent, &assignment);
    watch.says("n1: running");

    let second = Machine { server: &server, mac: "52:54:00:00:01:02" };
    let (agent, assignment) = second.boot();
    second.fetch(&agent, &assignment);
    let port = server.port();
    server.kill();
    watch.says("trying again");
    let server = Server::start_on(folder.path(), "[deploy]\npause_seconds = 0\n", port);
    watch.says("answers again");
    let second = Machine { server: &server, mac: "52:54:00:00:01:02" };
    second.finish(&agent, &assignment);

    let (code, said, errors) = watch.end();
    assert_eq!(code, 0, "{said}\n{errors}");
    assert!(said.contains("d-1: debian: all 2 nodes run it and have proved it"), "{said}");
    let status = server.run(&["deploy", "status", "d-1"]).ok();
    assert!(status.contains("running") && status.contains("done"), "{status}");
    assert!(server.run(&["deploy", "status"]).ok().contains("d-1"));
    let list = server.run(&["node", "list"]).ok();
    assert!(list.contains("debian") && list.contains("heard"), "{list}");
    // Watching what has ended tells the outcome at once.
    assert_eq!(server.run(&["deploy", "status", "--watch"]).code, 0);
}

#[test]
fn a_node_that_fails_is_named_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_image(folder.path(), "");
    let mac = "52:54:00:00:02:01";
    server.run(&["node", "add", "n1", "--mac", mac, "--power", "fake:cli-fails"]).ok();
    let watch = Running::start(&server, &["deploy", "debian", "--nodes", "n1", "--watch"]);
    let machine = Machine { server: &server, mac };
    let (agent, assignment) = machine.boot();
    machine.say(&agent, &assignment, ReportKind::Failed { reason: "2 disks match".into(), retry: false });
    let (code, said, errors) = watch.end();
    assert_eq!(code, 1, "{said}");
    assert!(errors.contains("rackswarm: n1: 2 disks match") && errors.contains("node timeline"), "{errors}");
    assert!(said.contains("0 of 1 running, 1 failed"), "{said}");
    let timeline = server.run(&["node", "timeline", "n1"]).ok();
    assert!(timeline.contains("2 disks match"), "{timeline}");
    assert!(json(&server.run(&["node", "timeline", "n1", "--json"]).ok()).as_array().unwrap().len() > 3);
    assert!(server.run(&["node", "list"]).ok().contains("2 disks match"));
    assert!(server.run(&["node", "release", "n1"]).ok().contains("released"));
}

#[test]
fn a_timeline_is_followed_and_a_deployment_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_image(folder.path(), "");
    server.run(&["node", "add", "n1", "--mac", "52:54:00:00:03:01", "--power", "fake:cli-cancel"]).ok();
    let mut follow = Running::start(&server, &["node", "timeline", "n1", "--follow"]);
    let started = server.run(&["deploy", "debian", "--nodes", "n1"]).ok();
    assert!(started.contains("d-1 puts debian on 1 node;"), "{started}");
    follow.says("leasing");
    let watch = Running::start(&server, &["deploy", "status", "d-1", "--watch"]);
    assert!(server.run(&["deploy", "cancel", "d-1"]).ok().contains("d-1 is cancelled"));
    let (code, _, errors) = watch.end();
    assert!(code == 1 && errors.contains("n1: cancelled"), "{errors}");
    follow.says("enrolled");
    let (code, said, _) = follow.interrupt();
    assert_eq!(code, 130);
    let lines: Vec<&str> = said.lines().collect();
    let different: std::collections::BTreeSet<&&str> = lines.iter().collect();
    assert_eq!(lines.len(), different.len(), "a line was printed twice:\n{said}");
}

#[test]
fn a_rack_of_virtual_controllers_becomes_nodes_that_are_switched() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (password, machines) = (path("password"), path("machines.toml"));
    let ports = "127.0.0.1:0";
    let words = ["lab", "bmc", "--each", "--machines", "3", "--listen", ports, "--rules", "latency_ms=5&task_ms=10"];
    let more = ["--password-file", &password, "--write", &machines];
    let mut bmc = Running::start(&server, &[&words[..], &more[..]].concat());
    bmc.says("set add lab machines:");
    let added = server.run(&["set", "add", "hall", &format!("machines:{machines}"), "--rack", "r1"]).ok();
    assert!(added.contains("it lists 3 machines"), "{added}");
    let dry = server.run(&["set", "sync", "hall", "--dry-run"]).ok();
    assert!(dry.contains("lab-2") && dry.contains("hall: 3 added (dry run: nothing was changed)"), "{dry}");
    assert!(server.run(&["node", "list"]).ok().contains("no nodes yet"));
    let real = json(&server.run(&["set", "sync", "hall", "--json"]).ok());
    assert_eq!((real["rows"].as_array().unwrap().len(), &real["rows"][0]["what"]), (3, &Value::from("added")));
    assert!(server.run(&["set", "sync", "hall"]).ok().starts_with("nothing has changed"));
    let sets = server.run(&["set", "list"]).ok();
    assert!(sets.contains("3 unchanged") && sets.contains("machines:"), "{sets}");

    let status = server.run(&["power", "status", "--rack", "r1"]).ok();
    assert_eq!(status.lines().filter(|line| line.ends_with(": off")).count(), 3, "{status}");
    let on = server.run(&["power", "cycle", "lab-1", "--nodes", "lab-2"]).ok();
    assert!(on.contains("lab-1: cycle is done; it reports on") && on.contains("lab-2: cycle"), "{on}");
    let all = json(&server.run(&["power", "status", "--rack", "r1", "--json"]).ok());
    let states: Vec<&str> = all.as_array().unwrap().iter().map(|one| one["power"].as_str().unwrap()).collect();
    assert_eq!(states, ["on", "on", "off"]);
    assert!(server.run(&["node", "show", "lab-1"]).ok().contains("hall, which calls it lab-1"));

    // One machine is taken out of the file; another one's password is wrong from now on.
    let text = std::fs::read_to_string(&machines).unwrap();
    let third = text.rfind("[[machine]]").unwrap();
    write(folder.path(), "machines.toml", &text[..third]);
    assert!(server.run(&["set", "sync", "hall"]).ok().contains("retired"));
    let wrong = write(folder.path(), "wrong", "nonsense\n");
    let node = json(&server.run(&["node", "show", "lab-2", "--json"]).ok());
    let address = node["power"].as_str().unwrap().replace(&password, &wrong);
    server.run(&["node", "set", "lab-2", "--power", &address]).ok();
    let off = server.run(&["power", "off", "lab-1", "lab-2"]);
    assert_eq!(off.code, 1, "{}", off.stdout);
    assert!(off.stdout.contains("lab-1: off is done") && off.stdout.contains("lab-2: failed: "), "{}", off.stdout);
    assert!(off.stderr.contains("of 2 nodes, 1 failed"), "{}", off.stderr);
    assert!(server.run(&["set", "remove", "hall"]).ok().contains("its nodes stay"));
    let (code, said, _) = bmc.interrupt();
    assert!(code == 0 && said.contains("1 refused"), "{said}");
}

#[test]
fn expected_machines_are_read_from_a_file_and_written_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let table = "name,mac,rack,uuid,power\n\
                 n1,52:54:00:00:00:01 52:54:00:00:00:02,r1,,manual:rack 1\n\
                 n2,,r1,00000000-0000-0000-0000-000000000007,\n\
                 n3,,,,\n";
    let file = write(folder.path(), "machines.csv", table);
    let dry = server.run(&["node", "import", &file, "--dry-run"]);
    assert_eq!(dry.code, 1, "{}", dry.stdout);
    assert!(dry.stdout.contains("2 added, 1 refused (dry run: nothing was changed)"), "{}", dry.stdout);
    assert!(server.run(&["node", "list"]).ok().contains("no nodes yet"));
    let real = server.run(&["node", "import", &file]);
    assert!(real.code == 1 && real.stdout.contains("n3") && real.stdout.contains("MAC address"), "{}", real.stdout);
    let node = json(&server.run(&["node", "show", "n1", "--json"]).ok());
    assert_eq!((&node["power"], &node["rack"]), (&Value::from("manual:rack 1"), &Value::from("r1")));

    let toml = server.run(&["node", "export", "--format", "toml"]).ok();
    let again = write(folder.path(), "machines.toml", toml.replace("manual:rack 1", "manual:rack 2"));
    let changed = server.run(&["node", "import", &again]).ok();
    assert!(changed.contains("power manual:rack 2") && changed.contains("1 changed, 1 unchanged"), "{changed}");
    let csv = write(folder.path(), "again.csv", server.run(&["node", "export"]).ok());
    assert!(server.run(&["node", "import", &csv]).ok().contains("nothing to change\n2 unchanged"));
    let other = write(folder.path(), "other.csv", "name,mac\nn9,52:54:00:00:00:01\n");
    let taken = server.run(&["node", "import", &other]);
    assert!(taken.code == 1 && taken.stdout.contains("n1"), "{}", taken.stdout);
}

#[test]
fn what_a_person_has_to_switch_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "[[set]]\nname = \"cloud\"\naddress = \"fake:cli-cloud?machines=1\"\n");
    assert!(server.run(&["set", "sync", "cloud"]).ok().contains("cloud: 1 added"));
    assert_eq!(server.run(&["set", "remove", "cloud"]).code, 1);
    server.run(&["node", "add", "n1", "--mac", "52:54:00:00:00:01", "--power", "manual:rack 3"]).ok();
    let off = server.run(&["power", "off", "n1", "cli-cloud-1"]);
    assert_eq!(off.code, 1);
    assert!(
        off.stdout.contains("n1: a person is needed: ") && off.stderr.contains("1 for a person to do"),
        "{}",
        off.stdout
    );
    let unknown = server.run(&["power", "status", "n9"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("no node `n9`"), "{}", unknown.stderr);
    let missing = server.run(&["set", "sync", "nobody"]);
    assert!(missing.code == 1 && missing.stderr.contains("no set `nobody`"), "{}", missing.stderr);
}

#[test]
fn a_second_controller_and_a_taken_port_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let config = folder.path().join("rackswarm.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let second = common::rackswarm(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(second.code, 1);
    let port = server.port().to_string();
    assert!(second.stderr.contains(&port) && second.stderr.contains("rackswarm"), "{}", second.stderr);
    let elsewhere = write(folder.path(), "second.toml", text.replace(&port, &common::free_port().to_string()));
    let second = common::rackswarm(&["serve", "--config", &elsewhere]);
    assert!(second.code == 1 && second.stderr.contains("another controller"), "{}", second.stderr);

    let doctor = common::rackswarm(&["doctor", "--config", config.to_str().unwrap(), "--json"]);
    let report = json(&doctor.stdout);
    let ports: Vec<&Value> = report["findings"].as_array().unwrap().iter().filter(|f| f["check"] == "ports").collect();
    assert!(ports.iter().all(|finding| finding["verdict"] == "pass"), "{ports:?}");
    assert!(ports.iter().any(|finding| finding["text"].as_str().unwrap().contains("rackswarm itself")), "{ports:?}");
}
