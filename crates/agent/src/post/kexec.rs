//! Starting the deployed kernel from ours, which skips firmware and loader.
//!
//! What the system's own loader would start is read from its configuration, and loaded with `kexec` while the system is
//! mounted; process 1 jumps into it in place of a restart. Whatever is in the way costs no attempt: the machine then
//! restarts through its firmware, and says why.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Root;
use crate::command::Run;
use crate::{Error, Stop};

/// Reading an initramfs from a slow disk.
const LIMIT: Duration = Duration::from_secs(120);
/// Says 1 when a kernel waits to be started.
const LOADED: &str = "/sys/kernel/kexec_loaded";
/// The longest kernel line, in bytes (`COMMAND_LINE_SIZE` of x86; of arm64 as well).
const LINE_BYTES: usize = 2048;
/// Where several initramfs files become one.
const JOINED: &str = "/run/rackswarm/kexec-initramfs";
/// Where GRUB keeps its configuration and its saved variables.
const GRUB: &[(&str, &str)] =
    &[("boot/grub/grub.cfg", "boot/grub/grubenv"), ("boot/grub2/grub.cfg", "boot/grub2/grubenv")];
/// Where the Boot Loader Specification puts entries (type 1).
const ENTRIES: &str = "boot/loader/entries";
/// Entries that are looked at.
const ENTRIES_LIMIT: usize = 256;

/// Loads the deployed kernel, or says why the firmware has to start it.
pub(super) fn act(root: &Root, stop: &Stop) -> String {
    match load(root, stop) {
        Ok(said) => said,
        Err(why) => format!("the deployed kernel cannot be started from here, it restarts through its firmware: {why}"),
    }
}

/// Whether a kernel waits to be started.
#[must_use]
pub fn is_loaded() -> bool {
    fs::read_to_string(LOADED).is_ok_and(|text| text.trim() == "1")
}

fn load(root: &Root, stop: &Stop) -> Result<String, Error> {
    let start = Start::of(root).map_err(|why| super::wrong("kexec", why))?;
    let file = |path: &str| root.outside(path).ok_or_else(|| super::wrong("kexec", format!("{path} is not there")));
    let kernel = file(&start.kernel)?;
    let initramfs = start.initramfs.iter().map(|path| file(path)).collect::<Result<Vec<_>, _>>()?;
    let joined = join(&initramfs)?;
    let mut run = Run::new("kexec", LIMIT).args(["--kexec-syscall-auto", "--load"]).args([&kernel]);
    if let Some(path) = joined.as_ref().or(initramfs.first()) {
        run = run.args([format!("--initrd={}", path.display())]);
    }
    let loaded = run.args([format!("--command-line={}", start.line)]).text(stop);
    if let Some(joined) = joined {
        let _ = fs::remove_file(joined);
    }
    loaded?;
    if !is_loaded() {
        return Err(super::wrong("kexec", format!("{LOADED} does not say so after it was loaded")));
    }
    Ok(format!("/{} is loaded and is started without the firmware: {}", start.kernel, start.line))
}

/// The kernel unpacks archives that follow each other, as a loader leaves them in memory.
fn join(files: &[PathBuf]) -> Result<Option<PathBuf>, Error> {
    if files.len() < 2 {
        return Ok(None);
    }
    let path = Path::new(JOINED);
    let failed = || Error::io("write", path);
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed())?;
    let mut out = fs::File::create(path).map_err(failed())?;
    for file in files {
        let mut from = fs::File::open(file).map_err(Error::io("read", file))?;
        io::copy(&mut from, &mut out).map_err(failed())?;
    }
    Ok(Some(path.to_owned()))
}

/// What the loader would start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Start {
    /// Paths in the system's tree.
    kernel: String,
    initramfs: Vec<String>,
    /// The kernel's command line.
    line: String,
}

impl Start {
    /// Reads GRUB's menu, or entries of the Boot Loader Specification.
    fn of(root: &Root) -> Result<Self, String> {
        let read = |path: &str| root.read(path).map_err(|error| error.to_string());
        let mut saved = BTreeMap::new();
        for (menu, environment) in GRUB {
            saved.extend(variables(&read(environment)?.unwrap_or_default()));
            let Some(text) = read(menu)? else { continue };
            if let Some(entry) = menu_entry(&text) {
                return entry.resolve(root, &saved);
            }
        }
        let named = |name: &String| name.ends_with(".conf");
        let mut names: Vec<String> = root.list(ENTRIES).into_iter().filter(named).take(ENTRIES_LIMIT).collect();
        names.sort_by_key(|name| natural(name));
        // As the loaders do where nothing was chosen: the newest; one that was chosen by its name counts more.
        let chosen = saved.get("saved_entry").map(|name| format!("{name}.conf")).filter(|name| names.contains(name));
        let normal = || names.iter().rev().find(|name| !name.contains("-rescue")).cloned();
        let Some(name) = chosen.or_else(normal) else {
            return Err(format!("neither {} nor {ENTRIES} names a kernel; only these are read", GRUB[0].0));
        };
        let text = read(&format!("{ENTRIES}/{name}"))?.unwrap_or_default();
        specified_entry(&text).resolve(root, &saved)
    }
}

