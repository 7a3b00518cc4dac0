//! `cargo xtask tidy`: what can rot is checked.
//!
//! The crates' directions and the file names in ARCHITECTURE.md, the tests that SPECIFICATION.md names, and a few house
//! rules that no lint covers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::arguments::Arguments;
use crate::prepare::{Places, cargo};
use crate::run::{self, Ended};

/// A longer file is looked at, not refused.
const LONG_FILE_LINES: usize = 800;

pub(crate) fn command(arguments: Arguments) -> Result<Ended> {
    arguments.finish()?;
    let places = Places::find()?;
    let findings = check(&places.root)?;
    Ok(if findings == 0 { Ended::SUCCESS } else { Ended::FAILURE })
}

/// Prints what is wrong and returns how many findings there are; warnings do not count.
pub(crate) fn check(root: &Path) -> Result<usize> {
    let tree = Tree::read(root)?;
    let mut findings = directions(&tree, &dependencies(root)?);
    findings.extend(names_in_architecture(&tree));
    findings.extend(promises(&tree));
    for (path, text) in &tree.texts {
        findings.extend(house_rules(path, text));
    }
    for finding in &findings {
        println!("tidy: {finding}");
    }
    for (path, text) in tree.sources() {
        let lines = text.lines().count();
        if lines > LONG_FILE_LINES {
            println!("tidy: warning: {} has {lines} lines", path.display());
        }
    }
    println!("tidy: {} files, {} findings", tree.texts.len(), findings.len());
    Ok(findings.len())
}

/// The tracked files that are text.
struct Tree {
    texts: BTreeMap<PathBuf, String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        // Files not yet added count as well: tidy is run before the commit.
        let mut list = Command::new("git");
        list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
        let output = run::output(&mut list)?;
        let mut texts = BTreeMap::new();
        for name in output.split('\0').filter(|name| !name.is_empty()) {
            if let Ok(text) = std::fs::read_to_string(root.join(name)) {
                texts.insert(PathBuf::from(name), text);
            }
        }
        Ok(Self { texts })
    }

    fn sources(&self) -> impl Iterator<Item = (&PathBuf, &String)> {
        self.texts.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs"))
    }

    fn text(&self, name: &str) -> &str {
        self.texts.get(Path::new(name)).map_or("", String::as_str)
    }

    /// True for a tracked file, or a folder that holds one; also when the path leaves out `crates/` and `src/`.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside_crate = path.split_once('/').map(|(name, rest)| format!("crates/{name}/src/{rest}"));
        [Some(path.to_owned()), inside_crate]
            .into_iter()
            .flatten()
            .any(|path| self.texts.keys().any(|tracked| tracked.starts_with(&path)))
    }

    fn has_function(&self, name: &str) -> bool {
        let (plain, generic) = (format!("fn {name}("), format!("fn {name}<"));
        self.sources().any(|(_, text)| text.contains(&plain) || text.contains(&generic))
    }
}

type Directions = BTreeMap<String, BTreeSet<String>>;

/// The workspace's own crates and which of each other they depend on, tests apart.
fn dependencies(root: &Path) -> Result<Directions> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--format-version=1", "--no-deps", "--locked"]).current_dir(root);
    let value: Value =
        serde_json::from_str(&run::output(&mut metadata)?).context("cargo metadata did not print JSON")?;
    let packages = value["packages"].as_array().cloned().unwrap_or_default();
    let mut result = Directions::new();
    for package in &packages {
        let own = |dependency: &&Value| dependency["path"].is_string() && dependency["kind"] != "dev";
        let needs = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names = needs.iter().filter(own).filter_map(|d| d["name"].as_str()).map(word).collect();
        if let Some(name) = package["name"].as_str() {
            result.insert(word(name), names);
        }
    }
    Ok(result)
}

/// A crate's one word: `rackswarm-wire` is `wire`, the program itself is `cli`.
fn word(package: &str) -> String {
    if package == "rackswarm" { "cli".to_owned() } else { package.trim_start_matches("rackswarm-").to_owned() }
}

