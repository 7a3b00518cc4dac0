//! The few words of QEMU's control protocol (QMP) that we need: one JSON object a line.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;

/// QEMU answers these commands at once; a stuck one must not hold up a power-off.
const LIMIT: Duration = Duration::from_secs(5);
/// A greeting or an answer has a few hundred bytes.
const LINE_BYTES: u64 = 64 * 1024;

/// Sets the boot order number of a device for the guest's next reset.
pub(super) async fn set_boot_index(socket: &Path, device: &str, index: i32) -> Result<()> {
    let path = format!("/machine/peripheral/{device}");
    let command = json!({"execute": "qom-set", "arguments": {"path": path, "property": "bootindex", "value": index}});
    ask(socket, command).await
}

/// Ends QEMU.
pub(super) async fn quit(socket: &Path) -> Result<()> {
    ask(socket, json!({"execute": "quit"})).await
}

async fn ask(socket: &Path, command: Value) -> Result<()> {
    let talk = async {
        let mut session = Session::open(socket).await?;
        session.command(json!({"execute": "qmp_capabilities"})).await?;
        session.command(command).await
    };
    tokio::time::timeout(LIMIT, talk)
        .await
        .map_err(|_| Error::new(ErrorKind::TimedOut, "QEMU's control socket does not answer"))?
}

struct Session {
    stream: BufReader<BufWriter<UnixStream>>,
}

impl Session {
    async fn open(socket: &Path) -> Result<Session> {
        let mut session = Session { stream: BufReader::new(BufWriter::new(UnixStream::connect(socket).await?)) };
        session.line().await?;
        Ok(session)
    }

    async fn command(&mut self, command: Value) -> Result<()> {
        self.stream.write_all(format!("{command}\n").as_bytes()).await?;
        self.stream.flush().await?;
        loop {
            let answer = self.line().await?;
            if let Some(error) = answer.get("error") {
                return Err(Error::other(format!("QEMU refuses: {error}")));
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    async fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        (&mut self.stream).take(LINE_BYTES).read_line(&mut line).await?;
        if line.is_empty() {
            return Err(Error::new(ErrorKind::UnexpectedEof, "QEMU closed its control socket"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}
