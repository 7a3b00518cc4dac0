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
    let mut board = Board::new(deployment, nodes);
    let mut screen = Screen::new(&board)?;
    let followed = tokio::select! {
        followed = follow(client, id, &mut board, &mut screen) => Some(followed),
        _ = tokio::signal::ctrl_c() => None,
    };
    screen.finish();
    let Some(followed) = followed else {
        eprintln!("rackswarm: no longer watching; the deployment goes on: rackswarm deploy status {id} --watch");
        return Ok(ExitCode::from(130));
    };
    followed?;
    screen::result(&board)
}

/// Until the deployment has ended. Losing the controller is no error unless it lasts.
async fn follow(client: &Client, id: DeploymentId, board: &mut Board, screen: &mut Screen) -> Result<()> {
    let mut last_answer = Instant::now();
    while !board.has_ended() {
        match follow_once(client, id, board, screen, &mut last_answer).await {
            Ok(()) => {}
            Err(error) if !error.may_pass() => return Err(explain(error)),
            Err(error) if last_answer.elapsed() > LOST_LIMIT => bail!(
                "{error}; no answer for {}; watch on with: rackswarm deploy status {id} --watch",
                span(LOST_LIMIT)
            ),
            Err(error) => screen.lost(&error.to_string()),
        }
        if !board.has_ended() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Reads everything once and then the stream, until it breaks, has missed something, or the deployment has ended.
async fn follow_once(
    client: &Client,
    id: DeploymentId,
    board: &mut Board,
    screen: &mut Screen,
    last_answer: &mut Instant,
) -> Result<(), ClientError> {
    let mut events = pin!(client.events().await?);
    // Only now, so that nothing falls between the two.
    look(client, id, board, screen, last_answer).await?;
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK_EVERY, LOOK_EVERY);
    let mut draws = tokio::time::interval(DRAW_EVERY);
    while !board.has_ended() {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(StreamEvent::Missed)) | None => return Ok(()),
                Some(event) => {
                    *last_answer = Instant::now();
                    take(event?, board, screen);
                }
            },
            // A half-open connection looks like a quiet stream.
            _ = looks.tick() => look_at_deployment(client, id, board, screen, last_answer).await?,
            _ = draws.tick() => screen.draw(board),
        }
    }
    screen.draw(board);
    Ok(())
}

async fn look(
    client: &Client,
    id: DeploymentId,
    board: &mut Board,
    screen: &mut Screen,
    last_answer: &mut Instant,
) -> Result<(), ClientError> {
    for node in client.nodes().await? {
        take(StreamEvent::Node(Box::new(node)), board, screen);
    }
    look_at_deployment(client, id, board, screen, last_answer).await
}

async fn look_at_deployment(
    client: &Client,
    id: DeploymentId,
    board: &mut Board,
    screen: &mut Screen,
    last_answer: &mut Instant,
) -> Result<(), ClientError> {
    let deployment: DeploymentView = client.deployment(id).await?;
    *last_answer = Instant::now();
    screen.found();
    take(StreamEvent::Deployment(deployment), board, screen);
    Ok(())
}

fn take(event: StreamEvent, board: &mut Board, screen: &mut Screen) {
    for news in board.take(event) {
        screen.tell(&news);
    }
}
