//! The power of nodes, for operators.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use api::operator::{PowerAction, PowerOutcome, PowerRequest, PowerResult};
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fleet::change::Snapshot;
use fleet::event::Event;
use fleet::ids::{NodeName, RackName};
use fleet::life::Stage;
use fleet::node::Power;
use fleet::rollout::spread;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{JsonBody, Problem};
use crate::switchboard::{End, Operation, Report};

/// An empty line goes out when nothing has ended for this long, so that a reader that has gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(power))
}

/// Switches or reads the power of nodes. The answer has a line of JSON for each node, when it is there; lines may be
/// empty. Machines that start are spread over time by `[deploy] starts_per_second`. What was begun is done to its end,
/// whether somebody still reads or not. Nodes that are being deployed are left alone unless `force` says otherwise.
#[utoipa::path(post, path = "/api/v1/power", tag = "nodes", request_body = PowerRequest,
    responses((status = 200, body = PowerResult, content_type = "application/x-ndjson"), (status = "default", body = api::Problem)))]
async fn power(State(app): State<App>, JsonBody(request): JsonBody<PowerRequest>) -> Result<Response, Problem> {
    if !(1..=5).contains(&request.attempts) {
        return Err(Problem::invalid(format!("attempts is {}, write 1 to 5", request.attempts)));
    }
    let jobs = app.keeper.read(|state| jobs(state.snapshot(), &request))?;
    let (sender, results) = mpsc::channel::<PowerResult>(jobs.len().max(1));
    let is_start = !matches!(request.action, PowerAction::Status | PowerAction::Off);
    let seconds = spread(app.keeper.policy(), jobs.iter().map(|job| job.rack.as_ref()));
    for (job, second) in jobs.into_iter().zip(seconds) {
        let (app, sender) = (app.clone(), sender.clone());
        let (action, attempts) = (request.action, request.attempts);
        tokio::spawn(async move {
            if is_start {
                tokio::time::sleep(Duration::from_secs(second)).await;
            }
            let result = app.switch(job, action, attempts).await;
            // The reader may have gone; what was done is in the timeline.
            let _ = sender.send(result).await;
        });
    }
    let stop = app.stop.clone();
    let lines = stream::unfold(results, next).take_until(async move { stop.cancelled().await });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

async fn next(
    mut results: mpsc::Receiver<PowerResult>,
) -> Option<(Result<Bytes, Infallible>, mpsc::Receiver<PowerResult>)> {
    let line = match tokio::time::timeout(KEEP_ALIVE, results.recv()).await {
        Err(_) => Vec::new(),
        Ok(None) => return None,
        Ok(Some(result)) => serde_json::to_vec(&result).unwrap_or_default(),
    };
    Some((Ok([&line[..], b"\n"].concat().into()), results))
}

/// What is to be done with one node.
struct Job {
    node: NodeName,
    rack: Option<RackName>,
    power: String,
    /// Why it is left alone.
    refused: Option<String>,
}

fn jobs(snapshot: &Snapshot, request: &PowerRequest) -> Result<Vec<Job>, Problem> {
    let names = chosen(snapshot, &request.nodes, &request.racks)?;
    let nodes = names.iter().filter_map(|name| snapshot.nodes.get(name));
    let changes = request.action != PowerAction::Status;
    let refused = |stage: Stage| {
        (changes && stage.is_under_way() && !request.force).then(|| {
            format!("it is being deployed ({stage}); cancel that first, or switch it nevertheless with --force")
        })
    };
    Ok(nodes
        .map(|n| Job { node: n.name.clone(), rack: n.rack.clone(), power: n.power.clone(), refused: refused(n.stage) })
        .collect())
}

/// The nodes that are named, and all of the racks that are named.
fn chosen(snapshot: &Snapshot, nodes: &[NodeName], racks: &[RackName]) -> Result<BTreeSet<NodeName>, Problem> {
    if let Some(missing) = nodes.iter().find(|name| !snapshot.nodes.contains_key(*name)) {
        return Err(Problem::not_found("node", missing.as_str()));
    }
    let mut all: BTreeSet<NodeName> = nodes.iter().cloned().collect();
    for rack in racks {
        if !snapshot.racks.contains_key(rack) {
            return Err(Problem::not_found("rack", rack.as_str()));
        }
        let inside = snapshot.in_rack(rack);
        all.extend(inside.map(|node| node.name.clone()));
    }
    if all.is_empty() {
        return Err(Problem::conflict("there is no node among these; name some with --nodes or --rack"));
    }
    Ok(all)
}

impl App {
    async fn switch(&self, job: Job, action: PowerAction, attempts: u32) -> PowerResult {
        let begun = Instant::now();
        let milliseconds = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(text) = job.refused {
            let outcome = PowerOutcome::Refused;
            return PowerResult { node: job.node, outcome, power: Power::Unknown, text, tries: 0, milliseconds: 0 };
        }
        let operation = match action {
            PowerAction::Status => Operation::Status,
            PowerAction::On => Operation::On,
            PowerAction::Off => Operation::Off,
            PowerAction::Cycle => Operation::Cycle,
            PowerAction::Reset => Operation::Reset,
        };
        let report = self.switchboard.perform(&job.power, operation, attempts).await;
        self.note(&job.node, operation, &report).await;
        let outcome = match report.end {
            End::Done => PowerOutcome::Done,
            End::Asked => PowerOutcome::Asked,
            End::Failed => PowerOutcome::Failed,
        };
        let Report { power, text, tries, .. } = report;
        PowerResult { node: job.node, outcome, power, text, tries, milliseconds: milliseconds() }
    }

    /// Whoever switches a machine stands in its timeline; who only looks does not.
    async fn note(&self, node: &NodeName, operation: Operation, report: &Report) {
        let text = (operation != Operation::Status)
            .then(|| format!("an operator asked for power {}: {}", operation.as_str(), report.text));
        let event = Event::PowerRead { node: node.clone(), power: report.power, text };
        if let Err(error) = self.keeper.tell(event).await {
            tracing::warn!(%node, %error, "what was done with its power is not in its timeline");
        }
    }
}
