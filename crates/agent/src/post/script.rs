//! The operator's own script, run inside the written system.

use std::time::Duration;

use super::{Context, wrong};
use crate::Error;
use crate::command::Run;

/// In the memory that is mounted at `/run`: the script leaves no trace.
const FILE: &str = "run/rackswarm-script";

pub(super) fn act(context: &Context<'_>) -> Result<Option<String>, Error> {
    let Some(script) = &context.subject.plan.script else { return Ok(None) };
    if !script.text.starts_with("#!") {
        return Err(wrong("script", "its first line must name its interpreter, as in #!/bin/sh"));
    }
    context.root.write(FILE, 0o700, &script.text)?;
    let subject = context.subject;
    let limit = Duration::from_secs(script.time_limit_seconds.clamp(1, 3600).into());
    let ran = Run::inside(context.root.path(), "/run/rackswarm-script", limit)
        .env("RACKSWARM_NODE", subject.node.as_str())
        .env("RACKSWARM_HOST_NAME", &subject.plan.host_name)
        .env("RACKSWARM_IMAGE", subject.image.as_str())
        .env("RACKSWARM_DIGEST", subject.digest.to_string())
        .env("RACKSWARM_ATTEMPT", subject.attempt.to_string())
        .env("RACKSWARM_MAC", subject.mac.map(|mac| mac.to_string()).unwrap_or_default())
        .env("RACKSWARM_CONTROLLER", &subject.plan.controller_url)
        .text(context.stop);
    context.root.remove(FILE)?;
    Ok(Some(ran?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::post::fixture::Tree;
    use fleet::post::Script;

    #[test]
    fn a_script_without_interpreter_is_refused() {
        let mut tree = Tree::new();
        assert_eq!(tree.act(act).unwrap(), None);
        tree.subject.plan.script = Some(Script { text: "echo hello\n".into(), time_limit_seconds: 10 });
        let error = tree.act(act).unwrap_err();
        assert!(!error.retry() && error.to_string().contains("#!/bin/sh"), "{error}");
        assert!(!tree.path().join(FILE).exists());
    }
}
