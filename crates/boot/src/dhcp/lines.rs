//! Lines for a DHCP server that is already there: the way that works with
//! every firmware, because the machine sees one server only.
//!
//! Foreign servers cannot put a machine's hardware address into a file name, so
//! the first loader has a plain name. iPXE then puts the address of the
//! interface it booted from (`netX`) into the script address itself.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::dhcp::answer::Site;
use crate::firmware::Firmware;

/// Folder of the HTTP server with the loaders for machines whose hardware
/// address is not part of the name: `/boot/loader/<file>`.
pub const LOADER_FOLDER: &str = "loader";

/// A kind of DHCP server that we write lines for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Software {
    /// dnsmasq, also inside libvirt, OpenWrt and Pi-hole.
    Dnsmasq,
    /// ISC dhcpd 4.
    Isc,
    /// Kea DHCPv4.
    Kea,
    /// A router with fields for options 66 and 67 and no conditions.
    Router,
}

impl Software {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Dnsmasq, Self::Isc, Self::Kea, Self::Router];

    /// The name used on the command line and in the console.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dnsmasq => "dnsmasq",
            Self::Isc => "isc",
            Self::Kea => "kea",
            Self::Router => "router",
        }
    }

    /// The lines to add to this server's configuration.
    #[must_use]
    pub fn lines(self, site: &Site) -> String {
        match self {
            Self::Dnsmasq => dnsmasq(site),
            Self::Isc => isc(site),
            Self::Kea => kea(site),
            Self::Router => router(site),
        }
    }
}

/// Architecture numbers of DHCP option 93, with the loader for each.
const ARCHITECTURES: [(u16, &str, Firmware); 6] = [
    (0, "bios", Firmware::Bios),
    (7, "efi64", Firmware::UefiX64),
    (9, "efi64b", Firmware::UefiX64),
    (11, "arm64", Firmware::UefiArm64),
    (16, "http64", Firmware::UefiX64Http),
    (19, "httparm64", Firmware::UefiArm64Http),
];

fn script_url(site: &Site) -> String {
    format!("http://{}/boot/${{netX/mac:hexhyp}}/script?uuid=${{uuid}}&platform=${{platform}}", site.http())
}

/// The loader's name for TFTP, or its address for HTTP boot.
fn loader(site: &Site, firmware: Firmware) -> (String, bool) {
    let file = site.tftp.loader(firmware);
    if crate::firmware::is_http_boot(firmware) {
        (format!("http://{}/boot/{LOADER_FOLDER}/{file}", site.http()), true)
    } else {
        (file.to_owned(), false)
    }
}

fn dnsmasq(site: &Site) -> String {
    let mut text = String::from(
        "# Rackswarm: network boot. Add to dnsmasq.conf and restart dnsmasq.\n\
         dhcp-match=set:rs-ipxe,175\n\
         dhcp-userclass=set:rs-ipxe,iPXE\n",
    );
    for (number, tag, _) in ARCHITECTURES {
        let _ = writeln!(text, "dhcp-match=set:rs-{tag},option:client-arch,{number}");
    }
    for (_, tag, firmware) in ARCHITECTURES {
        let (name, http) = loader(site, firmware);
        if http {
            let _ = writeln!(text, "dhcp-option-force=tag:rs-{tag},tag:!rs-ipxe,60,HTTPClient");
            let _ = writeln!(text, "dhcp-boot=tag:rs-{tag},tag:!rs-ipxe,{name}");
        } else {
            let _ = writeln!(text, "dhcp-boot=tag:rs-{tag},tag:!rs-ipxe,{name},,{}", site.server);
        }
    }
    let _ = writeln!(text, "dhcp-boot=tag:rs-ipxe,{}", script_url(site));
    text.push_str(
        "# iPXE: do not wait two seconds for a ProxyDHCP server.\n\
         dhcp-option-force=tag:rs-ipxe,encap:175,176,1b\n\
         # Do not wait three seconds before each offer.\n\
         no-ping\n\
         # dnsmasq does not hold an address that it has only offered, so machines that start together may be offered\n\
         # the same one: give each its own with dhcp-host=MAC,ADDRESS.\n",
    );
    text
}

fn isc(site: &Site) -> String {
    let mut text = format!(
        "# Rackswarm: network boot. Add to dhcpd.conf, outside of every subnet, and restart dhcpd.\n\
         option space rackswarm-ipxe;\n\
         option rackswarm-ipxe.no-pxedhcp code 176 = unsigned integer 8;\n\
         option rackswarm-ipxe-options code 175 = encapsulate rackswarm-ipxe;\n\
         option rackswarm-arch code 93 = unsigned integer 16;\n\
         next-server {};\n\
         if exists user-class and option user-class = \"iPXE\" {{\n  \
           option rackswarm-ipxe.no-pxedhcp 1;\n  \
           filename \"{}\";\n\
         }}",
        site.server,
        script_url(site)
    );
    for (number, _, firmware) in ARCHITECTURES {
        let (name, http) = loader(site, firmware);
        let class = if http { "  option vendor-class-identifier \"HTTPClient\";\n" } else { "" };
        let _ = write!(
            text,
            " elsif option rackswarm-arch = {:02x}:{:02x} {{\n{class}  filename \"{name}\";\n}}",
            number >> 8,
            number & 0xff
        );
    }
    text.push('\n');
    text
}

