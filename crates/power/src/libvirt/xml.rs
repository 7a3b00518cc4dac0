//! Reading and changing a machine's definition. The text is changed where it must be and left as it is elsewhere, because
//! a definition holds much that we do not know. Pure.

use std::ops::Range;
use std::path::Path;

use roxmltree::{Document, Node};

use crate::{BootDevice, Kernel};

/// libvirt keeps one element for each namespace in a definition's metadata.
const NAMESPACE: &str = "urn:rackswarm:domain";

type Wrong<T> = std::result::Result<T, String>;

/// What a definition tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) macs: Vec<String>,
    /// The wish that holds it, if we made it.
    pub(super) token: Option<String>,
    /// The disk that we made for it.
    pub(super) disk: Option<String>,
}

pub(super) fn about(xml: &str) -> Wrong<About> {
    let document = parse(xml)?;
    let root = document.root_element();
    let mark = mark(root);
    let attribute = |name: &str| mark.and_then(|mark| mark.attribute(name)).map(str::to_owned);
    Ok(About {
        name: child_text(root, "name"),
        uuid: child_text(root, "uuid"),
        macs: cards(root).filter_map(|card| child(card, "mac")?.attribute("address").map(str::to_lowercase)).collect(),
        token: attribute("token"),
        disk: attribute("disk"),
    })
}

/// The definition with its standing order put back; `None` when no order for one start is in it.
pub(super) fn standing(xml: &str) -> Wrong<Option<String>> {
    let document = parse(xml)?;
    let root = document.root_element();
    let Some(mark) = mark(root) else { return Ok(None) };
    let Some(kept) = mark.attribute("standing") else { return Ok(None) };
    let mut edits = match kept.strip_prefix("devices ") {
        None => os_edits(xml, root, &kept.split(',').filter(|dev| !dev.is_empty()).collect::<Vec<_>>())?,
        Some(numbers) => {
            let boots = device_boots(root);
            let numbers: Vec<&str> = numbers.split(',').collect();
            if numbers.len() != boots.len() {
                return Err(
                    "its devices changed since the boot order was set for one start; set the order by `virsh edit`"
                        .into(),
                );
            }
            boots.iter().zip(numbers).map(|(boot, number)| order_edit(*boot, number)).collect()
        }
    };
    edits.push((mark.range(), write_mark(mark.attribute("token"), mark.attribute("disk"), None)));
    Ok(Some(applied(xml, edits)))
}

/// The definition with `device` in front and the standing order kept beside it. It must have none kept already.
pub(super) fn first(xml: &str, device: BootDevice) -> Wrong<String> {
    let document = parse(xml)?;
    let root = document.root_element();
    if device == BootDevice::Network && cards(root).next().is_none() {
        return Err("it has no network interface; add one to boot from the network".into());
    }
    let boots = device_boots(root);
    let (kept, mut edits) = if boots.is_empty() {
        let devices: Vec<&str> = os_boots(root).filter_map(|boot| boot.attribute("dev")).collect();
        let wanted = match device {
            BootDevice::Network => "network",
            BootDevice::Disk => "hd",
        };
        let mut order = vec![wanted];
        order.extend(devices.iter().copied().filter(|dev| *dev != wanted));
        (devices.join(","), os_edits(xml, root, &order)?)
    } else {
        renumbered(xml, root, &boots, device)
    };
    let mark = mark(root);
    let attribute = |name: &str| mark.and_then(|mark| mark.attribute(name));
    let written = write_mark(attribute("token"), attribute("disk"), Some(&kept));
    edits.push(match (mark, child(root, "metadata")) {
        (Some(mark), _) => (mark.range(), written),
        (None, Some(metadata)) => inside(xml, metadata, &written),
        (None, None) => {
            let os = child(root, "os").ok_or("it has no <os>")?;
            (os.range().start..os.range().start, format!("<metadata>{written}</metadata>\n  "))
        }
    });
    Ok(applied(xml, edits))
}

