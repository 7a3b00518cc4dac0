//! What the controller does with a request: who asks, whether he may, what he wants.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::answer::{Answer, later, located, nothing, refusal, resource};
use super::{Boot, Etag, Once, Service, System};
use crate::{BootDevice, State};

const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
const RESETS: [&str; 4] = ["On", "ForceOff", "ForceRestart", "PowerCycle"];
const TARGETS: [&str; 4] = ["None", "Pxe", "Hdd", "UefiHttp"];
const ENABLED: [&str; 3] = ["Disabled", "Once", "Continuous"];

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new().fallback(entry).with_state(service)
}

async fn entry(
    Shared(service): Shared<Arc<Service>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let request = {
        let mut book = service.book();
        book.seen.requests += 1;
        book.seen.requests
    };
    sleep(service.rules.latency).await;
    if crate::fake::mix("virtual controller", request) % 100 < service.rules.loss {
        std::future::pending::<()>().await;
    }
    {
        let mut busy = service.busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *busy > 0 {
            *busy -= 1;
            return later("The service is busy.");
        }
    }
    let path = uri.path().trim_end_matches('/');
    // The root and the login are open to everybody (DSP0266, section Authentication).
    match (&method, path) {
        (&Method::GET, "/redfish/v1") => return resource(&root(&service), None),
        (&Method::POST, SESSIONS) => return service.log_in(&body),
        _ => {}
    }
    if let Err(answer) = service.admit(&headers) {
        return *answer;
    }
    let parts: Vec<&str> = path.trim_start_matches("/redfish/v1").split('/').skip(1).collect();
    match (&method, parts.as_slice()) {
        (&Method::DELETE, ["SessionService", "Sessions", id]) => service.log_out(id),
        (&Method::GET, ["Systems"]) => resource(&collection(&service), None),
        (&Method::GET, ["TaskService", "TaskMonitors", id]) => service.task(id),
        (_, ["Systems", id, rest @ ..]) => match service.systems.get(*id) {
            None => refusal(StatusCode::NOT_FOUND, "Base.1.18.ResourceMissingAtURI", "There is no such system."),
            Some(system) => of_system(&service, system, id, &method, rest, &headers, &body).await,
        },
        _ => refusal(StatusCode::NOT_FOUND, "Base.1.18.ResourceMissingAtURI", "There is no such resource."),
    }
}

async fn of_system(
    service: &Arc<Service>,
    system: &System,
    id: &str,
    method: &Method,
    rest: &[&str],
    headers: &HeaderMap,
    body: &Bytes,
) -> Answer {
    let changed_here = |place: &[&str]| place == if service.rules.settings { &["Settings"][..] } else { &[][..] };
    match (method, rest) {
        (&Method::GET, []) => service.shown(system, id).await,
        (&Method::GET, ["Settings"]) if service.rules.settings => {
            let boot = system.boot();
            let etag = service.etag(&boot);
            resource(
                &json!({"@odata.id": format!("/redfish/v1/Systems/{id}/Settings"), "Boot": boot_section(&boot)}),
                etag.as_deref(),
            )
        }
        (&Method::GET, ["EthernetInterfaces"]) => resource(&cards(system, id), None),
        (&Method::GET, ["EthernetInterfaces", number]) => match card(system, id, number) {
            Some(card) => resource(&card, None),
            None => refusal(StatusCode::NOT_FOUND, "Base.1.18.ResourceMissingAtURI", "There is no such card."),
        },
        (&Method::GET, ["ResetActionInfo"]) => resource(
            &json!({"Id": "ResetActionInfo", "Parameters": [{"Name": "ResetType", "Required": true, "AllowableValues": RESETS}]}),
            None,
        ),
        (&Method::PATCH, place) if changed_here(place) => service.change(system, headers, body),
        (&Method::POST, ["Actions", "ComputerSystem.Reset"]) => service.reset(id, body).await,
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "Base.1.18.OperationNotAllowed", "This is not allowed here."),
    }
}

