//! Following a deployment until every node has an outcome.

mod board;
mod screen;

use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use api::client::{Client, ClientError};
use api::operator::{DeploymentView, StreamEvent};
use fleet::ids::DeploymentId;
use futures_util::StreamExt;

use crate::connect::explain;
use crate::output::span;
use board::Board;
use screen::Screen;

/// The stream may be silent for long while nothing is wrong; the deployment is read anew this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Bars move and the clock of the summary goes on this often.
const DRAW_EVERY: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(1);
/// A controller that restarts is back within seconds; after this time a person is told.
const LOST_LIMIT: Duration = Duration::from_secs(300);

/// Follows `id` to its end. Success only when every node runs and has proved it.
pub(crate) async fn run(client: &Client, id: DeploymentId) -> Result<ExitCode> {
    let deployment = client.deployment(id).await.map_err(explain)?;
    let nodes = client.nodes().await.map_err(explain)?;
    let board = Board::new(deployment, nodes);
    let screen = Screen::new(&board)?;
    let mut watch = Watch { client, id, board, screen, last_answer: Instant::now() };
    let followed = tokio::select! {
        followed = watch.follow() => Some(followed),
        _ = tokio::signal::ctrl_c() => None,
    };
    watch.screen.finish();
    let Some(followed) = followed else {
        eprintln!("rackswarm: no longer watching; the deployment goes on: rackswarm deploy status {id} --watch");
        return Ok(ExitCode::from(130));
    };
    followed?;
    if watch.board.is_stuck() {
        bail!(
            "nothing is under way and nothing starts by itself: {}; `rackswarm deploy resume {id}`, `retry {id}` or `cancel {id}`",
            watch.board.pauses().join("; ")
        );
    }
    screen::result(&watch.board)
}

/// A deployment that is followed.
struct Watch<'a> {
    client: &'a Client,
    id: DeploymentId,
    board: Board,
    screen: Screen,
    last_answer: Instant,
}

impl Watch<'_> {
    /// Until the deployment has ended. Losing the controller is no error unless it lasts.
    async fn follow(&mut self) -> Result<()> {
        while !self.is_over() {
            match self.follow_once().await {
                Ok(()) => {}
                Err(error) if !error.may_pass() => return Err(explain(error)),
                Err(error) if self.last_answer.elapsed() > LOST_LIMIT => bail!(
                    "{error}; no answer for {}; watch on with: rackswarm deploy status {} --watch",
                    span(LOST_LIMIT),
                    self.id
                ),
                Err(error) => self.screen.lost(&error.to_string()),
            }
            if !self.is_over() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Nobody has to wait any longer.
    fn is_over(&self) -> bool {
        self.board.has_ended() || self.board.is_stuck()
    }

    /// Reads everything once and then the stream, until it breaks, has missed something, or the deployment has ended.
    async fn follow_once(&mut self) -> Result<(), ClientError> {
        let mut events = pin!(self.client.events().await?);
        // Only now, so that nothing falls between the two.
        self.look().await?;
        let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_EVERY, LOOK_EVERY);
        let mut draws = tokio::time::interval(DRAW_EVERY);
        while !self.is_over() {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(StreamEvent::Missed)) | None => return Ok(()),
                    Some(event) => {
                        self.last_answer = Instant::now();
                        self.take(event?);
                    }
                },
                // A half-open connection looks like a quiet stream.
                _ = looks.tick() => self.look_at_deployment().await?,
                _ = draws.tick() => self.screen.draw(&self.board),
            }
        }
        self.screen.draw(&self.board);
        Ok(())
    }

    async fn look(&mut self) -> Result<(), ClientError> {
        for node in self.client.nodes().await? {
            self.take(StreamEvent::Node(Box::new(node)));
        }
        self.look_at_deployment().await
    }

    async fn look_at_deployment(&mut self) -> Result<(), ClientError> {
        let deployment: DeploymentView = self.client.deployment(self.id).await?;
        self.last_answer = Instant::now();
        self.screen.found();
        self.take(StreamEvent::Deployment(Box::new(deployment)));
        Ok(())
    }

    fn take(&mut self, event: StreamEvent) {
        for news in self.board.take(event) {
            self.screen.tell(&news);
        }
    }
}
