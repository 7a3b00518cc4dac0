//! What a controller says when it refuses: the status, and the messages in the body (DSP0266, section Error responses).

use serde_json::Value;

use crate::http::{Answer, excerpt};
use crate::quirks::{self, Meaning};
use crate::{Error, Result};

/// The messages of a body, in whichever of the two places the controller puts them.
fn messages(body: &Value) -> impl Iterator<Item = &Value> {
    let lists = [body.pointer("/error/@Message.ExtendedInfo"), body.get("@Message.ExtendedInfo"), body.get("Messages")];
    lists.into_iter().flatten().filter_map(Value::as_array).flatten()
}

/// The meanings that the rows know.
pub(super) fn meanings(answer: &Answer) -> Vec<Meaning> {
    let Ok(body) = serde_json::from_slice::<Value>(&answer.body) else { return Vec::new() };
    messages(&body).filter_map(|message| quirks::meaning(message.get("MessageId")?.as_str()?)).collect()
}

/// Its own words: the first message that has any, else the error's text, else the beginning of the body.
pub(super) fn words(answer: &Answer) -> String {
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(body) => words_of(&body).unwrap_or_else(|| answer.excerpt()),
        Err(_) => answer.excerpt(),
    }
}

pub(super) fn words_of(body: &Value) -> Option<String> {
    let text = |message: &Value| {
        let own = message.get("Message").or_else(|| message.get("MessageId"))?.as_str()?.to_owned();
        (!own.is_empty()).then_some(own)
    };
    let first = messages(body).find_map(text);
    let general = || body.pointer("/error/message").and_then(Value::as_str).map(str::to_owned);
    first.or_else(general).map(|text| excerpt(&text))
}

/// The error for an answer that is no success: what was asked, what came, what to do.
pub(super) fn explain(target: &str, what: &str, answer: &Answer) -> Error {
    let (status, words, meanings) = (answer.status, words(answer), meanings(answer));
    let has = |meaning| meanings.contains(&meaning);
    if has(Meaning::SessionsFull) {
        return Error::transient(
            target,
            format!(
                "it refuses {what} because all of its sessions are taken ({words}); close other users' sessions, or say `auth=basic` in the address"
            ),
        );
    }
    if has(Meaning::Later) || has(Meaning::StateConflict) || matches!(status, 429 | 500 | 502..=504) {
        return Error::transient(
            target,
            format!("it cannot do {what} now (status {status}: {words}); it is asked again later"),
        );
    }
    if has(Meaning::MayNot) || status == 403 {
        return Error::refused(
            target,
            format!(
                "the user may not do {what} (status {status}: {words}); give it the role Operator or Administrator on the controller"
            ),
        );
    }
    let advice = match status {
        401 => "the login is not accepted; correct the user in the address or the password file",
        404 => "it knows no such resource; check the path in the address",
        405 | 501 => "it does not offer this; use another driver for this machine",
        412 | 428 => "it insists on an `If-Match` that we could not satisfy; please report the make and firmware",
        300..=399 => "it redirects elsewhere, which is not followed; write the final place into the address",
        _ => "see its own words",
    };
    Error::refused(target, format!("it refuses {what} with status {status} ({words}): {advice}"))
}

/// The body as JSON.
pub(super) fn json(target: &str, what: &str, answer: &Answer) -> Result<Value> {
    if !answer.is_success() {
        return Err(explain(target, what, answer));
    }
    serde_json::from_slice(&answer.body).map_err(|_| {
        Error::transient(
            target,
            format!("its answer to {what} is not JSON ({}); is this a Redfish service?", answer.excerpt()),
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::Advice;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: body.as_bytes().to_vec() }
    }

    #[test]
    fn refusals_become_sentences_and_only_passing_ones_are_tried_again() {
        let post = r#"{"error":{"code":"iLO.0.10.ExtendedInfo","message":"See @Message.ExtendedInfo","@Message.ExtendedInfo":[{"MessageId":"iLO.2.37.UnableToModifyDuringSystemPOST"}]}}"#;
        let full = r#"{"error":{"@Message.ExtendedInfo":[{"Message":"The maximum number of user sessions is reached.","MessageId":"IDRAC.2.1.RAC0218"}]}}"#;
        for (status, body, part, advice) in [
            (400, post, "UnableToModifyDuringSystemPOST", Advice::Retry),
            (503, full, "sessions are taken", Advice::Retry),
            (503, "", "status 503: nothing", Advice::Retry),
            (400, r#"{"error":{"message":"Property X is unknown"}}"#, "Property X is unknown", Advice::Refuse),
            (401, "", "password file", Advice::Refuse),
            (403, "<html>no</html>", "role Operator", Advice::Refuse),
            (404, "", "path in the address", Advice::Refuse),
            (308, "", "redirects", Advice::Refuse),
        ] {
            let error = explain("BMC x", "PATCH /redfish/v1/Systems/1", &answer(status, body));
            assert!(error.to_string().contains(part), "{error}");
            assert!(error.to_string().contains("PATCH /redfish/v1/Systems/1"), "{error}");
            assert_eq!(error.advice(), advice, "{error}");
        }
    }

    #[test]
    fn a_web_page_is_not_taken_for_redfish() {
        let error = json("BMC x", "GET /redfish/v1/", &answer(200, "<html>login</html>")).unwrap_err().to_string();
        assert!(error.contains("not JSON (<html>login</html>)"), "{error}");
    }
}