/// The lines "`crate` -> dep, dep" of ARCHITECTURE.md against cargo's own view.
fn directions(tree: &Tree, real: &Directions) -> Vec<String> {
    let stated = stated_directions(tree.text("ARCHITECTURE.md"));
    if stated.is_empty() {
        return vec!["ARCHITECTURE.md states no directions: write lines as \"`boot` -> wire, fleet\"".to_owned()];
    }
    let mut findings = Vec::new();
    for (name, needs) in real {
        match stated.get(name) {
            None => findings.push(format!("ARCHITECTURE.md says nothing of the crate {name}")),
            Some(said) if said != needs => {
                let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
                findings.push(format!("ARCHITECTURE.md: {name} -> {}, but cargo says {}", list(said), list(needs)));
            }
            Some(_) => {}
        }
    }
    let gone = stated.keys().filter(|name| !real.contains_key(*name));
    findings.extend(gone.map(|name| format!("ARCHITECTURE.md speaks of the crate {name}, which is not there")));
    findings
}

fn stated_directions(text: &str) -> Directions {
    let mut stated = Directions::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches(['-', '|', '*']).trim().trim_end_matches('|').trim();
        let Some((names, needs)) = line.split_once("->") else { continue };
        let names = names.trim();
        if !names.starts_with('`') || !names.ends_with('`') {
            continue;
        }
        let words = |text: &str| -> BTreeSet<String> {
            text.split(',').map(|w| w.trim().trim_matches(['`', '.', ';']).to_owned()).filter(|w| is_word(w)).collect()
        };
        for name in words(names) {
            stated.insert(name, words(needs));
        }
    }
    stated
}

/// A crate's name, not a sentence such as "nobody but itself" or a dash. The word for no crate at all is `nobody`.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text != "nobody" && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Whatever in ARCHITECTURE.md stands between backticks and looks like a path must be there.
fn names_in_architecture(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for name in quoted(tree.text("ARCHITECTURE.md")) {
        let (path, function) = name.split_once("::").map_or((name, None), |(path, f)| (path, Some(f)));
        if !is_path(path) {
            continue;
        }
        if !tree.has(path) {
            findings.push(format!("ARCHITECTURE.md names `{path}`, which is not there"));
        }
        if let Some(function) = function.map(|f| f.trim_end_matches("()")).filter(|f| !tree.has_function(f)) {
            findings.push(format!("ARCHITECTURE.md names the function `{function}` in `{path}`, which is not there"));
        }
    }
    findings
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn is_path(text: &str) -> bool {
    const ENDINGS: [&str; 7] = [".rs", ".toml", ".md", ".sql", ".json", ".ipxe", ".service"];
    const FOLDERS: [&str; 8] = ["crates/", "xtask/", "netboot/", "docs/", "fuzz/", "bench/", "deploy/", ".ci/"];
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    plain
        && !text.starts_with('/')
        && (FOLDERS.iter().any(|folder| text.starts_with(folder))
            || (text.contains('/') && ENDINGS.iter().any(|ending| text.ends_with(ending))))
}

/// Every row of a table in SPECIFICATION.md names, in its last column, tests or files that are there.
fn promises(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let mut rows = 0;
    let text = tree.text("SPECIFICATION.md");
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let is_row = line.trim_start().starts_with('|');
        let is_rule = |line: &str| line.contains("---");
        let is_head = lines.get(index + 1).is_some_and(|next| next.trim_start().starts_with('|') && is_rule(next));
        if !is_row || is_head || is_rule(line) {
            continue;
        }
        rows += 1;
        let last = line.trim().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named: Vec<&str> = quoted(last).collect();
        if named.is_empty() {
            findings.push(format!("SPECIFICATION.md line {}: the promise names no test", index + 1));
        }
        for name in named {
            let function = name.rsplit("::").next().unwrap_or(name).trim_end_matches("()");
            let is_there = tree.has_function(function) || (name.contains('/') && tree.has(name));
            if !is_there {
                findings.push(format!("SPECIFICATION.md line {}: there is no test `{name}`", index + 1));
            }
        }
    }
    if rows == 0 {
        findings.push("SPECIFICATION.md has no promises".to_owned());
    }
    findings
}

fn house_rules(path: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut found = |line: usize, what: &str| findings.push(format!("{}:{line}: {what}", path.display()));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if name != "Cargo.lock" {
        let hosts = registry_hosts();
        for (index, line) in text.lines().enumerate() {
            if let Some(host) = hosts.iter().find(|host| line.contains(host.as_str())) {
                found(index + 1, &format!("names the registry host {host}"));
            }
        }
    }
    if path.extension().is_none_or(|e| e != "rs") {
        return findings;
    }
    // Put together at run time, so that this file does not find itself.
    let markers = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X:"].concat()];
    let panics = [[".un", "wrap()"].concat(), [".ex", "pect(\""].concat(), ["un", "safe {"].concat()];
    let product = product_lines(path, text);
    for (index, line) in text.lines().enumerate() {
        if let Some(marker) = markers.iter().find(|marker| line.contains(marker.as_str())) {
            found(index + 1, &format!("{marker} belongs into an issue"));
        }
        let is_comment = line.trim_start().starts_with("//");
        if index < product && !is_comment && panics.iter().any(|panic| line.contains(panic.as_str())) {
            found(index + 1, "may panic: give an error with a sentence");
        }
    }
    findings
}

