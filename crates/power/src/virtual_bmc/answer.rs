//! How the controller writes: resources, and errors with a message id (DSP0266, section Error responses).

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

pub(super) type Answer = Response<Body>;

pub(super) fn resource(value: &Value, etag: Option<&str>) -> Answer {
    let mut answer = with_status(StatusCode::OK, value.to_string());
    if let Some(Ok(etag)) = etag.map(HeaderValue::from_str) {
        answer.headers_mut().insert(header::ETAG, etag);
    }
    answer
}

pub(super) fn nothing() -> Answer {
    with_status(StatusCode::NO_CONTENT, String::new())
}

pub(super) fn located(status: StatusCode, place: &str, value: &Value) -> Answer {
    let mut answer = with_status(status, value.to_string());
    if let Ok(place) = HeaderValue::from_str(place) {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    answer
}

pub(super) fn refusal(status: StatusCode, message_id: &str, message: &str) -> Answer {
    let body = json!({"error": {"code": message_id, "message": "See @Message.ExtendedInfo for more information.",
        "@Message.ExtendedInfo": [{"MessageId": message_id, "Message": message, "Severity": "Warning"}]}});
    with_status(status, body.to_string())
}

pub(super) fn later(message: &str) -> Answer {
    let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, "Base.1.18.ServiceTemporarilyUnavailable", message);
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn with_status(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("OData-Version", HeaderValue::from_static("4.0"));
    answer
}
