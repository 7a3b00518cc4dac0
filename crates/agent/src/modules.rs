//! Loads kernel modules: by name with all they depend on, and by what the
//! devices of the machine say they are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::Stop;
use crate::command::Run;

/// How long one module may take: some drivers start their hardware before the
/// call returns.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// The modules of the running kernel, from depmod's text files.
#[derive(Debug)]
pub struct Modules {
    folder: PathBuf,
    /// Name to file and to the files that must be loaded before, nearest last.
    files: BTreeMap<String, (String, Vec<String>)>,
    /// Glob patterns over what devices say, by the bus in front of the first colon.
    aliases: BTreeMap<String, Vec<(String, String)>>,
    before: BTreeMap<String, Vec<String>>,
    after: BTreeMap<String, Vec<String>>,
    parameters: BTreeMap<String, Vec<String>>,
    tried: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl Modules {
    /// Reads depmod's files in `folder` (`/lib/modules/VERSION`) and the module
    /// parameters on the kernel's command line. A file that is missing counts
    /// as empty: a kernel may have everything built in.
    #[must_use]
    pub fn open(folder: &Path, kernel_line: &str) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let mut modules = Self {
            folder: folder.to_owned(),
            files: text("modules.dep").lines().filter_map(dep_line).collect(),
            aliases: BTreeMap::new(),
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            parameters: parameters(kernel_line),
            tried: BTreeSet::new(),
            seen: BTreeSet::new(),
        };
        for line in text("modules.alias").lines() {
            if let Some((pattern, name)) = line.strip_prefix("alias ").and_then(|rest| rest.rsplit_once(' ')) {
                let entry = (pattern.to_owned(), canonical(name));
                modules.aliases.entry(bus(pattern).to_owned()).or_default().push(entry);
            }
        }
        for line in text("modules.softdep").lines() {
            modules.softdep(line);
        }
        modules
    }

    fn softdep(&mut self, line: &str) {
        let mut words = line.split_whitespace().skip(1);
        let Some(name) = words.next().map(canonical) else { return };
        let mut into = &mut self.before;
        for word in words {
            match word {
                "pre:" => into = &mut self.before,
                "post:" => into = &mut self.after,
                other => into.entry(name.clone()).or_default().push(other.to_owned()),
            }
        }
    }

    /// Loads the modules that a file names, one a line; `#` begins a comment.
    /// Gives a sentence for each that did not load.
    pub fn load_listed(&mut self, list: &Path) -> Vec<String> {
        let text = fs::read_to_string(list).unwrap_or_default();
        let names = text.lines().filter_map(|line| line.split('#').next()).map(str::trim).filter(|n| !n.is_empty());
        let mut notes = Vec::new();
        for name in names {
            self.load(name, &mut notes);
        }
        notes
    }

    /// Loads what the devices below `devices` (`/sys/devices`) ask for and was
    /// not tried yet. Gives a sentence for each that did not load.
    pub fn load_for_devices(&mut self, devices: &Path) -> Vec<String> {
        let mut asked = Vec::new();
        collect(devices, &mut asked);
        let mut notes = Vec::new();
        for alias in asked {
            if self.seen.insert(alias.clone()) {
                for name in self.resolve(&alias) {
                    self.load(&name, &mut notes);
                }
            }
        }
        notes
    }

    /// Modules that serve `alias`, or are called so.
    #[must_use]
    pub fn resolve(&self, alias: &str) -> Vec<String> {
        let name = canonical(alias);
        if self.files.contains_key(&name) {
            return vec![name];
        }
        let patterns = self.aliases.get(bus(alias)).map_or(&[][..], Vec::as_slice);
        patterns.iter().filter(|(pattern, _)| matches(pattern, alias)).map(|(_, name)| name.clone()).collect()
    }

    fn load(&mut self, name: &str, notes: &mut Vec<String>) {
        let name = canonical(name);
        if !self.tried.insert(name.clone()) {
            return;
        }
        let Some((file, needs)) = self.files.get(&name).cloned() else { return };
        for wanted in self.before.get(&name).cloned().unwrap_or_default() {
            self.load_all(&wanted, notes);
        }
        for needed in needs.iter().rev() {
            self.load(&name_of(needed), notes);
        }
        if let Err(why) = self.insert(&name, &file) {
            notes.push(format!("module {name}: {why}"));
        }
        for wanted in self.after.get(&name).cloned().unwrap_or_default() {
            self.load_all(&wanted, notes);
        }
    }

    fn load_all(&mut self, alias: &str, notes: &mut Vec<String>) {
        for name in self.resolve(alias) {
            self.load(&name, notes);
        }
    }

    fn insert(&self, name: &str, file: &str) -> Result<(), String> {
        // The kernel may be unable to unpack modules itself; modprobe can.
        if !file.ends_with(".ko") {
            let run = Run::new("modprobe", LOAD_LIMIT).args([name]);
            return run.text(&Stop::default()).map(drop).map_err(|error| error.to_string());
        }
        let opened = File::open(self.folder.join(file)).map_err(|error| error.to_string())?;
        let values = self.parameters.get(name).map(|values| values.join(" ")).unwrap_or_default();
        let values = CString::new(values).map_err(|error| error.to_string())?;
        match rustix::system::finit_module(&opened, &values, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            // The module is for hardware or firmware that this machine lacks.
            Err(Errno::NODEV | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(std::io::Error::from(errno).to_string()),
        }
    }
}

/// `kernel/a.ko: kernel/b.ko kernel/c.ko`, the last of them to be loaded first.
fn dep_line(line: &str) -> Option<(String, (String, Vec<String>))> {
    let (file, needs) = line.split_once(':')?;
    Some((name_of(file), (file.to_owned(), needs.split_whitespace().map(str::to_owned).collect())))
}

fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    canonical(name.split(".ko").next().unwrap_or(name))
}

