//! What agents and deployed systems say.

use std::collections::BTreeSet;

use api::agent::{
    Assignment, CaptureOrder, Heartbeat, LAYOUT_TOOLS, Orders, PostPlan, Proof, Register, Report, ReportKind, WipeOrder,
};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fleet::discovery::{Card, Check, Findings, Inventory, SwitchPort};
use fleet::disk::{Disk, Size};
use fleet::event::Event;
use fleet::ids::{Attempt, Mac, NodeName};
use fleet::intake::failed_checks;
use fleet::life::Stage;
use fleet::node::{Node, Progress};
use fleet::post::PostSettings;
use fleet::wipe::Certificate;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::auth::{Agent, Daemon};
use super::problem::{JsonBody, Problem, QueryPart};
use crate::state::State as FleetState;
use crate::{kernels, token};

/// Longest sentence that an agent may add to a timeline, in bytes: the last
/// 4 KiB of an action's output, and words around it.
const TEXT_LIMIT_BYTES: usize = 6 << 10;
/// Disks and cards of one machine that are kept, and characters of what a disk says of itself.
const DISKS: usize = 128;
const DISK_TEXT_CHARACTERS: usize = 200;
/// Checks of one machine that are kept: two of each disk, and some.
const CHECKS: usize = 2 * DISKS + 8;
/// Sentences of a certificate's list, and characters of each.
const SENTENCES: usize = 16;
const SENTENCE_CHARACTERS: usize = 1000;
/// Where agents read manifests; the image's name comes between.
const MANIFEST_PATH: (&str, &str) = ("/api/v1/images/", "/manifest");

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(sample))
        .routes(routes!(layout_tools))
        .routes(routes!(report))
        .routes(routes!(proof))
        .routes(routes!(beat))
}

/// An agent is up and asks what to do. Sent again until answered; the last answer counts.
#[utoipa::path(post, path = "/api/v1/agent/register", tag = "agent", request_body = Register,
    responses((status = 200, body = Orders), (status = "default", body = api::Problem)))]
async fn register(
    State(app): State<App>,
    agent: Agent,
    JsonBody(register): JsonBody<Register>,
) -> Result<Json<Orders>, Problem> {
    let waits = app.keeper.read(|state| expect(state, &agent, &register))?;
    let inventoried = Event::Inventoried {
        node: agent.node.clone(),
        attempt: agent.attempt,
        uuid: register.uuid,
        inventory: Box::new(inventory(&app, &register)),
        text: short(describe(&register)),
    };
    app.keeper.tell(inventoried).await?;
    if waits {
        tracing::info!(node = %agent.node, product = short(register.product), "inventoried");
        return Err(Problem::conflict(format!(
            "what this machine is has been noted as `{}`; stop and reboot to its own disk",
            agent.node
        )));
    }
    if let Some(reason) = app.keeper.read(|state| unfit(state, &agent.node)) {
        let (node, attempt) = (agent.node.clone(), agent.attempt);
        app.keeper.tell(Event::StageFailed { node, attempt, reason: short(reason.clone()), retry: false }).await?;
        return Err(Problem::conflict(reason));
    }
    let node_token = token::mint()?;
    let event = Event::Registered {
        node: agent.node.clone(),
        attempt: agent.attempt,
        uuid: register.uuid,
        token: token::hash(&node_token.0),
        text: short(describe(&register)),
    };
    app.keeper.tell(event).await?;
    tracing::info!(node = %agent.node, attempt = %agent.attempt, stage = Stage::AgentUp.as_str(), "agent registered");
    let orders = app.keeper.read(|state| orders(&app, state, &agent, node_token))?;
    Ok(Json(orders))
}

/// What a sample of the network may have, in bytes.
const SAMPLE_LIMIT_BYTES: usize = 64 << 20;
/// Bytes that are sent at once.
const SAMPLE_PART: &[u8] = &[0; 64 << 10];

/// How large the sample is to be.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
struct SampleSize {
    /// In bytes; at most 64 MiB.
    bytes: usize,
}

