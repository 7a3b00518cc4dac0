//! Kernel modules: which of them a set of wanted ones needs, and depmod's files cut down to that set.
//!
//! A Debian kernel package has no `modules.dep`; it is made when the package is configured. The same facts are in every
//! module's `.modinfo` section, and so are soft dependencies and firmware names, so they are read from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::Tree;
use crate::{Error, elf, error::file};

/// One loadable module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Module {
    /// Its file below `/lib/modules/VERSION`.
    path: String,
    depends: Vec<String>,
    aliases: Vec<String>,
    softdeps: Vec<String>,
    firmware: Vec<String>,
}

/// All modules of one kernel.
#[derive(Debug)]
pub struct KernelModules {
    version: String,
    folder: PathBuf,
    modules: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    /// Aliases without wildcards, such as `crypto-crc32c`: soft dependencies use them.
    exact_aliases: BTreeMap<String, Vec<String>>,
}

/// A set of modules that is closed under dependencies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The modules, by name with underscores.
    pub modules: BTreeSet<String>,
    /// Wanted names that are part of the kernel itself.
    pub builtin: Vec<String>,
    /// Wanted names that this kernel does not have at all.
    pub absent: Vec<String>,
}

impl KernelModules {
    /// Reads the modules of the kernel `version` below an unpacked package.
    ///
    /// # Errors
    /// When files are missing or damaged.
    pub fn open(package_root: &Path, version: &str) -> Result<Self, Error> {
        let below = ["lib/modules", "usr/lib/modules"].map(|path| package_root.join(path).join(version));
        let folder = below.iter().find(|path| path.is_dir()).unwrap_or(&below[0]).clone();
        let mut modules = BTreeMap::new();
        for path in module_files(&folder.join("kernel"))? {
            let relative = path.strip_prefix(&folder).unwrap_or(&path).to_string_lossy().into_owned();
            modules.insert(name_of_file(&relative), Module::from_modinfo(relative, elf::modinfo(&path)?));
        }
        let list = folder.join("modules.builtin");
        let builtin = fs::read_to_string(&list).map_err(file("read", &list))?;
        let builtin = builtin.lines().map(name_of_file).collect();
        Ok(Self::new(version, folder, modules, builtin))
    }

    fn new(
        version: &str,
        folder: PathBuf,
        modules: BTreeMap<String, Module>,
        builtin: BTreeSet<String>,
    ) -> KernelModules {
        let mut exact_aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, module) in &modules {
            for alias in module.aliases.iter().filter(|alias| !alias.contains(['*', '?', '['])) {
                exact_aliases.entry(alias.clone()).or_default().push(name.clone());
            }
        }
        KernelModules { version: version.to_owned(), folder, modules, builtin, exact_aliases }
    }

    /// The wanted modules and everything they depend on, softly too.
    pub fn select<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Selection {
        let mut selection = Selection::default();
        let mut open = Vec::new();
        for wanted in wanted {
            let name = canonical(wanted);
            if self.modules.contains_key(&name) {
                open.push(name);
            } else if self.builtin.contains(&name) {
                selection.builtin.push(name);
            } else {
                selection.absent.push(wanted.to_owned());
            }
        }
        while let Some(name) = open.pop() {
            let Some(module) = self.modules.get(&name) else { continue };
            if selection.modules.insert(name) {
                open.extend(module.depends.iter().cloned());
                open.extend(module.softdeps.iter().flat_map(|line| softdep_names(line)).flat_map(|n| self.resolve(n)));
            }
        }
        selection
    }

    /// Puts the selected modules and depmod's text files about them into `tree`.
    ///
    /// # Errors
    /// When `modules.builtin` cannot be read.
    pub fn add_to(&self, tree: &mut Tree, selection: &Selection) -> Result<(), Error> {
        let base = format!("lib/modules/{}", self.version);
        for module in self.chosen(selection).map(|(_, module)| module) {
            tree.copy(&format!("{base}/{}", module.path), 0o644, &self.folder.join(&module.path));
        }
        tree.text(&format!("{base}/modules.dep"), 0o644, &self.dep(selection));
        tree.text(&format!("{base}/modules.alias"), 0o644, &self.alias(selection));
        tree.text(&format!("{base}/modules.softdep"), 0o644, &self.softdep(selection));
        let builtin = self.folder.join("modules.builtin");
        tree.text(&format!("{base}/modules.builtin"), 0o644, &fs::read(&builtin).map_err(file("read", &builtin))?);
        Ok(())
    }

    /// The firmware files that each selected module may ask for.
    #[must_use]
    pub fn firmware(&self, selection: &Selection) -> BTreeMap<String, Vec<String>> {
        let chosen = self.chosen(selection).filter(|(_, module)| !module.firmware.is_empty());
        chosen.map(|(name, module)| (name.to_owned(), module.firmware.clone())).collect()
    }

    /// The files of modules to load for `wanted`, relative to `/lib/modules/VERSION`, dependencies first.
    #[must_use]
    pub fn load_order<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut order = Vec::new();
        for name in wanted.into_iter().map(canonical) {
            self.visit(&name, &mut order);
        }
        order.iter().filter_map(|name| self.modules.get(name)).map(|module| module.path.clone()).collect()
    }

    /// The folder `/lib/modules/VERSION` of the unpacked package.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn chosen<'a>(&'a self, selection: &'a Selection) -> impl Iterator<Item = (&'a str, &'a Module)> {
        selection.modules.iter().filter_map(|name| self.modules.get(name).map(|module| (name.as_str(), module)))
    }

    fn resolve(&self, name: &str) -> Vec<String> {
        let plain = canonical(name);
        if self.modules.contains_key(&plain) {
            return vec![plain];
        }
        self.exact_aliases.get(name).cloned().unwrap_or_default()
    }

    /// Depth first, so that what a module depends on comes before it.
    fn visit(&self, name: &str, order: &mut Vec<String>) {
        let Some(module) = self.modules.get(name) else { return };
        if order.iter().any(|seen| seen == name) {
            return;
        }
        for dependency in &module.depends {
            self.visit(dependency, order);
        }
        order.push(name.to_owned());
    }

    /// Like depmod's, a line lists what to load first last.
    fn dep(&self, selection: &Selection) -> String {
        let mut text = String::new();
        for (name, module) in self.chosen(selection) {
            let _ = write!(text, "{}:", module.path);
            for path in self.load_order([name]).iter().rev().skip(1) {
                let _ = write!(text, " {path}");
            }
            text.push('\n');
        }
        text
    }

    fn alias(&self, selection: &Selection) -> String {
        let mut text = String::new();
        for (name, module) in self.chosen(selection) {
            for alias in &module.aliases {
                let _ = writeln!(text, "alias {alias} {name}");
            }
        }
        text
    }

    fn softdep(&self, selection: &Selection) -> String {
        let mut text = String::new();
        for (name, module) in self.chosen(selection) {
            for line in &module.softdeps {
                let _ = writeln!(text, "softdep {name} {line}");
            }
        }
        text
    }
}

