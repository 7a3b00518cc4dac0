//! HTTP as the drivers use it: one place that makes clients, answers bounded before they are kept, troubles as sentences.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response};

use crate::{Error, Result};

/// Makes the client of every driver; TLS, when it comes, is a line here.
///
/// No redirects, because one would carry the password to whom the answer names; no proxy, because a management network
/// has none and the environment's is meant for others. A connection that idles longer than a moment is not used again:
/// many controllers close it without a word.
fn client(call_limit: Duration) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(call_limit.min(Duration::from_secs(10)))
        .timeout(call_limit)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(2))
        .user_agent(concat!("rackswarm/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// A client of one controller.
pub(crate) struct Http {
    client: reqwest::Client,
    target: String,
    call_limit: Duration,
    answer_bytes: usize,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Http {
    /// `target` names the controller in sentences; no call takes longer than `call_limit` or brings more than
    /// `answer_bytes`.
    pub(crate) fn new(target: &str, call_limit: Duration, answer_bytes: usize) -> Result<Http> {
        let client = client(call_limit).map_err(|error| {
            Error::refused(target, format!("no HTTP client can be made: {}", causes(&error.without_url())))
        })?;
        Ok(Http { client, target: target.to_owned(), call_limit, answer_bytes })
    }

    pub(crate) fn request(&self, method: reqwest::Method, url: &str) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends and reads the whole answer. `what` is what was asked, for sentences; it must not hold a secret.
    pub(crate) async fn send(&self, what: &str, request: RequestBuilder) -> Result<Answer> {
        let answer = request.send().await.map_err(|error| self.trouble(what, error))?;
        self.read(what, answer).await
    }

    async fn read(&self, what: &str, mut answer: Response) -> Result<Answer> {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.trouble(what, error))? {
            if body.len() + chunk.len() > self.answer_bytes {
                let limit = self.answer_bytes / 1024;
                return Err(Error::refused(
                    &self.target,
                    format!("its answer to {what} is longer than {limit} KiB; is this the right address?"),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body })
    }

    fn trouble(&self, what: &str, error: reqwest::Error) -> Error {
        let seconds = self.call_limit.as_secs_f32();
        let why = if error.is_timeout() {
            format!(
                "it gave no answer to {what} within {seconds} s; check its power and network, and the firewalls between"
            )
        } else if error.is_builder() {
            let causes = causes(&error.without_url());
            return Error::refused(&self.target, format!("the address of {what} is none ({causes}); correct it"));
        } else if error.is_connect() {
            let causes = causes(&error.without_url());
            format!(
                "{what} could not be asked, because no connection came about ({causes}); check the address, its power and network"
            )
        } else {
            let causes = causes(&error.without_url());
            format!("the connection broke at {what} ({causes}); it is asked again where that is safe")
        };
        Error::transient(&self.target, why)
    }
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What `Retry-After` says in seconds, at most `most`; a date is not understood, and not needed.
    pub(crate) fn retry_after(&self, most: Duration) -> Option<Duration> {
        let seconds: u64 = self.header("retry-after")?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds).min(most))
    }

    /// The body's beginning on one line, for sentences.
    pub(crate) fn excerpt(&self) -> String {
        excerpt(&String::from_utf8_lossy(&self.body))
    }
}

/// RFC 3986, section 2.3: everything but the unreserved characters is encoded, so a value never becomes another path.
pub(crate) fn percent_encoded(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// At most 200 characters of a foreign text, on one line and without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
    if clean.is_empty() { "nothing".to_owned() } else { clean }
}

/// The error with what lies beneath: reqwest's own text only says that something failed.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    excerpt(&text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::Advice;

    /// Answers one request with these bytes and closes.
    async fn one_answer(bytes: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&bytes).await;
        });
        url
    }

    async fn ask(url: &str) -> Result<Answer> {
        let http = Http::new("BMC x", Duration::from_millis(500), 1024).unwrap();
        http.send("GET /", http.request(reqwest::Method::GET, url)).await
    }

    #[tokio::test]
    async fn an_answer_is_bounded_whether_it_says_its_length_or_not() {
        let mut long = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
        long.extend([b'x'; 5000]);
        let error = ask(&one_answer(long).await).await.unwrap_err();
        assert!(error.to_string().contains("longer than 1 KiB"), "{error}");
        let claims = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nabc".to_vec();
        assert_eq!(ask(&one_answer(claims).await).await.unwrap_err().advice(), Advice::Retry);
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed_and_silence_has_an_end() {
        let away = b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n".to_vec();
        assert_eq!(ask(&one_answer(away).await).await.unwrap().status, 302);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = ask(&format!("http://{}/", listener.local_addr().unwrap())).await.unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error}");
        let closed = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
        let error = ask(&format!("http://{closed}/")).await.unwrap_err();
        assert!(error.to_string().contains("no connection"), "{error}");
    }

    #[test]
    fn foreign_text_is_shortened_to_one_line() {
        assert_eq!(excerpt(" a\n\tb\u{7} "), "a b");
        assert_eq!(excerpt(""), "nothing");
        assert_eq!(excerpt(&"x".repeat(999)).len(), 200);
    }
}
