//! Tells the controller what happens, in order.
//!
//! What moves the node's life is sent again until it is accepted. Progress is
//! only worth its newest value: while the controller is away it is replaced,
//! not queued. Silence would mean death, so the agent says that it is alive
//! when there is nothing else to say. A refusal means that the attempt is over,
//! and stops everything.

use std::collections::VecDeque;
use std::time::Duration;

use api::agent::{Report, ReportKind};
use api::client::{Client, ClientError};
use fleet::ids::Attempt;
use fleet::node::Progress;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use crate::Stop;

/// Silence after which the agent says that it is alive, where progress is not told less often anyway; the controller
/// gives up after 60 s by default.
const ALIVE_PAUSE: Duration = Duration::from_secs(5);

/// The way to the controller. Cheap to clone; any thread may tell.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    important: mpsc::UnboundedSender<Item>,
    progress: watch::Sender<Option<Progress>>,
}

type Item = (ReportKind, oneshot::Sender<()>);

impl Reporter {
    /// Starts telling, progress at most once in each `pause`. Ends when the task
    /// is aborted or every clone is gone.
    pub(crate) fn start(client: Client, attempt: Attempt, pause: Duration, stop: Stop) -> (Self, JoinHandle<()>) {
        let (important, items) = mpsc::unbounded_channel();
        let (progress, newest) = watch::channel(None);
        let sender = Sender { client, attempt, pause, stop };
        (Self { important, progress }, tokio::spawn(sender.run(items, newest)))
    }

    /// Tells something that matters. The answer comes when it is accepted, or
    /// fails when it never will be. Progress that is told this way replaces what
    /// is pending of it.
    pub(crate) fn tell(&self, kind: ReportKind) -> oneshot::Receiver<()> {
        if matches!(kind, ReportKind::Progress(_)) {
            self.progress.send_replace(None);
        }
        let (accepted, answer) = oneshot::channel();
        // With no task left the answer fails by itself.
        let _ = self.important.send((kind, accepted));
        answer
    }

    /// Replaces the progress that is told next.
    pub(crate) fn progress(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }
}

struct Sender {
    client: Client,
    attempt: Attempt,
    pause: Duration,
    stop: Stop,
}

impl Sender {
    async fn run(self, mut items: mpsc::UnboundedReceiver<Item>, mut newest: watch::Receiver<Option<Progress>>) {
        let mut waiting: VecDeque<Item> = VecDeque::new();
        let mut pauses = Pauses::default();
        let mut next_progress = Instant::now();
        let alive_pause = ALIVE_PAUSE.max(self.pause);
        let mut alive_at = Instant::now() + alive_pause;
        loop {
            let retry = async {
                match waiting.is_empty() {
                    true => std::future::pending().await,
                    false => time::sleep_until(pauses.until).await,
                }
            };
            let progressed = async {
                // In this order: a change that was seen is lost when another branch is taken.
                time::sleep_until(next_progress).await;
                // An error: the reporter is gone, and `items` says so too.
                if newest.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                item = items.recv() => match item {
                    Some(item) => waiting.push_back(item),
                    None => return,
                },
                () = retry => {
                    let Some((kind, _)) = waiting.front() else { continue };
                    match self.send(kind.clone()).await {
                        Sent::Yes => {
                            pauses = Pauses::default();
                            if let Some((_, accepted)) = waiting.pop_front() {
                                let _ = accepted.send(());
                            }
                        }
                        Sent::Later => pauses.grow(),
                        Sent::Never => return,
                    }
                    alive_at = Instant::now() + alive_pause;
                }
                () = progressed, if waiting.is_empty() => {
                    let Some(progress) = *newest.borrow_and_update() else { continue };
                    if matches!(self.send(ReportKind::Progress(progress)).await, Sent::Never) {
                        return;
                    }
                    next_progress = Instant::now() + self.pause;
                    alive_at = Instant::now() + alive_pause;
                }
                () = time::sleep_until(alive_at), if waiting.is_empty() => {
                    if matches!(self.send(ReportKind::Alive).await, Sent::Never) {
                        return;
                    }
                    alive_at = Instant::now() + alive_pause;
                }
            }
        }
    }

