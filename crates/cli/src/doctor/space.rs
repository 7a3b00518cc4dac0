//! Room for images.

use std::path::Path;

use controller::Config;

use super::Finding;
use crate::output::bytes;

const CHECK: &str = "disk space";
/// Less holds no image.
const FAIL_BYTES: u64 = 2 << 30;
/// A few images and their drafts.
const WARN_BYTES: u64 = 20 << 30;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let folder = &config.server.data_dir;
    // The folder is made at the first start.
    let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    vec![match rustix::fs::statvfs(there) {
        Ok(system) => judge(folder, system.f_bavail.saturating_mul(system.f_frsize)),
        Err(error) => Finding::fail(
            CHECK,
            format!("the free space of {} cannot be read: {error}", there.display()),
            "check server.data_dir in the configuration",
        ),
    }]
}

fn judge(folder: &Path, free: u64) -> Finding {
    let text = format!("{} are free for {}", bytes(free), folder.display());
    let fix =
        "free some space, or move server.data_dir to a larger file system; an import needs the image's used size twice";
    match free {
        0..FAIL_BYTES => Finding::fail(CHECK, text, fix),
        FAIL_BYTES..WARN_BYTES => Finding::warn(CHECK, text, fix),
        _ => Finding::pass(CHECK, text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn thresholds() {
        let verdict = |free| judge(Path::new("/var/lib/rackswarm"), free).verdict;
        assert_eq!(verdict(0), Verdict::Fail);
        assert_eq!(verdict(FAIL_BYTES), Verdict::Warn);
        assert_eq!(verdict(WARN_BYTES), Verdict::Pass);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_measured_where_it_will_be() {
        let mut config = Config::default();
        config.server.data_dir = "/nonesuch/rackswarm".into();
        assert_eq!(check(&config).len(), 1);
    }
}
