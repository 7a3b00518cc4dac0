//! Deployments, for operators.

use std::collections::{BTreeMap, BTreeSet};

use api::operator::{DeploymentView, NewDeployment, PauseRequest, ResumeRequest, RetryRequest};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fleet::change::{Change, Snapshot};
use fleet::deployment::{Deployment, Outcome};
use fleet::event::Event;
use fleet::ids::{DeploymentId, ImageName, Millis, NodeName};
use fleet::plan::NO_NETWORK_BOOT;
use fleet::preview::{Preview, preview};
use fleet::report::{Report, report, stage_times};
use fleet::run::{Passed, Run};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{JsonBody, PathPart, Problem};
use crate::{switchboard, view};

type Answer<T> = Result<Json<T>, Problem>;

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_deployments, deploy))
        .routes(routes!(preview_deployment))
        .routes(routes!(show_deployment))
        .routes(routes!(cancel_deployment))
        .routes(routes!(pause_deployment))
        .routes(routes!(resume_deployment))
        .routes(routes!(retry_deployment))
        .routes(routes!(report_deployment))
}

/// All deployments, oldest first.
#[utoipa::path(get, path = "/api/v1/deployments", tag = "deployments",
    responses((status = 200, body = Vec<DeploymentView>), (status = "default", body = api::Problem)))]
async fn list_deployments(State(app): State<App>) -> Json<Vec<DeploymentView>> {
    let (policy, now) = (app.keeper.policy(), app.keeper.now());
    Json(app.keeper.read(|state| {
        let all = state.snapshot().deployments.values();
        all.map(|deployment| view::deployment(state.snapshot(), policy, deployment, now)).collect()
    }))
}

/// Deploys an image to nodes, and to all approved nodes of racks. `rollout` says in which order they start, how many at
/// once, after how many failures no more, and when.
#[utoipa::path(post, path = "/api/v1/deployments", tag = "deployments", request_body = NewDeployment,
    responses((status = 201, body = DeploymentView), (status = "default", body = api::Problem)))]
async fn deploy(
    State(app): State<App>,
    JsonBody(new): JsonBody<NewDeployment>,
) -> Result<(StatusCode, Json<DeploymentView>), Problem> {
    let image: ImageName = new.image.parse()?;
    let nodes = app.keeper.read(|state| {
        let nodes = chosen(state.snapshot(), &new)?;
        check_power(state.snapshot(), &nodes).map(|()| nodes)
    })?;
    if app.keeper.read(|state| state.snapshot().images.get(&image).is_some_and(|image| image.layout.is_some()))
        && let Some(sentence) = app.kernels.lack_for_layouts().await
    {
        return Err(Problem::conflict(sentence));
    }
    let changes = app.keeper.tell(Event::Deploy { image, nodes, rollout: new.rollout }).await?;
    let made = changes.iter().find_map(|change| match change {
        Change::PutDeployment(deployment) => Some(deployment.id),
        _ => None,
    });
    let id = made.ok_or_else(|| Problem::conflict("nothing was deployed"))?;
    Ok((StatusCode::CREATED, Json(app.deployment(id)?)))
}

/// What a deployment would do: its waves, and what would be lost on each disk. Nothing is changed.
#[utoipa::path(post, path = "/api/v1/deployments/preview", tag = "deployments", request_body = NewDeployment,
    responses((status = 200, body = Preview), (status = "default", body = api::Problem)))]
async fn preview_deployment(State(app): State<App>, JsonBody(new): JsonBody<NewDeployment>) -> Answer<Preview> {
    let image: ImageName = new.image.parse()?;
    let (policy, now) = (app.keeper.policy(), app.keeper.now());
    let (mut seen, last) = app.keeper.read(|state| {
        let snapshot = state.snapshot();
        let nodes = chosen(snapshot, &new)?;
        let seen = preview(snapshot, policy, &switchboard::driver, now, &image, &nodes, &new.rollout)?;
        let proved = |d: &&Deployment| d.outcomes.values().any(|o| matches!(o, Outcome::Running { .. }));
        Ok::<_, Problem>((seen, snapshot.deployments.values().rev().find(proved).map(|d| d.id)))
    })?;
    if let Some(last) = last {
        seen.measured = stage_times(&app.keeper.runs(last).await?);
    }
    Ok(Json(seen))
}

/// What a deployment came to so far: times by stage and node, bytes, failures, stragglers.
#[utoipa::path(get, path = "/api/v1/deployments/{id}/report", tag = "deployments",
    params(("id" = String, Path, description = "the deployment's number, such as d-12")),
    responses((status = 200, body = Report), (status = "default", body = api::Problem)))]
async fn report_deployment(State(app): State<App>, PathPart(id): PathPart<DeploymentId>) -> Answer<Report> {
    let ended = app.keeper.runs(id).await?;
    let now = app.keeper.now();
    app.keeper.read(|state| {
        let snapshot = state.snapshot();
        let deployment =
            snapshot.deployments.get(&id).ok_or_else(|| Problem::not_found("deployment", id.to_string()))?;
        let mut runs: BTreeMap<NodeName, Run> = ended.into_iter().map(|run| (run.node.clone(), run)).collect();
        let mut present = BTreeMap::new();
        for (run, passed) in under_way(snapshot, id, now) {
            present.insert(run.node.clone(), passed);
            runs.insert(run.node.clone(), run);
        }
        let image = snapshot.images.get(&deployment.image).filter(|image| image.digest == deployment.digest);
        let image_bytes = image.map_or(deployment.size_bytes, |image| image.used_bytes);
        Ok(Json(report(deployment, image_bytes, runs.into_values().collect(), &present)))
    })
}

