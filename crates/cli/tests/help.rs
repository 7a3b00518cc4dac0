//! Every command explains itself, and mistakes on the command line are found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::rackswarm;

#[test]
fn every_command_has_help_with_what_matters() {
    for (command, words) in [
        ("", &["serve", "node", "deploy", "doctor", "--server", "Exit status"][..]),
        ("serve", &["--config", "--print-config", "--check", "--print-dhcp-lines", "RUST_LOG"]),
        ("node list", &["--json", "--rack"]),
        ("node show", &["--json"]),
        ("node timeline", &["--follow", "--json"]),
        ("node add", &["--mac", "--power", "--disk-serial", "--network", "--authorized-keys", "static:", "Examples"]),
        ("node set", &["--mac", "--disk-only", "--clear-post"]),
        ("node approve", &["approve"]),
        ("node release", &["release"]),
        ("node remove", &["remove"]),
        ("rack list", &["--json"]),
        ("rack set", &["--post-script", "--user-data"]),
        ("rack remove", &["remove"]),
        ("image import", &["--name", "--format", "qcow2"]),
        ("image list", &["--json"]),
        ("image show", &["--json"]),
        ("image remove", &["remove"]),
        ("image build", &["debian", "small", "--out"]),
        ("deploy", &["--nodes", "--rack", "--watch", "status", "cancel", "proved"]),
        ("deploy status", &["--watch", "--json"]),
        ("deploy cancel", &["d-3"]),
        ("bootenv build", &["--out", "--kernel", "--agent", "SOURCE_DATE_EPOCH"]),
        ("doctor", &["--config", "--json", "foreign DHCP"]),
        ("lab demo", &["--nodes", "--json", "--bootenv"]),
        ("lab power", &["next-boot", "ipmi:", "qemu:"]),
        ("openapi", &["OpenAPI"]),
        ("completions", &["bash", "zsh", "fish"]),
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let ran = rackswarm(&arguments);
        assert_eq!(ran.code, 0, "{command}: {}", ran.stderr);
        for word in words {
            assert!(ran.stdout.contains(word), "{command} --help says nothing of {word}:\n{}", ran.stdout);
        }
        assert!(!ran.stdout.contains('\u{1b}'), "{command} --help has colours in a pipe");
    }
}

#[test]
fn mistakes_on_the_command_line_have_exit_status_2() {
    for (arguments, word) in [
        (&["nodes"][..], "similar"),
        (&["node", "shwo", "n1"], "similar"),
        (&["node", "add", "N1!", "--mac", "52:54:00:12:34:56"], "not a name"),
        (&["node", "add", "n1", "--mac", "52:54:00:12:34"], "not a MAC address"),
        (&["node", "add", "n1", "--mac", "52:54:00:12:34:56", "--pwoer", "manual:"], "--power"),
        (&["node", "add", "n1", "--mac", "52:54:00:12:34:56", "--power", "bmc:n1"], "ipmi"),
        (&["node", "add", "n1", "--mac", "52:54:00:12:34:56", "--power", "redfish:bmc"], "redfish+http:"),
        (&["node", "add", "n1", "--mac", "52:54:00:12:34:56", "--network", "static:10.0.0.7"], "10.0.0.7/24"),
        (&["node", "set", "n1", "--disk-min-size", "4 apples"], "not a size"),
        (&["node", "set", "n1", "--disk-only", "--disk-serial", "A"], "cannot be used"),
        (&["node", "timeline", "n1", "--follow", "--json"], "cannot be used"),
        (&["rack", "set", "r1", "--post-script-seconds", "9"], "--post-script"),
        (&["image", "import", "x.iso", "--name", "x", "--format", "iso"], "qcow2"),
        (&["deploy"], "IMAGE"),
        (&["deploy", "debian"], "--nodes"),
        (&["deploy", "debian", "--nodes", "n1", "--watch", "--json"], "cannot be used"),
        (&["deploy", "status", "12"], "d-12"),
        (&["lab", "power", "next-boot", "fake:n1"], "DEVICE"),
        (&["lab", "demo", "--nodes", "0", "--image", "i", "--bootenv", "b"], "1..=64"),
        (&["serve", "--print-config", "--check"], "cannot be used"),
    ] {
        let ran = rackswarm(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(word), "{arguments:?} says nothing of {word}:\n{}", ran.stderr);
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c rackswarm")] {
        let ran = rackswarm(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains(word), "{shell}");
    }
}

#[test]
fn the_openapi_document_has_the_paths_of_the_client() {
    let ran = rackswarm(&["openapi"]);
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    for path in ["/api/v1/nodes", "/api/v1/deployments", "/api/v1/images/{name}", "/api/v1/events"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn the_version_is_told() {
    let ran = rackswarm(&["--version"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, concat!("rackswarm ", env!("CARGO_PKG_VERSION"), "\n")));
}
