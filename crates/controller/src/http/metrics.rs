//! Numbers for Prometheus, taken from the state at the moment they are asked
//! for: there is nothing to keep in step.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fleet::change::Snapshot;
use fleet::life::Stage;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::Problem;
use crate::switchboard::Switchboard;

/// Controllers with trouble that are named; more than these are one trouble, and not theirs.
const TROUBLED_CONTROLLERS: usize = 256;

type Labels = [(&'static str, String); 1];

/// All routes of this file.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Numbers in the OpenMetrics text format, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "controller",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"), (status = "default", body = api::Problem)))]
async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let (nodes, unexpected) = app.keeper.read(|state| (by_stage(state.snapshot()), unexpected(state.snapshot())));
    let mut registry = Registry::with_prefix("rackswarm");
    let stages = Family::<Labels, Gauge>::default();
    for (stage, count) in nodes {
        stages.get_or_create(&[("stage", stage.as_str().to_owned())]).set(count);
    }
    registry.register("nodes", "Nodes in each stage", stages);
    let seeded = Family::<Labels, Counter<u64, AtomicU64>>::default();
    for (image, bytes) in app.images.seeded_bytes() {
        seeded.get_or_create(&[("image", image)]).inc_by(bytes);
    }
    registry.register("seeded_bytes", "Payload that the controller's seeder has sent", seeded);
    for (name, help, value) in [
        ("unexpected_events", "Events that no node's life provides for", unexpected),
        ("lost_events", "Events dropped because the queue was full", app.keeper.lost_total()),
    ] {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    power_numbers(&mut registry, &app.switchboard);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the numbers have no text: {error}"))
    })?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

/// What power drivers did, and how the controllers behind them behaved. Controllers without trouble are summed by driver: a
/// hall has ten thousand of them.
fn power_numbers(registry: &mut Registry, switchboard: &Switchboard) {
    let operations = Family::<[(&'static str, &'static str); 3], Counter<u64, AtomicU64>>::default();
    for ((driver, operation, outcome), count) in switchboard.counts() {
        let labels = [("driver", driver), ("operation", operation), ("outcome", outcome)];
        operations.get_or_create(&labels).inc_by(count);
    }
    registry.register("power_operations", "Power operations by driver, operation and outcome", operations);
    let at_work = Gauge::<i64, AtomicI64>::default();
    at_work.set(switchboard.at_work());
    registry.register("power_operations_under_way", "Power operations under way", at_work);

    let sums = Family::<[(&'static str, String); 2], Counter<u64, AtomicU64>>::default();
    let troubles = Family::<[(&'static str, String); 2], Counter<u64, AtomicU64>>::default();
    let mut listed = 0;
    for counts in power::controllers() {
        let driver = counts.controller.split(' ').next().unwrap_or_default().to_owned();
        let trouble = [
            ("session_lost", counts.sessions_lost),
            ("login_refused", counts.logins_refused),
            ("login_withheld", counts.logins_withheld),
        ];
        let all = [("session_opened", counts.sessions_opened), ("session_closed", counts.sessions_closed)];
        for (event, count) in all.into_iter().chain(trouble) {
            sums.get_or_create(&[("driver", driver.clone()), ("event", event.to_owned())]).inc_by(count);
        }
        if trouble.iter().any(|(_, count)| *count > 0) && listed < TROUBLED_CONTROLLERS {
            listed += 1;
            for (event, count) in trouble {
                let labels = [("controller", counts.controller.clone()), ("event", event.to_owned())];
                troubles.get_or_create(&labels).inc_by(count);
            }
        }
    }
    registry.register("power_controller_events", "Sessions and logins at power controllers, by driver", sums);
    registry.register(
        "power_controller_troubles",
        "Sessions lost and logins refused or withheld, of each controller that had any",
        troubles,
    );
}

/// Stages without nodes count as zero, so that a graph does not end.
fn by_stage(snapshot: &Snapshot) -> BTreeMap<Stage, i64> {
    let mut stages: BTreeMap<Stage, i64> = Stage::ALL.into_iter().map(|stage| (stage, 0)).collect();
    for node in snapshot.nodes.values() {
        *stages.entry(node.stage).or_default() += 1;
    }
    stages
}

fn unexpected(snapshot: &Snapshot) -> u64 {
    snapshot.nodes.values().map(|node| u64::from(node.unexpected_total)).sum()
}
