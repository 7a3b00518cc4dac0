//! Captures: chunks from agents and operators.

use std::sync::Arc;
use std::time::Duration;

use api::capture::{CaptureView, MOST_HASHES};
use api::operator::NodeView;
use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use fleet::capture::{CHUNK_BYTES, Order, Original};
use fleet::event::Event;
use fleet::ids::{ImageName, NodeName};
use fleet::node::Node;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::auth::Sender;
use super::problem::{JsonBody, PathPart, Problem, QueryPart};
use crate::captures::Job;

/// Largest packed chunk, in bytes: what zstd makes of one that does not shrink.
const PACKED_LIMIT_BYTES: usize = CHUNK_BYTES as usize + (64 << 10);
/// How long a chunk may take to arrive.
const CHUNK_LIMIT: Duration = Duration::from_secs(120);

/// Routes for operators.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_captures)).routes(routes!(capture_node))
}

/// Routes for operators and for agents whose node is captured.
pub(super) fn shared_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(begin_capture, show_capture, discard_capture))
        .routes(routes!(held))
        .routes(routes!(put_chunk))
        .routes(routes!(finish_capture))
}

/// Goes on with copies that were complete when an earlier process ended.
pub(crate) fn resume(app: &App) {
    for job in app.images.captures().unfinished() {
        tokio::spawn(finish(app.clone(), job));
    }
}

/// All captures under way, by name.
#[utoipa::path(get, path = "/api/v1/captures", tag = "images",
    responses((status = 200, body = Vec<CaptureView>), (status = "default", body = api::Problem)))]
async fn list_captures(State(app): State<App>) -> Json<Vec<CaptureView>> {
    Json(app.images.captures().list().iter().map(|job| view(&app, job)).collect())
}

/// Has a node's disk captured: it boots into memory once, its disk is only read. Releasing the node ends it.
#[utoipa::path(post, path = "/api/v1/nodes/{name}/capture", tag = "nodes", request_body = Order,
    params(("name" = String, Path, description = "the node's name")),
    responses((status = 202, body = NodeView), (status = "default", body = api::Problem)))]
async fn capture_node(
    State(app): State<App>,
    PathPart(node): PathPart<NodeName>,
    JsonBody(order): JsonBody<Order>,
) -> Result<(StatusCode, Json<NodeView>), Problem> {
    app.keeper.tell(Event::Capture { node: node.clone(), order }).await?;
    Ok((StatusCode::ACCEPTED, Json(app.node(&node)?)))
}

/// One capture; not found when it has become an image.
#[utoipa::path(get, path = "/api/v1/captures/{image}", tag = "images", params(("image" = String, Path, description = "the image's name")),
    responses((status = 200, body = CaptureView), (status = "default", body = api::Problem)))]
async fn show_capture(
    State(app): State<App>,
    sender: Sender,
    PathPart(image): PathPart<ImageName>,
) -> Result<Json<CaptureView>, Problem> {
    sender.may(&app, &image)?;
    let job = app.images.captures().get(&image)?;
    Ok(Json(view(&app, &job)))
}

/// Begins a capture, or goes on with one of this name: what has arrived need not be sent again.
#[utoipa::path(put, path = "/api/v1/captures/{image}", tag = "images", request_body = Original,
    params(("image" = String, Path, description = "the new image's name")),
    responses((status = 200, body = CaptureView), (status = "default", body = api::Problem)))]
async fn begin_capture(
    State(app): State<App>,
    sender: Sender,
    PathPart(image): PathPart<ImageName>,
    JsonBody(original): JsonBody<Original>,
) -> Result<Json<CaptureView>, Problem> {
    sender.may(&app, &image)?;
    tracing::info!(%image, disk = %original.sentence(), "capture begins");
    let job = app.images.captures().begin(&image, original, sender.node()).await?;
    Ok(Json(view(&app, &job)))
}

/// Throws away what has arrived.
#[utoipa::path(delete, path = "/api/v1/captures/{image}", tag = "images", params(("image" = String, Path, description = "the image's name")),
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn discard_capture(
    State(app): State<App>,
    sender: Sender,
    PathPart(image): PathPart<ImageName>,
) -> Result<StatusCode, Problem> {
    sender.may(&app, &image)?;
    app.images.captures().discard(&image).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Window {
    first: u32,
    count: u32,
}

/// The hashes of chunks that have arrived: 32 bytes for each chunk of the window, zeros for one that has not.
#[utoipa::path(get, path = "/api/v1/captures/{image}/held", tag = "images",
    params(("image" = String, Path, description = "the image's name"),
        ("first" = u32, Query, description = "the first chunk"), ("count" = u32, Query, description = "how many chunks")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = "default", body = api::Problem)))]
