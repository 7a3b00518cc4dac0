//! A conversation with one controller: logged in once, every request bounded and repeated only where that is safe, logged
//! out whatever happens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Auth, Redfish, messages};
use crate::gate::Gate;
use crate::http::{Answer, Http};
use crate::quirks::{self, Effect, EtagForm, Facts, Meaning};
use crate::secret::Secret;
use crate::{Advice, Error, Result};

/// A system resource has some 10 KiB; a big collection some 100.
const ANSWER_BYTES: usize = 1024 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the end of a session may take when nobody waits for it any more.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const ROOT: &str = "/redfish/v1/";

pub(super) struct Talk {
    http: Arc<Http>,
    gate: Arc<Gate>,
    target: String,
    origin: String,
    user: String,
    secret: Secret,
    attempts: u32,
    task_limit: Duration,
    /// The service root, which is read without a login (DSP0266, section Authentication).
    pub(super) root: Value,
    pub(super) facts: Facts,
    sessions_at: Option<String>,
    session: Mutex<Option<Session>>,
}

#[derive(Clone)]
struct Session {
    token: Secret,
    path: Option<String>,
}

impl Talk {
    /// Reads the service root and logs in, if the budget allows.
    pub(super) async fn open(bmc: &Redfish, gate: &Arc<Gate>) -> Result<Talk> {
        let target = bmc.target();
        let secret = Secret::read(&bmc.password_file, &target, "password").await?;
        gate.may_log_in(&target, &secret, bmc.budget)?;
        let mut talk = Talk {
            http: Arc::new(Http::new(&target, bmc.call_limit, ANSWER_BYTES)?),
            gate: Arc::clone(gate),
            origin: format!("http://{}", bmc.server),
            user: bmc.user.clone(),
            secret,
            attempts: bmc.attempts,
            task_limit: bmc.task_limit,
            root: Value::Null,
            facts: Facts::default(),
            sessions_at: None,
            session: Mutex::new(None),
            target,
        };
        let answer = talk.repeat(&Method::GET, ROOT, &|| talk.bare(Method::GET, ROOT)).await?;
        talk.root = messages::json(&talk.target, &format!("GET {ROOT}"), &answer)?;
        talk.facts = Facts::of_root(&talk.root);
        let basic = bmc.auth == Auth::Basic || (bmc.auth == Auth::Either && talk.facts.has(Effect::BasicOnly));
        if !basic {
            talk.sessions_at = Some(talk.sessions_path()?);
            let found = talk.log_in().await?;
            if !found && bmc.auth == Auth::Session {
                return Err(Error::refused(&talk.target, "it has no session service; say `auth=basic` in the address"));
            }
            if !found {
                talk.sessions_at = None;
            }
        }
        Ok(talk)
    }

    /// Logs out. A session whose end is not confirmed is counted, for the controller has one less until it forgets it.
    pub(super) async fn close(self) {
        if let Some(session) = self.take_session() {
            end(Arc::clone(&self.http), Arc::clone(&self.gate), self.origin.clone(), session).await;
        }
    }

