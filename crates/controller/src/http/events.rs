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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::to_bytes;
    use axum::response::IntoResponse;
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_is_told_that_it_missed_events_and_goes_on() {
        let (sender, receiver) = broadcast::channel(2);
        for name in ["n1", "n2", "n3", "n4"] {
            sender.send(Arc::new(StreamEvent::NodeGone { name: name.parse().unwrap() })).unwrap();
        }
        drop(sender);
        let body = Sse::new(stream::unfold(receiver, next)).into_response().into_body();
        let text = String::from_utf8(to_bytes(body, 4096).await.unwrap().to_vec()).unwrap();
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(names, ["missed", "node_gone", "node_gone"], "{text}");
        assert!(text.contains("\"n3\"") && text.contains("\"n4\"") && !text.contains("\"n2\""), "{text}");
    }
}