async fn held(
    State(app): State<App>,
    sender: Sender,
    PathPart(image): PathPart<ImageName>,
    QueryPart(window): QueryPart<Window>,
) -> Result<Response, Problem> {
    sender.may(&app, &image)?;
    let job = app.images.captures().get(&image)?;
    let hashes = job.capture().held_hashes(window.first, window.count.min(MOST_HASHES));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], hashes).into_response())
}

#[derive(Debug, Deserialize)]
struct Chunk {
    sha256: String,
}

/// One chunk, as a zstd frame.
#[utoipa::path(put, path = "/api/v1/captures/{image}/chunks/{chunk}", tag = "images",
    params(("image" = String, Path, description = "the image's name"), ("chunk" = u32, Path, description = "which chunk, from 0"),
        ("sha256" = String, Query, description = "SHA-256 of the unpacked chunk, hexadecimal")),
    request_body(content = Vec<u8>, content_type = "application/zstd"),
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn put_chunk(
    State(app): State<App>,
    sender: Sender,
    PathPart((image, chunk)): PathPart<(ImageName, u32)>,
    QueryPart(query): QueryPart<Chunk>,
    request: Request,
) -> Result<StatusCode, Problem> {
    sender.may(&app, &image)?;
    let hash = HEXLOWER.decode(query.sha256.as_bytes()).ok().and_then(|hash| <[u8; 32]>::try_from(hash).ok());
    let hash = hash.ok_or_else(|| Problem::invalid("sha256 must be 64 hexadecimal digits"))?;
    let arriving = to_bytes(request.into_body(), PACKED_LIMIT_BYTES);
    let packed = tokio::time::timeout(CHUNK_LIMIT, arriving).await.map_err(|_| {
        let error = format!("chunk {chunk} did not arrive within {} s", CHUNK_LIMIT.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, error)
    })?;
    let packed = packed.map_err(|_| {
        let error = format!("chunk {chunk} broke off or is larger than {PACKED_LIMIT_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error)
    })?;
    app.images.captures().put(&image, chunk, hash, packed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says that every chunk was sent. The copy is generalised, sealed and published from then on.
#[utoipa::path(post, path = "/api/v1/captures/{image}/finish", tag = "images", params(("image" = String, Path, description = "the image's name")),
    responses((status = 202, body = CaptureView), (status = "default", body = api::Problem)))]
async fn finish_capture(
    State(app): State<App>,
    sender: Sender,
    PathPart(image): PathPart<ImageName>,
) -> Result<(StatusCode, Json<CaptureView>), Problem> {
    sender.may(&app, &image)?;
    let (job, first) = app.images.captures().receive(&image).await?;
    if first {
        tokio::spawn(finish(app.clone(), Arc::clone(&job)));
    }
    Ok((StatusCode::ACCEPTED, Json(view(&app, &job))))
}

/// Makes an image of a copy that is complete, and tells.
async fn finish(app: App, job: Arc<Job>) {
    let image = job.capture().name().clone();
    let finished = async {
        let captured = app.images.captures().finish(&job).await?;
        let info = app.images.serve(captured).await?;
        tracing::info!(%image, digest = %info.digest, "captured image sealed");
        app.keeper.tell(Event::ImageSealed(info)).await?;
        Ok::<_, Problem>(())
    };
    let said = match finished.await {
        Ok(()) => format!("the captured disk is image {image} now; `rackswarm deploy {image}` deploys it"),
        Err(problem) => {
            tracing::error!(%image, error = problem.sentence(), "the capture did not become an image");
            format!("the captured disk did not become image {image}: {}", problem.sentence())
        }
    };
    let mac =
        job.node().and_then(|name| app.keeper.read(|state| state.snapshot().nodes.get(name)?.macs.first().copied()));
    if let Some(mac) = mac {
        app.keeper.remark(mac, "capture_ended", said);
    }
}

fn view(app: &App, job: &Job) -> CaptureView {
    let capture = job.capture();
    let is_owner = |node: &&Node| node.captured().is_some_and(|order| order.image == *capture.name());
    let find = || app.keeper.read(|state| state.snapshot().nodes.values().find(is_owner).map(|node| node.name.clone()));
    let node = job.node().cloned().or_else(find);
    CaptureView {
        image: capture.name().clone(),
        node,
        original: capture.original().clone(),
        held_chunks: capture.held_chunks(),
        wanted_chunks: capture.original().wanted_chunks(),
        state: job.state(),
    }
}
