//! Nodes and racks, for operators.

use std::ops::Bound;

use api::operator::{NewNode, NodeSettings, NodeView, RackSettings, RackView, Status, TimelineLine};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fleet::event::{Event, NodeEdit};
use fleet::ids::{NodeName, RackName};
use fleet::node::Rack;
use fleet::wipe::{self, Certificate};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{JsonBody, PathPart, Problem};
use crate::config::check_post;
use crate::view;

type Answer<T> = Result<Json<T>, Problem>;

/// Nodes that are read in one go for a list of all.
const NODES_AT_ONCE: usize = 256;

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(list_nodes, add_node))
        .routes(routes!(show_node, change_node, remove_node))
        .routes(routes!(approve_node))
        .routes(routes!(release_node))
        .routes(routes!(wipe_node))
        .routes(routes!(certificates))
        .routes(routes!(timeline))
        .routes(routes!(list_racks))
        .routes(routes!(put_rack, remove_rack))
}

/// How the controller is.
#[utoipa::path(get, path = "/api/v1/status", tag = "controller",
    responses((status = 200, body = Status), (status = "default", body = api::Problem)))]
async fn status(State(app): State<App>) -> Json<Status> {
    let stages = app.keeper.read(|state| view::stages(state.snapshot().nodes.values()));
    let started_at = app.keeper.read(|state| state.snapshot().started_at);
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        now: app.keeper.now(),
        stages,
        seeded_bytes: app.images.seeded_bytes(),
        dhcp_mode: app.config.dhcp_mode().to_owned(),
    })
}

/// All nodes, by name.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes",
    responses((status = 200, body = Vec<NodeView>), (status = "default", body = api::Problem)))]
async fn list_nodes(State(app): State<App>) -> Json<Vec<NodeView>> {
    let policy = app.keeper.policy();
    let mut views: Vec<NodeView> = Vec::new();
    loop {
        let before = views.len();
        // Some at a time: the writer waits while somebody reads.
        let after = views.last().map_or(Bound::Unbounded, |last| Bound::Excluded(last.name.clone()));
        app.keeper.read(|state| {
            let nodes = state.snapshot().nodes.range((after, Bound::Unbounded)).take(NODES_AT_ONCE);
            views.extend(nodes.map(|(_, node)| view::node(state, policy, node)));
        });
        if views.len() - before < NODES_AT_ONCE {
            return Json(views);
        }
        tokio::task::yield_now().await;
    }
}

/// Adds a node. A machine that showed itself with one of its MAC addresses becomes this node.
#[utoipa::path(post, path = "/api/v1/nodes", tag = "nodes", request_body = NewNode,
    responses((status = 201, body = NodeView), (status = "default", body = api::Problem)))]
async fn add_node(
    State(app): State<App>,
    JsonBody(new): JsonBody<NewNode>,
) -> Result<(StatusCode, Json<NodeView>), Problem> {
    let edit = edit(new.settings)?;
    app.keeper.tell(Event::AddNode { node: new.name.clone(), edit }).await?;
    Ok((StatusCode::CREATED, Json(app.node(&new.name)?)))
}

/// One node.
#[utoipa::path(get, path = "/api/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path, description = "the node's name")),
    responses((status = 200, body = NodeView), (status = "default", body = api::Problem)))]
async fn show_node(State(app): State<App>, PathPart(name): PathPart<NodeName>) -> Answer<NodeView> {
    let mut view = app.node(&name)?;
    view.inventory = app.keeper.read(|state| state.snapshot().nodes.get(&name).and_then(|node| node.inventory.clone()));
    Ok(Json(view))
}

/// Has disks of a node wiped: it boots into memory once, wipes them, reads samples back and certifies what that is worth.
/// Releasing the node ends it.
#[utoipa::path(post, path = "/api/v1/nodes/{name}/wipe", tag = "nodes", request_body = wipe::Wipe,
    params(("name" = String, Path, description = "the node's name")),
    responses((status = 202, body = NodeView), (status = "default", body = api::Problem)))]
async fn wipe_node(
    State(app): State<App>,
    PathPart(node): PathPart<NodeName>,
    JsonBody(order): JsonBody<wipe::Wipe>,
) -> Result<(StatusCode, Json<NodeView>), Problem> {
    app.keeper.tell(Event::Wipe { node: node.clone(), order }).await?;
    Ok((StatusCode::ACCEPTED, Json(app.node(&node)?)))
}

/// What was certified of a node's disks, the oldest first.
#[utoipa::path(get, path = "/api/v1/nodes/{name}/certificates", tag = "nodes",
    params(("name" = String, Path, description = "the node's name")),
    responses((status = 200, body = Vec<Certificate>), (status = "default", body = api::Problem)))]
async fn certificates(State(app): State<App>, PathPart(name): PathPart<NodeName>) -> Answer<Vec<Certificate>> {
    let found = app.keeper.read(|state| state.snapshot().nodes.get(&name).map(|node| node.certificates.clone()));
    found.map(Json).ok_or_else(|| Problem::not_found("node", name.as_str()))
}