/// A menu entry as it is written, its paths seen from the partition that holds them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Written {
    kernel: Option<String>,
    initramfs: Vec<String>,
    options: Vec<String>,
}

impl Written {
    fn resolve(self, root: &Root, saved: &BTreeMap<String, String>) -> Result<Start, String> {
        let kernel = self.kernel.ok_or("the first entry of the loader's menu names no kernel")?;
        let initramfs = self.initramfs.iter().map(|path| expand(path, saved)).collect::<Result<Vec<_>, _>>()?;
        let initramfs = initramfs.iter().filter(|path| !path.is_empty()).map(|path| find(root, path));
        let options = self.options.iter().map(|word| expand(word, saved)).collect::<Result<Vec<_>, _>>()?;
        let line = options.iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>().join(" ");
        if line.len() > LINE_BYTES || line.contains(|c: char| c.is_control()) {
            return Err(format!(
                "the kernel line of the loader's menu is longer than {LINE_BYTES} bytes or no plain text"
            ));
        }
        Ok(Start {
            kernel: find(root, &expand(&kernel, saved)?)?,
            initramfs: initramfs.collect::<Result<_, _>>()?,
            line,
        })
    }
}

/// A loader's paths begin at its own partition, which may be the root's or that of `/boot`.
fn find(root: &Root, path: &str) -> Result<String, String> {
    let path = path.trim_start_matches('/');
    let places = [path.to_owned(), format!("boot/{path}")];
    places
        .into_iter()
        .find(|place| root.has(place))
        .ok_or_else(|| format!("the loader's menu names /{path}, which is not there"))
}

/// The first entry of a GRUB menu, or the one whose number is its default. None where the menu has no entry of its own
/// that starts Linux.
fn menu_entry(text: &str) -> Option<Written> {
    let mut entries: Vec<Written> = Vec::new();
    let (mut default, mut inside) = (0, false);
    for line in text.lines() {
        let words = words(line);
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["menuentry", ..] => {
                inside = true;
                entries.push(Written::default());
            }
            ["}"] => inside = false,
            ["set", set] => {
                let number = set.strip_prefix("default=").and_then(|number| number.parse().ok());
                default = number.unwrap_or(default);
            }
            ["linux" | "linuxefi" | "linux16", kernel, options @ ..] if inside => {
                let entry = entries.last_mut()?;
                entry.kernel = Some((*kernel).to_owned());
                entry.options = options.iter().map(ToString::to_string).collect();
            }
            ["initrd" | "initrdefi" | "initrd16", files @ ..] if inside => {
                entries.last_mut()?.initramfs = files.iter().map(ToString::to_string).collect();
            }
            _ => {}
        }
    }
    let usable = |entry: &&Written| entry.kernel.is_some();
    entries.get(default).filter(usable).or_else(|| entries.iter().find(usable)).cloned()
}

/// An entry of the Boot Loader Specification: a key and its value on each line.
fn specified_entry(text: &str) -> Written {
    let mut entry = Written::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
        match key {
            "linux" => entry.kernel = Some(value.trim().to_owned()),
            "initrd" => entry.initramfs.extend(words(value)),
            "options" => entry.options.extend(words(value)),
            _ => {}
        }
    }
    entry
}

/// Variables as GRUB saves them: `name=value`, one a line.
fn variables(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Replaces `$name` and `${name}`. A variable that nobody saved is refused: its value is only known to a running GRUB,
/// but for those that are documented as empty unless they are saved.
fn expand(word: &str, saved: &BTreeMap<String, String>) -> Result<String, String> {
    let Some((before, rest)) = word.split_once('$') else { return Ok(word.to_owned()) };
    let (name, behind) = match rest.strip_prefix('{') {
        Some(braced) => braced.split_once('}').ok_or_else(|| format!("`{word}` in the loader's menu has no end"))?,
        None => rest.split_at(rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())),
    };
    let value = match saved.get(name) {
        Some(value) => value.as_str(),
        None if name.starts_with("tuned_") || name == "kernelopts" => "",
        None => return Err(format!("`{word}` in the loader's menu has a variable that only a running GRUB knows")),
    };
    Ok(format!("{before}{value}{}", expand(behind, saved)?))
}