/// How many lines at the beginning are no tests: up to `#[cfg(test)]` before an inline module.
fn product_lines(path: &Path, text: &str) -> usize {
    let in_folder = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if ["tests", "examples", "benches", "fuzz"].into_iter().any(in_folder) || name.ends_with("tests.rs") {
        return 0;
    }
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |at: usize| {
        lines[at].trim() == "#[cfg(test)]"
            && lines[at + 1..].iter().take(4).any(|line| line.contains("mod ") && line.ends_with('{'))
    };
    (0..lines.len()).find(|at| is_tests(*at)).unwrap_or(lines.len())
}

/// Put together at run time, so that this file does not find itself.
fn registry_hosts() -> Vec<String> {
    [
        ["crates", "io"].as_slice(),
        &["pypi", "org"],
        &["files", "pythonhosted", "org"],
        &["registry", "npmjs", "org"],
        &["deb", "debian", "org"],
        &["snapshot", "debian", "org"],
        &["archive", "ubuntu", "com"],
        &["proxy", "golang", "org"],
        &["ghcr", "io"],
        &["quay", "io"],
        &["docker", "io"],
    ]
    .iter()
    .map(|parts| parts.join("."))
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        Tree { texts: files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect() }
    }

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn directions_are_compared_both_ways() {
        let text = "words\n`wire`, `fleet` -> nobody\n- `boot` -> wire, `fleet`\n| `gone` -> wire |\nnot `this` -> that\n\
                    `enrolled -> failed`\n";
        let tree = tree(&[("ARCHITECTURE.md", text)]);
        let real = Directions::from([
            ("wire".into(), set(&[])),
            ("fleet".into(), set(&[])),
            ("boot".into(), set(&["wire"])),
            ("new".into(), set(&[])),
        ]);
        let findings = directions(&tree, &real);
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings[0].contains("boot -> fleet, wire, but cargo says wire"));
        assert!(findings[1].contains("nothing of the crate new"));
        assert!(findings[2].contains("gone"));
    }

    #[test]
    fn paths_and_functions_in_the_architecture_must_be_there() {
        let text = "`boot/tftp/serve.rs` `crates/boot` `boot/gone.rs` `boot/tftp/serve.rs::run()` \
                    `boot/tftp/serve.rs::walk` `GET /api/v1/nodes` `cargo xtask demo`\n";
        let tree = tree(&[("ARCHITECTURE.md", text), ("crates/boot/src/tftp/serve.rs", "pub fn run() {}")]);
        let findings = names_in_architecture(&tree);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("boot/gone.rs") && findings[1].contains("walk"));
    }

    #[test]
    fn each_promise_names_a_test_that_is_there() {
        let text = "| promise | test |\n|---|---|\n| a | `boot::tests::holds` |\n| b | `breaks` |\n| c | later |\n";
        let tree = tree(&[("SPECIFICATION.md", text), ("crates/boot/src/lib.rs", "#[test]\nfn holds() {}")]);
        let findings = promises(&tree);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].contains("line 4") && findings[1].contains("line 5"));
    }

    #[test]
    fn house_rules_apply_to_the_product_and_not_to_its_tests() {
        let bad = ["    thing.un", "wrap();"].concat();
        let text = format!("fn a() {{\n{bad}\n}}\n#[cfg(test)]\nmod tests {{\n{bad}\n}}\n");
        assert_eq!(house_rules(Path::new("crates/a/src/lib.rs"), &text).len(), 1);
        assert_eq!(house_rules(Path::new("crates/a/tests/all.rs"), &text).len(), 0);
        let host = format!("see {}", ["crates", "io"].join("."));
        assert_eq!(house_rules(Path::new("README.md"), &host).len(), 1);
        assert_eq!(house_rules(Path::new("Cargo.lock"), &host).len(), 0);
    }

    #[test]
    fn a_module_of_tests_in_its_own_file_does_not_hide_the_rest() {
        let text = "#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;\nfn a() {}\n";
        assert_eq!(product_lines(Path::new("crates/a/src/lib.rs"), text), 4);
    }
}