/// The kernel writes names with underscores, files and people with either.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn bus(alias: &str) -> &str {
    alias.split(':').next().unwrap_or(alias)
}

/// `module.parameter=value` words, as modprobe takes them from the same place.
fn parameters(kernel_line: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for word in kernel_line.split_whitespace() {
        let key = word.split('=').next().unwrap_or(word);
        if let Some((module, _)) = key.split_once('.') {
            let value = &word[module.len() + 1..];
            found.entry(canonical(module)).or_default().push(value.to_owned());
        }
    }
    found
}

/// What devices say they are. Links are not followed: below `/sys/devices`
/// every device has one real folder.
fn collect(folder: &Path, into: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), into),
            Ok(kind) if kind.is_file() && entry.file_name() == "modalias" => {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                into.extend(text.lines().map(str::trim).filter(|alias| !alias.is_empty()).map(str::to_owned));
            }
            _ => {}
        }
    }
}

/// Shell patterns as depmod writes them: `*`, `?`, and sets such as `[02-4]`.
fn matches(pattern: &str, text: &str) -> bool {
    glob(pattern.as_bytes(), text.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to take up again after the last `*`, with one more byte given to it.
    let mut again: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            again = Some((p + 1, t));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], text[t]) {
            p += length;
            t += 1;
        } else if let Some((star, from)) = again {
            again = Some((star, from + 1));
            p = star;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Length of the pattern's first element where it stands for `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().position(|b| *b == b']')?;
            in_set(&pattern[1..end], byte).then_some(end + 1)
        }
        plain => (*plain == byte).then_some(1),
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    let mut rest = set;
    while let Some((first, behind)) = rest.split_first() {
        match behind {
            [b'-', last, after @ ..] => {
                if (*first..=*last).contains(&byte) {
                    return true;
                }
                rest = after;
            }
            _ if *first == byte => return true,
            _ => rest = behind,
        }
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, Modules) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "modules.dep",
            "kernel/virtio_net.ko: kernel/net_failover.ko kernel/failover.ko kernel/virtio.ko\n\
             kernel/net_failover.ko: kernel/failover.ko\nkernel/failover.ko:\nkernel/virtio.ko:\n\
             kernel/crc32c-intel.ko:\nkernel/ext4.ko.xz: kernel/jbd2.ko.xz\nkernel/jbd2.ko.xz:\n",
        );
        write(
            "modules.alias",
            "# Aliases\nalias virtio:d00000001v* virtio_net\nalias pci:v00008086d0000100[EF]sv*sd*bc*sc*i* e1000\n\
             alias crypto-crc32c crc32c_intel\n",
        );
        write("modules.softdep", "# Soft\nsoftdep ext4 pre: crypto-crc32c post: virtio\n");
        let modules = Modules::open(folder.path(), "quiet nvme-core.multipath=N nvme_core.io_timeout=30 root=x");
        (folder, modules)
    }

    #[test]
    fn devices_are_matched_by_depmods_patterns() {
        let (_folder, modules) = fixture();
        assert_eq!(modules.resolve("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert_eq!(modules.resolve("pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"), ["e1000"]);
        assert!(modules.resolve("pci:v00008086d0000100Dsv00001AF4sd00001100bc02sc00i00").is_empty());
        assert_eq!(modules.resolve("crypto-crc32c"), ["crc32c_intel"]);
        assert_eq!(modules.resolve("net-failover"), ["net_failover"]);
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("a*b*c", "axxbyybzzc", true),
            ("a?c", "abc", true),
            ("[0-9a]x", "5x", true),
            ("[0-9a]x", "bx", false),
            ("[0-9", "5", false),
            ("*", "", true),
            ("", "a", false),
            ("abc", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_needed_comes_first_and_failures_are_sentences() {
        let (folder, mut modules) = fixture();
        let list = folder.path().join("list");
        fs::write(&list, "# on every machine\nvirtio-net # the network\nno_such_module\n").unwrap();
        // No file is there, so each module says so, in the order in which they were tried.
        let notes = modules.load_listed(&list);
        let names: Vec<&str> = notes.iter().filter_map(|note| note.split(':').next()).collect();
        assert_eq!(names, ["module virtio", "module failover", "module net_failover", "module virtio_net"]);
        assert!(modules.load_listed(&list).is_empty(), "each is tried once");
    }

    #[test]
    fn soft_dependencies_and_parameters_are_read() {
        let (_folder, modules) = fixture();
        assert_eq!(modules.before["ext4"], ["crypto-crc32c"]);
        assert_eq!(modules.after["ext4"], ["virtio"]);
        assert_eq!(modules.parameters["nvme_core"], ["multipath=N", "io_timeout=30"]);
        assert!(!modules.parameters.contains_key("root"));
    }

    #[test]
    fn devices_are_found_in_a_tree() {
        let devices = tempfile::tempdir().unwrap();
        let deep = devices.path().join("pci0000:00/0000:00:03.0/virtio0");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("modalias"), "virtio:d00000001v00001AF4\n").unwrap();
        fs::write(deep.parent().unwrap().join("modalias"), "pci:v00001AF4\n").unwrap();
        std::os::unix::fs::symlink(&deep, devices.path().join("link")).unwrap();
        let mut found = Vec::new();
        collect(devices.path(), &mut found);
        found.sort();
        assert_eq!(found, ["pci:v00001AF4", "virtio:d00000001v00001AF4"]);
    }
}
