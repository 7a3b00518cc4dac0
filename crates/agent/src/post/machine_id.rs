//! A machine-id of its own: systems with equal ones get equal DHCP leases from
//! systemd-networkd, and their journals cannot be told apart.

use uuid::Uuid;

use super::Context;
use crate::Error;

const MACHINE_ID: &str = "etc/machine-id";
const DBUS_ID: &str = "var/lib/dbus/machine-id";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    // machine-id(5): 32 lower-case hexadecimal digits, as of a version 4 UUID.
    let id = Uuid::new_v4().simple().to_string();
    context.root.write(MACHINE_ID, 0o444, format!("{id}\n"))?;
    if context.root.has("var/lib/dbus") {
        context.root.link("/etc/machine-id", DBUS_ID)?;
    }
    Ok(Some(format!("machine-id {id}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn each_system_gets_another_id() {
        let tree = Tree::new();
        tree.file(MACHINE_ID, "golden");
        tree.file(DBUS_ID, "golden");
        tree.act(act).unwrap();
        let first = tree.text(MACHINE_ID);
        assert!(first.len() == 33 && first.trim().bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
        assert_eq!(std::fs::read_link(tree.path().join(DBUS_ID)).unwrap().to_str(), Some("/etc/machine-id"));
        tree.act(act).unwrap();
        assert_ne!(tree.text(MACHINE_ID), first);
    }

    #[test]
    fn an_image_without_dbus_gets_no_folder_for_it() {
        let tree = Tree::new();
        tree.act(act).unwrap();
        assert!(!tree.path().join("var").exists());
    }
}
