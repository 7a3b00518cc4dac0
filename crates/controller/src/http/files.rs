//! Files for firmware: HEAD, Content-Length and Range as UEFI HTTP boot wants
//! them, and a word when the last byte has gone out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio_util::io::ReaderStream;

/// Read from the disk at once, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// What is to be sent.
pub(super) enum Content {
    /// An open file and its length in bytes.
    File(File, u64),
    /// Bytes in memory.
    Memory(Bytes),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// Answers HEAD and GET, whole or a range (RFC 9110 section 14). `sent` is
/// called when the last byte of the content was handed to the socket.
///
/// # Errors
/// When the file cannot be positioned.
pub(super) async fn respond(
    method: &Method,
    headers: &HeaderMap,
    content: Content,
    sent: impl FnOnce() + Send + 'static,
) -> io::Result<Response> {
    let length = content.len();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|text| range(text, length));
    let (status, from, until) = match range {
        None => (StatusCode::OK, 0, length),
        Some(Range::Part(from, until)) => (StatusCode::PARTIAL_CONTENT, from, until),
        Some(Range::Outside) => {
            let all = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, all).into_response());
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        // A client that fetches in ranges gets to the end last.
        let whole: Option<Box<dyn FnOnce() + Send>> = if until == length { Some(Box::new(sent)) } else { None };
        Body::from_stream(Counted { bytes: read(content, from, until).await?, left: until - from, done: whole })
    };
    let mut response = (status, body).into_response();
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(until - from));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::try_from(format!("bytes {from}-{}/{length}", until - 1))
    {
        out.insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

async fn read(content: Content, from: u64, until: u64) -> io::Result<Chunks> {
    Ok(match content {
        Content::File(mut file, _) => {
            file.seek(SeekFrom::Start(from)).await?;
            ReaderStream::with_capacity(file.take(until - from), CHUNK_BYTES).boxed()
        }
        // A range lies inside the content, and its length was a usize.
        Content::Memory(bytes) => stream::once(async move { Ok(bytes.slice(from as usize..until as usize)) }).boxed(),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// From a byte, until before a byte.
    Part(u64, u64),
    /// Not a byte of it exists.
    Outside,
}

/// A single range; anything else is as if it were not there, which the RFC allows.
fn range(text: &str, length: u64) -> Option<Range> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, until) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(from), Ok(last)) if from <= last => (from, last.saturating_add(1).min(length)),
        (Ok(from), Err(_)) if last.is_empty() => (from, length),
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => (length.saturating_sub(count), length),
        _ => return None,
    };
    Some(if from < until { Range::Part(from, until) } else { Range::Outside })
}

/// Counts what the connection takes. The connection may drop its body as soon
/// as the announced length is out, so the end is noticed when this is dropped.
struct Counted {
    bytes: Chunks,
    left: u64,
    done: Option<Box<dyn FnOnce() + Send>>,
}

impl Stream for Counted {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.bytes.as_mut().poll_next(context);
        if let Poll::Ready(Some(Ok(chunk))) = &next {
            self.left = self.left.saturating_sub(chunk.len() as u64);
        }
        next
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(done) = self.done.take().filter(|_| self.left == 0) {
            done();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ranges_are_read_and_others_passed_over() {
        for (text, expected) in [
            ("bytes=0-9", Some(Range::Part(0, 10))),
            ("bytes=90-", Some(Range::Part(90, 100))),
            ("bytes=90-200", Some(Range::Part(90, 100))),
            ("bytes=-10", Some(Range::Part(90, 100))),
            ("bytes=-200", Some(Range::Part(0, 100))),
            ("bytes=100-", Some(Range::Outside)),
            ("bytes=0-18446744073709551615", Some(Range::Part(0, 100))),
            ("bytes=9-0", None),
            ("bytes=0-1,3-4", None),
            ("bytes=-0", None),
            ("bytes=-", None),
            ("lines=1-2", None),
            ("", None),
        ] {
            assert_eq!(range(text, 100), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Some(Range::Outside));
    }
}
