//! Everything that changes, as a stream of server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::operator::StreamEvent;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;

/// A reader that has gone is noticed when a comment cannot be sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Everything that changes from now on. `event:` names the variant, `data:` is the event as JSON.
/// After `missed` the reader was too slow and must read the state anew.
#[utoipa::path(get, path = "/api/v1/events", tag = "controller",
    responses((status = 200, body = StreamEvent, content_type = "text/event-stream"), (status = "default", body = api::Problem)))]
async fn events(State(app): State<App>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stop = app.stop.clone();
    let events = stream::unfold(app.keeper.subscribe(), next).take_until(async move { stop.cancelled().await });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

async fn next(mut from: Receiver<Arc<StreamEvent>>) -> Option<(Result<Event, Infallible>, Receiver<Arc<StreamEvent>>)> {
    let event = match from.recv().await {
        Ok(event) => encode(&event),
        Err(RecvError::Lagged(_)) => encode(&StreamEvent::Missed),
        Err(RecvError::Closed) => return None,
    };
    Some((Ok(event), from))
}

fn encode(event: &StreamEvent) -> Event {
    let name = match event {
        StreamEvent::Timeline(_) => "timeline",
        StreamEvent::Node(_) => "node",
        StreamEvent::NodeGone { .. } => "node_gone",
        StreamEvent::Deployment(_) => "deployment",
        StreamEvent::Missed => "missed",
    };
    Event::default().event(name).json_data(event).unwrap_or_else(|error| {
        tracing::error!(%error, name, "an event has no JSON form; this is a defect");
        Event::default().comment(name)
    })
}