fn root(service: &Service) -> Value {
    json!({"@odata.id": "/redfish/v1/", "Id": "RootService", "Name": "Virtual controller", "RedfishVersion": "1.18.0",
        "Vendor": service.rules.vendor, "Product": "Rackswarm virtual BMC",
        "Systems": {"@odata.id": "/redfish/v1/Systems"},
        "SessionService": {"@odata.id": "/redfish/v1/SessionService"},
        "Links": {"Sessions": {"@odata.id": SESSIONS}}})
}

fn collection(service: &Service) -> Value {
    let members: Vec<Value> =
        service.systems.keys().map(|id| json!({"@odata.id": format!("/redfish/v1/Systems/{id}")})).collect();
    json!({"@odata.id": "/redfish/v1/Systems", "Members@odata.count": members.len(), "Members": members})
}

fn cards(system: &System, id: &str) -> Value {
    let place = format!("/redfish/v1/Systems/{id}/EthernetInterfaces");
    let members: Vec<Value> =
        (1..=system.identity.macs.len()).map(|number| json!({"@odata.id": format!("{place}/{number}")})).collect();
    json!({"@odata.id": place, "Members@odata.count": members.len(), "Members": members})
}

fn card(system: &System, id: &str, number: &str) -> Option<Value> {
    let index = number.parse::<usize>().ok()?.checked_sub(1)?;
    let mac = system.identity.macs.get(index)?.to_uppercase();
    Some(json!({"@odata.id": format!("/redfish/v1/Systems/{id}/EthernetInterfaces/{number}"), "Id": number,
        "PermanentMACAddress": mac, "MACAddress": mac}))
}

fn boot_section(boot: &Boot) -> Value {
    json!({"BootSourceOverrideEnabled": boot.enabled, "BootSourceOverrideTarget": boot.target,
        "BootSourceOverrideMode": boot.mode, "BootSourceOverrideTarget@Redfish.AllowableValues": TARGETS})
}

fn parsed(body: &Bytes) -> Result<Value, Box<Answer>> {
    let wrong =
        || Box::new(refusal(StatusCode::BAD_REQUEST, "Base.1.18.MalformedJSON", "The body is not a JSON object."));
    serde_json::from_slice::<Value>(body).ok().filter(Value::is_object).ok_or_else(wrong)
}

