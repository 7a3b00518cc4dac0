//! Reading back: asking until it is so.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Advice, Result, State};

/// Gives a command, unless it is so already, and asks every `pause` until it is. The answer of a command may get lost, and
/// somebody else may have been faster, so the state decides; only a refusal ends it at once. `false` when the command
/// went well and the state did not follow within `limit`.
pub(crate) async fn switch<T, F>(
    wanted: State,
    command: impl Future<Output = Result<T>>,
    state: impl Fn() -> F,
    limit: Duration,
    pause: Duration,
) -> Result<bool>
where
    F: Future<Output = Result<State>>,
{
    if state().await? == wanted {
        return Ok(true);
    }
    let told = command.await.map(drop);
    if told.as_ref().is_err_and(|error| error.advice() == Advice::Refuse) {
        return told.map(|()| false);
    }
    let limit = if told.is_ok() { limit } else { Duration::ZERO };
    let asked = || async { Ok((state().await? == wanted).then_some(())) };
    match until(limit, pause, asked).await? {
        Some(()) => Ok(true),
        None => told.map(|()| false),
    }
}

/// Asks every `pause` until the answer is `Some`; `None` at the deadline. A question that fails in passing is asked again;
/// at the deadline, or when it cannot get better, the failure is the answer.
pub(crate) async fn until<T, F>(limit: Duration, pause: Duration, mut ask: impl FnMut() -> F) -> Result<Option<T>>
where
    F: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let late = Instant::now() >= deadline;
        match ask().await {
            Ok(Some(found)) => return Ok(Some(found)),
            Err(error) if late || error.advice() == Advice::Refuse => return Err(error),
            Ok(None) if late => return Ok(None),
            _ => sleep(pause).await,
        }
    }
}
