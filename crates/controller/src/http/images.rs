//! Images, for operators; manifests for agents; tracker and .torrent files for
//! every client.

use std::io;
use std::net::SocketAddr;

use api::operator::ImageView;
use axum::extract::{ConnectInfo, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use fleet::event::Event;
use fleet::ids::ImageName;
use futures_util::TryStreamExt;
use image::ImportOptions;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::auth::Reader;
use super::problem::{PathPart, Problem, QueryPart};
use crate::images::{ImageError, format};

/// Routes for operators.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_images)).routes(routes!(show_image, import_image, remove_image))
}

/// Routes for operators and agents.
pub(super) fn shared_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(manifest))
}

/// Routes for BitTorrent clients.
pub(super) fn open_routes() -> Router<App> {
    Router::new()
        .route("/announce", get(announce))
        .route("/scrape", get(scrape))
        .route("/torrents/{file}", get(torrent))
}

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Self {
        use image::Error as E;
        let status = match &error {
            ImageError::Registry(E::NoSpace { .. }) => StatusCode::INSUFFICIENT_STORAGE,
            ImageError::Registry(E::NameTaken(_) | E::CaptureIncomplete { .. })
            | ImageError::CaptureTaken(_)
            | ImageError::CaptureEnds(_) => StatusCode::CONFLICT,
            ImageError::Registry(E::NotFound(_)) | ImageError::NoCapture(_) => StatusCode::NOT_FOUND,
            ImageError::Registry(
                E::Refused { .. }
                | E::BadSize { .. }
                | E::TooLarge { .. }
                | E::StreamLength { .. }
                | E::BadPieceSize(_)
                | E::BadChunk { .. }
                | E::BadOriginal(_)
                | E::QemuImg { .. }
                | E::Io { source: _, action: "read", .. },
            ) => StatusCode::BAD_REQUEST,
            ImageError::Busy | ImageError::Registry(E::NoQemuImg { .. } | E::Cancelled) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// All images, by name.
#[utoipa::path(get, path = "/api/v1/images", tag = "images",
    responses((status = 200, body = Vec<ImageView>), (status = "default", body = api::Problem)))]
async fn list_images(State(app): State<App>) -> Json<Vec<ImageView>> {
    Json(app.keeper.read(|state| state.snapshot().images.values().map(ImageView::from).collect()))
}

/// One image.
#[utoipa::path(get, path = "/api/v1/images/{name}", tag = "images", params(("name" = String, Path, description = "the image's name")),
    responses((status = 200, body = ImageView), (status = "default", body = api::Problem)))]
async fn show_image(State(app): State<App>, PathPart(name): PathPart<ImageName>) -> Result<Json<ImageView>, Problem> {
    let found = app.keeper.read(|state| state.snapshot().images.get(&name).map(ImageView::from));
    found.map(Json).ok_or_else(|| Problem::not_found("image", name.as_str()))
}

#[derive(Debug, Deserialize)]
struct ImportQuery {
    format: Option<String>,
}

/// Imports an image: the body is the file. Needs no Content-Length, but knows sooner what is wrong with one.
#[utoipa::path(post, path = "/api/v1/images/{name}", tag = "images",
    params(("name" = String, Path, description = "the new image's name"),
        ("format" = Option<String>, Query, description = "what qemu-img calls the file's format; found out when absent")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = ImageView), (status = "default", body = api::Problem)))]
async fn import_image(
    State(app): State<App>,
    PathPart(name): PathPart<ImageName>,
    QueryPart(query): QueryPart<ImportQuery>,
    request: Request,
) -> Result<(StatusCode, Json<ImageView>), Problem> {
    let options = ImportOptions {
        format: format(query.format.as_deref()).map_err(Problem::invalid)?,
        ..ImportOptions::named(name.clone())
    };
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    tracing::info!(image = %name, length, "import begins");
    let body = request.into_body().into_data_stream().map_err(io::Error::other);
    let info = app.images.import(options, length, body).await?;
    tracing::info!(image = %name, digest = %info.digest, "image sealed");
    let view = ImageView::from(&info);
    app.keeper.tell(Event::ImageSealed(info)).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// Removes an image that nothing deploys.
#[utoipa::path(delete, path = "/api/v1/images/{name}", tag = "images", params(("name" = String, Path, description = "the image's name")),
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn remove_image(State(app): State<App>, PathPart(name): PathPart<ImageName>) -> Result<StatusCode, Problem> {
    let info = app.keeper.read(|state| state.snapshot().images.get(&name).cloned());
    app.keeper.tell(Event::ImageRemoved(name.clone())).await?;
    if let Err(error) = app.images.remove(&name).await {
        // It is still there, so it can still be deployed.
        if let Some(info) = info.filter(|_| app.images.manifest(&name).is_some()) {
            app.keeper.tell(Event::ImageSealed(info)).await?;
        }
        return Err(error.into());
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The manifest of an image: size, pieces and their hashes.
#[utoipa::path(get, path = "/api/v1/images/{name}/manifest", tag = "agent", params(("name" = String, Path, description = "the image's name")),
    responses((status = 200, body = serde_json::Value, content_type = "application/json"), (status = "default", body = api::Problem)))]
async fn manifest(State(app): State<App>, _: Reader, PathPart(name): PathPart<ImageName>) -> Result<Response, Problem> {
    let json = app.images.manifest(&name).ok_or_else(|| Problem::not_found("image", name.as_str()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn announce(
    State(app): State<App>,
    ConnectInfo(remote): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> Response {
    bencoded(app.images.tracker().announce(&query.unwrap_or_default(), remote.ip()))
}

async fn scrape(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    bencoded(app.images.tracker().scrape(&query.unwrap_or_default()))
}

fn bencoded(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

async fn torrent(State(app): State<App>, PathPart(file): PathPart<String>) -> Result<Response, Problem> {
    let info_hash = file.strip_suffix(".torrent").unwrap_or(&file).to_ascii_lowercase();
    let torrent = app.images.torrent(&info_hash).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "no image has this info-hash; `rackswarm image list` shows them")
    })?;
    Ok(([(header::CONTENT_TYPE, "application/x-bittorrent")], torrent).into_response())
}