impl Service {
    fn log_in(&self, body: &Bytes) -> Answer {
        let Ok(body) = parsed(body) else {
            return refusal(StatusCode::BAD_REQUEST, "Base.1.18.MalformedJSON", "The body is not a JSON object.");
        };
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        if !self.is_right(&text("UserName"), &text("Password")) {
            return refusal(StatusCode::UNAUTHORIZED, "Base.1.18.ResourceAtUriUnauthorized", "The login is refused.");
        }
        let mut book = self.book();
        if book.sessions.len() >= self.rules.sessions {
            return refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "Base.1.18.SessionLimitExceeded",
                "The maximum number of sessions is reached.",
            );
        }
        book.numbers += 1;
        let (number, token) = (book.numbers, uuid::Uuid::new_v4().simple().to_string());
        book.sessions.insert(token.clone(), (number, 0));
        book.seen.logins += 1;
        book.seen.most_sessions = book.seen.most_sessions.max(book.sessions.len());
        let place = format!("{SESSIONS}/{number}");
        let mut answer = located(StatusCode::CREATED, &place, &json!({"@odata.id": place, "Id": number.to_string()}));
        if let Ok(token) = token.parse() {
            answer.headers_mut().insert("X-Auth-Token", token);
        }
        answer
    }

    fn log_out(&self, id: &str) -> Answer {
        let mut book = self.book();
        let before = book.sessions.len();
        book.sessions.retain(|_, (number, _)| number.to_string() != id);
        if book.sessions.len() == before {
            return refusal(StatusCode::NOT_FOUND, "Base.1.18.ResourceMissingAtURI", "There is no such session.");
        }
        nothing()
    }

    /// Counts wrong passwords and locks the account; a locked one refuses the right password too.
    fn is_right(&self, user: &str, password: &str) -> bool {
        let mut book = self.book();
        let right = self.login == (user.to_owned(), password.to_owned()) && !self.is_locked(&book);
        if right {
            book.wrong = 0;
            book.locked_at = None;
            return true;
        }
        book.seen.refused += 1;
        book.wrong += 1;
        if self.rules.lockout > 0 && book.wrong >= self.rules.lockout && !self.is_locked(&book) {
            book.locked_at = Some(Instant::now());
        }
        false
    }

    /// Lets in who has a session, or a password where that is allowed.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Box<Answer>> {
        let refused =
            || Box::new(refusal(StatusCode::UNAUTHORIZED, "Base.1.18.ResourceAtUriUnauthorized", "Log in first."));
        if let Some(token) = headers.get("x-auth-token").and_then(|value| value.to_str().ok()) {
            let mut book = self.book();
            let (_, uses) = book.sessions.get_mut(token).ok_or_else(refused)?;
            *uses += 1;
            if self.rules.drop > 0 && *uses > self.rules.drop {
                book.sessions.remove(token);
                return Err(refused());
            }
            return Ok(());
        }
        let header = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let pair = header.strip_prefix("Basic ").and_then(|text| BASE64.decode(text.as_bytes()).ok());
        let pair = pair.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        match pair.split_once(':') {
            Some((user, password)) if self.rules.basic && self.is_right(user, password) => Ok(()),
            _ => Err(refused()),
        }
    }

    async fn shown(&self, system: &System, id: &str) -> Answer {
        let now = system.machine.state().await.unwrap_or(State::Unknown);
        let boot = system.boot();
        let state = match boot.shown_before {
            _ if self.rules.lie_state => State::On,
            Some((before, since)) if since.elapsed() < self.rules.late => before,
            _ => now,
        };
        let word = match state {
            State::On => json!("On"),
            State::Off => json!("Off"),
            State::Unknown => Value::Null,
        };
        let path = format!("/redfish/v1/Systems/{id}");
        let mut reset = json!({"target": format!("{path}/Actions/ComputerSystem.Reset")});
        if self.rules.action_info {
            reset["@Redfish.ActionInfo"] = json!(format!("{path}/ResetActionInfo"));
        } else {
            reset["ResetType@Redfish.AllowableValues"] = json!(RESETS);
        }
        let mut value = json!({"@odata.id": path, "Id": id, "Name": id, "Manufacturer": "Rackswarm", "Model": "Virtual",
            "SerialNumber": id, "UUID": system.identity.uuid, "PowerState": word,
            "EthernetInterfaces": {"@odata.id": format!("{path}/EthernetInterfaces")},
            "Actions": {"#ComputerSystem.Reset": reset}});
        if self.rules.settings {
            value["@Redfish.Settings"] = json!({"SettingsObject": {"@odata.id": format!("{path}/Settings")}});
            value["Boot"] = json!({"BootSourceOverrideTarget@Redfish.AllowableValues": TARGETS});
        } else {
            value["Boot"] = boot_section(&boot);
        }
        let etag = self.etag(&boot);
        if let Some(etag) = &etag {
            value["@odata.etag"] = json!(etag);
        }
        resource(&value, etag.as_deref())
    }

    fn etag(&self, boot: &Boot) -> Option<String> {
        (self.rules.etag != Etag::None).then(|| format!("W/\"{}\"", boot.revision))
    }

    fn change(&self, system: &System, headers: &HeaderMap, body: &Bytes) -> Answer {
        let body = match parsed(body) {
            Ok(body) => body,
            Err(answer) => return *answer,
        };
        let mut boot = system.boot();
        if let Err(answer) = self.matches(&boot, headers) {
            self.book().seen.conflicts += 1;
            return *answer;
        }
        if boot.started.is_some_and(|at| at.elapsed() < self.rules.post) {
            return refusal(
                StatusCode::BAD_REQUEST,
                "iLO.2.37.UnableToModifyDuringSystemPOST",
                "The machine is in its power-on self-test.",
            );
        }
        match wanted(&body, &boot) {
            Err(answer) => *answer,
            Ok((enabled, target, mode)) => {
                if self.rules.once != Once::Ignored {
                    let lasting = enabled == "Once" && self.rules.once == Once::Continuous;
                    boot.enabled = if lasting { "Continuous".into() } else { enabled };
                    boot.target = target;
                    boot.mode = mode;
                }
                boot.revision += 1;
                nothing()
            }
        }
    }

    fn matches(&self, boot: &Boot, headers: &HeaderMap) -> Result<(), Box<Answer>> {
        let Some(etag) = self.etag(boot) else { return Ok(()) };
        let given = headers.get("if-match").and_then(|value| value.to_str().ok());
        let wanted = if self.rules.etag == Etag::Strong { etag.trim_start_matches("W/") } else { &etag };
        match given {
            None if self.rules.etag == Etag::Optional => Ok(()),
            None => Err(Box::new(refusal(
                StatusCode::PRECONDITION_REQUIRED,
                "Base.1.18.PreconditionRequired",
                "The request needs an If-Match header.",
            ))),
            Some(given) if given == wanted || given == "*" => Ok(()),
            Some(_) => Err(Box::new(refusal(
                StatusCode::PRECONDITION_FAILED,
                "Base.1.18.PreconditionFailed",
                "The ETag did not match.",
            ))),
        }
    }

    /// Checks the reset, and does it at once or as a task.
    async fn reset(self: &Arc<Self>, id: &str, body: &Bytes) -> Answer {
        let body = match parsed(body) {
            Ok(body) => body,
            Err(answer) => return *answer,
        };
        let word = body["ResetType"].as_str().unwrap_or_default().to_owned();
        if !RESETS.contains(&word.as_str()) {
            return refusal(
                StatusCode::BAD_REQUEST,
                "Base.1.18.ActionParameterNotSupported",
                "The ResetType is not one of the allowable values.",
            );
        }
        let Some(system) = self.systems.get(id) else { return nothing() };
        let state = system.machine.state().await.unwrap_or(State::Unknown);
        if (word == "On") == (state == State::On) && state != State::Unknown {
            return refusal(
                StatusCode::BAD_REQUEST,
                "iLO.2.37.InvalidOperationForSystemState",
                "The machine is in that state already.",
            );
        }
        if self.rules.task.is_zero() {
            return match self.carry_out(id, &word).await {
                Ok(()) => nothing(),
                Err(why) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "Base.1.18.InternalError", &why),
            };
        }
        let number = {
            let mut book = self.book();
            book.numbers += 1;
            let number = book.numbers;
            book.tasks.insert(number, None);
            number
        };
        let (service, id) = (Arc::clone(self), id.to_owned());
        tokio::spawn(async move {
            sleep(service.rules.task).await;
            let result = service.carry_out(&id, &word).await;
            service.book().tasks.insert(number, Some(result));
        });
        let place = format!("/redfish/v1/TaskService/TaskMonitors/{number}");
        located(StatusCode::ACCEPTED, &place, &task_resource(number, "Running", None))
    }

    async fn carry_out(&self, id: &str, word: &str) -> Result<(), String> {
        let Some(system) = self.systems.get(id) else { return Err("the system is gone".into()) };
        if self.rules.lie_power {
            return Ok(());
        }
        let _turn = system.turn.lock().await;
        let machine = &system.machine;
        let before = machine.state().await.map_err(|error| error.to_string())?;
        if word == "ForceOff" {
            machine.off().await.map_err(|error| error.to_string())?;
        } else {
            if let Some(device) = self.ordered(system) {
                machine.boot_next(device).await.map_err(|error| error.to_string())?;
            }
            let started = if word == "On" { machine.on().await } else { machine.cycle().await };
            started.map_err(|error| error.to_string())?;
        }
        let mut boot = system.boot();
        if word != "ForceOff" {
            boot.started = Some(Instant::now());
            if boot.enabled == "Once" {
                boot.enabled = "Disabled".into();
                boot.target = "None".into();
            }
        }
        boot.shown_before = Some((before, Instant::now()));
        boot.revision += 1;
        drop(boot);
        self.book().seen.resets += 1;
        Ok(())
    }

    /// What the start that comes boots from, when it is not the standing order.
    fn ordered(&self, system: &System) -> Option<BootDevice> {
        let boot = system.boot();
        if boot.enabled == "Disabled" || self.rules.once == Once::Forgotten {
            return None;
        }
        match boot.target.as_str() {
            "Pxe" | "UefiHttp" => Some(BootDevice::Network),
            "Hdd" => Some(BootDevice::Disk),
            _ => None,
        }
    }

    fn task(&self, id: &str) -> Answer {
        let book = self.book();
        let number: u64 = id.parse().unwrap_or_default();
        match book.tasks.get(&number) {
            None => refusal(StatusCode::NOT_FOUND, "Base.1.18.ResourceMissingAtURI", "There is no such task."),
            Some(None) => located(
                StatusCode::ACCEPTED,
                &format!("/redfish/v1/TaskService/TaskMonitors/{id}"),
                &task_resource(number, "Running", None),
            ),
            Some(Some(Ok(()))) => resource(&task_resource(number, "Completed", None), None),
            Some(Some(Err(why))) => resource(&task_resource(number, "Exception", Some(why)), None),
        }
    }
}