/// The definition with a kernel that QEMU puts into memory, for one start: after a restart of the guest it would do so
/// again, so the machine goes off then.
pub(super) fn with_kernel(xml: &str, kernel: &Kernel) -> Wrong<String> {
    let document = parse(xml)?;
    let root = document.root_element();
    let os = child(root, "os").ok_or("it has no <os>")?;
    if child(os, "kernel").is_some() {
        return Err(
            "its definition has a <kernel> already, which it would boot for ever; take it out by `virsh edit`".into()
        );
    }
    let path = |path: &Path| escaped(&path.display().to_string());
    let text = format!(
        "<kernel>{}</kernel><initrd>{}</initrd><cmdline>{}</cmdline>",
        path(&kernel.kernel),
        path(&kernel.initramfs),
        escaped(&kernel.line)
    );
    let off = "<on_reboot>destroy</on_reboot>".to_owned();
    let restart = match child(root, "on_reboot") {
        Some(known) => (known.range(), off),
        None => (os.range().end..os.range().end, off),
    };
    Ok(applied(xml, vec![inside(xml, os, &text), restart]))
}

/// Which kind of device the next start looks at first; `None` for a CD or a floppy.
pub(super) fn first_device(xml: &str) -> Wrong<Option<BootDevice>> {
    let document = parse(xml)?;
    let root = document.root_element();
    let boots = device_boots(root);
    if let Some(lowest) = boots.iter().min_by_key(|boot| number(**boot)) {
        return Ok(kind(*lowest));
    }
    Ok(match os_boots(root).next().and_then(|boot| boot.attribute("dev")) {
        Some("network") => Some(BootDevice::Network),
        Some("hd") => Some(BootDevice::Disk),
        _ => None,
    })
}

/// The aliases of a running QEMU machine's network cards; empty for another hypervisor.
pub(super) fn live_cards(xml: &str) -> Wrong<Vec<String>> {
    let document = parse(xml)?;
    let root = document.root_element();
    if !matches!(root.attribute("type"), Some("qemu" | "kvm")) {
        return Ok(Vec::new());
    }
    Ok(cards(root).filter_map(|card| child(card, "alias")?.attribute("name").map(str::to_owned)).collect())
}

/// What a new machine is made of.
pub(super) struct New<'a> {
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    pub(super) cpus: u32,
    pub(super) memory_mib: u32,
    pub(super) uefi: bool,
    pub(super) disk: &'a str,
    pub(super) bus: &'a str,
    /// `bridge` or `network`, and its name; without one it has no card.
    pub(super) link: Option<(&'a str, &'a str)>,
    pub(super) mac: &'a str,
    pub(super) token: &'a str,
}

/// A definition: disk first and network second, serial console, the disk's serial number is the machine's name.
pub(super) fn definition(new: &New<'_>) -> String {
    let quoted = |text: &str| escaped(text);
    let firmware = if new.uefi { " firmware='efi'" } else { "" };
    let machine = if new.uefi { "q35" } else { "pc" };
    let card = match new.link {
        None => String::new(),
        Some((how, name)) => format!(
            "<interface type='{how}'><source {how}='{}'/><mac address='{}'/><model type='virtio'/></interface>",
            quoted(name),
            new.mac
        ),
    };
    let serial: String = new.name.chars().take(20).collect();
    format!(
        "<domain type='{kind}'><name>{name}</name>\
         <metadata>{mark}</metadata>\
         <memory unit='MiB'>{memory}</memory><vcpu>{cpus}</vcpu>\
         <os{firmware}><type arch='x86_64' machine='{machine}'>hvm</type><boot dev='hd'/><boot dev='network'/></os>\
         <features><acpi/></features>\
         <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
         <source file='{disk}'/><target dev='{target}' bus='{bus}'/><serial>{serial}</serial></disk>{card}\
         <serial type='pty'><target port='0'/></serial></devices></domain>",
        kind = quoted(new.kind),
        name = quoted(new.name),
        mark = write_mark(Some(new.token), Some(new.disk), None),
        memory = new.memory_mib,
        cpus = new.cpus,
        disk = quoted(new.disk),
        target = if new.bus == "virtio" { "vda" } else { "sda" },
        bus = quoted(new.bus),
        serial = quoted(&serial),
    )
}

fn parse(xml: &str) -> Wrong<Document<'_>> {
    Document::parse(xml).map_err(|error| format!("its definition is no XML that we can read: {error}"))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|one| one.has_tag_name(name))
}

fn child_text(node: Node<'_, '_>, name: &str) -> String {
    child(node, name).and_then(|one| one.text()).unwrap_or_default().trim().to_owned()
}

fn mark<'a, 'i>(root: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    child(root, "metadata")?.children().find(|one| one.tag_name().namespace() == Some(NAMESPACE))
}

fn cards<'a, 'i>(root: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    child(root, "devices")
        .into_iter()
        .flat_map(|devices| devices.children())
        .filter(|one| one.has_tag_name("interface"))
}

