//! One cloud: credentials, signed calls, what its refusals mean.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use tokio::time::sleep;

use super::answers::{self, Instance};
use super::sign::Signer;
use crate::address::Server;
use crate::http::{Answer, Http, excerpt, percent_encoded};
use crate::secret::{Secret, read_small};
use crate::{Address, Advice, Error, Result};

/// The API version whose answers we read.
const VERSION: &str = "2016-11-15";
pub(super) const PORT: u16 = 80;
/// A page of a thousand instances has some 4 MiB.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Pages of a list; more is no answer but a loop.
const PAGES: usize = 100;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub(super) struct Cloud {
    server: Server,
    region: String,
    credentials_file: PathBuf,
    attempts: u32,
    call_limit: Duration,
    pub(super) settle_limit: Duration,
    /// The options as they were given, for the addresses of a set's machines.
    options: String,
}

struct Credentials {
    access_key: String,
    secret_key: Secret,
    session_token: Option<Secret>,
}

impl Cloud {
    /// Takes what every address of a cloud has; also answers the path behind the endpoint.
    pub(super) fn take(address: &mut Address) -> Result<(Cloud, String)> {
        address.plain_http()?;
        let server = address.server(PORT)?;
        if server.user.is_some() {
            return Err(address.wrong("the endpoint has no user; the access key is in `credentials_file=`"));
        }
        let region =
            address.take("region").ok_or_else(|| address.wrong("`region=` is missing; it is part of the signature"))?;
        if !crate::address::plain(&region) || region.contains('/') {
            return Err(address.wrong(format!("`region={region}` is no name of a region")));
        }
        let credentials_file = address.file("credentials_file")?.ok_or_else(|| {
            address.wrong(
                "`credentials_file=` is missing: lines `aws_access_key_id = ...` and `aws_secret_access_key = ...`",
            )
        })?;
        let path = server.path.clone();
        let cloud = Cloud {
            server,
            region,
            credentials_file,
            attempts: address.number("attempts", 1..=10)?.unwrap_or(4),
            call_limit: Duration::from_secs(address.number("call_seconds", 1..=120)?.unwrap_or(30)),
            settle_limit: Duration::from_secs(address.number("settle_seconds", 1..=600)?.unwrap_or(180)),
            options: address.options_without(&["limit_seconds", "subnet"]),
        };
        Ok((cloud, path))
    }

    pub(super) fn target(&self) -> String {
        format!("cloud {}", self.server)
    }

    /// The power address of an instance.
    pub(super) fn address_of(&self, id: &str) -> String {
        format!("ec2+http://{}/{id}?{}", self.server, self.options)
    }

    /// All instances that the parameters select, over all pages.
    pub(super) async fn instances(&self, select: &[(String, String)]) -> Result<Vec<Instance>> {
        let mut all = Vec::new();
        let mut page: Option<String> = None;
        for _ in 0..PAGES {
            let mut parameters = select.to_vec();
            if let Some(token) = &page {
                parameters.push(("NextToken".into(), token.clone()));
            }
            let xml = self.ask("DescribeInstances", &parameters).await?;
            let (found, next) = self.read(answers::instances(&xml))?;
            all.extend(found);
            match next {
                Some(token) => page = Some(token),
                None => return Ok(all),
            }
        }
        Err(Error::refused(&self.target(), format!("its list of instances does not end after {PAGES} pages")))
    }

    /// What the reader of an answer found.
    pub(super) fn read<T>(&self, found: std::result::Result<T, String>) -> Result<T> {
        found.map_err(|why| Error::transient(&self.target(), why))
    }

