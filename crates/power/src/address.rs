//! A power address: `scheme:place?key=value&key=value`. A scheme may name what carries it: `redfish+http:`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Error, Result};

/// A parsed address. A driver takes out of it what it knows; whatever is left is refused.
#[derive(Debug)]
pub struct Address {
    shown: String,
    scheme: String,
    carrier: Option<String>,
    place: String,
    query: String,
    options: BTreeMap<String, String>,
    example: &'static str,
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Address> {
        let shown = without_password(text);
        let no_scheme = || Error::UnknownScheme { address: format!("{shown} (no scheme)"), known: crate::schemes() };
        let (scheme, rest) = text.split_once(':').ok_or_else(no_scheme)?;
        let (scheme, carrier) = match scheme.split_once('+') {
            Some((scheme, carrier)) => (scheme, Some(carrier.to_owned())),
            None => (scheme, None),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut address = Address {
            shown,
            scheme: scheme.to_owned(),
            carrier,
            place: place.to_owned(),
            query: query.to_owned(),
            options: BTreeMap::new(),
            example: "",
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| address.wrong(format!("`{pair}` is not `key=value`")))?;
            if address.options.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(address.wrong(format!("`{key}` is given twice")));
            }
        }
        Ok(address)
    }

    pub(crate) fn set_example(&mut self, example: &'static str) {
        self.example = example;
    }

    /// The address for sentences: without anything that looks like a password.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Takes the word after the plus in `redfish+http:`, or `None` when there is none.
    pub fn take_carrier(&mut self) -> Option<String> {
        self.carrier.take()
    }

    /// Takes the carrier of a driver that speaks HTTP. There is no TLS in this version, so it must be said that it is plain.
    ///
    /// # Errors
    /// When the address says `https` or does not say `http`.
    pub fn plain_http(&mut self) -> Result<()> {
        match self.take_carrier().as_deref() {
            Some("http") => Ok(()),
            Some("https") => Err(self.wrong(format!(
                "this version has no TLS yet; say `{}+http:` and keep the management network closed to others",
                self.scheme
            ))),
            _ => Err(self.wrong(format!(
                "say `{0}+http:`, so that it is written down that passwords travel unencrypted (`{0}+https:` comes with TLS)",
                self.scheme
            ))),
        }
    }

    /// The word before the first colon, or before the plus.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Everything between the scheme's colon and the question mark.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Takes the value of `key`, if there is one.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.options.remove(key)
    }

    /// Looks at the value of `key` without taking it.
    pub(crate) fn peek(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// The options as they were given, without some: what a set hands on to the addresses of its machines.
    pub(crate) fn options_without(&self, left_out: &[&str]) -> String {
        let kept = |pair: &&str| !pair.is_empty() && !left_out.contains(&pair.split('=').next().unwrap_or_default());
        self.query.split('&').filter(kept).collect::<Vec<_>>().join("&")
    }

    /// `user@host:port` of a driver that has a server; the whole place when it is none.
    pub(crate) fn controller(&self, port: u16) -> String {
        match self.server(port) {
            Ok(server) => match &server.user {
                Some(user) => format!("{user}@{server}"),
                None => server.to_string(),
            },
            Err(_) => self.place.clone(),
        }
    }

    /// Splits the place `//user@host:port/path`; IPv6 addresses stand in brackets.
    ///
    /// # Errors
    /// When the host is missing or the port is none, or when a password stands beside the user.
    pub fn server(&self, port: u16) -> Result<Server> {
        let place = self.place.trim_start_matches('/');
        let (authority, path) = match place.find('/') {
            Some(at) => (&place[..at], &place[at..]),
            None => (place, ""),
        };
        let (user, server) = match authority.rsplit_once('@') {
            Some((user, server)) => (Some(user), server),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(
                self.wrong("a password does not belong into an address; write it to a file and say `password_file=`")
            );
        }
        let (host, text) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => server.rsplit_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
        };
        let port = match text {
            None => port,
            Some(text) => text.parse().map_err(|_| self.wrong(format!("`{text}` is not a port")))?,
        };
        if user.is_some_and(|user| !plain(user)) {
            return Err(self.wrong("the user is empty or starts with a dash"));
        }
        if !plain(host) {
            return Err(self.wrong("the host is empty or starts with a dash"));
        }
        Ok(Server { user: user.map(str::to_owned), host: host.to_owned(), port, path: path.to_owned() })
    }

    /// Takes a whole number within `range`.
    ///
    /// # Errors
    /// When it is no number or outside of the range.
    pub fn number<T>(&mut self, key: &str, range: RangeInclusive<T>) -> Result<Option<T>>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.parse::<T>() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(format!(
                "`{key}={text}` is not a whole number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// Takes `yes` or `no`; `no` when the key is absent.
    ///
    /// # Errors
    /// When it is another word.
    pub fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key).as_deref() {
            None | Some("no") => Ok(false),
            Some("yes") => Ok(true),
            Some(other) => Err(self.wrong(format!("`{key}={other}` is neither yes nor no"))),
        }
    }

    /// Takes a file's absolute path.
    ///
    /// # Errors
    /// When the path is relative: the server's working folder is nobody's choice.
    pub fn file(&mut self, key: &str) -> Result<Option<PathBuf>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let path = PathBuf::from(&text);
        if !path.is_absolute() {
            return Err(self.wrong(format!("`{key}={text}` is not an absolute path")));
        }
        Ok(Some(path))
    }

    /// An error about this address.
    pub fn wrong(&self, why: impl Into<String>) -> Error {
        Error::Address { address: self.shown.clone(), why: why.into(), example: self.example.to_owned() }
    }

    /// Takes one of a few words; `None` when the key is absent.
    ///
    /// # Errors
    /// When it is another word.
    pub fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(self.wrong(format!("`{key}={text}` is none of {}", known.join(", "))))
            }
        }
    }

    /// Refuses options that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some(carrier) = &self.carrier {
            return Err(self.wrong(format!("`{}` is not carried by `{carrier}`", self.scheme)));
        }
        match self.options.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.wrong(format!("the option `{key}` is not known"))),
        }
    }
}

