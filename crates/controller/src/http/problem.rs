//! Every answer that is not a success is one sentence in JSON, also for what
//! axum itself would refuse in plain text.

use std::time::Duration;

use api::Problem as Body;
use axum::Json;
use axum::body::to_bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use fleet::ids::BadId;
use fleet::intake::Refused;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Largest JSON body, in bytes.
pub(super) const BODY_LIMIT_BYTES: usize = 1 << 20;
/// How long a JSON body may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(30);

/// A refusal or failure on its way to the asker.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: String,
}

impl Problem {
    /// A status and a sentence.
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    /// What a person reads.
    pub(super) fn sentence(&self) -> &str {
        &self.error
    }

    /// 400: what was sent is not a valid request.
    pub(super) fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401: no token, or a wrong one.
    pub(super) fn unauthorized(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error)
    }

    /// 409: it contradicts the present state.
    pub(super) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// 404: it names something that is not there.
    pub(super) fn not_found(what: &'static str, name: impl Into<String>) -> Self {
        Refused::NotFound { what, name: name.into() }.into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Body { error: self.error })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::NotFound { .. } => StatusCode::NOT_FOUND,
            Refused::Conflict(_) | Refused::OldAttempt { .. } => StatusCode::CONFLICT,
            Refused::Invalid(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, refused.to_string())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refused) => refused.into(),
            Error::NotStored(_) | Error::Database { .. } | Error::Stopping | Error::Conflict { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            Error::Set(_) => Self::new(StatusCode::BAD_GATEWAY, error.to_string()),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, other.to_string()),
        }
    }
}

impl From<BadId> for Problem {
    fn from(bad: BadId) -> Self {
        Self::invalid(bad.to_string())
    }
}

/// The answer for a path that does not exist.
pub(super) async fn no_such_path(uri: Uri) -> Problem {
    let error = format!("there is nothing at {}; /api/v1/openapi.json lists what there is", uri.path());
    Problem::new(StatusCode::NOT_FOUND, error)
}

/// The answer for a method that a path does not have.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let error = format!("{} does not take {method}; /api/v1/openapi.json lists what it takes", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, error)
}

/// A JSON body of at most [`BODY_LIMIT_BYTES`].
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let reading = to_bytes(request.into_body(), BODY_LIMIT_BYTES);
        let bytes = tokio::time::timeout(BODY_LIMIT, reading).await.map_err(|_| {
            let error = format!("the body did not arrive within {} s", BODY_LIMIT.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, error)
        })?;
        let bytes = bytes.map_err(|_| {
            let error = format!("the body broke off or is larger than {BODY_LIMIT_BYTES} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error)
        })?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| Problem::invalid(format!("the body is not what is expected here: {error}")))
    }
}

/// The one variable part of a path.
pub(super) struct PathPart<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathPart<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        path.map(|Path(value)| Self(value)).map_err(|rejection| Problem::invalid(inner(&rejection.body_text())))
    }
}

/// The parameters after the question mark.
pub(super) struct QueryPart<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryPart<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|rejection| Problem::invalid(inner(&rejection.body_text())))
    }
}

/// axum puts its own words before ours.
fn inner(text: &str) -> String {
    let ours = text.split_once(": ").map_or(text, |(_, rest)| rest);
    // With one variable part the value is named, and then named again by ours.
    match ours.find('`') {
        Some(at) if ours.starts_with("Cannot parse") => ours[at..].to_owned(),
        _ => ours.to_owned(),
    }
}