impl Module {
    fn from_modinfo(path: String, lines: Vec<(String, String)>) -> Self {
        let mut module = Module { path, ..Module::default() };
        for (key, value) in lines {
            match key.as_str() {
                "depends" => module.depends = value.split(',').filter(|name| !name.is_empty()).map(canonical).collect(),
                "alias" => module.aliases.push(value),
                "softdep" => module.softdeps.push(value),
                "firmware" => module.firmware.push(value),
                _ => {}
            }
        }
        module.aliases.sort_unstable();
        module.firmware.sort_unstable();
        module.firmware.dedup();
        module
    }
}

/// Dashes and underscores are the same to the kernel; underscores are what `/proc/modules` shows.
fn canonical(name: &str) -> String {
    name.trim().replace('-', "_")
}

fn name_of_file(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    canonical(name.split(".ko").next().unwrap_or(name))
}

/// The names of `pre: a b post: c`.
fn softdep_names(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace().filter(|word| !word.ends_with(':'))
}

fn module_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(file("list", &folder))? {
            let entry = entry.map_err(file("list", &folder))?;
            let kind = entry.file_type().map_err(file("look at", entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "ko") {
                files.push(entry.path());
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn kernel() -> KernelModules {
        let module = |path: &str, lines: &[(&str, &str)]| {
            let lines = lines.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            (name_of_file(path), Module::from_modinfo(path.to_owned(), lines))
        };
        let modules = BTreeMap::from([
            module(
                "kernel/net/virtio_net.ko",
                &[("depends", "net_failover,virtio,virtio_ring"), ("alias", "virtio:d1v*")],
            ),
            module("kernel/net/net_failover.ko", &[("depends", "failover")]),
            module("kernel/net/failover.ko", &[("depends", "")]),
            module("kernel/virtio/virtio.ko", &[]),
            module("kernel/virtio/virtio_ring.ko", &[("depends", "virtio")]),
            module("kernel/fs/ext4.ko", &[("depends", ""), ("softdep", "pre: crypto-crc32c post: nls-ascii")]),
            module("kernel/crypto/crc32c_generic.ko", &[("alias", "crypto-crc32c")]),
            module("kernel/fs/nls-ascii.ko", &[("firmware", "b"), ("firmware", "a"), ("firmware", "b")]),
            module("kernel/other.ko", &[]),
        ]);
        KernelModules::new("6.1", PathBuf::new(), modules, BTreeSet::from(["nvme".to_owned()]))
    }

    #[test]
    fn a_selection_is_closed_and_says_what_is_missing() {
        let selection = kernel().select(["virtio-net", "ext4", "nvme", "e1000"]);
        let names: Vec<_> = selection.modules.iter().map(String::as_str).collect();
        let expected = "crc32c_generic ext4 failover net_failover nls_ascii virtio virtio_net virtio_ring";
        assert_eq!(names.join(" "), expected);
        assert_eq!((selection.builtin, selection.absent), (vec!["nvme".to_owned()], vec!["e1000".to_owned()]));
    }

    #[test]
    fn depmod_lines_load_from_the_end() {
        let kernel = kernel();
        let text = kernel.dep(&kernel.select(["virtio_net"]));
        let line = text.lines().find(|line| line.starts_with("kernel/net/virtio_net.ko:")).unwrap();
        let expected = "kernel/net/virtio_net.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko \
            kernel/net/net_failover.ko kernel/net/failover.ko";
        assert_eq!(line, expected);
        assert!(text.contains("kernel/virtio/virtio.ko:\n"));
    }

    #[test]
    fn aliases_softdeps_and_firmware_follow_the_selection() {
        let kernel = kernel();
        let selection = kernel.select(["ext4", "virtio_net"]);
        assert_eq!(kernel.alias(&selection), "alias crypto-crc32c crc32c_generic\nalias virtio:d1v* virtio_net\n");
        assert_eq!(kernel.softdep(&selection), "softdep ext4 pre: crypto-crc32c post: nls-ascii\n");
        assert_eq!(kernel.firmware(&selection)["nls_ascii"], ["a", "b"]);
    }

    #[test]
    fn load_order_has_each_file_once() {
        let order = kernel().load_order(["virtio_net", "virtio_ring"]);
        assert_eq!(order.len(), 5);
        assert_eq!(order.last().unwrap(), "kernel/net/virtio_net.ko");
    }
}
