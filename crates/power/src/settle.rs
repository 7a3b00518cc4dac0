//! Reading back: asking until it is so.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Advice, Result};

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