fn kea(site: &Site) -> String {
    let ipxe = "option[175].exists or option[77].hex == 'iPXE'";
    let mut classes = vec![json!({
        "name": "rackswarm-ipxe",
        "test": ipxe,
        "next-server": site.server.to_string(),
        "boot-file-name": script_url(site),
        "option-data": [{ "code": 175, "space": "dhcp4", "csv-format": false, "data": "B00101", "always-send": true }],
    })];
    for (number, tag, firmware) in ARCHITECTURES {
        let (name, http) = loader(site, firmware);
        let test = format!("option[93].hex == 0x{number:04x} and not ({ipxe})");
        let mut class = json!({ "name": format!("rackswarm-{tag}"), "test": test, "boot-file-name": name });
        if let Value::Object(fields) = &mut class {
            if http {
                let option = |name: &str, data: &str| json!({ "name": name, "data": data, "always-send": true });
                let file = fields.get("boot-file-name").and_then(Value::as_str).unwrap_or_default().to_owned();
                let options = json!([option("vendor-class-identifier", "HTTPClient"), option("boot-file-name", &file)]);
                fields.insert("option-data".to_owned(), options);
            } else {
                fields.insert("next-server".to_owned(), json!(site.server.to_string()));
            }
        }
        classes.push(class);
    }
    format!("{:#}\n", json!({ "Dhcp4": { "client-classes": classes } }))
}

fn router(site: &Site) -> String {
    format!(
        "Options 66 and 67 of a router are the same for every machine and every stage, so iPXE, which asks again,\n\
         would load itself for ever. Leave both empty and let Rackswarm add the boot files beside the router:\n\
         \n  \
           [dhcp]\n  mode = \"proxy\"\n\
         \n\
         Only for firmware that ignores the proxy, keep mode = \"proxy\" for iPXE and set in the router:\n\
         \n  \
           66 (next server):  {server}\n  \
           67 (boot file):    {uefi}    for UEFI, or\n                     {bios}  for BIOS\n",
        server = site.server,
        uefi = site.tftp.uefi_x64_loader,
        bios = site.tftp.bios_loader,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::Write as _;
    use std::process::Command;

    use super::*;
    use crate::tftp::TftpConfig;

    fn site() -> Site {
        Site { server: [10, 77, 0, 1].into(), http_port: 8080, tftp: TftpConfig::default() }
    }

    fn accepted_by(program: &str, arguments: &[&str], configuration: &str, suffix: &str) {
        let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
        file.write_all(configuration.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let output = Command::new(program)
            .args(arguments.iter().map(|argument| argument.replace("FILE", path)))
            .output()
            .unwrap_or_else(|_| panic!("{program} is not installed: run `cargo xtask test`, which installs it"));
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{program}: {}\n{configuration}", String::from_utf8_lossy(&said));
    }

    #[test]
    fn dnsmasq_accepts_its_lines() {
        let configuration = format!("dhcp-range=10.77.0.100,10.77.0.199\n{}", Software::Dnsmasq.lines(&site()));
        accepted_by("/usr/sbin/dnsmasq", &["--test", "--conf-file=FILE"], &configuration, ".conf");
    }

    #[test]
    fn isc_dhcpd_accepts_its_lines() {
        let lines = Software::Isc.lines(&site());
        let subnet = "subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.100 10.77.0.199; }";
        accepted_by("/usr/sbin/dhcpd", &["-t", "-cf", "FILE"], &format!("{lines}{subnet}\n"), ".conf");
    }

    #[test]
    fn kea_accepts_its_lines() {
        let mut configuration: Value = serde_json::from_str(&Software::Kea.lines(&site())).unwrap();
        configuration["Dhcp4"]["interfaces-config"] = json!({ "interfaces": [] });
        configuration["Dhcp4"]["lease-database"] = json!({ "type": "memfile", "persist": false });
        accepted_by("/usr/sbin/kea-dhcp4", &["-t", "FILE"], &configuration.to_string(), ".json");
    }

    #[test]
    fn every_kind_names_our_server_and_the_script() {
        for software in Software::ALL {
            let text = software.lines(&site());
            assert!(text.contains("10.77.0.1"), "{}", software.as_str());
            assert!(text.contains("snponly.efi"), "{}", software.as_str());
            if software != Software::Router {
                assert!(text.contains("/boot/${netX/mac:hexhyp}/script?uuid=${uuid}"), "{text}");
                assert!(text.contains("http://10.77.0.1:8080/boot/loader/snponly.efi"), "{text}");
            }
        }
    }
}
