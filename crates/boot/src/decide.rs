//! What iPXE is told to do, as an iPXE script. Pure: the caller says what the
//! state decides about the node, this file puts it into words that every iPXE
//! since 2015 understands.

use std::fmt::Write as _;
use std::net::SocketAddrV4;

use fleet::ids::Mac;

use crate::error::Error;

/// Longest kernel command line. Linux on x86 cuts at 2,048 bytes; the rest is
/// left for what iPXE and the kernel add themselves.
pub const KERNEL_LINE_MAX_BYTES: usize = 1_900;

/// How often a script tries to load kernel and initramfs before it restarts
/// the machine.
pub const LOAD_ATTEMPTS: u32 = 5;

/// Name of the kernel below `boot/<mac>/`.
pub const KERNEL_FILE: &str = "vmlinuz";

/// Name of the initramfs below `boot/<mac>/`, and of the `initrd=` argument
/// without which iPXE under EFI starts a kernel that finds no root.
pub const INITRAMFS_FILE: &str = "initramfs.img";

/// Name of the script below `boot/<mac>/`.
pub const SCRIPT_FILE: &str = "script";

const REASON_MAX_CHARS: usize = 160;

/// What `${platform}` says in iPXE; it decides how `exit` must be spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// `pcbios`: `exit` goes on with the next boot device.
    Bios,
    /// `efi`: only `exit 1` makes the firmware go on (measured with OVMF;
    /// `exit` never reached the disk).
    Efi,
}

impl Platform {
    /// Reads the `platform` query parameter of the script address. Whatever is
    /// not `pcbios` is taken as EFI, because `exit 1` is understood by both.
    #[must_use]
    pub fn from_query(platform: &str) -> Self {
        if platform == "pcbios" { Self::Bios } else { Self::Efi }
    }
}

/// What the state says about a node that asks for its boot script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootDecision {
    /// Start our kernel and agent.
    Deploy {
        /// Arguments of the kernel line, one per element, without `initrd=`.
        kernel_args: Vec<String>,
        /// What is being done, for the console: `d-12, attempt 1`.
        note: String,
    },
    /// Start the machine's own disk.
    LocalDisk {
        /// Why, for the console.
        why: String,
    },
    /// The machine is not enrolled; its own boot order goes on.
    Unknown,
}

/// The iPXE script for one machine. `http` is the controller's address as the
/// machine sees it.
///
/// # Errors
/// [`Error::KernelArgument`] when an argument could be read as script text or
/// the line becomes too long.
pub fn script(mac: Mac, platform: Platform, http: SocketAddrV4, decision: &BootDecision) -> Result<String, Error> {
    match decision {
        BootDecision::Deploy { kernel_args, note } => deploy(mac, http, kernel_args, note),
        BootDecision::LocalDisk { why } => Ok(go_on(platform, &format!("{mac} starts its own disk: {why}"))),
        BootDecision::Unknown => {
            Ok(go_on(platform, &format!("{mac} is not enrolled, nothing is changed on this machine")))
        }
    }
}

/// The address under which a machine finds its script. iPXE replaces the
/// `${...}` parts itself, after it has taken the text from DHCP.
#[must_use]
pub fn script_url(mac: Mac, http: SocketAddrV4) -> String {
    format!("{}?uuid=${{uuid}}&platform=${{platform}}", file_url(mac, http, SCRIPT_FILE))
}

/// The address of a file that is served for one machine.
#[must_use]
pub fn file_url(mac: Mac, http: SocketAddrV4, file: &str) -> String {
    format!("http://{http}/boot/{}/{file}", mac.dashed())
}

fn deploy(mac: Mac, http: SocketAddrV4, kernel_args: &[String], note: &str) -> Result<String, Error> {
    let line = kernel_line(kernel_args)?;
    // Machines that were powered on together must not retry together.
    let pause_seconds = 3 + u32::from(mac.0[5] % 8);
    let mut text = String::new();
    let _ = write!(
        text,
        "#!ipxe\n\
         echo Rackswarm: {mac} is being provisioned: {note}\n\
         set attempt:int32 0\n\
         :retry\n\
         inc attempt\n\
         iseq ${{attempt}} {beyond} && goto give_up ||\n\
         imgfree\n\
         kernel {kernel} {line} || goto pause\n\
         initrd {initramfs} || goto pause\n\
         boot || goto pause\n\
         :pause\n\
         echo Rackswarm: attempt ${{attempt}} of {LOAD_ATTEMPTS} failed, next in {pause_seconds} seconds\n\
         sleep {pause_seconds}\n\
         goto retry\n\
         :give_up\n\
         echo Rackswarm: kernel and initramfs cannot be loaded from http://{http}, restarting the machine\n\
         sleep {pause_seconds}\n\
         reboot || exit 1\n",
        note = for_console(note),
        beyond = LOAD_ATTEMPTS + 1,
        kernel = file_url(mac, http, KERNEL_FILE),
        initramfs = file_url(mac, http, INITRAMFS_FILE),
    );
    Ok(text)
}