/// Where a driver's controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The name before the `@`.
    pub user: Option<String>,
    /// A name or an address, without brackets.
    pub host: String,
    /// TCP or UDP port.
    pub port: u16,
    /// What follows the port, from the slash on; may be empty.
    pub path: String,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Printable, and no option for the program that gets it.
pub(crate) fn plain(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.chars().all(|c| c.is_ascii_graphic())
}

/// Hides what stands between `user:` and `@host`, so that a misplaced secret does not get into logs.
fn without_password(text: &str) -> String {
    let Some((before, host)) = text.rsplit_once('@') else { return text.to_owned() };
    match before.rsplit_once("//").map(|(scheme, login)| (scheme, login.split_once(':'))) {
        Some((scheme, Some((user, _)))) => format!("{scheme}//{user}:***@{host}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_answered(scheme in "manual|fake|qemu|ipmi|redfish.http|wol|webhook|libvirt|ec2.http|[a-z]*", rest in ".*") {
            let _ = crate::open(&format!("{scheme}:{rest}"));
            let _ = crate::open(&rest);
        }

        #[test]
        fn options_come_back_as_they_were_given(place in "[^?]*", value in "[^&]*") {
            let mut address = Address::parse(&format!("fake:{place}?key={value}&other=1")).unwrap();
            prop_assert_eq!(address.place(), place.as_str());
            prop_assert_eq!(address.take("key"), Some(value));
            prop_assert!(address.finish().is_err());
        }
    }

    #[test]
    fn hosts_may_be_names_and_both_kinds_of_addresses() {
        for (place, host, port, path) in [
            ("bmc7", "bmc7", 623, ""),
            ("10.0.0.7:6230", "10.0.0.7", 6230, ""),
            ("[fd00::7]:624", "fd00::7", 624, ""),
            ("[fd00::7]/redfish/v1/Systems/1", "fd00::7", 623, "/redfish/v1/Systems/1"),
        ] {
            let server = Address::parse(&format!("ipmi://admin@{place}?x=y")).unwrap().server(623).unwrap();
            assert_eq!(
                server,
                Server { user: Some("admin".into()), host: host.into(), port, path: path.into() },
                "{place}"
            );
        }
        let six = Server { user: None, host: "fd00::7".into(), port: 8000, path: String::new() };
        assert_eq!(six.to_string(), "[fd00::7]:8000");
    }

    #[test]
    fn only_the_password_is_hidden() {
        assert_eq!(without_password("ipmi://a:b@h"), "ipmi://a:***@h");
        assert_eq!(without_password("ipmi://a@h:1"), "ipmi://a@h:1");
        assert_eq!(without_password("manual:rack 3"), "manual:rack 3");
    }
}