/// What the nodes have done so far that have no outcome yet.
fn under_way(snapshot: &Snapshot, id: DeploymentId, now: Millis) -> impl Iterator<Item = (Run, Passed)> {
    let nodes = snapshot.nodes.values().filter(|node| node.stage.is_under_way());
    nodes.filter_map(move |node| {
        let mut run = node.run.clone().filter(|run| run.deployment == id)?;
        if let Some(progress) = snapshot.live.get(&node.name).and_then(|live| live.progress) {
            run.moved(progress.received_bytes, progress.sent_bytes);
        }
        Some((run, Passed { stage: node.stage, milliseconds: now.since(node.stage_since) }))
    })
}

/// One deployment.
#[utoipa::path(get, path = "/api/v1/deployments/{id}", tag = "deployments",
    params(("id" = String, Path, description = "the deployment's number, such as d-12")),
    responses((status = 200, body = DeploymentView), (status = "default", body = api::Problem)))]
async fn show_deployment(State(app): State<App>, PathPart(id): PathPart<DeploymentId>) -> Answer<DeploymentView> {
    app.deployment(id).map(Json)
}

/// Ends a deployment. Nodes that are proved stay as they are, the others are let go.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/cancel", tag = "deployments",
    params(("id" = String, Path, description = "the deployment's number, such as d-12")),
    responses((status = 200, body = DeploymentView), (status = "default", body = api::Problem)))]
async fn cancel_deployment(State(app): State<App>, PathPart(id): PathPart<DeploymentId>) -> Answer<DeploymentView> {
    app.keeper.tell(Event::Cancel(id)).await?;
    app.deployment(id).map(Json)
}

/// Lets nothing new start in a deployment, or in one rack of it. What has started goes on to its end.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/pause", tag = "deployments", request_body = PauseRequest,
    params(("id" = String, Path, description = "the deployment's number, such as d-12")),
    responses((status = 200, body = DeploymentView), (status = "default", body = api::Problem)))]
async fn pause_deployment(
    State(app): State<App>,
    PathPart(id): PathPart<DeploymentId>,
    JsonBody(request): JsonBody<PauseRequest>,
) -> Answer<DeploymentView> {
    app.keeper.tell(Event::Pause { deployment: id, rack: request.rack }).await?;
    app.deployment(id).map(Json)
}

/// Lets a paused deployment, or one rack of it, go on in spite of the failures so far.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/resume", tag = "deployments", request_body = ResumeRequest,
    params(("id" = String, Path, description = "the deployment's number, such as d-12")),
    responses((status = 200, body = DeploymentView), (status = "default", body = api::Problem)))]
async fn resume_deployment(
    State(app): State<App>,
    PathPart(id): PathPart<DeploymentId>,
    JsonBody(request): JsonBody<ResumeRequest>,
) -> Answer<DeploymentView> {
    let ResumeRequest { rack, windows } = request;
    app.keeper.tell(Event::Resume { deployment: id, rack, windows }).await?;
    app.deployment(id).map(Json)
}

/// Has failed nodes of a deployment tried again: all of them, or those that are named.
#[utoipa::path(post, path = "/api/v1/deployments/{id}/retry", tag = "deployments", request_body = RetryRequest,
    params(("id" = String, Path, description = "the deployment's number, such as d-12")),
    responses((status = 200, body = DeploymentView), (status = "default", body = api::Problem)))]
async fn retry_deployment(
    State(app): State<App>,
    PathPart(id): PathPart<DeploymentId>,
    JsonBody(request): JsonBody<RetryRequest>,
) -> Answer<DeploymentView> {
    app.keeper.tell(Event::Retry { deployment: id, nodes: request.nodes }).await?;
    app.deployment(id).map(Json)
}

impl App {
    fn deployment(&self, id: DeploymentId) -> Result<DeploymentView, Problem> {
        let (policy, now) = (self.keeper.policy(), self.keeper.now());
        let found = self.keeper.read(|state| {
            let snapshot = state.snapshot();
            snapshot.deployments.get(&id).map(|deployment| view::deployment(snapshot, policy, deployment, now))
        });
        found.ok_or_else(|| Problem::not_found("deployment", id.to_string()))
    }
}

/// Refuses at once what the plan would refuse later: a machine whose platform starts it from images of its own.
fn check_power(snapshot: &Snapshot, nodes: &[NodeName]) -> Result<(), Problem> {
    let cannot =
        |name: &&NodeName| snapshot.nodes.get(*name).is_some_and(|node| !switchboard::driver(&node.power).network_boot);
    match nodes.iter().find(cannot) {
        Some(name) => Err(Problem::conflict(format!("node `{name}`: {NO_NETWORK_BOOT}"))),
        None => Ok(()),
    }
}

/// The nodes that are named, and the approved ones of the racks that are named.
fn chosen(snapshot: &Snapshot, new: &NewDeployment) -> Result<Vec<NodeName>, Problem> {
    let mut nodes: BTreeSet<NodeName> = new.nodes.iter().cloned().collect();
    for rack in &new.racks {
        if !snapshot.racks.contains_key(rack) {
            return Err(Problem::not_found("rack", rack.as_str()));
        }
        let inside = snapshot.in_rack(rack).filter(|n| n.approved);
        let before = nodes.len();
        nodes.extend(inside.map(|n| n.name.clone()));
        if nodes.len() == before && new.nodes.is_empty() {
            return Err(Problem::conflict(format!("rack `{rack}` has no approved nodes")));
        }
    }
    Ok(nodes.into_iter().collect())
}