fn os_boots<'a, 'i>(root: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    child(root, "os").into_iter().flat_map(|os| os.children()).filter(|one| one.has_tag_name("boot"))
}

/// `<boot order=...>` of the devices, which excludes `<boot dev=...>` in `<os>`.
fn device_boots<'a, 'i>(root: Node<'a, 'i>) -> Vec<Node<'a, 'i>> {
    let devices = child(root, "devices").into_iter().flat_map(|devices| devices.children());
    devices.flat_map(|device| device.children()).filter(|one| one.has_tag_name("boot")).collect()
}

fn number(boot: Node<'_, '_>) -> u32 {
    boot.attribute("order").and_then(|order| order.parse().ok()).unwrap_or(u32::MAX)
}

fn kind(boot: Node<'_, '_>) -> Option<BootDevice> {
    let device = boot.parent()?;
    if device.has_tag_name("interface") {
        return Some(BootDevice::Network);
    }
    let disk = device.has_tag_name("disk") && matches!(device.attribute("device"), None | Some("disk" | "lun"));
    disk.then_some(BootDevice::Disk)
}

/// New numbers for the devices' orders: those of the wanted kind in front, the rest as it was. A network card without a
/// number gets one when no card has.
fn renumbered(xml: &str, root: Node<'_, '_>, boots: &[Node<'_, '_>], device: BootDevice) -> (String, Vec<Edit>) {
    let mut order: Vec<usize> = (0..boots.len()).collect();
    order.sort_by_key(|index| (kind(boots[*index]) != Some(device), number(boots[*index])));
    let missing = device == BootDevice::Network && !boots.iter().any(|boot| kind(*boot) == Some(device));
    let shift = 1 + usize::from(missing);
    let mut edits: Vec<Edit> = order
        .iter()
        .enumerate()
        .map(|(place, index)| order_edit(boots[*index], &(place + shift).to_string()))
        .collect();
    let mut kept: Vec<(usize, String)> =
        boots.iter().map(|boot| (boot.range().start, number(*boot).to_string())).collect();
    if missing && let Some(card) = cards(root).next() {
        let edit = inside(xml, card, "<boot order='1'/>");
        kept.push((edit.0.start, "-".to_owned()));
        edits.push(edit);
    }
    kept.sort();
    let numbers: Vec<String> = kept.into_iter().map(|(_, number)| number).collect();
    (format!("devices {}", numbers.join(",")), edits)
}

type Edit = (Range<usize>, String);

fn order_edit(boot: Node<'_, '_>, number: &str) -> Edit {
    let text = if number == "-" { String::new() } else { format!("<boot order='{number}'/>") };
    (boot.range(), text)
}

/// Replaces the orders in `<os>`.
fn os_edits(xml: &str, root: Node<'_, '_>, order: &[&str]) -> Wrong<Vec<Edit>> {
    let os = child(root, "os").ok_or("it has no <os>")?;
    let mut edits: Vec<Edit> = os_boots(root).map(|boot| (boot.range(), String::new())).collect();
    let text: String = order.iter().map(|dev| format!("<boot dev='{}'/>", escaped(dev))).collect();
    edits.push(inside(xml, os, &text));
    Ok(edits)
}

/// An edit that puts text before the end of an element.
fn inside(xml: &str, node: Node<'_, '_>, text: &str) -> Edit {
    let range = node.range();
    let whole = &xml[range.clone()];
    match whole.rfind("</") {
        Some(at) => (range.start + at..range.start + at, text.to_owned()),
        // `<metadata/>`: the slash and the bracket make room.
        None => (range.end - 2..range.end, format!(">{text}</{}>", node.tag_name().name())),
    }
}

fn applied(xml: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
    let mut text = xml.to_owned();
    for (range, replacement) in edits {
        text.replace_range(range, &replacement);
    }
    text
}