    /// One action, again when the cloud was busy: each of ours may be repeated, RunInstances by its client token.
    pub(super) async fn ask(&self, action: &str, parameters: &[(String, String)]) -> Result<String> {
        let target = self.target();
        let credentials = self.credentials().await?;
        let http = Http::new(&target, self.call_limit, ANSWER_BYTES)?;
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let error = match self.once(&http, &credentials, action, parameters).await {
                Ok(answer) if answer.is_success() => return Ok(String::from_utf8_lossy(&answer.body).into_owned()),
                Ok(answer) => self.explain(action, &answer),
                Err(error) => error,
            };
            if error.advice() == Advice::Refuse || attempt >= self.attempts {
                return Err(error);
            }
            sleep(pause).await;
            pause *= 2;
        }
        Err(Error::transient(&target, format!("{action} was not answered")))
    }

    async fn once(
        &self,
        http: &Http,
        credentials: &Credentials,
        action: &str,
        parameters: &[(String, String)],
    ) -> Result<Answer> {
        let own = [("Action".to_owned(), action.to_owned()), ("Version".to_owned(), VERSION.to_owned())];
        let body = own
            .iter()
            .chain(parameters)
            .map(|(name, value)| format!("{}={}", percent_encoded(name), percent_encoded(value)));
        let body = body.collect::<Vec<_>>().join("&");
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let host = if self.server.port == PORT {
            self.server.to_string().trim_end_matches(":80").to_owned()
        } else {
            self.server.to_string()
        };
        let form = "application/x-www-form-urlencoded; charset=utf-8";
        let mut headers = vec![("content-type", form), ("host", &host), ("x-amz-date", &time)];
        if let Some(token) = &credentials.session_token {
            headers.push(("x-amz-security-token", token.expose()));
        }
        let signer = Signer {
            access_key: &credentials.access_key,
            secret_key: &credentials.secret_key,
            region: &self.region,
            service: "ec2",
        };
        let authorization = signer.authorization(&headers, body.as_bytes(), &time);
        let mut request = http.request(Method::POST, &format!("http://{host}/"));
        for (name, value) in headers.into_iter().filter(|(name, _)| *name != "host") {
            request = request.header(name, value);
        }
        http.send(action, request.header("authorization", authorization).body(body)).await
    }

    fn explain(&self, action: &str, answer: &Answer) -> Error {
        let xml = String::from_utf8_lossy(&answer.body);
        let part = |name: &str| answers::anywhere(&xml, name).ok().flatten();
        let code = part("Code").unwrap_or_else(|| format!("status {}", answer.status));
        let words = part("Message").map_or_else(|| answer.excerpt(), |words| excerpt(&words));
        let passing = [
            "RequestLimitExceeded",
            "Throttling",
            "InternalError",
            "InternalFailure",
            "Unavailable",
            "ServiceUnavailable",
            "InsufficientInstanceCapacity",
            "ResourceCountExceeded",
        ];
        if passing.contains(&code.as_str()) || matches!(answer.status, 429 | 500 | 502..=504) {
            return Error::transient(
                &self.target(),
                format!("it cannot do {action} now ({code}: {words}); it is asked again later"),
            );
        }
        let advice = match code.as_str() {
            "AuthFailure" | "SignatureDoesNotMatch" | "InvalidClientTokenId" | "MissingAuthenticationToken" => {
                "correct the credentials file and `region=`"
            }
            "RequestExpired" => "set this server's clock",
            "UnauthorizedOperation" | "OptInRequired" => "give the account the right to do this",
            "InvalidInstanceID.NotFound" | "InvalidInstanceID.Malformed" => "it may have been terminated; list the set",
            "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" => "list the set's images",
            "IdempotentParameterMismatch" => "the same token was used for another wish; choose another token",
            _ => "see its own words",
        };
        Error::refused(&self.target(), format!("it refuses {action} ({code}: {words}): {advice}"))
    }

    /// Reads `name = value` lines, as the cloud's own tools keep them; sections are not told apart.
    async fn credentials(&self) -> Result<Credentials> {
        let target = self.target();
        let text = read_small(&self.credentials_file, &target, "credentials").await?;
        let value = |wanted: &str| {
            text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                (name.trim() == wanted).then(|| value.trim().to_owned())
            })
        };
        match (value("aws_access_key_id"), value("aws_secret_access_key")) {
            (Some(access_key), Some(secret_key)) if !access_key.is_empty() && !secret_key.is_empty() => {
                Ok(Credentials {
                    access_key,
                    secret_key: Secret::new(secret_key),
                    session_token: value("aws_session_token").map(Secret::new),
                })
            }
            _ => Err(Error::refused(
                &target,
                format!(
                    "the credentials file {} needs the lines `aws_access_key_id = ...` and `aws_secret_access_key = ...`",
                    self.credentials_file.display()
                ),
            )),
        }
    }
}
