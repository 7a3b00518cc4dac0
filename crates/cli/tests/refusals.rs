//! What a command says when it cannot do what it was asked.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;

use common::{command, free_port, rackswarm};

/// One sentence on standard error, nothing on standard output, exit status 1.
fn refused(arguments: &[&str], words: &[&str]) {
    let ran = rackswarm(arguments);
    assert_eq!(ran.code, 1, "{arguments:?}: {}", ran.stderr);
    assert!(ran.stderr.starts_with("rackswarm: "), "{}", ran.stderr);
    assert_eq!(ran.stdout, "", "{arguments:?}");
    for word in words {
        assert!(ran.stderr.contains(word), "{arguments:?} says nothing of {word}:\n{}", ran.stderr);
    }
}

fn token() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"secret\n").unwrap();
    file
}

#[test]
fn a_missing_token_file_is_named_with_its_origin() {
    refused(
        &["--token-file", "/nonesuch/operator.token", "node", "list"],
        &["/nonesuch/operator.token", "rackswarm serve", "--token-file"],
    );
}

#[test]
fn a_controller_that_is_not_there_is_named() {
    let token = token();
    let url = format!("http://127.0.0.1:{}", free_port());
    let path = token.path().to_str().unwrap();
    refused(
        &["node", "list", "--server", &url, "--token-file", path],
        &[&url, "refused", "rackswarm serve", "--server"],
    );
    refused(&["node", "list", "--server", "127.0.0.1", "--token-file", path], &["not the URL", "http://"]);
}

#[test]
fn an_answer_of_something_else_is_not_taken_for_a_controller() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nHello!").unwrap();
    });
    let token = token();
    refused(
        &["node", "list", "--server", &url, "--token-file", token.path().to_str().unwrap()],
        &["was not understood", "another version"],
    );
    stranger.join().unwrap();
}

#[test]
fn mistakes_in_the_configuration_name_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rackswarm.toml");
    let path = file.to_str().unwrap();
    for (text, words) in [
        ("[server]\n\nlisen = \"0.0.0.0:80\"\n", &["line 3", "lisen", "listen"][..]),
        ("[dhcp]\nmode = \"ful\"\n", &["line 2", "full"]),
        ("[dhcp]\nmode = \"full\"\n", &["dhcp.interface"]),
        ("[swarm]\nnode_memory_mib = 1\n", &["line 2", "4 to 4096"]),
        ("[server\n", &["line 1"]),
    ] {
        std::fs::write(&file, text).unwrap();
        refused(&["serve", "--check", "--config", path], &[path]);
        refused(&["serve", "--config", path], words);
        let ran = rackswarm(&["doctor", "--config", path]);
        assert_eq!(ran.code, 1);
        assert!(ran.stdout.contains("FAIL") && ran.stdout.contains(words[0]), "{}", ran.stdout);
    }
    refused(&["serve", "--config", "/nonesuch.toml"], &["/nonesuch.toml"]);
}

#[test]
fn the_printed_configuration_is_a_valid_one() {
    let printed = rackswarm(&["serve", "--print-config"]);
    assert_eq!(printed.code, 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rackswarm.toml");
    std::fs::write(&file, printed.stdout).unwrap();
    let checked = rackswarm(&["serve", "--check", "--config", file.to_str().unwrap()]);
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    assert!(checked.stdout.contains("nothing is wrong"), "{}", checked.stdout);
}

#[test]
fn lines_for_a_foreign_dhcp_server_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rackswarm.toml");
    std::fs::write(&file, "[server]\nadvertise = \"10.7.0.1\"\n").unwrap();
    for server in ["dnsmasq", "isc", "kea", "router"] {
        let ran = rackswarm(&["serve", "--config", file.to_str().unwrap(), "--print-dhcp-lines", server]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains("10.7.0.1"), "{server}");
    }
}

#[test]
fn files_are_checked_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let token = token();
    let token = token.path().to_str().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let import =
        |file: &str, words: &[&str]| refused(&["--token-file", token, "image", "import", file, "--name", "x"], words);
    import("/nonesuch.raw", &["/nonesuch.raw", "cannot open"]);
    import(empty.to_str().unwrap(), &["is empty"]);
    import(folder.path().to_str().unwrap(), &["is not a file"]);
    refused(
        &["bootenv", "build", "--agent", empty.to_str().unwrap(), "--out", folder.path().to_str().unwrap()],
        &["empty"],
    );
    refused(&["--token-file", token, "node", "add", "n1"], &["--mac"]);
}

#[test]
fn power_drivers_are_driven_by_their_address() {
    let ran = rackswarm(&["lab", "power", "status", "manual:"]);
    assert_eq!((ran.code, ran.stdout.trim()), (0, "unknown"));
    let ran = rackswarm(&["lab", "power", "on", "manual:", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer["outcome"], "ask_operator");
    refused(&["lab", "power", "on", "bmc:bmc7"], &["bmc:bmc7", "redfish", "ipmi"]);
    refused(&["lab", "power", "on", "redfish:bmc7"], &["redfish:bmc7", "redfish+http:", "example"]);
}

#[test]
fn a_reader_who_goes_is_no_error() {
    let mut child = command()
        .args(["serve", "--print-config"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
}