fn go_on(platform: Platform, reason: &str) -> String {
    let exit = match platform {
        Platform::Bios => "exit",
        Platform::Efi => "exit 1",
    };
    format!("#!ipxe\necho Rackswarm: {}\n{exit}\n", for_console(reason))
}

fn kernel_line(kernel_args: &[String]) -> Result<String, Error> {
    let mut line = format!("initrd={INITRAMFS_FILE}");
    for argument in kernel_args {
        let harmless = !argument.is_empty() && argument.chars().all(is_plain);
        if !harmless || line.len() + 1 + argument.len() > KERNEL_LINE_MAX_BYTES {
            return Err(Error::KernelArgument(argument.escape_debug().take(REASON_MAX_CHARS).collect()));
        }
        line.push(' ');
        line.push_str(argument);
    }
    Ok(line)
}

/// Characters that mean nothing to iPXE: no white space, no `${}`, no `||`,
/// no `&&`, no `#`, no quotes.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_.,:;/=@%+~?*!()[]".contains(character)
}

fn for_console(text: &str) -> String {
    text.chars().take(REASON_MAX_CHARS).map(|c| if is_plain(c) || c == ' ' { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn http() -> SocketAddrV4 {
        "10.77.0.1:8080".parse().unwrap()
    }

    fn deploy_with(kernel_args: &[&str]) -> Result<String, Error> {
        let decision = BootDecision::Deploy {
            kernel_args: kernel_args.iter().map(|a| (*a).to_owned()).collect(),
            note: "d-12, attempt 1".to_owned(),
        };
        script(MAC, Platform::Efi, http(), &decision)
    }

    #[test]
    fn deploy_loads_both_files_and_names_the_initramfs() {
        let text = deploy_with(&["no_timer_check", "panic=1", "console=ttyS0,115200"]).unwrap();
        assert!(text.starts_with("#!ipxe\n"));
        assert!(text.contains(
            "kernel http://10.77.0.1:8080/boot/52-54-00-12-34-56/vmlinuz initrd=initramfs.img no_timer_check panic=1 console=ttyS0,115200 || goto pause\n"
        ));
        assert!(text.contains("initrd http://10.77.0.1:8080/boot/52-54-00-12-34-56/initramfs.img || goto pause\n"));
        assert!(text.contains("iseq ${attempt} 6 && goto give_up ||\n"));
        assert!(text.contains("d-12, attempt 1"));
    }

    #[test]
    fn every_label_that_is_jumped_to_exists() {
        let text = deploy_with(&[]).unwrap();
        for label in ["retry", "pause", "give_up"] {
            assert!(text.contains(&format!("goto {label}")), "{label} unused");
            assert!(text.contains(&format!("\n:{label}\n")), "{label} missing");
        }
    }

    #[test]
    fn machines_do_not_retry_in_step() {
        let pause = |last: u8| {
            let decision = BootDecision::Deploy { kernel_args: vec![], note: String::new() };
            script(Mac([2, 0, 0, 0, 0, last]), Platform::Bios, http(), &decision).unwrap()
        };
        assert!(pause(0).contains("sleep 3\n"));
        assert!(pause(7).contains("sleep 10\n"));
    }

    #[test]
    fn exit_is_spelled_for_the_platform() {
        let decision = BootDecision::LocalDisk { why: "running since d-3".to_owned() };
        let bios = script(MAC, Platform::Bios, http(), &decision).unwrap();
        let efi = script(MAC, Platform::Efi, http(), &decision).unwrap();
        assert!(bios.ends_with("\nexit\n"), "{bios}");
        assert!(efi.ends_with("\nexit 1\n"), "{efi}");
        assert!(bios.contains("starts its own disk: running since d-3"));
        assert_eq!(Platform::from_query("pcbios"), Platform::Bios);
        assert_eq!(Platform::from_query("efi"), Platform::Efi);
        assert_eq!(Platform::from_query(""), Platform::Efi);
    }

    #[test]
    fn an_unknown_machine_is_left_alone() {
        let text = script(MAC, Platform::Bios, http(), &BootDecision::Unknown).unwrap();
        assert!(text.contains("not enrolled"));
        assert!(!text.contains("kernel"));
    }

    #[test]
    fn script_text_cannot_be_injected() {
        for bad in ["", "a b", "a\nb", "a\tb", "${uuid}", "||", "&&", "#x", "a\"b", "a'b", "ä", "a\\b"] {
            assert!(matches!(deploy_with(&[bad]), Err(Error::KernelArgument(_))), "{bad:?} was let through");
        }
        assert!(deploy_with(&[&"x".repeat(KERNEL_LINE_MAX_BYTES)]).is_err());

        let decision = BootDecision::LocalDisk { why: "x\nshell || ${net0/ip} && reboot".to_owned() };
        let text = script(MAC, Platform::Bios, http(), &decision).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains("||") && !text.contains("${") && !text.contains("&&"));
    }

    #[test]
    fn the_script_address_carries_mac_and_placeholders() {
        assert_eq!(
            script_url(MAC, http()),
            "http://10.77.0.1:8080/boot/52-54-00-12-34-56/script?uuid=${uuid}&platform=${platform}"
        );
    }
}
