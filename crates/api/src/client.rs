//! Client of the HTTP contract, for the CLI, the lab and the agent.

mod capture;
mod deployments;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use fleet::ids::{DeploymentId, NodeName, RackName, SetName};
use fleet::wipe::{Certificate, Wipe};
use futures_util::{Stream, StreamExt};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::Problem;
use crate::agent::{Heartbeat, Orders, Proof, Register, Report, Token};
use crate::operator::{
    AcquireRequest, DeploymentView, GiveBackRequest, ImageView, NewDeployment, NewNode, NewSet, NodeSettings, NodeView,
    PowerRequest, PowerResult, RackSettings, RackView, SetView, Status, StreamEvent, SyncOptions, SyncReport,
    TimelineLine,
};

/// A request did not succeed. Grouped by what the caller can do.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answered; trying again may help.
    #[error("no answer from {url}: {cause}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why, with all causes.
        cause: String,
    },
    /// The controller refused; the same request will be refused again.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The controller's sentence.
        error: String,
    },
    /// The controller failed; trying again may help.
    #[error("the controller failed ({status}): {error}")]
    Failed {
        /// HTTP status.
        status: u16,
        /// The controller's sentence.
        error: String,
    },
    /// The answer is not what the contract says; versions may differ.
    #[error("the answer of {url} was not understood: {cause}; is the controller of another version?")]
    NotUnderstood {
        /// What was asked.
        url: String,
        /// Why.
        cause: String,
    },
}

impl ClientError {
    /// True where the same request may succeed later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Failed { .. })
    }
}

/// Largest answer that is read into memory, in bytes: a list of 100,000 nodes fits.
const ANSWER_LIMIT_BYTES: usize = 256 << 20;
/// A connection without requests is closed after this time. The controller closes them after 30 s, and whoever sends at that
/// very moment, as heartbeats that come every 30 s do, must send again.
const IDLE: Duration = Duration::from_secs(15);
/// A set may be asked for its machines for that long, and the answer takes its time too.
const SET_LIMIT: Duration = Duration::from_secs(3_660);
/// Longest line of the event stream, in bytes.
const EVENT_LIMIT_BYTES: usize = 1 << 20;

/// A client of one controller.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Token,
}

