//! Captures, for operators and agents.

use std::time::Duration;

use fleet::capture::{Order, Original};
use fleet::ids::{ImageName, NodeName};
use reqwest::Method;

use super::{Client, ClientError};
use crate::capture::{CaptureView, MOST_HASHES};
use crate::operator::NodeView;

/// How long one chunk may take: 4 MiB over a link of a tenth of a megabyte a second, and a disk that flushes.
const CHUNK_LIMIT: Duration = Duration::from_secs(120);
/// Beginning may hash again what arrived before the server went down.
const BEGIN_LIMIT: Duration = Duration::from_secs(900);
const HASH_BYTES: usize = 32;

impl Client {
    /// Has a node's disk captured.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn capture_node(&self, node: &NodeName, order: &Order) -> Result<NodeView, ClientError> {
        self.send(Method::POST, &format!("/api/v1/nodes/{node}/capture"), order).await
    }

    /// Begins a capture, or goes on with the one of this name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin_capture(&self, image: &ImageName, original: &Original) -> Result<CaptureView, ClientError> {
        self.send_within(BEGIN_LIMIT, Method::PUT, &path(image, ""), original).await
    }

    /// The hash of every chunk that has arrived, in order; zeros for one that has not.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn held_chunks(&self, image: &ImageName, chunks: u32) -> Result<Vec<[u8; HASH_BYTES]>, ClientError> {
        let mut held = Vec::new();
        while (held.len() as u64) < u64::from(chunks) {
            let first = held.len();
            let asked = path(image, &format!("/held?first={first}&count={MOST_HASHES}"));
            let bytes = self.read(&asked, MOST_HASHES as usize * HASH_BYTES).await?;
            let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
            if hashes.is_empty() || !rest.is_empty() {
                let cause = format!("{} bytes of hashes came for chunks from {first} on", bytes.len());
                return Err(ClientError::NotUnderstood { url: self.url(&asked), cause });
            }
            held.extend_from_slice(hashes);
        }
        Ok(held)
    }

    /// Sends one chunk, a zstd frame, with the SHA-256 of what is in it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put_chunk(
        &self,
        image: &ImageName,
        chunk: u32,
        hash: [u8; HASH_BYTES],
        packed: bytes::Bytes,
    ) -> Result<(), ClientError> {
        let hexadecimal: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = path(image, &format!("/chunks/{chunk}?sha256={hexadecimal}"));
        let request = self.http.put(self.url(&path)).bearer_auth(&self.token.0).timeout(CHUNK_LIMIT).body(packed);
        self.check(request).await.map(drop)
    }

    /// Says that every chunk was sent; the controller goes on by itself.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn finish_capture(&self, image: &ImageName) -> Result<CaptureView, ClientError> {
        self.send_within(CHUNK_LIMIT, Method::POST, &path(image, "/finish"), &()).await
    }

    /// All captures under way, by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn captures(&self) -> Result<Vec<CaptureView>, ClientError> {
        self.get("/api/v1/captures").await
    }

    /// One capture; not found when it has become an image.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn capture(&self, image: &ImageName) -> Result<CaptureView, ClientError> {
        self.get(&path(image, "")).await
    }

    /// Throws away what has arrived of a capture.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn discard_capture(&self, image: &ImageName) -> Result<(), ClientError> {
        self.delete(&path(image, "")).await
    }
}

fn path(image: &ImageName, rest: &str) -> String {
    format!("/api/v1/captures/{image}{rest}")
}
