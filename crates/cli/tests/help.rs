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
        ("seed", &["--torrent", "--tracker-listen", "--topology", "--version <KIND>"]),
        ("fetch", &["--rack", "--linger", "--peer", "magnet", "Exit status"]),
        ("torrent", &["--out", "--announce", "--piece-size"]),
        ("track", &["--topology", "--interval"]),
        ("sim", &["--seeds", "--csv", "--svg", "Examples"]),
        ("plan", &["--uplink <RATE>", "--written <SIZE>", "Examples"]),
        ("lab bench", &["--runs", "--quick", "--peers"]),
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
fn only_commands_that_ask_a_controller_show_how_to_reach_it() {
    for (command, asks) in [("node list", true), ("doctor", true), ("fetch", false), ("lab power", false)] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        assert_eq!(rackswarm(&arguments).stdout.contains("--token-file"), asks, "{command}");
    }
    // Whoever has them in the environment or types them in front is not refused.
    let plan = ["--server", "http://10.0.0.1:8080", "plan", "--nodes", "2", "--size", "1GiB", "--rate", "1Gbit"];
    assert_eq!(rackswarm(&plan).code, 0);
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
        (&["lab", "bmc", "--password-file", "p", "--rules", "lie=moon"], "none of power, state"),
        (&["lab", "bmc", "--password-file", "p", "--machines", "2", "fake:x"], "cannot be used"),
        (&["set", "add", "s1", "pigeon:x"], "machines, redfish"),
        (&["set", "add", "S 1", "fake:x"], "not a name"),
        (&["power", "off"], "NODE"),
        (&["power", "off", "n1", "--attempts", "9"], "1..=5"),
        (&["serve", "--print-config", "--check"], "cannot be used"),
        (&["fetch", "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567"], "between quotes"),
        (&["torrent", "x", "--out", "y", "--announce", "10.0.0.1:6969"], "http://10.0.0.1:6969/announce"),
        (&["seed", "x", "--tracker-listen", "none"], "--announce"),
        (&["plan", "--nodes", "0", "--size", "1GiB", "--rate", "1Gbit"], "1..=1000000"),
        (&["plan", "--nodes", "2", "--size", "big", "--rate", "1Gbit"], "is no size"),
        (&["plan", "--nodes", "2", "--size", "9000000GiB", "--rate", "1Gbit"], "--size"),
        (&["plan", "--nodes", "2", "--size", "1GiB", "--rate", "0"], "more than 0"),
        (&["plan", "--nodes", "2", "--racks", "3", "--size", "1GiB", "--rate", "1Gbit"], "--racks"),
        (&["plan", "--nodes", "2", "--uplink", "1Gbit", "--size", "1GiB", "--rate", "1Gbit"], "--uplink"),
        (&["plan", "--nodes", "2", "--eta", "nan", "--size", "1GiB", "--rate", "1Gbit"], "from 0 to 1"),
        (&["plan", "--nodes", "2", "--copies", "inf", "--size", "1GiB", "--rate", "1Gbit"], "from 1 to 1000000"),
        (&["sim", "x.toml", "--seeds", "5..1"], "5 is after 1"),
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
    for path in [
        "/api/v1/nodes",
        "/api/v1/deployments",
        "/api/v1/images/{name}",
        "/api/v1/events",
        "/api/v1/sets/{name}/sync",
        "/api/v1/power",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn the_version_is_told() {
    let ran = rackswarm(&["--version"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, concat!("rackswarm ", env!("CARGO_PKG_VERSION"), "\n")));
}
