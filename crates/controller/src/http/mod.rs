//! Everything over HTTP, on one port: the API, boot files, tracker.

mod agent;
mod auth;
mod boot;
pub(crate) mod capture;
mod deployments;
mod events;
mod files;
mod images;
mod metrics;
mod operator;
mod power;
mod problem;
mod sets;

use std::net::{SocketAddr, SocketAddrV4};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use ::boot::tftp::loaders::Loaders;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Router, extract};
use fleet::node::TokenHash;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;

use crate::config::Config;
use crate::images::Images;
use crate::keeper::Keeper;
use crate::kernels::Kernels;
use crate::sets::Asking;
use crate::switchboard::Switchboard;

/// Name of the file in the data folder that holds the operators' token.
pub const OPERATOR_TOKEN_FILE: &str = "operator.token";

/// Connections at the same time; more wait in the kernel's queue.
const CONNECTIONS: usize = 16_384;
/// A client that has not sent its request's head by then is let go.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// A machine that was switched off in the middle is noticed after this time.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// What every handler can reach. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of [`App`].
pub struct Parts {
    /// The state.
    pub keeper: Keeper,
    /// Registry, seeder and tracker.
    pub images: Images,
    /// Power drivers at work.
    pub switchboard: Arc<Switchboard>,
    /// Sets that are being asked.
    pub asking: Asking,
    /// The configuration.
    pub config: Config,
    /// What machines are provisioned with.
    pub kernels: Kernels,
    /// Where nodes reach this server.
    pub advertise: SocketAddrV4,
    /// Hash of the operators' token.
    pub operator: TokenHash,
    /// Boot loaders, where the folder exists.
    pub loaders: Option<Loaders>,
    /// Ends event streams.
    pub stop: CancellationToken,
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Handlers over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn base_url(&self) -> String {
        format!("http://{}", self.advertise)
    }

    fn announce_url(&self) -> String {
        format!("{}/announce", self.base_url())
    }

    /// All routes.
    pub fn router(&self) -> Router {
        let operators = operator_routes().route_layer(from_fn_with_state(self.clone(), auth::operators_only));
        let (router, _) = operators.merge(agent_routes()).split_for_parts();
        let json = openapi_json();
        router
            .merge(boot::routes())
            .merge(images::open_routes())
            .route("/api/v1/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], json) }))
            .fallback(problem::no_such_path)
            .method_not_allowed_fallback(problem::no_such_method)
            .with_state(self.clone())
    }
}

fn operator_routes() -> OpenApiRouter<App> {
    operator::routes()
        .merge(deployments::routes())
        .merge(sets::routes())
        .merge(power::routes())
        .merge(events::routes())
        .merge(images::routes())
        .merge(capture::routes())
        .merge(metrics::routes())
}

fn agent_routes() -> OpenApiRouter<App> {
    agent::routes().merge(images::shared_routes()).merge(capture::shared_routes())
}

/// The OpenAPI document of the whole API, generated from the handlers.
#[must_use]
pub fn openapi_json() -> String {
    let mut document: OpenApi = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Rackswarm")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(
                    "Turns racks of bare machines into running, verified systems. Every request carries \
                     `Authorization: Bearer TOKEN`: operators the token from `operator.token` in the controller's data \
                     folder, agents the one from their kernel line, deployed systems the one that post actions wrote. \
                     Every answer that is not a success is a `Problem`.",
                ))
                .build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .security_scheme(
                    "bearer",
                    SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
                )
                .build(),
        ))
        .security(Some([SecurityRequirement::new("bearer", Vec::<String>::new())]))
        .build();
    document.merge(operator_routes().merge(agent_routes()).into_openapi());
    // Made of strings, numbers and maps with string keys: there is nothing that could fail.
    document.to_pretty_json().unwrap_or_default() + "\n"
}

/// Serves `router` until `stop`, then lets open requests end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        if let Some((stream, remote, slot)) = accepted {
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                connection(stream, remote, router, stop).await;
                drop(slot);
            });
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => Some((stream, remote, slot)),
        Err(error) => {
            // Out of file descriptors, or the client has gone: neither gets better by hurrying.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, remote: SocketAddr, router: Router, stop: CancellationToken) {
    let socket = SockRef::from(&stream);
    let tuned = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(DEAD_AFTER)))
        .and_then(|()| socket.set_tcp_user_timeout(Some(DEAD_AFTER)));
    if let Err(error) = tuned {
        tracing::debug!(%remote, %error, "a connection could not be tuned");
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move {
            let mut request: extract::Request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(remote));
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let response = router.oneshot(request).await.into_response();
            tracing::debug!(%remote, %method, path, status = response.status().as_u16(), "request");
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut serving = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let outcome = tokio::select! {
        outcome = serving.as_mut() => outcome,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%remote, %error, "a connection broke off");
    }
}
