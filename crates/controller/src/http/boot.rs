//! What firmware and iPXE fetch: the script, kernel, initramfs and loaders.
//! Answered from the state for each machine, without a token: what is secret,
//! the boot token, is made for the answer and is worth one attempt.

use std::io;
use std::path::PathBuf;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use boot::decide::{self, BootDecision, INITRAMFS_FILE, KERNEL_FILE, Platform};
use boot::dhcp::lines::LOADER_FOLDER;
use boot::tftp::loaders::{LoaderName, NotServed};
use fleet::change::Snapshot;
use fleet::event::Event;
use fleet::ids::Mac;
use fleet::intake::{BootWish, boot_wish};
use fleet::life::Stage;
use fleet::node::{Firmware, TokenHash};
use fleet::plan::Policy;
use serde::Deserialize;
use tokio::fs::File;
use uuid::Uuid;

use super::App;
use super::files::{self, Content};
use super::problem::{PathPart, Problem, QueryPart};
use crate::{director, kernels, token};

/// All routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/boot/{mac}/script", get(script))
        .route("/boot/{mac}/{*file}", get(file))
        // What a foreign DHCP server names; it cannot put each machine's MAC there.
        .route(&format!("/boot/{LOADER_FOLDER}/{{*file}}"), get(shared_loader))
}

/// What iPXE puts into the address of its script; empty when it does not know.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    uuid: String,
    platform: String,
}

async fn script(
    State(app): State<App>,
    PathPart(mac): PathPart<Mac>,
    QueryPart(asked): QueryPart<Asked>,
) -> Result<Response, Problem> {
    let platform = Platform::from_query(&asked.platform);
    let uuid = machine_uuid(&asked.uuid);
    let token = token::mint()?;
    let hash = token::hash(&token.0);
    let firmware = Some(if platform == Platform::Bios { Firmware::Bios } else { Firmware::UefiX64 });
    let (known, awaited) = app.keeper.read(|state| {
        let known = state.snapshot().node_of(mac).is_some();
        (known, !known && uuid.is_some_and(|uuid| state.snapshot().awaited(uuid).is_some()))
    });
    // With a foreign DHCP server this is the first that we hear of a machine. One that is to tell something is asked now.
    let wanted = awaited || app.config.discovery.inventory;
    let met = !known && wanted && director::is_welcome(&app.keeper, mac);
    if met {
        app.keeper.tell(Event::Sighted { mac, firmware, uuid }).await?;
    }
    if known || met {
        app.keeper.tell(Event::ScriptAsked { mac, uuid, token: hash.clone() }).await?;
    } else {
        director::sight(&app.keeper, mac, firmware, uuid);
    }
    let arguments = app.kernels.arguments(&app.keeper, mac, &token.0);
    let policy = app.keeper.policy();
    let decision = app.keeper.read(|state| decide(state.snapshot(), policy, mac, &hash, arguments))?;
    tracing::info!(%mac, stage = Stage::LoadingKernel.as_str(), deploy = matches!(decision, BootDecision::Deploy { .. }), "boot script");
    let text = decide::script(mac, platform, app.advertise, &decision)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], text)
        .into_response())
}

/// The UUID that iPXE read from SMBIOS. Boards that were never given one say all
/// zeros or all ones, which would make many machines one.
fn machine_uuid(text: &str) -> Option<Uuid> {
    text.parse().ok().filter(|uuid: &Uuid| !uuid.is_nil() && !uuid.is_max())
}