    async fn send(&self, what: ReportKind) -> Sent {
        match self.client.report(&Report { attempt: self.attempt, what }).await {
            // It was accepted; only the answer is strange.
            Ok(()) | Err(ClientError::NotUnderstood { .. }) => Sent::Yes,
            Err(ClientError::Refused { error, .. }) => {
                self.stop.set(&error);
                Sent::Never
            }
            Err(_) => Sent::Later,
        }
    }
}

enum Sent {
    Yes,
    Later,
    Never,
}

/// Pauses between tries that double up to a limit, with up to half as much
/// again by chance, so that a thousand machines do not return at once.
#[derive(Debug)]
pub(crate) struct Pauses {
    until: Instant,
    next: Duration,
    longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self::up_to(Duration::from_secs(5))
    }
}

impl Pauses {
    /// Pauses from half a second up to `longest`.
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { until: Instant::now(), next: Duration::from_millis(500), longest }
    }

    fn grow(&mut self) {
        self.until = Instant::now() + self.next.mul_f64(1.0 + rand::random_range(0.0..0.5));
        self.next = (self.next * 2).min(self.longest);
    }

    /// Waits for the next pause.
    pub(crate) async fn wait(&mut self) {
        self.grow();
        time::sleep_until(self.until).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use api::agent::Token;
    use axum::routing::post;
    use axum::{Json, Router};
    use tokio::net::TcpListener;

    use super::*;

    /// A reporter, and what a controller on loopback is told, which accepts everything.
    async fn reporter() -> (Reporter, mpsc::UnboundedReceiver<ReportKind>) {
        let (heard, reports) = mpsc::unbounded_channel();
        let accept = move |Json(report): Json<Report>| {
            let _ = heard.send(report.what);
            async { Json(()) }
        };
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", socket.local_addr().unwrap());
        let router = Router::new().route("/api/v1/agent/report", post(accept));
        tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        let client = Client::new(&base, Token("x".to_owned())).unwrap();
        (Reporter::start(client, Attempt(1), Duration::from_secs(1), Stop::default()).0, reports)
    }

    fn done(done_bytes: u64) -> Progress {
        Progress { done_bytes, total_bytes: 100, ..Progress::default() }
    }

    #[tokio::test]
    async fn progress_that_is_told_replaces_what_is_pending() {
        let (reporter, mut reports) = reporter().await;
        // Nothing runs in between: both are there when the sender looks.
        reporter.progress(done(40));
        let told = reporter.tell(ReportKind::Progress(done(100)));
        told.await.unwrap();
        reporter.tell(ReportKind::ImageVerified { text: String::new() }).await.unwrap();
        // A pause of progress later, the next is told, and nothing of the older one before it.
        reporter.progress(done(100));
        let expected = [
            ReportKind::Progress(done(100)),
            ReportKind::ImageVerified { text: String::new() },
            ReportKind::Progress(done(100)),
        ];
        for kind in expected {
            assert_eq!(reports.recv().await.unwrap(), kind);
        }
    }

    #[tokio::test]
    async fn progress_outlives_what_is_told_while_it_waits_for_its_turn() {
        let (reporter, mut reports) = reporter().await;
        reporter.progress(done(10));
        assert_eq!(reports.recv().await.unwrap(), ReportKind::Progress(done(10)));
        // It is too early for this one, and the sender is taken away from it meanwhile.
        reporter.progress(done(20));
        tokio::task::yield_now().await;
        reporter.tell(ReportKind::ImageVerified { text: String::new() }).await.unwrap();
        assert_eq!(reports.recv().await.unwrap(), ReportKind::ImageVerified { text: String::new() });
        assert_eq!(reports.recv().await.unwrap(), ReportKind::Progress(done(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_to_their_limit() {
        let mut pauses = Pauses::up_to(Duration::from_secs(4));
        let mut waited = Vec::new();
        for _ in 0..6 {
            let before = Instant::now();
            pauses.wait().await;
            waited.push(before.elapsed().as_millis());
        }
        for (waited, least) in waited.into_iter().zip([500, 1000, 2000, 4000, 4000, 4000]) {
            assert!((least..=least * 3 / 2 + 1).contains(&waited), "{waited} for {least}");
        }
    }
}
