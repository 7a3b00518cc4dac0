//! Security labels for images with SELinux: files that were written from
//! outside have none, and an enforcing system would not run them.

use super::{Context, Root};
use crate::Error;

const CONFIG: &str = "etc/selinux/config";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let root = context.root;
    let Some(policy) = policy(root)? else { return Ok(None) };
    let rules = format!("/etc/selinux/{policy}/contexts/files/file_contexts");
    let Some(setfiles) = ["/usr/sbin/setfiles", "/sbin/setfiles"].into_iter().find(|path| root.has(path)) else {
        // systemd then labels everything at the first boot, which takes one boot more.
        root.write(".autorelabel", 0o644, "")?;
        return Ok(Some("the image has no setfiles: it labels all files at its first boot".to_owned()));
    };
    let mut files: Vec<String> = root.written().into_iter().filter(|path| root.has_entry(path)).collect();
    files.extend(["/etc/ssh", "/etc/rackswarm"].map(str::to_owned).into_iter().filter(|path| root.has(path)));
    files.sort();
    files.dedup();
    context.inside(setfiles).args(["-F", &rules]).args(&files).text(context.stop)?;
    Ok(Some(format!("{} files labelled for SELinux", files.len())))
}

/// The policy's name, where one is in use.
fn policy(root: &Root) -> Result<Option<String>, Error> {
    let text = root.read(CONFIG)?.unwrap_or_default();
    let value = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let in_use = value("SELINUX=").is_some_and(|mode| mode != "disabled");
    Ok(value("SELINUXTYPE=").filter(|_| in_use).map(str::to_owned))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn only_images_with_a_policy_in_use_are_labelled() {
        let tree = Tree::new();
        assert_eq!(tree.act(act).unwrap(), None);
        tree.file(CONFIG, "SELINUX=disabled\nSELINUXTYPE=targeted\n");
        assert_eq!(tree.act(act).unwrap(), None);
        tree.file(CONFIG, "# mode\nSELINUX=enforcing\nSELINUXTYPE=targeted\n");
        assert_eq!(policy(&tree.root()).unwrap().as_deref(), Some("targeted"));
        assert!(tree.act(act).unwrap().unwrap().contains("first boot"));
        assert!(tree.path().join(".autorelabel").exists());
    }
}
