//! SSH host keys of its own, and the operators' keys for root.

use super::{Context, Root};
use crate::Error;

const KEYS: &str = "etc/ssh";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let mut said = host_keys(context)?;
    let keys = &context.subject.plan.authorized_keys;
    if !keys.is_empty() {
        let folder = format!("{}/.ssh", home_of_root(context.root)?);
        context.root.folder(&folder, 0o700)?;
        context.root.write(&format!("{folder}/authorized_keys"), 0o600, keys.join("\n") + "\n")?;
        said = format!("{said}; {} keys may log in as root", keys.len());
    }
    Ok(Some(said))
}

/// Equal host keys on all nodes would let each of them pose as any other.
fn host_keys(context: &Context<'_>) -> Result<String, Error> {
    let root = context.root;
    if !root.has("usr/sbin/sshd") && !root.has("usr/bin/sshd") {
        return Ok("the image has no SSH server".to_owned());
    }
    for name in root.list(KEYS) {
        if name.starts_with("ssh_host_") && name.contains("_key") {
            root.remove(&format!("{KEYS}/{name}"))?;
        }
    }
    if !root.has("usr/bin/ssh-keygen") {
        return Ok("the image has no ssh-keygen: its SSH server makes its host keys itself, or lacks them".to_owned());
    }
    context.inside("/usr/bin/ssh-keygen").args(["-A"]).text(context.stop)?;
    let made =
        root.list(KEYS).iter().filter(|name| name.starts_with("ssh_host_") && name.ends_with("_key.pub")).count();
    Ok(format!("{made} SSH host keys made"))
}

/// Without a leading slash.
fn home_of_root(root: &Root) -> Result<String, Error> {
    let users = root.read("etc/passwd")?.unwrap_or_default();
    let home = users.lines().find_map(|line| line.strip_prefix("root:")?.split(':').nth(4).map(str::to_owned));
    let home = home.unwrap_or_default().trim_matches('/').to_owned();
    Ok(if home.is_empty() { "root".to_owned() } else { home })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn operators_keys_are_written_with_the_modes_that_sshd_demands() {
        let mut tree = Tree::new();
        tree.subject.plan.authorized_keys = vec!["ssh-ed25519 AAAA a".into(), "ssh-ed25519 BBBB b".into()];
        let said = tree.act(act).unwrap().unwrap();
        assert_eq!(said, "the image has no SSH server; 2 keys may log in as root");
        assert_eq!(tree.text("root/.ssh/authorized_keys"), "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n");
        assert_eq!((tree.mode("root/.ssh"), tree.mode("root/.ssh/authorized_keys")), (0o700, 0o600));
    }

    #[test]
    fn no_keys_leave_the_images_own() {
        let tree = Tree::new();
        tree.file("root/.ssh/authorized_keys", "golden");
        assert_eq!(tree.act(act).unwrap().unwrap(), "the image has no SSH server");
        assert_eq!(tree.text("root/.ssh/authorized_keys"), "golden");
    }

    #[test]
    fn the_images_host_keys_go_even_where_none_can_be_made() {
        let tree = Tree::new();
        tree.file("usr/sbin/sshd", "");
        tree.file("etc/ssh/ssh_host_rsa_key", "golden");
        tree.file("etc/ssh/ssh_host_rsa_key.pub", "golden");
        tree.file("etc/ssh/sshd_config", "x");
        assert!(tree.act(act).unwrap().unwrap().contains("no ssh-keygen"));
        assert_eq!(tree.root().list(KEYS), ["sshd_config"]);
    }

    #[test]
    fn root_may_live_elsewhere() {
        let mut tree = Tree::new();
        tree.file("etc/passwd", "daemon:x:1:1::/:\nroot:x:0:0:root:/home/admin/:/bin/sh\n");
        tree.subject.plan.authorized_keys = vec!["k".into()];
        tree.act(act).unwrap();
        assert_eq!(tree.text("home/admin/.ssh/authorized_keys"), "k\n");
    }
}
