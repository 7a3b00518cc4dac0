//! A NoCloud seed for images with cloud-init.

use super::{Context, network};
use crate::Error;

const SEED: &str = "var/lib/cloud/seed/nocloud";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let subject = context.subject;
    let Some(user_data) = &subject.plan.user_data else { return Ok(None) };
    // Another attempt is another instance, so that cloud-init does everything again.
    let instance = format!("rackswarm-{}-{}", subject.node, subject.attempt);
    let about = format!("instance-id: {instance}\nlocal-hostname: {}\n", subject.plan.host_name);
    context.root.write(&format!("{SEED}/meta-data"), 0o600, about)?;
    context.root.write(&format!("{SEED}/user-data"), 0o600, user_data)?;
    // Without this file cloud-init would configure the network by a guess of its own.
    if let Some(wanted) = network::wanted(context)? {
        let text = format!("version: 2\n{}", network::ethernets(&wanted, ""));
        context.root.write(&format!("{SEED}/network-config"), 0o600, text)?;
    }
    let installed = context.root.has("usr/bin/cloud-init");
    let note = if installed { "" } else { "; the image has no cloud-init to read it" };
    Ok(Some(format!("NoCloud seed for instance {instance}{note}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn a_seed_is_written_where_one_is_wanted() {
        let mut tree = Tree::new();
        assert_eq!(tree.act(act).unwrap(), None);
        assert!(!tree.path().join("var").exists());
        tree.subject.plan.user_data = Some("#cloud-config\n{}\n".into());
        assert!(tree.act(act).unwrap().unwrap().contains("no cloud-init"));
        tree.file("usr/bin/cloud-init", "");
        assert_eq!(tree.act(act).unwrap().unwrap(), "NoCloud seed for instance rackswarm-node7-3");
        assert_eq!(
            tree.text("var/lib/cloud/seed/nocloud/meta-data"),
            "instance-id: rackswarm-node7-3\nlocal-hostname: node7.rack1\n"
        );
        assert_eq!(tree.text("var/lib/cloud/seed/nocloud/user-data"), "#cloud-config\n{}\n");
        let network = tree.text("var/lib/cloud/seed/nocloud/network-config");
        assert!(
            network.starts_with("version: 2\nethernets:\n  rackswarm:\n") && network.contains("dhcp4: true"),
            "{network}"
        );
        assert_eq!(tree.mode("var/lib/cloud/seed/nocloud/user-data"), 0o600);
    }
}