fn task_resource(number: u64, state: &str, why: Option<&str>) -> Value {
    let messages: Vec<Value> =
        why.iter().map(|why| json!({"MessageId": "Base.1.18.InternalError", "Message": why})).collect();
    json!({"@odata.id": format!("/redfish/v1/TaskService/Tasks/{number}"), "Id": number.to_string(),
        "TaskState": state, "Messages": messages})
}

/// The boot order that a change asks for. Only properties that are there and may be written are taken.
fn wanted(body: &Value, boot: &Boot) -> Result<(String, String, String), Box<Answer>> {
    let unknown = |name: &str| {
        let readable = ["PowerState", "Id", "Model", "Manufacturer", "SerialNumber", "Name", "UUID"].contains(&name);
        let (id, why) = if readable { ("PropertyNotWritable", "read-only") } else { ("PropertyUnknown", "unknown") };
        Box::new(refusal(
            StatusCode::BAD_REQUEST,
            &format!("Base.1.18.{id}"),
            &format!("The property {name} is {why}."),
        ))
    };
    let none = serde_json::Map::new();
    let top = body.as_object().unwrap_or(&none);
    if let Some(name) = top.keys().find(|name| *name != "Boot") {
        return Err(unknown(name));
    }
    let section = body["Boot"].as_object().unwrap_or(&none);
    let (mut enabled, mut target, mut mode) = (boot.enabled.clone(), boot.target.clone(), boot.mode.clone());
    for (name, value) in section {
        let text = value.as_str().unwrap_or_default();
        let (place, allowed): (&mut String, &[&str]) = match name.as_str() {
            "BootSourceOverrideEnabled" => (&mut enabled, &ENABLED),
            "BootSourceOverrideTarget" => (&mut target, &TARGETS),
            "BootSourceOverrideMode" => (&mut mode, &["UEFI", "Legacy"]),
            other => return Err(unknown(other)),
        };
        if !allowed.contains(&text) {
            return Err(Box::new(refusal(
                StatusCode::BAD_REQUEST,
                "Base.1.18.PropertyValueNotInList",
                &format!("The value `{text}` of {name} is not in the list of acceptable values."),
            )));
        }
        *place = text.to_owned();
    }
    Ok((enabled, target, mode))
}
