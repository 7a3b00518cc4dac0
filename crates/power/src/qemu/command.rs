//! The command line that a definition becomes.

use std::path::Path;

use super::{Firmware, Machine, StandingOrder};
use crate::BootDevice;

/// The network card's device id, by which QMP finds it.
pub(super) const CARD: &str = "net0";
/// The network card's boot index in the standing order: behind every disk.
const CARD_LAST: i32 = 100;
const CARD_FIRST: i32 = 0;
/// Takes a device out of the order that QEMU hands to the firmware.
const UNORDERED: i32 = -1;

/// The words that start the machine, `ip netns exec` in front when it lives in a namespace.
pub(super) fn line(machine: &Machine, first: BootDevice) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(namespace) = &machine.namespace {
        words.extend(["ip", "netns", "exec", namespace].map(str::to_owned));
    }
    words.push("qemu-system-x86_64".to_owned());
    words.extend(control(machine));
    words.extend(board(machine));
    words.extend(disks(machine));
    words.extend(card(machine, first));
    words.extend(machine.extra.iter().cloned());
    words
}

/// The card's boot index when no one-time network boot is armed.
pub(super) fn standing_card_index(machine: &Machine) -> i32 {
    match machine.order {
        StandingOrder::Disk => CARD_LAST,
        StandingOrder::Firmware => UNORDERED,
        StandingOrder::Network => CARD_FIRST,
    }
}

/// How QEMU itself is run: detached, and reachable by its pid file and control socket.
fn control(machine: &Machine) -> Vec<String> {
    pairs([
        ("-name", machine.name.clone()),
        ("-pidfile", machine.pid_file().display().to_string()),
        ("-qmp", format!("unix:{},server=on,wait=off", escaped(&machine.qmp_socket()))),
        ("-chardev", format!("file,id=console,path={},append=on", escaped(&machine.console))),
        ("-serial", "chardev:console".to_owned()),
        ("-display", "none".to_owned()),
        ("-vga", "none".to_owned()),
    ])
    .chain(["-daemonize", "-nodefaults", "-no-user-config"].map(str::to_owned))
    .collect()
}

fn board(machine: &Machine) -> Vec<String> {
    // graphics=off makes SeaBIOS speak on the serial console.
    let kind = if machine.firmware.is_uefi() { "q35,graphics=off" } else { "pc,graphics=off" };
    // Without a limit the translation buffer grows to the size of the guest (565 MiB resident for a 512 MiB guest).
    let accel = if machine.accel == "tcg" { "tcg,tb-size=64".to_owned() } else { machine.accel.clone() };
    let mut words: Vec<String> = pairs([
        ("-machine", kind.to_owned()),
        ("-accel", accel),
        ("-m", machine.memory_mib.to_string()),
        ("-smp", machine.cpus.to_string()),
        ("-uuid", machine.uuid.to_string()),
        ("-smbios", format!("type=1,uuid={},serial={}", machine.uuid, machine.name)),
        ("-rtc", "base=utc".to_owned()),
        ("-device", "virtio-rng-pci".to_owned()),
        // SeaBIOS stops for ever at "No bootable device" unless it is told to try again.
        ("-boot", "reboot-timeout=3000".to_owned()),
    ])
    .collect();
    if machine.firmware.is_uefi() {
        words.extend(pairs([
            ("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={}", escaped(&machine.firmware_code))),
            ("-drive", format!("if=pflash,format=raw,unit=1,file={}", escaped(&machine.variables_file()))),
            ("-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n".to_owned()),
        ]));
    }
    if machine.firmware == Firmware::UefiHttp {
        words.extend(pairs([("-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n".to_owned())]));
    }
    words
}

fn disks(machine: &Machine) -> Vec<String> {
    let index = |number: usize| match machine.order {
        StandingOrder::Firmware => String::new(),
        StandingOrder::Disk | StandingOrder::Network => format!(",bootindex={}", number + 1),
    };
    let disk = |(number, disk): (usize, &super::Disk)| {
        pairs([
            (
                "-drive",
                format!(
                    "if=none,id=drive{number},format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file={}",
                    escaped(&disk.path)
                ),
            ),
            (
                "-device",
                format!("virtio-blk-pci,id=disk{number},drive=drive{number},serial={}{}", disk.serial, index(number)),
            ),
        ])
    };
    machine.disks.iter().enumerate().flat_map(disk).collect()
}

fn card(machine: &Machine, first: BootDevice) -> Vec<String> {
    let cable = match &machine.tap {
        Some(tap) => format!("tap,id=cable0,ifname={tap},script=no,downscript=no"),
        None => "hubport,id=cable0,hubid=0".to_owned(),
    };
    let index = if first == BootDevice::Network { CARD_FIRST } else { standing_card_index(machine) };
    let index = if index == UNORDERED { String::new() } else { format!(",bootindex={index}") };
    // A UEFI machine without a card ROM uses edk2's own network stack instead of iPXE's.
    let rom = if machine.firmware.is_uefi() { ",romfile=" } else { "" };
    pairs([
        ("-netdev", cable),
        ("-device", format!("virtio-net-pci,id={CARD},netdev=cable0,mac={}{index}{rom}", machine.mac)),
    ])
    .collect()
}

fn pairs<const N: usize>(pairs: [(&str, String); N]) -> impl Iterator<Item = String> {
    pairs.map(|(option, value)| [option.to_owned(), value]).into_iter().flatten()
}

/// QEMU's option lists end at a comma unless it is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::definition::tests::sample;
    use super::*;

    #[test]
    fn the_order_is_disk_first_unless_a_network_boot_was_chosen() {
        for (first, index) in [(BootDevice::Disk, 100), (BootDevice::Network, 0)] {
            let line = line(&sample(), first).join(" ");
            assert!(line.contains("id=disk0,drive=drive0,serial=DISK-1,bootindex=1"), "{line}");
            assert!(line.contains(&format!("mac=52:54:00:00:00:01,bootindex={index},romfile=")), "{line}");
        }
    }

    #[test]
    fn the_firmwares_own_order_and_the_network_first_are_left_or_said() {
        let with = |order, first| line(&Machine { order, ..sample() }, first).join(" ");
        let own = with(StandingOrder::Firmware, BootDevice::Disk);
        assert!(!own.contains("bootindex"), "{own}");
        let once = with(StandingOrder::Firmware, BootDevice::Network);
        assert_eq!(once.matches("bootindex").count(), 1, "{once}");
        let network = with(StandingOrder::Network, BootDevice::Disk);
        assert!(
            network.contains("serial=DISK-1,bootindex=1") && network.contains(",bootindex=0,romfile="),
            "{network}"
        );
    }

    #[test]
    fn each_firmware_has_its_board_and_network_stack() {
        for (firmware, board, settings) in
            [(Firmware::Bios, "pc", 0), (Firmware::UefiPxe, "q35", 1), (Firmware::UefiHttp, "q35", 2)]
        {
            let line = line(&Machine { firmware, ..sample() }, BootDevice::Disk);
            assert!(line.contains(&format!("{board},graphics=off")));
            assert_eq!(line.iter().filter(|word| word.ends_with("PXESupport,string=n")).count(), settings);
        }
    }

    #[test]
    fn a_comma_in_a_path_is_doubled_and_the_namespace_comes_first() {
        let line = line(&sample(), BootDevice::Disk);
        assert_eq!(line[..5], ["ip", "netns", "exec", "lab", "qemu-system-x86_64"]);
        assert!(line.iter().any(|word| word.ends_with("file=/disks/a,,b.raw")));
    }
}