fn write_mark(token: Option<&str>, disk: Option<&str>, standing: Option<&str>) -> String {
    let attributes: String = [("token", token), ("disk", disk), ("standing", standing)]
        .into_iter()
        .filter_map(|(name, value)| Some(format!(" {name}='{}'", escaped(value?))))
        .collect();
    format!("<rackswarm:domain xmlns:rackswarm='{NAMESPACE}'{attributes}/>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const OS: &str = "<domain type='kvm'><name>n</name><uuid>u</uuid><os><type>hvm</type><boot dev='hd'/><boot dev='cdrom'/></os>\
        <devices><interface type='bridge'><mac address='52:54:00:AA:00:01'/><alias name='net0'/></interface></devices></domain>";
    const DEVICES: &str = "<domain type='qemu'><name>n</name><metadata><x:y xmlns:x='urn:x'/></metadata><os><type>hvm</type></os><devices>\
        <disk device='disk'><boot order='2'/></disk><disk device='cdrom'><boot order='1'/></disk>\
        <interface type='network'><mac address='52:54:00:aa:00:01'/></interface></devices></domain>";

    #[test]
    fn an_order_for_one_start_and_back_leaves_everything_else() {
        for xml in [OS, DEVICES] {
            assert_eq!(standing(xml).unwrap(), None);
            let once = first(xml, BootDevice::Network).unwrap();
            assert_eq!(first_device(&once).unwrap(), Some(BootDevice::Network));
            let back = standing(&once).unwrap().unwrap();
            assert_eq!(first_device(&back).unwrap(), first_device(xml).unwrap());
            assert_eq!(standing(&back).unwrap(), None);
            let disk = first(&back, BootDevice::Disk).unwrap();
            assert_eq!(first_device(&disk).unwrap(), Some(BootDevice::Disk));
            assert!(!back.contains("standing"));
        }
        let back = standing(&first(DEVICES, BootDevice::Network).unwrap()).unwrap().unwrap();
        assert_eq!(back.replace("<rackswarm:domain xmlns:rackswarm='urn:rackswarm:domain'/>", ""), DEVICES);
    }

    #[test]
    fn the_standing_order_is_kept_in_the_definition() {
        let once = first(OS, BootDevice::Network).unwrap();
        assert!(once.contains("<boot dev='network'/><boot dev='hd'/><boot dev='cdrom'/></os>"), "{once}");
        assert!(once.contains("standing='hd,cdrom'"), "{once}");
        let once = first(DEVICES, BootDevice::Network).unwrap();
        assert!(once.contains("standing='devices 2,1,-'") && once.contains("<boot order='1'/></interface>"), "{once}");
        assert!(once.contains("urn:x"), "{once}");
    }

    #[test]
    fn a_kernel_for_one_start_goes_off_when_the_guest_restarts() {
        let kernel = Kernel { kernel: "/b/vmlinuz".into(), initramfs: "/b/init&rd".into(), line: "a=b quiet".into() };
        let once = with_kernel(OS, &kernel).unwrap();
        assert!(
            once.contains(
                "<boot dev='cdrom'/><kernel>/b/vmlinuz</kernel><initrd>/b/init&amp;rd</initrd><cmdline>a=b quiet</cmdline></os>\
                 <on_reboot>destroy</on_reboot><devices>"
            ),
            "{once}"
        );
        assert!(with_kernel(&once, &kernel).unwrap_err().contains("<kernel> already"));
        let restarting = OS.replace("<devices>", "<on_reboot>restart</on_reboot><devices>");
        let once = with_kernel(&restarting, &kernel).unwrap();
        assert!(once.contains("</os><on_reboot>destroy</on_reboot><devices>"), "{once}");
    }

    #[test]
    fn a_made_definition_tells_who_made_it() {
        let new = New {
            kind: "qemu",
            name: "rs-a&b-1",
            cpus: 2,
            memory_mib: 512,
            uefi: true,
            disk: "/var/lib/x'y.qcow2",
            bus: "virtio",
            link: Some(("bridge", "br0")),
            mac: "52:54:00:00:00:01",
            token: "web",
        };
        let xml = definition(&new);
        let about = about(&xml).unwrap();
        assert_eq!((about.name.as_str(), about.token.as_deref()), ("rs-a&b-1", Some("web")));
        assert_eq!(about.disk.as_deref(), Some("/var/lib/x'y.qcow2"));
        assert_eq!(about.macs, ["52:54:00:00:00:01"]);
        let once = first(&xml, BootDevice::Network).unwrap();
        assert_eq!(super::about(&once).unwrap().token.as_deref(), Some("web"));
        assert_eq!(live_cards(OS).unwrap(), ["net0"]);
        assert_eq!(live_cards(&OS.replace("kvm", "test")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        assert!(about("<domain>").is_err());
        assert!(
            about("<!DOCTYPE x [<!ENTITY a 'b'>]><domain>&a;</domain>").is_err(),
            "no entities: they can grow without bound"
        );
        let lone = "<domain><os/><devices/></domain>";
        assert!(first(lone, BootDevice::Network).unwrap_err().contains("no network interface"));
    }
}
