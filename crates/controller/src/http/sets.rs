//! Sets of machines, for operators.

use api::operator::{AcquireRequest, GiveBackRequest, NewSet, SetView, SyncOptions, SyncReport};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fleet::event::Event;
use fleet::ids::SetName;
use fleet::set::MachineSet;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{JsonBody, PathPart, Problem};
use crate::{sets, view};

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_sets, add_set))
        .routes(routes!(remove_set))
        .routes(routes!(sync_set))
        .routes(routes!(acquire))
        .routes(routes!(give_back))
}

/// All sets of machines, by name.
#[utoipa::path(get, path = "/api/v1/sets", tag = "sets",
    responses((status = 200, body = Vec<SetView>), (status = "default", body = api::Problem)))]
async fn list_sets(State(app): State<App>) -> Json<Vec<SetView>> {
    Json(app.keeper.read(|state| state.snapshot().sets.values().map(|set| view::set(state, set)).collect()))
}

/// Adds a set. It is asked for its machines first, so that a wrong address or password is found out at once; nodes are
/// made of them by `sync`.
#[utoipa::path(post, path = "/api/v1/sets", tag = "sets", request_body = NewSet,
    responses((status = 201, body = SetView), (status = "default", body = api::Problem)))]
async fn add_set(
    State(app): State<App>,
    JsonBody(new): JsonBody<NewSet>,
) -> Result<(StatusCode, Json<SetView>), Problem> {
    let address = power::set_address(&new.address, new.credentials_file.as_deref())
        .map_err(|error| Problem::invalid(error.to_string()))?;
    let set = MachineSet { name: new.name, address, rack: new.rack, configured: false, synced: None };
    if app.keeper.read(|state| state.snapshot().sets.contains_key(&set.name)) {
        return Err(Problem::conflict(format!(
            "there is a set `{0}` already; `rackswarm set remove {0}` first",
            set.name
        )));
    }
    let listed = match new.unchecked {
        true => None,
        false => Some(sets::list(&set.address).await?.len()),
    };
    app.keeper.tell(Event::PutSet(set.clone())).await?;
    let view = app.keeper.read(|state| view::set(state, &set));
    let listed = listed.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Ok((StatusCode::CREATED, Json(SetView { listed, ..view })))
}

/// Removes a set; its nodes stay. One that stands in the configuration is removed there.
#[utoipa::path(delete, path = "/api/v1/sets/{name}", tag = "sets", params(("name" = String, Path, description = "the set's name")),
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn remove_set(State(app): State<App>, PathPart(set): PathPart<SetName>) -> Result<StatusCode, Problem> {
    app.keeper.tell(Event::RemoveSet { set, configured: false }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Asks a set for its machines and takes them in: new ones become nodes, known ones are brought up to date, and those that
/// it no longer lists are removed where nothing was ever written to them, else kept and marked.
#[utoipa::path(post, path = "/api/v1/sets/{name}/sync", tag = "sets", request_body = SyncOptions,
    params(("name" = String, Path, description = "the set's name")),
    responses((status = 200, body = SyncReport), (status = "default", body = api::Problem)))]
async fn sync_set(
    State(app): State<App>,
    PathPart(set): PathPart<SetName>,
    JsonBody(options): JsonBody<SyncOptions>,
) -> Result<Json<SyncReport>, Problem> {
    let found = app.asking.sync(&app.keeper, &set, options.dry_run, options.force).await?;
    Ok(Json(SyncReport { set, dry_run: options.dry_run, summary: found.summary(), rows: found.rows }))
}

/// Takes machines of a set, or makes them there, and takes the set in afterwards. Asked again with the same token, nothing
/// is taken twice.
#[utoipa::path(post, path = "/api/v1/sets/{name}/acquire", tag = "sets", request_body = AcquireRequest,
    params(("name" = String, Path, description = "the set's name")),
    responses((status = 200, body = SyncReport), (status = "default", body = api::Problem)))]
async fn acquire(
    State(app): State<App>,
    PathPart(set): PathPart<SetName>,
    JsonBody(wish): JsonBody<AcquireRequest>,
) -> Result<Json<SyncReport>, Problem> {
    let found = app.asking.acquire(&app.keeper, &set, wish).await?;
    Ok(Json(SyncReport { set, dry_run: false, summary: found.summary(), rows: found.rows }))
}

/// Gives machines back to their set and takes the set in afterwards. One that the set has made ceases to exist, with its
/// disk; its node stays, marked as missing, if anything was ever written to it.
#[utoipa::path(post, path = "/api/v1/sets/{name}/release", tag = "sets", request_body = GiveBackRequest,
    params(("name" = String, Path, description = "the set's name")),
    responses((status = 200, body = SyncReport), (status = "default", body = api::Problem)))]
async fn give_back(
    State(app): State<App>,
    PathPart(set): PathPart<SetName>,
    JsonBody(request): JsonBody<GiveBackRequest>,
) -> Result<Json<SyncReport>, Problem> {
    let found = app.asking.give_back(&app.keeper, &set, &request.nodes).await?;
    Ok(Json(SyncReport { set, dry_run: false, summary: found.summary(), rows: found.rows }))
}
