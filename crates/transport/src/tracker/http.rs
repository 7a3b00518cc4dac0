//! A tracker's door for HTTP.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::TrackerService;

/// Connections in the kernel's queue, for a rack that is switched on at once.
const BACKLOG: u32 = 4096;
/// Connections at the same time.
const CONNECTIONS: usize = 4096;
/// A client that has not sent its request's head by then is let go.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// No connection is held longer than this, however busy.
const CONNECTION_LIMIT: Duration = Duration::from_secs(120);
/// Largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 << 10;

pub(super) fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted tracker must have its port while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

pub(super) async fn serve(socket: TcpListener, service: TrackerService) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, remote)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    // Whoever is cut off asks again.
                    let _ = timeout(CONNECTION_LIMIT, connection(stream, remote, service)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: others must close first.
                tracing::warn!(%error, "the tracker cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, remote: SocketAddr, service: TrackerService) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%remote, %error, "a connection could not be tuned");
    }
    let answering = service_fn(|request| {
        let response = answer(&request, remote, &service);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answering);
    if let Err(error) = serving.await {
        tracing::debug!(%remote, %error, "a tracker's connection broke off");
    }
}

fn answer(request: &Request<Incoming>, remote: SocketAddr, service: &TrackerService) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/announce") => (StatusCode::OK, service.announce(query, remote.ip())),
        (&Method::GET, "/scrape") => (StatusCode::OK, service.scrape(query)),
        (_, "/announce" | "/scrape") => (StatusCode::METHOD_NOT_ALLOWED, b"use GET\n".to_vec()),
        _ => (StatusCode::NOT_FOUND, b"this is a BitTorrent tracker: see /announce and /scrape\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