impl Client {
    /// A client of the controller at `base` (such as `http://10.0.0.1:8080`).
    /// Requests that are not streams end after 30 s.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if no HTTP client can be set up.
    pub fn new(base: &str, token: Token) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .pool_idle_timeout(IDLE)
            .no_proxy()
            .build()
            .map_err(|e| ClientError::Unreachable { url: base.to_owned(), cause: causes(&e) })?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token })
    }

    /// The same client, over the same connections, for another bearer.
    #[must_use]
    pub fn with_token(&self, token: Token) -> Self {
        Self { token, ..self.clone() }
    }

    /// How the controller is.
    ///
    /// # Errors
    /// As every request: [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/api/v1/status").await
    }

    /// All nodes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn nodes(&self) -> Result<Vec<NodeView>, ClientError> {
        self.get("/api/v1/nodes").await
    }

    /// One node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn node(&self, name: &NodeName) -> Result<NodeView, ClientError> {
        self.get(&format!("/api/v1/nodes/{name}")).await
    }

    /// Adds a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_node(&self, node: &NewNode) -> Result<NodeView, ClientError> {
        self.send(Method::POST, "/api/v1/nodes", node).await
    }

    /// Changes what is known of a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_node(&self, name: &NodeName, settings: &NodeSettings) -> Result<NodeView, ClientError> {
        self.send(Method::PATCH, &format!("/api/v1/nodes/{name}"), settings).await
    }

    /// Approves a machine that showed itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn approve_node(&self, name: &NodeName) -> Result<NodeView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/nodes/{name}/approve"), &()).await
    }

    /// Lets a node go, whatever is under way.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn release_node(&self, name: &NodeName) -> Result<NodeView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/nodes/{name}/release"), &()).await
    }

    /// Has disks of a node wiped.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn wipe_node(&self, name: &NodeName, order: &Wipe) -> Result<NodeView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/nodes/{name}/wipe"), order).await
    }

    /// What was certified of a node's disks, the oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn certificates(&self, name: &NodeName) -> Result<Vec<Certificate>, ClientError> {
        self.get(&format!("/api/v1/nodes/{name}/certificates")).await
    }

    /// Removes a node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_node(&self, name: &NodeName) -> Result<(), ClientError> {
        self.delete(&format!("/api/v1/nodes/{name}")).await
    }

    /// A node's timeline, oldest line first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn timeline(&self, name: &NodeName) -> Result<Vec<TimelineLine>, ClientError> {
        self.get(&format!("/api/v1/nodes/{name}/timeline")).await
    }

    /// All racks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn racks(&self) -> Result<Vec<RackView>, ClientError> {
        self.get("/api/v1/racks").await
    }

    /// Adds a rack or changes its settings.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_rack(&self, name: &RackName, settings: &RackSettings) -> Result<RackView, ClientError> {
        self.send(Method::PUT, &format!("/api/v1/racks/{name}"), settings).await
    }

    /// Removes an empty rack.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_rack(&self, name: &RackName) -> Result<(), ClientError> {
        self.delete(&format!("/api/v1/racks/{name}")).await
    }

    /// All sets of machines.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sets(&self) -> Result<Vec<SetView>, ClientError> {
        self.get("/api/v1/sets").await
    }

    /// Adds a set; the controller asks it for its machines first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_set(&self, set: &NewSet) -> Result<SetView, ClientError> {
        self.send_within(SET_LIMIT, Method::POST, "/api/v1/sets", set).await
    }

    /// Removes a set; its nodes stay.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_set(&self, name: &SetName) -> Result<(), ClientError> {
        self.delete(&format!("/api/v1/sets/{name}")).await
    }

    /// Asks a set for its machines and takes them in.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sync_set(&self, name: &SetName, options: SyncOptions) -> Result<SyncReport, ClientError> {
        self.send_within(SET_LIMIT, Method::POST, &format!("/api/v1/sets/{name}/sync"), &options).await
    }

    /// Takes machines of a set and makes nodes of them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn acquire(&self, name: &SetName, wish: &AcquireRequest) -> Result<SyncReport, ClientError> {
        self.send_within(SET_LIMIT, Method::POST, &format!("/api/v1/sets/{name}/acquire"), wish).await
    }

    /// Gives machines back to their set.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn give_back(&self, name: &SetName, nodes: &GiveBackRequest) -> Result<SyncReport, ClientError> {
        self.send_within(SET_LIMIT, Method::POST, &format!("/api/v1/sets/{name}/release"), nodes).await
    }

    /// Switches or reads the power of nodes. Each result comes when it is there; the stream ends with the last one.
    ///
    /// # Errors
    /// [`ClientError`], also as an item of the stream.
    pub async fn power(
        &self,
        request: &PowerRequest,
    ) -> Result<impl Stream<Item = Result<PowerResult, ClientError>> + use<>, ClientError> {
        let url = self.url("/api/v1/power");
        let response = self.check(self.http.post(&url).bearer_auth(&self.token.0).json(request)).await?;
        Ok(items(response, Lines { rest: Vec::new(), url, before: b"" }))
    }

    /// All images.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn images(&self) -> Result<Vec<ImageView>, ClientError> {
        self.get("/api/v1/images").await
    }

    /// One image.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn image(&self, name: &str) -> Result<ImageView, ClientError> {
        self.get(&format!("/api/v1/images/{name}")).await
    }

    /// Imports an image: `body` is the file's content, `format` what qemu-img
    /// calls its format, or `None` to let the controller find out. Has no time
    /// limit of its own; ends when the body stalls or the controller goes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn import_image(
        &self,
        name: &str,
        format: Option<&str>,
        length_bytes: u64,
        body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<ImageView, ClientError> {
        let path = format!("/api/v1/images/{name}");
        let mut request = self
            .http
            .post(self.url(&path))
            .bearer_auth(&self.token.0)
            .header("content-length", length_bytes)
            .body(Body::wrap_stream(body));
        if let Some(format) = format {
            request = request.query(&[("format", format)]);
        }
        let response = self.check(request).await?;
        self.decode(response).await
    }

    /// Removes an image that nothing deploys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_image(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/api/v1/images/{name}")).await
    }

    /// Deploys an image.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn deploy(&self, deployment: &NewDeployment) -> Result<DeploymentView, ClientError> {
        self.send(Method::POST, "/api/v1/deployments", deployment).await
    }

    /// All deployments, oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn deployments(&self) -> Result<Vec<DeploymentView>, ClientError> {
        self.get("/api/v1/deployments").await
    }

    /// One deployment.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn deployment(&self, id: DeploymentId) -> Result<DeploymentView, ClientError> {
        self.get(&format!("/api/v1/deployments/{id}")).await
    }

    /// Ends a deployment.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel(&self, id: DeploymentId) -> Result<DeploymentView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/deployments/{id}/cancel"), &()).await
    }

    /// The stream of events from now on; ends when the controller goes.
    ///
    /// # Errors
    /// [`ClientError`], also as an item of the stream.
    pub async fn events(&self) -> Result<impl Stream<Item = Result<StreamEvent, ClientError>> + use<>, ClientError> {
        let url = self.url("/api/v1/events");
        let response = self.check(self.http.get(&url).bearer_auth(&self.token.0)).await?;
        Ok(items(response, Lines { rest: Vec::new(), url, before: b"data:" }))
    }

    /// Registers an agent.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal means that the attempt is over.
    pub async fn register(&self, register: &Register) -> Result<Orders, ClientError> {
        self.send(Method::POST, "/api/v1/agent/register", register).await
    }

    /// Reports from an agent.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal means that the attempt is over.
    pub async fn report(&self, report: &Report) -> Result<(), ClientError> {
        self.send(Method::POST, "/api/v1/agent/report", report).await
    }

    /// Proves what the booted system is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn prove(&self, proof: &Proof) -> Result<(), ClientError> {
        self.send(Method::POST, "/api/v1/agent/proof", proof).await
    }

    /// A heartbeat of the monitoring daemon.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn beat(&self, heartbeat: &Heartbeat) -> Result<(), ClientError> {
        self.send(Method::POST, "/api/v1/agent/beat", heartbeat).await
    }

    /// Reads a file that the controller named, such as a manifest, whole.
    ///
    /// # Errors
    /// [`ClientError`]; refused beyond `limit_bytes`.
    pub async fn read(&self, path: &str, limit_bytes: usize) -> Result<Vec<u8>, ClientError> {
        let request = self.http.get(self.url(path)).bearer_auth(&self.token.0).timeout(Duration::from_secs(60));
        let response = self.check(request).await?;
        self.body(response, limit_bytes).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.http.get(self.url(path)).bearer_auth(&self.token.0).timeout(Duration::from_secs(30));
        let response = self.check(request).await?;
        self.decode(response).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.send_within(Duration::from_secs(30), method, path, body).await
    }

    async fn send_within<B: Serialize, T: DeserializeOwned>(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let request = self.http.request(method, self.url(path)).bearer_auth(&self.token.0).timeout(limit).json(body);
        let response = self.check(request).await?;
        self.decode(response).await
    }

    async fn delete(&self, path: &str) -> Result<(), ClientError> {
        let request = self.http.delete(self.url(path)).bearer_auth(&self.token.0).timeout(Duration::from_secs(30));
        self.check(request).await.map(drop)
    }

    async fn check(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| ClientError::Unreachable {
            url: e.url().map_or_else(|| self.base.clone(), ToString::to_string),
            cause: causes(&e),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = self.body(response, 64 << 10).await.unwrap_or_default();
        let error = serde_json::from_slice::<Problem>(&text)
            .map(|p| p.error)
            .unwrap_or_else(|_| format!("{status} {}", String::from_utf8_lossy(&text)));
        let code = status.as_u16();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            Err(ClientError::Failed { status: code, error })
        } else {
            Err(ClientError::Refused { status: code, error })
        }
    }

    async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let url = response.url().to_string();
        let body = self.body(response, ANSWER_LIMIT_BYTES).await?;
        // An answer without a body stands for `()`.
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text).map_err(|e| ClientError::NotUnderstood { url, cause: e.to_string() })
    }

    async fn body(&self, response: Response, limit_bytes: usize) -> Result<Vec<u8>, ClientError> {
        let url = response.url().to_string();
        let mut stream = response.bytes_stream();
        let mut body = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| ClientError::Unreachable { url: url.clone(), cause: causes(&e) })?;
            if body.len() + chunk.len() > limit_bytes {
                let cause = format!("it is larger than {limit_bytes} bytes");
                return Err(ClientError::NotUnderstood { url, cause });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// The items of a response that has one on each line.
fn items<T: DeserializeOwned>(response: Response, lines: Lines) -> impl Stream<Item = Result<T, ClientError>> + use<T> {
    let bytes = Box::pin(response.bytes_stream());
    futures_util::stream::unfold((bytes, lines, VecDeque::new()), |(mut bytes, mut lines, mut ready)| async move {
        loop {
            if let Some(item) = ready.pop_front() {
                return Some((Ok(item), (bytes, lines, ready)));
            }
            match bytes.next().await? {
                Ok(chunk) => match lines.push(&chunk) {
                    Ok(items) => ready.extend(items),
                    Err(error) => return Some((Err(error), (bytes, lines, ready))),
                },
                Err(error) => {
                    let error = ClientError::Unreachable { url: lines.url.clone(), cause: causes(&error) };
                    return Some((Err(error), (bytes, lines, ready)));
                }
            }
        }
    })
}

/// Splits a stream into the items on its lines.
struct Lines {
    rest: Vec<u8>,
    url: String,
    /// What stands before an item; other lines are passed over.
    before: &'static [u8],
}

impl Lines {
    fn push<T: DeserializeOwned>(&mut self, chunk: &[u8]) -> Result<Vec<T>, ClientError> {
        self.rest.extend_from_slice(chunk);
        let mut items = Vec::new();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            // Comments and empty lines keep the connection alive; `event:` repeats the tag in the data.
            let Some(data) = line.strip_prefix(self.before).filter(|data| !data.trim_ascii().is_empty()) else {
                continue;
            };
            let item = serde_json::from_slice(data)
                .map_err(|e| ClientError::NotUnderstood { url: self.url.clone(), cause: e.to_string() })?;
            items.push(item);
        }
        if self.rest.len() > EVENT_LIMIT_BYTES {
            let cause = format!("a line is longer than {EVENT_LIMIT_BYTES} bytes");
            return Err(ClientError::NotUnderstood { url: self.url.clone(), cause });
        }
        Ok(items)
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_cut_out_of_any_chunks() {
        let stream = b": hello\n\nevent: missed\ndata: {\"type\":\"missed\"}\n\nevent: node_gone\ndata: {\"type\":\"node_gone\",\"name\":\"n1\"}\n\n";
        for size in 1..stream.len() {
            let mut lines = Lines { rest: Vec::new(), url: String::new(), before: b"data:" };
            let events: Vec<StreamEvent> = stream.chunks(size).flat_map(|c| lines.push(c).unwrap()).collect();
            assert_eq!(events.len(), 2, "chunks of {size}");
            assert_eq!(events[0], StreamEvent::Missed);
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines { rest: Vec::new(), url: String::new(), before: b"" };
        assert!(lines.push::<StreamEvent>(&vec![b'x'; EVENT_LIMIT_BYTES + 1]).is_err());
    }

    #[test]
    fn tokens_do_not_print() {
        assert_eq!(format!("{:?}", Token("secret".into())), "Token(…)");
    }
}
