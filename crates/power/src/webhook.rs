//! `webhook:NAME?file=/path/to/hooks.toml` calls what you already have: a power strip, a cloud, a ticket system.
//!
//! The file says which call each operation is. In URLs and bodies `{{machine}}` stands for NAME, and each of
//! `vars=outlet:4,strip:b2` for its value, encoded as the place needs it. Success is what the `[state]` call says, not the
//! answer of the command; without one, a person is asked to look.
//!
//! ```toml
//! token_file = "/etc/rackswarm/strip-token"   # sent as `Authorization: Bearer ...`
//! settle_seconds = 20
//! [on]
//! url = "http://{{strip}}.example/outlets/{{outlet}}"
//! method = "PUT"
//! body = '{"power": "on", "by": "{{machine}}"}'
//! [off]
//! url = "http://{{strip}}.example/outlets/{{outlet}}"
//! method = "PUT"
//! body = '{"power": "off"}'
//! [state]
//! url = "http://{{strip}}.example/outlets/{{outlet}}"
//! pointer = "/power"
//! on = ["on"]
//! off = ["off"]
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::http::{Answer, Http, excerpt, percent_encoded};
use crate::secret::{Secret, read_small};
use crate::{Address, BootDevice, Driver, Error, Outcome, PowerDriver, Result, State, settle};

pub(crate) const DRIVER: Driver = Driver {
    scheme: "webhook",
    help: "an HTTP call for each operation, and one that tells the state: file=/path (needed; see docs/guide/bmcs.md) \
           vars=NAME:VALUE,...",
    example: "webhook:r1n07?file=/etc/rackswarm/strip.toml&vars=strip:b2,outlet:4",
    limit: Duration::from_secs(180),
    controller: |address| address.place().to_owned(),
    at_once: 1,
    network_boot: true,
    by_hand: false,
    parse,
};

const ANSWER_BYTES: usize = 64 * 1024;
const POLL: Duration = Duration::from_millis(500);

struct Webhook {
    file: PathBuf,
    machine: String,
    vars: BTreeMap<String, String>,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hooks {
    token_file: Option<PathBuf>,
    #[serde(default = "authorization")]
    header: String,
    #[serde(default = "bearer")]
    prefix: String,
    #[serde(default = "call_seconds")]
    call_seconds: u64,
    #[serde(default = "settle_seconds")]
    settle_seconds: u64,
    on: Call,
    off: Option<Call>,
    cycle: Option<Call>,
    boot_network: Option<Call>,
    boot_disk: Option<Call>,
    state: Option<Question>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    url: String,
    #[serde(default = "post")]
    method: String,
    body: Option<String>,
    #[serde(default = "json")]
    content_type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    url: String,
    #[serde(default = "get")]
    method: String,
    /// A JSON pointer (RFC 6901) to the word; without one, the whole body is the word.
    pointer: Option<String>,
    on: Vec<String>,
    off: Vec<String>,
}

fn authorization() -> String {
    "Authorization".into()
}

fn bearer() -> String {
    "Bearer ".into()
}

fn call_seconds() -> u64 {
    10
}

fn settle_seconds() -> u64 {
    30
}

fn post() -> String {
    "POST".into()
}

fn get() -> String {
    "GET".into()
}

fn json() -> String {
    "application/json".into()
}

fn parse(address: &mut Address) -> Result<Box<dyn PowerDriver>> {
    let machine = address.place().to_owned();
    if machine.is_empty() {
        return Err(address.wrong("the machine needs a name"));
    }
    let file =
        address.file("file")?.ok_or_else(|| address.wrong("`file=` is missing: the TOML file with the calls"))?;
    let mut vars = BTreeMap::from([("machine".to_owned(), machine.clone())]);
    for pair in address.take("vars").iter().flat_map(|list| list.split(',')) {
        let (name, value) =
            pair.split_once(':').ok_or_else(|| address.wrong(format!("`{pair}` in `vars=` is not NAME:VALUE")))?;
        vars.insert(name.to_owned(), value.to_owned());
    }
    Ok(Box::new(Webhook { file, machine, vars }))
}

/// Puts the values into `{{name}}`, encoded by `encode`.
fn filled(
    template: &str,
    vars: &BTreeMap<String, String>,
    encode: fn(&str) -> String,
) -> std::result::Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, behind) = after.split_once("}}").ok_or("a `{{` is not closed by `}}`")?;
        let value = vars.get(name.trim()).ok_or_else(|| format!("`{{{{{name}}}}}` has no value; say it by `vars=`"))?;
        text.push_str(before);
        text.push_str(&encode(value));
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

