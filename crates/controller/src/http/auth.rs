//! Who asks: an operator, an agent, or a deployed system.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use fleet::ids::{Attempt, ImageName, NodeName};
use fleet::node::TokenHash;

use super::App;
use super::problem::Problem;
use crate::state::Bearer;
use crate::token;

/// Lets operators through, and nobody else.
pub(super) async fn operators_only(State(app): State<App>, request: Request, next: Next) -> Result<Response, Problem> {
    let hash = bearer(request.headers())?;
    if token::same(&hash, &app.operator) {
        Ok(next.run(request).await)
    } else {
        Err(Problem::unauthorized(format!(
            "this token is not an operator's; the right one is in {} on the controller",
            app.config.server.data_dir.join(super::OPERATOR_TOKEN_FILE).display()
        )))
    }
}

fn bearer(headers: &header::HeaderMap) -> Result<TokenHash, Problem> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token =
        value.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) => Ok(token::hash(token.trim())),
        None => Err(Problem::unauthorized("this request needs the header `Authorization: Bearer TOKEN`")),
    }
}

/// An agent in memory, known by the token on its kernel line.
pub(super) struct Agent {
    /// Its node.
    pub(super) node: NodeName,
    /// The attempt that the token belongs to.
    pub(super) attempt: Attempt,
}

impl FromRequestParts<App> for Agent {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let hash = bearer(&parts.headers)?;
        app.keeper.read(|state| match state.bearer(&hash) {
            Some((node, Bearer::Boot)) => Ok(Self { node: node.name.clone(), attempt: node.attempt }),
            _ => Err(Problem::unauthorized(
                "this boot token is not valid (any more): the attempt that it was made for is over; stop and reboot",
            )),
        })
    }
}

/// A deployed system, known by the token that post actions wrote.
pub(super) struct Daemon {
    /// Its node.
    pub(super) node: NodeName,
    /// Whether it has proved itself.
    pub(super) proved: bool,
}

impl FromRequestParts<App> for Daemon {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let hash = bearer(&parts.headers)?;
        app.keeper.read(|state| match state.bearer(&hash) {
            Some((node, Bearer::Running)) => Ok(Self { node: node.name.clone(), proved: true }),
            Some((node, Bearer::Pending)) => Ok(Self { node: node.name.clone(), proved: false }),
            _ => Err(Problem::unauthorized(
                "this node token is not valid (any more): the node was deployed again, released or removed since",
            )),
        })
    }
}

/// An operator, or an agent that needs a file for its attempt.
pub(super) struct Reader;

impl FromRequestParts<App> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        if token::same(&bearer(&parts.headers)?, &app.operator) {
            return Ok(Self);
        }
        Agent::from_request_parts(parts, app).await.map(|_| Self)
    }
}

/// Who sends a disk: an operator, or the agent of a node that is captured.
pub(super) enum Sender {
    /// May send any.
    Operator,
    /// May send its own.
    Agent(NodeName),
}

impl Sender {
    /// The node whose agent it is.
    pub(super) fn node(&self) -> Option<NodeName> {
        match self {
            Self::Operator => None,
            Self::Agent(node) => Some(node.clone()),
        }
    }

    /// Whether this image may come from here.
    pub(super) fn may(&self, app: &App, image: &ImageName) -> Result<(), Problem> {
        let Self::Agent(node) = self else { return Ok(()) };
        let is_wanted = app.keeper.read(|state| {
            let node = state.snapshot().nodes.get(node);
            node.and_then(|node| node.captured()).is_some_and(|capture| capture.image == *image)
        });
        if is_wanted {
            Ok(())
        } else {
            Err(Problem::conflict(format!("node `{node}` is not being captured as `{image}`; stop and reboot")))
        }
    }
}

impl FromRequestParts<App> for Sender {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        if token::same(&bearer(&parts.headers)?, &app.operator) {
            return Ok(Self::Operator);
        }
        Agent::from_request_parts(parts, app).await.map(|agent| Self::Agent(agent.node))
    }
}