/// The token decides: only the request that it was taken in for starts our kernel.
fn decide(
    snapshot: &Snapshot,
    policy: &Policy,
    mac: Mac,
    token: &TokenHash,
    kernel_args: Vec<String>,
) -> Result<BootDecision, Problem> {
    let Some(node) = snapshot.node_of(mac) else { return Ok(BootDecision::Unknown) };
    if node.boot_token.as_ref() == Some(token) && !node.approved {
        return Ok(BootDecision::Deploy { kernel_args, note: "to tell what it is".to_owned() });
    }
    if node.boot_token.as_ref() == Some(token) {
        let deployment = node.deployment.map(|id| id.to_string()).unwrap_or_default();
        return Ok(BootDecision::Deploy { kernel_args, note: format!("{deployment}, attempt {}", node.attempt) });
    }
    match boot_wish(snapshot, policy, mac) {
        BootWish::LocalDisk { why } => Ok(BootDecision::LocalDisk { why }),
        BootWish::Agent { .. } | BootWish::Inventory { .. } => {
            Err(Problem::conflict(format!("{mac} asked twice at once; the other answer counts")))
        }
    }
}

async fn file(
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
    path: Result<Path<(Mac, String)>, axum::extract::rejection::PathRejection>,
) -> Result<Response, Problem> {
    let Path((mac, name)) = path.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
    let content = match name.as_str() {
        KERNEL_FILE => environment_file(&app, mac, app.kernels.kernel()).await?,
        INITRAMFS_FILE => environment_file(&app, mac, app.kernels.initramfs()).await?,
        _ => return loader(&app, &method, &headers, Some(mac), &name).await,
    };
    let (keeper, bytes) = (app.keeper.clone(), content_bytes(&content));
    let sent = move || keeper.report(Event::KernelSent { mac, file: name, bytes });
    files::respond(&method, &headers, content, sent).await.map_err(|e| unreadable(&e))
}

fn content_bytes(content: &Content) -> u64 {
    match content {
        Content::File(_, bytes) => *bytes,
        Content::Memory(bytes) => bytes.len() as u64,
    }
}

async fn environment_file(app: &App, mac: Mac, path: PathBuf) -> Result<Content, Problem> {
    let open = async {
        let file = File::open(&path).await?;
        let length = file.metadata().await?.len();
        io::Result::Ok(Content::File(file, length))
    };
    open.await.map_err(|error| {
        let sentence = kernels::lacking(&path, &error);
        tracing::error!(%mac, stage = Stage::LoadingKernel.as_str(), "{sentence}");
        app.keeper.remark(mac, "trouble", sentence.clone());
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
    })
}

async fn shared_loader(
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
    PathPart(name): PathPart<String>,
) -> Result<Response, Problem> {
    loader(&app, &method, &headers, None, &name).await
}

/// The first loader of UEFI HTTP boot, and what such a loader loads itself.
async fn loader(
    app: &App,
    method: &Method,
    headers: &HeaderMap,
    mac: Option<Mac>,
    name: &str,
) -> Result<Response, Problem> {
    let not_served = |why: NotServed| {
        let status = match why {
            NotServed::NotFound => StatusCode::NOT_FOUND,
            NotServed::NotAllowed => StatusCode::FORBIDDEN,
            NotServed::TooLarge | NotServed::Unreadable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, format!("loader `{}`: {why}", name.escape_debug()))
    };
    let loaders = app.loaders.as_ref().ok_or_else(|| not_served(NotServed::NotFound))?;
    let parsed = LoaderName::parse(name).map_err(not_served)?;
    let bytes = loaders.read(&parsed).await.map_err(not_served)?;
    let (keeper, length) = (app.keeper.clone(), bytes.len() as u64);
    let sent = move || {
        if let Some(mac) = mac {
            keeper.report(Event::BootloaderSent { mac, file: parsed.file, bytes: length });
        }
    };
    files::respond(method, headers, Content::Memory(bytes), sent).await.map_err(|e| unreadable(&e))
}

fn unreadable(error: &io::Error) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the file cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_without_a_uuid_has_none() {
        for none in ["", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "x"] {
            assert_eq!(machine_uuid(none), None, "{none}");
        }
        assert!(machine_uuid("4c4c4544-0042-3510-8056-b4c04f4e3332").is_some());
    }
}