/// Bytes that mean nothing, for an agent that measures its network.
#[utoipa::path(get, path = "/api/v1/agent/sample", tag = "agent", params(SampleSize),
    responses((status = 200, description = "so many zeros"), (status = "default", body = api::Problem)))]
async fn sample(_agent: Agent, QueryPart(size): QueryPart<SampleSize>) -> Result<Response, Problem> {
    if size.bytes > SAMPLE_LIMIT_BYTES {
        return Err(Problem::invalid(format!("bytes: {} are more than {SAMPLE_LIMIT_BYTES}", size.bytes)));
    }
    let parts = (0..size.bytes.div_ceil(SAMPLE_PART.len())).map(move |part| {
        let rest = size.bytes - part * SAMPLE_PART.len();
        Ok::<_, std::convert::Infallible>(Bytes::from_static(&SAMPLE_PART[..rest.min(SAMPLE_PART.len())]))
    });
    Ok(Body::from_stream(futures_util::stream::iter(parts)).into_response())
}

/// The programs that build layouts, for agents that are to build one: a cpio archive packed by zstd.
#[utoipa::path(get, path = LAYOUT_TOOLS, tag = "agent",
    responses((status = 200, description = "the archive"), (status = "default", body = api::Problem)))]
async fn layout_tools(State(app): State<App>, agent: Agent) -> Result<Response, Problem> {
    let path = app.kernels.layout_tools();
    let file = tokio::fs::File::open(&path).await.map_err(|error| {
        let sentence = kernels::lacking(&path, &error);
        tracing::error!(node = %agent.node, "{sentence}");
        Problem::conflict(sentence)
    })?;
    Ok(Body::from_stream(tokio_util::io::ReaderStream::new(file)).into_response())
}

/// Why a machine that is up is not written: its hardware failed a check, and the deployment does not pass over that.
fn unfit(state: &FleetState, name: &NodeName) -> Option<String> {
    let snapshot = state.snapshot();
    let node = snapshot.nodes.get(name).filter(|node| node.captured().is_none() && node.wiped().is_none())?;
    let despite = snapshot.deployment_of(node).is_some_and(|deployment| deployment.rollout.despite_checks);
    failed_checks(node).filter(|_| !despite)
}