/// As the inside of a JSON string.
fn json_encoded(value: &str) -> String {
    let quoted = Value::from(value).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn plain_text(value: &str) -> String {
    value.to_owned()
}

/// Hooks with what a call needs.
struct Ready {
    hooks: Hooks,
    http: Http,
    token: Option<Secret>,
}

impl Webhook {
    fn target(&self) -> String {
        format!("webhook machine {}", self.machine)
    }

    async fn ready(&self) -> Result<Ready> {
        let target = self.target();
        let text = read_small(&self.file, &target, "webhook").await?;
        let wrong = |why: String| Error::refused(&target, format!("{}: {why}", self.file.display()));
        let hooks: Hooks = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        for (name, seconds, most) in
            [("call_seconds", hooks.call_seconds, 120), ("settle_seconds", hooks.settle_seconds, 120)]
        {
            if !(1..=most).contains(&seconds) {
                return Err(wrong(format!("`{name} = {seconds}` is not from 1 to {most}")));
            }
        }
        let token = match &hooks.token_file {
            Some(path) => Some(Secret::read(path, &target, "token").await?),
            None => None,
        };
        let http = Http::new(&target, Duration::from_secs(hooks.call_seconds), ANSWER_BYTES)?;
        Ok(Ready { hooks, http, token })
    }

    async fn send(&self, ready: &Ready, what: &str, call: &Call) -> Result<Answer> {
        let wrong = |why: String| Error::refused(&self.target(), format!("{}: [{what}]: {why}", self.file.display()));
        let url = filled(&call.url, &self.vars, percent_encoded).map_err(wrong)?;
        if !url.starts_with("http://") {
            return Err(wrong("its `url` does not begin with http://; this version has no TLS yet".to_owned()));
        }
        let method =
            Method::from_bytes(call.method.as_bytes()).map_err(|_| wrong(format!("`{}` is no method", call.method)))?;
        let mut request = ready.http.request(method, &url);
        if let Some(body) = &call.body {
            let encode = if call.content_type.contains("json") { json_encoded } else { plain_text };
            let body = filled(body, &self.vars, encode).map_err(wrong)?;
            request = request.header("Content-Type", &call.content_type).body(body);
        }
        if let Some(token) = &ready.token {
            request = request.header(&ready.hooks.header, format!("{}{}", ready.hooks.prefix, token.expose()));
        }
        let answer = ready.http.send(&format!("the call [{what}]"), request).await?;
        if answer.is_success() {
            return Ok(answer);
        }
        let why = format!("the call [{what}] came back with status {}: {}", answer.status, answer.excerpt());
        Err(match answer.status {
            429 | 500.. => Error::transient(&self.target(), format!("{why}; it is tried again later")),
            401 | 403 => Error::refused(&self.target(), format!("{why}; correct the token file")),
            _ => Error::refused(&self.target(), format!("{why}; correct the call in {}", self.file.display())),
        })
    }

    async fn ask(&self, ready: &Ready) -> Result<State> {
        let Some(question) = &ready.hooks.state else { return Ok(State::Unknown) };
        let call =
            Call { url: question.url.clone(), method: question.method.clone(), body: None, content_type: json() };
        let answer = self.send(ready, "state", &call).await?;
        Ok(self.understood(question, &answer))
    }

    fn understood(&self, question: &Question, answer: &Answer) -> State {
        let text = String::from_utf8_lossy(&answer.body);
        let word = match &question.pointer {
            None => Some(text.trim().to_owned()),
            Some(pointer) => serde_json::from_str::<Value>(&text).ok().and_then(|body| {
                body.pointer(pointer).map(|found| found.as_str().map_or_else(|| found.to_string(), str::to_owned))
            }),
        };
        match word {
            Some(word) if question.on.contains(&word) => State::On,
            Some(word) if question.off.contains(&word) => State::Off,
            other => {
                let shown = excerpt(&other.unwrap_or_else(|| text.into_owned()));
                tracing::warn!(machine = self.machine, word = shown, "the state call's word is in neither list");
                State::Unknown
            }
        }
    }

    async fn switch(&self, ready: &Ready, what: &str, call: Option<&Call>, wanted: State) -> Result<Outcome> {
        let Some(call) = call else {
            return Ok(Outcome::AskOperator(format!(
                "Please switch {} {wanted}: {} has no [{what}].",
                self.machine,
                self.file.display()
            )));
        };
        if ready.hooks.state.is_none() {
            self.send(ready, what, call).await?;
            return Ok(Outcome::AskOperator(format!(
                "The call [{what}] for {} was accepted; please look whether the machine is {wanted}, for {} has no [state].",
                self.machine,
                self.file.display()
            )));
        }
        let limit = Duration::from_secs(ready.hooks.settle_seconds);
        if settle::switch(wanted, self.send(ready, what, call), || self.ask(ready), limit, POLL).await? {
            return Ok(Outcome::Done);
        }
        Err(Error::transient(
            &self.target(),
            format!(
                "the call [{what}] was accepted, but {} s later [state] does not say `{wanted}`; look at the machine, or raise `settle_seconds`",
                limit.as_secs()
            ),
        ))
    }

    async fn restart(&self) -> Result<Outcome> {
        let ready = self.ready().await?;
        if ready.hooks.off.is_some() {
            let off = self.switch(&ready, "off", ready.hooks.off.as_ref(), State::Off).await?;
            let on = self.switch(&ready, "on", Some(&ready.hooks.on), State::On).await?;
            return Ok(if off == Outcome::Done { on } else { off });
        }
        let Some(cycle) = &ready.hooks.cycle else {
            return Ok(Outcome::AskOperator(format!(
                "Please switch {} off and on again: {} has neither [off] nor [cycle].",
                self.machine,
                self.file.display()
            )));
        };
        self.send(&ready, "cycle", cycle).await?;
        // That it is on afterwards does not tell that it was off in between.
        Ok(Outcome::AskOperator(format!(
            "The call [cycle] for {} was accepted; please look whether the machine restarts. With [off] and [state] nobody needs to.",
            self.machine
        )))
    }
}

impl PowerDriver for Webhook {
    fn state(&self) -> BoxFuture<'_, Result<State>> {
        Box::pin(async { self.ask(&self.ready().await?).await })
    }

    fn on(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            let ready = self.ready().await?;
            self.switch(&ready, "on", Some(&ready.hooks.on), State::On).await
        })
    }

    fn off(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async {
            let ready = self.ready().await?;
            self.switch(&ready, "off", ready.hooks.off.as_ref(), State::Off).await
        })
    }

    fn cycle(&self) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(self.restart())
    }

    /// Nothing reads the order back, so a person is asked to look, whether the call exists or not.
    fn boot_next(&self, device: BootDevice) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            let ready = self.ready().await?;
            let (what, call) = match device {
                BootDevice::Network => ("boot_network", &ready.hooks.boot_network),
                BootDevice::Disk => ("boot_disk", &ready.hooks.boot_disk),
            };
            let Some(call) = call else {
                return Ok(Outcome::AskOperator(format!(
                    "Please let {} boot from its {device} at the next start: {} has no [{what}].",
                    self.machine,
                    self.file.display()
                )));
            };
            self.send(&ready, what, call).await?;
            Ok(Outcome::AskOperator(format!(
                "The call [{what}] for {} was accepted, and nothing reads it back; if the machine does not boot from its {device}, look there.",
                self.machine
            )))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Bytes;
    use axum::extract::{Path, State as Shared};
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::get;

    use super::*;
    use crate::{Advice, open};

    /// A power strip with one outlet that wants a token.
    #[derive(Default)]
    struct Strip {
        on: bool,
        stuck: bool,
        seen: Vec<String>,
    }

    type Plug = Arc<Mutex<Strip>>;

    async fn put(
        Shared(strip): Shared<Plug>,
        Path(outlet): Path<String>,
        headers: HeaderMap,
        body: Bytes,
    ) -> StatusCode {
        if headers.get("authorization").is_none_or(|token| token != "Bearer open-sesame") {
            return StatusCode::UNAUTHORIZED;
        }
        let mut strip = strip.lock().unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        if !strip.stuck {
            strip.on = serde_json::from_str::<Value>(&body).unwrap()["power"] == "on";
        }
        strip.seen.push(format!("{outlet} {body}"));
        StatusCode::NO_CONTENT
    }

    async fn ask(Shared(strip): Shared<Plug>) -> String {
        let on = strip.lock().unwrap().on;
        format!("{{\"outlet\": {{\"power\": {}}}}}", u8::from(on))
    }

    async fn strip() -> (Plug, tempfile::TempDir, String) {
        let strip = Plug::default();
        let app = Router::new().route("/outlets/{outlet}", get(ask).put(put)).with_state(Arc::clone(&strip));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().display();
        std::fs::write(folder.path().join("token"), "open-sesame\n").unwrap();
        let call = |word: &str| {
            format!(
                "url = \"http://{at}/outlets/{{{{outlet}}}}\"\nmethod = \"PUT\"\nbody = '{{\"power\": \"{word}\", \"by\": \"{{{{machine}}}}\"}}'\n"
            )
        };
        let hooks = format!(
            "token_file = \"{here}/token\"\nsettle_seconds = 1\n[on]\n{}[off]\n{}[state]\nurl = \"http://{at}/outlets/{{{{outlet}}}}\"\npointer = \"/outlet/power\"\non = [\"1\"]\noff = [\"0\"]\n",
            call("on"),
            call("off")
        );
        std::fs::write(folder.path().join("hooks.toml"), hooks).unwrap();
        let address = format!("webhook:r1\"n7?file={here}/hooks.toml&vars=outlet:a/4");
        (strip, folder, address)
    }

    #[tokio::test]
    async fn each_operation_is_a_call_and_success_is_what_the_state_says() {
        let (strip, _folder, address) = strip().await;
        let driver = open(&address).unwrap();
        assert_eq!(driver.state().await.unwrap(), State::Off);
        assert_eq!(driver.on().await.unwrap(), Outcome::Done);
        assert_eq!(driver.on().await.unwrap(), Outcome::Done);
        assert_eq!(strip.lock().unwrap().seen, ["a/4 {\"power\": \"on\", \"by\": \"r1\\\"n7\"}"]);
        assert_eq!(driver.cycle().await.unwrap(), Outcome::Done);
        assert_eq!(strip.lock().unwrap().seen.len(), 3);
        assert!(matches!(driver.boot_next(BootDevice::Network).await.unwrap(), Outcome::AskOperator(_)));
        strip.lock().unwrap().stuck = true;
        let error = driver.off().await.unwrap_err();
        assert!(error.to_string().contains("[state] does not say `off`"), "{error}");
        assert_eq!(error.advice(), Advice::Retry);
    }

    #[tokio::test]
    async fn a_wrong_token_and_a_wrong_file_are_explained_without_the_token() {
        let (_strip, folder, address) = strip().await;
        std::fs::write(folder.path().join("token"), "hunter2\n").unwrap();
        let error = open(&address).unwrap().on().await.unwrap_err();
        assert!(error.to_string().contains("status 401") && !error.to_string().contains("hunter2"), "{error}");
        assert_eq!(error.advice(), Advice::Refuse);
        let twice = address.replace("outlet:a/4", "outlet:a/4,strip:127.0.0.1:80");
        std::fs::write(folder.path().join("hooks.toml"), "[on]\nurl = \"http://{{strip}}/\"\n").unwrap();
        let error = open(&twice).unwrap().on().await.unwrap_err();
        assert!(error.to_string().contains("the address of the call [on]"), "{error}");
        assert_eq!(error.advice(), Advice::Refuse);
        let without = address.replace("outlet:", "plug:");
        std::fs::write(folder.path().join("hooks.toml"), "[on]\nurl = \"http://x/{{outlet}}\"\n").unwrap();
        assert!(open(&without).unwrap().on().await.unwrap_err().to_string().contains("{{outlet}}"));
        std::fs::write(folder.path().join("hooks.toml"), "[on]\nurl = \"https://x/\"\n").unwrap();
        let error = open(&address).unwrap().on().await.unwrap_err().to_string();
        assert!(error.contains("no TLS"), "{error}");
    }

    #[test]
    fn values_cannot_leave_their_place() {
        let vars = BTreeMap::from([("x".to_owned(), "a/../b?\"c".to_owned())]);
        assert_eq!(filled("/{{x}}/", &vars, percent_encoded).unwrap(), "/a%2F..%2Fb%3F%22c/");
        assert_eq!(filled("\"{{ x }}\"", &vars, json_encoded).unwrap(), "\"a/../b?\\\"c\"");
        assert!(filled("{{y}}", &vars, percent_encoded).unwrap_err().contains("{{y}}"));
        assert!(filled("{{y", &vars, percent_encoded).is_err());
    }
}