    /// A resource.
    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.call(Method::GET, path, None, None).await?;
        messages::json(&self.target, &format!("GET {path}"), &answer)
    }

    /// Changes a resource under the `If-Match` of what was read just before; the answer's task is followed to its end.
    pub(super) async fn change(&self, path: &str, body: &Value) -> Result<()> {
        let what = format!("PATCH {path}");
        let mut pause = FIRST_PAUSE;
        let (mut form, mut later) = (0, 0);
        loop {
            let current = self.call(Method::GET, path, None, None).await?;
            let content = messages::json(&self.target, &format!("GET {path}"), &current)?;
            let inner = content.get("@odata.etag").and_then(Value::as_str);
            let etag = quirks::if_match(quirks::ETAG_FORMS[form].0, current.header("etag"), inner);
            let answer = self.call(Method::PATCH, path, Some(body), etag.as_deref()).await?;
            if answer.is_success() {
                return self.follow(&what, answer).await;
            }
            let meanings = messages::meanings(&answer);
            if (matches!(answer.status, 412 | 428) || meanings.contains(&Meaning::WantsEtag))
                && form + 1 < quirks::ETAG_FORMS.len()
            {
                form += 1;
                tracing::debug!(bmc = self.target, form, "If-Match is written in another way");
                continue;
            }
            let error = messages::explain(&self.target, &what, &answer);
            if error.advice() == Advice::Refuse || later + 1 >= self.attempts {
                return Err(error);
            }
            later += 1;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Starts an action and follows its task. It is sent once: who started twice, switches twice.
    pub(super) async fn act(&self, path: &str, body: &Value) -> Result<()> {
        let what = format!("POST {path}");
        let answer = self.call(Method::POST, path, Some(body), None).await?;
        if !answer.is_success() {
            return Err(messages::explain(&self.target, &what, &answer));
        }
        self.follow(&what, answer).await
    }

    /// The path of a reference to another resource. It must be on this controller: a reference elsewhere would get our
    /// password.
    pub(super) fn local(&self, reference: &str) -> Result<String> {
        let path = reference.strip_prefix(&self.origin).unwrap_or(reference);
        if path.starts_with('/') && !path.starts_with("//") && path.chars().all(|c| c.is_ascii_graphic()) {
            return Ok(path.to_owned());
        }
        Err(Error::refused(
            &self.target,
            format!(
                "it refers to `{}`, which is not a path of its own; that is not followed",
                crate::http::excerpt(path)
            ),
        ))
    }

    /// `{"@odata.id": path}` under a name.
    pub(super) fn reference(&self, value: &Value, name: &str) -> Option<Result<String>> {
        let reference = value.get(name)?.get("@odata.id")?.as_str()?;
        Some(self.local(reference))
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>, if_match: Option<&str>) -> Result<Answer> {
        let mut renewed = false;
        loop {
            let build = || {
                let mut request = self.authorised(self.bare(method.clone(), path));
                if let Some(body) = body {
                    request = request.header("Content-Type", "application/json").body(body.to_string());
                }
                match if_match {
                    Some(etag) => request.header("If-Match", etag),
                    None => request,
                }
            };
            let answer = self.repeat(&method, path, &build).await?;
            if answer.status != 401 {
                if answer.is_success() {
                    self.gate.login_worked();
                }
                return Ok(answer);
            }
            // A session may have been dropped: by its age, by a restart, by another administrator. One new login is fair.
            let dropped = self.take_session().is_some();
            if !dropped || renewed {
                self.gate.login_refused(&self.secret);
                return Err(messages::explain(&self.target, &format!("{method} {path}"), &answer));
            }
            self.gate.session_ended(false);
            renewed = true;
            self.log_in().await?;
        }
    }

    /// Sends, and again when the controller was busy. A broken connection is repeated only when the request changes nothing
    /// by being repeated: not after a POST, which may have been carried out.
    async fn repeat(&self, method: &Method, path: &str, build: &(dyn Fn() -> RequestBuilder + Sync)) -> Result<Answer> {
        let what = format!("{method} {path}");
        let (mut attempt, mut pause) = (1, FIRST_PAUSE);
        loop {
            let result = self.http.send(&what, build()).await;
            let again = attempt < self.attempts;
            let wait = match &result {
                Ok(answer) if again && matches!(answer.status, 429 | 502..=504) => answer.retry_after(LONGEST_PAUSE),
                Ok(_) => return result,
                Err(error) if again && *method != Method::POST && error.advice() == Advice::Retry => None,
                Err(_) => return result,
            };
            tracing::debug!(bmc = self.target, what, attempt, "the controller is asked again");
            sleep(wait.unwrap_or(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }

    fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, &format!("{}{path}", self.origin));
        request.header("Accept", "application/json").header("OData-Version", "4.0")
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match session {
            Some(session) => request.header("X-Auth-Token", session.token.expose()),
            None => request.basic_auth(&self.user, Some(self.secret.expose())),
        }
    }

    fn sessions_path(&self) -> Result<String> {
        let given = self.root.get("Links").and_then(|links| self.reference(links, "Sessions"));
        given.unwrap_or_else(|| Ok("/redfish/v1/SessionService/Sessions".to_owned()))
    }

    /// Opens a session; false when there is no such service.
    async fn log_in(&self) -> Result<bool> {
        let Some(path) = &self.sessions_at else { return Ok(false) };
        let what = format!("POST {path}");
        let body = json!({"UserName": self.user, "Password": self.secret.expose()}).to_string();
        let build = || self.bare(Method::POST, path).header("Content-Type", "application/json").body(body.clone());
        let answer = self.repeat(&Method::POST, path, &build).await?;
        match answer.status {
            200..=299 => {}
            404 | 405 | 501 => return Ok(false),
            400 | 401 | 403 if !messages::meanings(&answer).contains(&Meaning::SessionsFull) => {
                self.gate.login_refused(&self.secret);
                let words = messages::words(&answer);
                return Err(Error::refused(
                    &self.target,
                    format!(
                        "it refuses the login of `{}` (status {}: {words}); correct the user in the address or the password file, and look whether the account is locked (this password is not tried again)",
                        self.user, answer.status
                    ),
                ));
            }
            _ => return Err(messages::explain(&self.target, &what, &answer)),
        }
        let token = answer.header("x-auth-token").ok_or_else(|| {
            Error::refused(&self.target, "it opened a session without a token; say `auth=basic` in the address")
        })?;
        let inside = serde_json::from_slice::<Value>(&answer.body).ok();
        let place = answer.header("location").map(str::to_owned).or_else(|| {
            inside.as_ref().and_then(|body| body.get("@odata.id")).and_then(Value::as_str).map(str::to_owned)
        });
        let session = Session { token: Secret::new(token), path: place.and_then(|place| self.local(&place).ok()) };
        self.gate.login_worked();
        self.gate.session_opened();
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        Ok(true)
    }

    /// Waits for the end of a task (DSP0266, section Asynchronous operations): status 202 and a monitor to ask.
    async fn follow(&self, what: &str, answer: Answer) -> Result<()> {
        if answer.status != 202 {
            return Ok(());
        }
        let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or(Value::Null);
        let inside = body.get("@odata.id").and_then(Value::as_str).map(str::to_owned);
        // Without a monitor there is nothing to follow; what was asked is read back anyway.
        let Some(monitor) = answer.header("location").map(str::to_owned).or(inside) else { return Ok(()) };
        let monitor = self.local(&monitor)?;
        let deadline = Instant::now() + self.task_limit;
        let mut pause = answer.retry_after(LONGEST_PAUSE).unwrap_or(FIRST_PAUSE);
        loop {
            if Instant::now() + pause > deadline {
                return Err(Error::transient(
                    &self.target,
                    format!(
                        "its task for {what} is not done after {} s; look at {monitor} on the controller (`task_seconds=` in the address changes the limit)",
                        self.task_limit.as_secs()
                    ),
                ));
            }
            sleep(pause).await;
            let answer = self.call(Method::GET, &monitor, None, None).await?;
            match answer.status {
                // Gone: many controllers forget a task as soon as it is done. What was asked is read back anyway.
                404 | 410 => return Ok(()),
                200..=299 => {}
                _ => return Err(messages::explain(&self.target, what, &answer)),
            }
            let task = serde_json::from_slice::<Value>(&answer.body).unwrap_or(Value::Null);
            match task.get("TaskState").and_then(Value::as_str) {
                Some("Completed") => return Ok(()),
                Some(state @ ("Exception" | "Killed" | "Cancelled" | "Interrupted" | "Suspended")) => {
                    let words = messages::words_of(&task).unwrap_or_else(|| "no reason given".to_owned());
                    return Err(Error::transient(
                        &self.target,
                        format!("its task for {what} ended as {state}: {words}; look at the controller's log"),
                    ));
                }
                Some(_) => {}
                None if answer.status != 202 => return Ok(()),
                None => {}
            }
            pause = answer.retry_after(LONGEST_PAUSE).unwrap_or((pause * 2).min(LONGEST_PAUSE));
        }
    }

    fn take_session(&self) -> Option<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Talk {
    /// Whoever gave up in the middle (a deadline, a cancelled deployment) leaves no session behind.
    fn drop(&mut self) {
        let Some(session) = self.take_session() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let (http, gate, origin) = (Arc::clone(&self.http), Arc::clone(&self.gate), self.origin.clone());
                runtime.spawn(end(http, gate, origin, session));
            }
            Err(_) => self.gate.session_ended(false),
        }
    }
}

async fn end(http: Arc<Http>, gate: Arc<Gate>, origin: String, session: Session) {
    let Some(path) = &session.path else { return gate.session_ended(false) };
    let request =
        http.request(Method::DELETE, &format!("{origin}{path}")).header("X-Auth-Token", session.token.expose());
    let answer = timeout(CLOSE_LIMIT, http.send(&format!("DELETE {path}"), request)).await;
    let confirmed = matches!(answer, Ok(Ok(answer)) if answer.is_success() || answer.status == 404);
    if !confirmed {
        tracing::warn!(origin, "a session's end was not confirmed; the controller keeps it until it times out");
    }
    gate.session_ended(confirmed);
}

/// The forms are tried in order, so there must be one.
const _: () = assert!(!quirks::ETAG_FORMS.is_empty() && matches!(quirks::ETAG_FORMS[0].0, EtagForm::AsGiven));
