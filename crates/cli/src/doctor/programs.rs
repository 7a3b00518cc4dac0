//! Programs of other projects that some functions need.

use std::time::Duration;

use super::{Finding, listed};
use crate::connect::Connection;

const CHECK: &str = "programs";
/// The controller may not run yet, so it is not waited for.
const ASK_LIMIT: Duration = Duration::from_secs(3);

pub(super) fn check(connection: &Connection) -> Vec<Finding> {
    vec![qemu_img(is_there("qemu-img")), ipmitool(is_there("ipmitool"), nodes_with_ipmi(connection))]
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Services often have no sbin folder in their path; the controller's own search is the same.
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn qemu_img(is_there: bool) -> Finding {
    if is_there {
        return Finding::pass(CHECK, "qemu-img is there, for images that are not raw");
    }
    Finding::warn(CHECK, "qemu-img is not installed: only raw images can be imported", "apt-get install qemu-utils")
}

/// Names of nodes whose power is switched through IPMI; `None` where the controller cannot be asked.
fn nodes_with_ipmi(connection: &Connection) -> Option<Vec<String>> {
    let client = connection.client().ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let nodes = runtime.block_on(async { tokio::time::timeout(ASK_LIMIT, client.nodes()).await.ok()?.ok() })?;
    Some(nodes.iter().filter(|node| node.power.starts_with("ipmi:")).map(|node| node.name.to_string()).collect())
}

fn ipmitool(is_there: bool, users: Option<Vec<String>>) -> Finding {
    let fix = "apt-get install ipmitool";
    match (is_there, users) {
        (true, _) => Finding::pass(CHECK, "ipmitool is there, for nodes with a management controller"),
        (false, Some(nodes)) if nodes.is_empty() => {
            Finding::pass(CHECK, "ipmitool is not installed, and no node needs it")
        }
        (false, Some(nodes)) => Finding::fail(
            CHECK,
            format!("ipmitool is not installed, and {} cannot be switched without it", listed(&nodes)),
            fix,
        ),
        (false, None) => {
            Finding::warn(CHECK, "ipmitool is not installed: nodes cannot be switched through ipmi: addresses", fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_program_is_missed_by_those_who_need_it() {
        assert_eq!(qemu_img(false).verdict, Verdict::Warn);
        assert_eq!(ipmitool(false, None).verdict, Verdict::Warn);
        assert_eq!(ipmitool(false, Some(Vec::new())).verdict, Verdict::Pass);
        assert_eq!(ipmitool(false, Some(vec!["n1".into()])).verdict, Verdict::Fail);
        assert_eq!(ipmitool(true, None).verdict, Verdict::Pass);
    }
}
