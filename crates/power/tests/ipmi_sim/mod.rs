//! A management controller: `ipmi_sim` (Debian's openipmi) with a chassis script that switches its machine.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Starts it on loopback; answers the process, which the caller ends, and the power address.
pub(crate) fn start(folder: &Path, chassis: &str) -> (Child, String) {
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run(Command::new("ipmi_sim"), folder, chassis, SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Starts it in a network namespace, where it listens at `address`.
pub(crate) fn start_in(namespace: &str, folder: &Path, chassis: &str, address: SocketAddr) -> (Child, String) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "ipmi_sim"]);
    run(command, folder, chassis, address)
}

fn run(mut command: Command, folder: &Path, chassis: &str, address: SocketAddr) -> (Child, String) {
    let here = folder.display();
    let place = format!("{} {}", address.ip(), address.port());
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("chassis.sh", chassis.replace("FOLDER", &here.to_string()));
    write("lan.conf", LAN.replace("FOLDER", &here.to_string()).replace("ADDRESS", &place));
    write(
        "commands",
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n".into(),
    );
    write("password", "secret\n".into());
    let simulator = command
        .args(["-n", "-c", &format!("{here}/lan.conf"), "-f", &format!("{here}/commands"), "-s", &format!("{here}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let power = format!("ipmi://admin@{address}?password_file={here}/password&cipher=3&attempts=5&settle_seconds=20");
    (simulator, power)
}

const LAN: &str = r#"
name "node1"
set_working_mc 0x20
  startlan 1
    addr ADDRESS
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "/bin/sh FOLDER/chassis.sh 0x20"
  user 2 true "admin" "secret" admin 10 none md2 md5 straight
"#;

/// ipmi_sim calls it as `MC get power boot` and `MC set power 0`. The machine is on while FOLDER/on is there.
pub(crate) const CHASSIS: &str = r#"
shift; verb=$1; shift
if [ "$verb" = get ]; then
  for what in "$@"; do
    case $what in
      power) if [ -f FOLDER/on ]; then echo power:1; else echo power:0; fi ;;
      boot) echo "boot:$(cat FOLDER/boot 2>/dev/null || echo default)" ;;
    esac
  done
else
  case $1 in
    power) if [ "$2" = 1 ]; then touch FOLDER/on; else rm -f FOLDER/on; fi ;;
    boot) echo "$2" > FOLDER/boot ;;
  esac
fi
"#;