/// Words of a line as GRUB's shell takes them: quotes hold together, a backslash takes the next as it is, `#` begins a
/// comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut begun, mut quote) = (String::new(), false, None);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (mark @ ('"' | '\''), None) => (quote, begun) = (Some(mark), true),
            (mark, Some(open)) if mark == open => quote = None,
            ('\\', None | Some('"')) => {
                word.extend(characters.next());
                begun = true;
            }
            ('#', None) if !begun => break,
            (space, None) if space.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (other, _) => {
                word.push(other);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Sorts 6.10 behind 6.9.
fn natural(text: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (word, behind) = behind.split_at(letters);
        parts.push((number.parse().unwrap_or(0), word.to_owned()));
        rest = behind;
    }
    parts
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    fn start(tree: &Tree) -> Result<Start, String> {
        Start::of(&tree.root())
    }

    #[test]
    fn grubs_first_entry_is_taken_with_its_line() {
        let tree = Tree::new();
        tree.file("boot/vmlinuz-6.1", "kernel");
        tree.file("boot/initrd.img-6.1", "initramfs");
        tree.file(
            "boot/grub/grub.cfg",
            "set timeout=1\nmenuentry 'Debian GNU/Linux' --class debian {\n\tsearch --set=root abc\n\
             \tlinux\t/boot/vmlinuz-6.1 root=UUID=abc ro quiet 'a=b c' # comment\n\tinitrd\t/boot/initrd.img-6.1\n}\n\
             submenu 'Others' {\n\tmenuentry 'x' {\n linux /boot/other\n}\n}\n",
        );
        let found = start(&tree).unwrap();
        assert_eq!(found.kernel, "boot/vmlinuz-6.1");
        assert_eq!(found.initramfs, ["boot/initrd.img-6.1"]);
        assert_eq!(found.line, "root=UUID=abc ro quiet a=b c");
    }

    #[test]
    fn the_default_by_number_and_a_partition_of_its_own_for_boot() {
        let tree = Tree::new();
        tree.file("boot/vmlinuz-2", "kernel");
        tree.file(
            "boot/grub2/grub.cfg",
            "set default=\"1\"\nmenuentry a {\nlinux /vmlinuz-1\n}\nmenuentry b {\nlinuxefi /vmlinuz-2 ro\n}\n",
        );
        assert_eq!(
            start(&tree).unwrap(),
            Start { kernel: "boot/vmlinuz-2".into(), line: "ro".into(), ..Start::default() }
        );
    }

    #[test]
    fn the_newest_entry_of_the_specification_is_taken_and_saved_variables_are_filled_in() {
        let tree = Tree::new();
        for version in ["6.9", "6.10"] {
            tree.file(&format!("boot/vmlinuz-{version}"), "kernel");
            tree.file(&format!("boot/initramfs-{version}.img"), "initramfs");
            tree.file(
                &format!("boot/loader/entries/id-{version}.conf"),
                &format!(
                    "title Fedora\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
                     options $kernelopts $tuned_params quiet\n"
                ),
            );
        }
        tree.file("boot/loader/entries/id-0-rescue.conf", "linux /vmlinuz-0-rescue\n");
        tree.file("boot/grub2/grub.cfg", "blscfg\n");
        tree.file("boot/grub2/grubenv", "# GRUB Environment Block\nkernelopts=root=/dev/sda2 ro\n####");
        let found = start(&tree).unwrap();
        assert_eq!((found.kernel.as_str(), found.line.as_str()), ("boot/vmlinuz-6.10", "root=/dev/sda2 ro quiet"));
        assert_eq!(found.initramfs, ["boot/initramfs-6.10.img"]);
        tree.file("boot/grub2/grubenv", "saved_entry=id-6.9\n");
        assert_eq!(start(&tree).unwrap().kernel, "boot/vmlinuz-6.9");
    }

    #[test]
    fn what_only_grub_knows_is_refused_with_the_reason() {
        let tree = Tree::new();
        assert!(start(&tree).unwrap_err().contains("only these are read"));
        tree.file("boot/vmlinuz", "kernel");
        let menu = |line: &str| {
            tree.file("boot/grub/grub.cfg", &format!("menuentry a {{\n{line}\n}}\n"));
            start(&tree).unwrap_err()
        };
        assert!(menu("linux /boot/vmlinuz root=$rootdevice").contains("running GRUB"));
        assert!(menu("linux /boot/vmlinuz ${x").contains("no end"));
        assert!(menu("linux /boot/gone ro").contains("/boot/gone, which is not there"));
        assert!(menu(&format!("linux /boot/vmlinuz {}", "x".repeat(3000))).contains("2048 bytes"));
    }

    #[test]
    fn several_initramfs_files_become_one() {
        assert_eq!(join(&[]).unwrap(), None);
        assert_eq!(join(&["/boot/one".into()]).unwrap(), None);
    }
}
