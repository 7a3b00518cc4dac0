//! The boot environment and the first loaders.

use std::path::Path;

use bootenv::Description;
use controller::Config;

use super::{Finding, listed};
use crate::output::bytes;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    vec![environment(&config.environment()), loaders(config)]
}

fn environment(folder: &Path) -> Finding {
    const CHECK: &str = "boot environment";
    let shown = folder.display();
    let fix = format!("rackswarm bootenv build --out {shown}");
    let description = match std::fs::read(folder.join("bootenv.json")) {
        Ok(text) => serde_json::from_slice::<Description>(&text),
        Err(_) => return Finding::fail(CHECK, format!("none in {shown}: machines would have nothing to boot"), fix),
    };
    let Ok(description) = description else {
        return Finding::fail(
            CHECK,
            format!("{shown}/bootenv.json is not understood; it may be of another version"),
            fix,
        );
    };
    for artifact in [&description.kernel, &description.initramfs] {
        let size = std::fs::metadata(folder.join(&artifact.file)).map(|metadata| metadata.len()).ok();
        if size != Some(artifact.size_bytes) {
            return Finding::fail(
                CHECK,
                format!("{shown}/{} is not the file that bootenv.json describes", artifact.file),
                fix,
            );
        }
    }
    Finding::pass(
        CHECK,
        format!(
            "kernel {} ({}), initramfs {}",
            description.kernel_version,
            bytes(description.kernel.size_bytes),
            bytes(description.initramfs.size_bytes)
        ),
    )
}

/// arm64 is only missed by those who have it, so its absence is no warning.
fn loaders(config: &Config) -> Finding {
    const CHECK: &str = "loaders";
    let tftp = &config.tftp;
    if !tftp.enabled {
        return Finding::pass(CHECK, "TFTP is off, so none is needed");
    }
    let wanted =
        [("BIOS", &tftp.bios_loader), ("UEFI x86-64", &tftp.uefi_x64_loader), ("UEFI arm64", &tftp.uefi_arm64_loader)];
    let (there, missing): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, file)| tftp.root.join(file).is_file());
    let names =
        |list: &[(&str, &String)]| listed(&list.iter().map(|(firmware, _)| (*firmware).to_owned()).collect::<Vec<_>>());
    let needed: Vec<_> = missing.iter().filter(|(firmware, _)| *firmware != "UEFI arm64").copied().collect();
    if needed.is_empty() {
        return Finding::pass(CHECK, format!("for {} in {}", names(&there), tftp.root.display()));
    }
    let files: Vec<String> = needed.iter().map(|(_, file)| (*file).clone()).collect();
    let text = format!("{} has no {}: {} machines cannot start", tftp.root.display(), listed(&files), names(&needed));
    let fix = "apt-get install ipxe, or set tftp.root to a folder with the loaders";
    if there.is_empty() { Finding::fail(CHECK, text, fix) } else { Finding::warn(CHECK, text, fix) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_missing_or_cut_environment_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(environment(folder.path()).verdict, Verdict::Fail);
        std::fs::write(folder.path().join("bootenv.json"), "{}").unwrap();
        assert!(environment(folder.path()).text.contains("not understood"));
        let artifact = |file: &str| serde_json::json!({"file": file, "size_bytes": 3, "sha256": ""});
        let description = serde_json::json!({
            "kernel_version": "6.1", "flavour": "generic", "kernel": artifact("vmlinuz"), "initramfs": artifact("initramfs"),
            "initramfs_unpacked_bytes": 3, "agent": artifact("agent"), "source_date_epoch": 0, "packages": [],
            "modules_at_start": [], "modules": [], "modules_absent": [], "firmware_missing": {}
        });
        std::fs::write(folder.path().join("bootenv.json"), description.to_string()).unwrap();
        std::fs::write(folder.path().join("vmlinuz"), "abc").unwrap();
        std::fs::write(folder.path().join("initramfs"), "ab").unwrap();
        assert!(environment(folder.path()).text.contains("/initramfs is not"));
        std::fs::write(folder.path().join("initramfs"), "abc").unwrap();
        assert_eq!(environment(folder.path()).verdict, Verdict::Pass);
    }

    #[test]
    fn loaders_are_missed_where_tftp_is_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.tftp.root = folder.path().to_owned();
        assert_eq!(loaders(&config).verdict, Verdict::Fail);
        std::fs::write(folder.path().join(&config.tftp.bios_loader), "x").unwrap();
        assert_eq!(loaders(&config).verdict, Verdict::Warn);
        std::fs::write(folder.path().join(&config.tftp.uefi_x64_loader), "x").unwrap();
        assert_eq!(loaders(&config).verdict, Verdict::Pass);
        config.tftp.enabled = false;
        assert_eq!(loaders(&config).verdict, Verdict::Pass);
    }
}