/// Something happened on the node. A refusal (409) means that the attempt is over: the agent stops and reboots.
#[utoipa::path(post, path = "/api/v1/agent/report", tag = "agent", request_body = Report,
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn report(
    State(app): State<App>,
    agent: Agent,
    JsonBody(report): JsonBody<Report>,
) -> Result<StatusCode, Problem> {
    let known = app.keeper.read(|state| {
        let deployment = state.snapshot().nodes.get(&agent.node).and_then(|n| state.snapshot().deployment_of(n));
        let fresh = Progress { total_bytes: deployment.map_or(0, |d| d.size_bytes), ..Progress::default() };
        state.snapshot().live.get(&agent.node).and_then(|live| live.progress).unwrap_or(fresh)
    });
    app.keeper.tell(event(agent.node, report.attempt, report.what, known)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The booted system says what it is; only this makes a node Running. Sent again until it is accepted.
#[utoipa::path(post, path = "/api/v1/agent/proof", tag = "agent", request_body = Proof,
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn proof(
    State(app): State<App>,
    daemon: Daemon,
    JsonBody(proof): JsonBody<Proof>,
) -> Result<StatusCode, Problem> {
    let Proof { digest, disk, attempt, boot_id, kernel } = proof;
    tracing::info!(node = %daemon.node, %attempt, boot_id = short(boot_id), kernel = short(kernel), "proof received");
    app.keeper.tell(Event::Proved { node: daemon.node, attempt, digest, disk: short(disk) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The monitoring daemon of a running node reports.
#[utoipa::path(post, path = "/api/v1/agent/beat", tag = "agent", request_body = Heartbeat,
    responses((status = 204), (status = "default", body = api::Problem)))]
async fn beat(
    State(app): State<App>,
    daemon: Daemon,
    JsonBody(heartbeat): JsonBody<Heartbeat>,
) -> Result<StatusCode, Problem> {
    if !daemon.proved {
        return Err(Problem::conflict("this system has not proved what it is; send the proof first"));
    }
    app.keeper.tell(Event::Beaten { node: daemon.node, beat: heartbeat.beat }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A token alone is not an identity: it must come from a machine of this node,
/// at a time when the node is to have an agent. True where it was only asked
/// what it is, and waits for approval.
fn expect(state: &FleetState, agent: &Agent, register: &Register) -> Result<bool, Problem> {
    let node =
        state.snapshot().nodes.get(&agent.node).ok_or_else(|| Problem::not_found("node", agent.node.as_str()))?;
    let macs: BTreeSet<Mac> = register.macs.iter().filter_map(|mac| mac.parse().ok()).collect();
    if !node.macs.iter().any(|mac| macs.contains(mac)) {
        return Err(Problem::conflict(format!(
            "none of this machine's MAC addresses ({}) belongs to node `{}`; stop and reboot",
            short(register.macs.join(", ")),
            node.name
        )));
    }
    match node.stage {
        Stage::Enrolled if !node.approved => Ok(true),
        Stage::Rebooting | Stage::Running | Stage::Failed | Stage::Enrolled => Err(Problem::conflict(format!(
            "node `{}` expects no agent, it is {}; stop and reboot",
            node.name, node.stage
        ))),
        _ => Ok(false),
    }
}

fn few(text: impl AsRef<str>) -> String {
    text.as_ref().chars().take(DISK_TEXT_CHARACTERS).collect()
}

fn cards(told: &[Card]) -> Vec<Card> {
    let card = |card: &Card| Card {
        name: few(&card.name),
        switch: card.switch.as_ref().map(|switch| SwitchPort {
            name: few(&switch.name),
            port: few(&switch.port),
            description: switch.description.as_deref().map(few),
        }),
        ..card.clone()
    };
    told.iter().take(DISKS).map(card).collect()
}

/// What is kept of a machine's own words, bounded.
fn inventory(app: &App, register: &Register) -> Inventory {
    let check = |check: &Check| Check { name: few(&check.name), text: few(&check.text), ..check.clone() };
    let disk = |disk: &Disk| Disk {
        path: few(&disk.path),
        by_path: disk.by_path.iter().take(4).map(few).collect(),
        serial: disk.serial.as_ref().map(few),
        wwn: disk.wwn.as_ref().map(few),
        model: disk.model.as_ref().map(few),
        contents: disk.contents.iter().take(8).map(few).collect(),
        ..disk.clone()
    };
    Inventory {
        at: app.keeper.now(),
        product: few(&register.product),
        processors: register.processors,
        memory_bytes: register.memory_bytes,
        macs: register.macs.iter().filter_map(|mac| mac.parse().ok()).take(DISKS).collect(),
        disks: register.disks.iter().take(DISKS).map(disk).collect(),
        findings: Findings {
            firmware: few(&register.findings.firmware),
            cards: cards(&register.findings.cards),
            checks: register.findings.checks.iter().take(CHECKS).map(check).collect(),
        },
    }
}

fn orders(app: &App, state: &FleetState, agent: &Agent, node_token: api::agent::Token) -> Result<Orders, Problem> {
    let node = state.snapshot().nodes.get(&agent.node).filter(|node| node.attempt == agent.attempt);
    if let Some((node, wipe)) = node.and_then(|node| node.wiped().map(|wipe| (node, wipe))) {
        return Ok(Orders::Wipe(WipeOrder { node: node.name.clone(), attempt: node.attempt, wipe: wipe.clone() }));
    }
    match node.and_then(|node| node.captured().map(|capture| (node, capture))) {
        Some((node, capture)) => Ok(Orders::Capture(CaptureOrder {
            node: node.name.clone(),
            attempt: node.attempt,
            capture: capture.clone(),
            disk: node.disk.clone(),
        })),
        None => Ok(Orders::Install(Box::new(assignment(app, state, agent, node_token)?))),
    }
}

fn assignment(
    app: &App,
    state: &FleetState,
    agent: &Agent,
    node_token: api::agent::Token,
) -> Result<Assignment, Problem> {
    let snapshot = state.snapshot();
    let over = || Problem::conflict(format!("the attempt of `{}` is over; stop and reboot", agent.node));
    let node = snapshot.nodes.get(&agent.node).filter(|n| n.attempt == agent.attempt).ok_or_else(over)?;
    let deployment = snapshot.deployment_of(node).ok_or_else(over)?;
    let image = snapshot.images.get(&deployment.image).filter(|image| image.digest == deployment.digest);
    let image = image.ok_or_else(|| {
        Problem::conflict(format!(
            "image `{}` ({}) is not in the registry any more",
            deployment.image, deployment.digest
        ))
    })?;
    let (before, after) = MANIFEST_PATH;
    let config = &app.config;
    // Pieces are hashed whole, so some must fit at once however large they are.
    let memory = (u64::from(config.swarm.node_memory_mib) << 20).max(4 * u64::from(image.piece_size));
    let alone = deployment.outcomes.len() < 2;
    let mut post = merged(app, state, node);
    // A second attempt goes through the firmware: the kernel may be one that does not start from another.
    post.kexec = deployment.rollout.kexec.or(post.kexec).filter(|_| node.tries <= 1);
    Ok(Assignment {
        node: node.name.clone(),
        attempt: node.attempt,
        image: deployment.image.clone(),
        digest: deployment.digest,
        size_bytes: deployment.size_bytes,
        manifest_path: format!("{before}{}{after}", deployment.image),
        trackers: vec![announce_url(app, node)],
        disk: node.disk.clone(),
        layout: image.layout.clone(),
        keep_what_is_right: node.written_before,
        own_disk: node.own_disk().map(str::to_owned),
        memory_budget_bytes: memory,
        linger_seconds: if alone { 0 } else { config.swarm.linger_seconds },
        report_seconds: app.keeper.policy().report_seconds(deployment.outcomes.len()),
        post: post_plan(app, node, &post, node_token),
    })
}

/// With the rack, which the tracker cannot know from the address.
fn announce_url(app: &App, node: &Node) -> String {
    let url = app.announce_url();
    // Names of racks need no escapes.
    node.rack.as_ref().map_or_else(|| url.clone(), |rack| format!("{url}?rack={rack}"))
}

/// The node's settings over its rack's over everybody's.
fn merged(app: &App, state: &FleetState, node: &Node) -> PostSettings {
    let rack = node.rack.as_ref().and_then(|rack| state.snapshot().racks.get(rack));
    let wider = rack.map_or_else(|| app.config.post.clone(), |rack| rack.post.over(&app.config.post));
    node.post.over(&wider)
}

fn post_plan(app: &App, node: &Node, post: &PostSettings, node_token: api::agent::Token) -> PostPlan {
    let config = &app.config.node;
    PostPlan {
        host_name: node.name.to_string(),
        authorized_keys: post.authorized_keys.clone().unwrap_or_default(),
        network: post.network.clone().unwrap_or_default(),
        user_data: post.user_data.clone(),
        grow_root: post.grow_root.unwrap_or(true),
        script: post.script.clone(),
        kexec: post.kexec.unwrap_or(false),
        action_limit_seconds: config.action_limit_seconds,
        controller_url: app.base_url(),
        node_token,
        heartbeat_seconds: config.heartbeat_seconds,
        watch_processes: config.watch_processes.clone(),
    }
}

/// `known` is the node's last progress, which [`ReportKind::Alive`] repeats.
fn event(node: NodeName, attempt: Attempt, what: ReportKind, known: Progress) -> Event {
    match what {
        ReportKind::Alive => Event::Progressed { node, attempt, progress: known },
        ReportKind::CaptureStarted { text } => Event::CaptureStarted { node, attempt, text: short(text) },
        ReportKind::Captured { text } => Event::Captured { node, attempt, text: short(text) },
        ReportKind::WipeStarted { text } => Event::WipeStarted { node, attempt, text: short(text) },
        ReportKind::DiskWiped { certificate } => {
            Event::DiskWiped { node, attempt, certificate: Box::new(bounded(*certificate)) }
        }
        ReportKind::Wiped { text } => Event::Wiped { node, attempt, text: short(text) },
        ReportKind::SwitchesHeard { cards: told } => Event::SwitchesHeard { node, attempt, cards: cards(&told) },
        ReportKind::FetchStarted { disk, text } => {
            Event::FetchStarted { node, attempt, disk: short(disk), text: short(text) }
        }
        ReportKind::Progress(progress) => Event::Progressed { node, attempt, progress },
        ReportKind::Ledger(ledger) => Event::Booked { node, attempt, ledger: ledger.bounded() },
        ReportKind::ImageVerified { text } => Event::ImageVerified { node, attempt, text: short(text) },
        ReportKind::PostActionDone { action, milliseconds, output } => {
            let output = output.trim();
            let colon = if output.is_empty() { "" } else { ": " };
            let text = short(format!("{action} done in {milliseconds} ms{colon}{output}"));
            Event::PostActionDone { node, attempt, text }
        }
        ReportKind::PostActionsDone => Event::PostActionsDone {
            node,
            attempt,
            text: "post actions are done; the deployed system starts".to_owned(),
        },
        ReportKind::Failed { reason, retry } => Event::StageFailed { node, attempt, reason: short(reason), retry },
    }
}

/// A certificate with its sentences cut, and no more of them than there are reasons to give.
fn bounded(certificate: Certificate) -> Certificate {
    let few = |text: String| -> String { text.chars().take(SENTENCE_CHARACTERS).collect() };
    let some = |texts: Vec<String>| texts.into_iter().take(SENTENCES).map(few).collect();
    Certificate {
        disk: few(certificate.disk),
        path: few(certificate.path),
        model: certificate.model.map(few),
        serial: certificate.serial.map(few),
        wwn: certificate.wwn.map(few),
        reasons: some(certificate.reasons),
        notes: some(certificate.notes),
        agent_version: few(certificate.agent_version),
        ..certificate
    }
}

fn describe(register: &Register) -> String {
    let disks: Vec<String> = register
        .disks
        .iter()
        .map(|disk| match disk.contents.as_slice() {
            [] => format!("{disk}, blank"),
            contents => format!("{disk}, holding {}", contents.join(" and ")),
        })
        .collect();
    format!(
        "agent {} is up on {}: {} processors, {} of memory; disks: {}",
        register.agent_version,
        register.product,
        register.processors,
        Size(register.memory_bytes),
        if disks.is_empty() { "none".to_owned() } else { disks.join("; ") }
    )
}

/// Cuts what a node says to a bounded length, at a character.
fn short(mut text: String) -> String {
    if text.len() > TEXT_LIMIT_BYTES {
        let end = (0..=TEXT_LIMIT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn long_sentences_are_cut_at_a_character() {
        let cut = short("ä".repeat(TEXT_LIMIT_BYTES));
        assert!(cut.len() <= TEXT_LIMIT_BYTES + 4 && cut.ends_with("ä …"), "{}", cut.len());
        assert_eq!(short("as it is".to_owned()), "as it is");
    }

    #[test]
    fn every_report_becomes_the_event_of_its_name() {
        let node: NodeName = "n1".parse().unwrap();
        let known = Progress { done_bytes: 7, ..Progress::default() };
        let of = |what| event(node.clone(), Attempt(3), what, known);
        assert!(matches!(of(ReportKind::Alive), Event::Progressed { progress, .. } if progress == known));
        assert!(matches!(of(ReportKind::PostActionsDone), Event::PostActionsDone { .. }));
        let done = ReportKind::PostActionDone { action: "hostname".into(), milliseconds: 5, output: "  ".into() };
        assert!(matches!(of(done), Event::PostActionDone { text, .. } if text == "hostname done in 5 ms"));
        let failed = ReportKind::Failed { reason: "no disk".into(), retry: false };
        assert!(matches!(of(failed), Event::StageFailed { retry: false, attempt: Attempt(3), .. }));
    }
}
