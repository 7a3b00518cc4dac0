//! The host's name, and the line that resolves it without a name server.

use super::{Context, wrong};
use crate::Error;

/// Debian's way of giving a host's own name an address: apart from `localhost`,
/// so that the name, not `localhost`, is the canonical one.
const OWN_ADDRESS: &str = "127.0.1.1";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let name = &context.subject.plan.host_name;
    if name.is_empty() || name.chars().any(|c| !(c.is_ascii_alphanumeric() || c == '-' || c == '.')) {
        return Err(wrong("host_name", format!("`{name}` is not a host name: use letters, digits, `-` and `.`")));
    }
    context.root.write("etc/hostname", 0o644, format!("{name}\n"))?;
    let hosts = context.root.read("etc/hosts")?.unwrap_or_else(|| "127.0.0.1\tlocalhost\n".to_owned());
    context.root.write("etc/hosts", 0o644, with_own_name(&hosts, name))?;
    Ok(Some(format!("named {name}")))
}

/// The table with one line for the host itself, behind the first one.
fn with_own_name(hosts: &str, name: &str) -> String {
    let short = name.split('.').next().unwrap_or(name);
    let names = if short == name { name.to_owned() } else { format!("{name} {short}") };
    let own = format!("{OWN_ADDRESS}\t{names}");
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| line.split_whitespace().next() != Some(OWN_ADDRESS)).collect();
    let at = lines.iter().position(|line| line.starts_with("127.0.0.1")).map_or(0, |at| at + 1);
    lines.insert(at, &own);
    lines.join("\n") + "\n"
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;

    #[test]
    fn the_name_is_set_once_however_often() {
        let tree = Tree::new();
        tree.file("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 golden\n10.0.0.1 server\n");
        for _ in 0..2 {
            assert_eq!(tree.act(act).unwrap().unwrap(), "named node7.rack1");
        }
        assert_eq!(tree.text("etc/hostname"), "node7.rack1\n");
        assert_eq!(tree.text("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1\tnode7.rack1 node7\n10.0.0.1 server\n");
    }

    #[test]
    fn an_image_without_a_table_gets_one() {
        let mut tree = Tree::new();
        tree.subject.plan.host_name = "solo".into();
        tree.act(act).unwrap();
        assert_eq!(tree.text("etc/hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\tsolo\n");
    }

    #[test]
    fn a_name_with_a_line_break_is_refused() {
        let mut tree = Tree::new();
        tree.subject.plan.host_name = "a\nb".into();
        let error = tree.act(act).unwrap_err();
        assert!(!error.retry() && error.to_string().contains("host name"), "{error}");
    }
}