/// Changes what is known of a node; what is absent stays as it is.
#[utoipa::path(patch, path = "/api/v1/nodes/{name}", tag = "nodes", request_body = NodeSettings,
    params(("name" = String, Path, description = "the node's name")),
    responses((status = 200, body = NodeView), (status = "default", body = api::Problem)))]
async fn change_node(
    State(app): State<App>,
    PathPart(node): PathPart<NodeName>,
    JsonBody(settings): JsonBody<NodeSettings>,
) -> Answer<NodeView> {
    let edit = edit(settings)?;
    app.keeper.tell(Event::EditNode { node: node.clone(), edit }).await?;
    app.node(&node).map(Json)
}

/// Removes a node with its timeline. One that is being deployed must be released first.
#[utoipa::path(delete, path = "/api/v1/nodes/{name}", tag = "nodes", params(("name" = String, Path, description = "the node's name")),
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn remove_node(State(app): State<App>, PathPart(node): PathPart<NodeName>) -> Result<StatusCode, Problem> {
    app.keeper.tell(Event::RemoveNode { node }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Approves a machine that showed itself.
#[utoipa::path(post, path = "/api/v1/nodes/{name}/approve", tag = "nodes", params(("name" = String, Path, description = "the node's name")),
    responses((status = 200, body = NodeView), (status = "default", body = api::Problem)))]
async fn approve_node(State(app): State<App>, PathPart(node): PathPart<NodeName>) -> Answer<NodeView> {
    app.keeper.tell(Event::Approve { node: node.clone() }).await?;
    app.node(&node).map(Json)
}

/// Lets a node go, whatever is under way; its disk is left as it is.
#[utoipa::path(post, path = "/api/v1/nodes/{name}/release", tag = "nodes", params(("name" = String, Path, description = "the node's name")),
    responses((status = 200, body = NodeView), (status = "default", body = api::Problem)))]
async fn release_node(State(app): State<App>, PathPart(node): PathPart<NodeName>) -> Answer<NodeView> {
    app.keeper.tell(Event::Release { node: node.clone() }).await?;
    app.node(&node).map(Json)
}

/// What happened to a node, oldest line first.
#[utoipa::path(get, path = "/api/v1/nodes/{name}/timeline", tag = "nodes", params(("name" = String, Path, description = "the node's name")),
    responses((status = 200, body = Vec<TimelineLine>), (status = "default", body = api::Problem)))]
async fn timeline(State(app): State<App>, PathPart(name): PathPart<NodeName>) -> Answer<Vec<TimelineLine>> {
    app.node(&name)?;
    let notes = app.keeper.timeline(&name).await?;
    Ok(Json(notes.iter().map(view::line).collect()))
}

/// All racks, by name.
#[utoipa::path(get, path = "/api/v1/racks", tag = "racks",
    responses((status = 200, body = Vec<RackView>), (status = "default", body = api::Problem)))]
async fn list_racks(State(app): State<App>) -> Json<Vec<RackView>> {
    Json(app.keeper.read(|state| state.snapshot().racks.values().map(|rack| view::rack(state, rack)).collect()))
}

/// Adds a rack or changes its settings.
#[utoipa::path(put, path = "/api/v1/racks/{name}", tag = "racks", request_body = RackSettings,
    params(("name" = String, Path, description = "the rack's name")),
    responses((status = 200, body = RackView), (status = "default", body = api::Problem)))]
async fn put_rack(
    State(app): State<App>,
    PathPart(name): PathPart<RackName>,
    JsonBody(settings): JsonBody<RackSettings>,
) -> Answer<RackView> {
    check_post(&settings.post).map_err(|why| Problem::invalid(format!("post.{why}")))?;
    let rack = Rack { name, post: settings.post };
    app.keeper.tell(Event::PutRack(rack.clone())).await?;
    Ok(Json(app.keeper.read(|state| view::rack(state, &rack))))
}

/// Removes a rack that holds no nodes.
#[utoipa::path(delete, path = "/api/v1/racks/{name}", tag = "racks", params(("name" = String, Path, description = "the rack's name")),
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn remove_rack(State(app): State<App>, PathPart(name): PathPart<RackName>) -> Result<StatusCode, Problem> {
    app.keeper.tell(Event::RemoveRack(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl App {
    pub(super) fn node(&self, name: &NodeName) -> Result<NodeView, Problem> {
        let policy = self.keeper.policy();
        let found = self.keeper.read(|state| state.snapshot().nodes.get(name).map(|n| view::node(state, policy, n)));
        found.ok_or_else(|| Problem::not_found("node", name.as_str()))
    }
}

/// Checks what intake cannot: the power address and the post actions.
fn edit(settings: NodeSettings) -> Result<NodeEdit, Problem> {
    if let Some(power) = &settings.power {
        power::open(power).map_err(|error| Problem::invalid(error.to_string()))?;
    }
    if let Some(post) = &settings.post {
        check_post(post).map_err(|why| Problem::invalid(format!("post.{why}")))?;
    }
    if settings.address.is_some_and(|a| a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.is_loopback()) {
        return Err(Problem::invalid("address must be one that a machine can have"));
    }
    let NodeSettings { rack, macs, uuid, power, memory_gib, address, disk, post } = settings;
    Ok(NodeEdit { rack, macs, uuid, power, memory_gib, address, disk, post })
}
