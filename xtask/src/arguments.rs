//! The command line, taken apart by hand: a parser crate would cost the newcomer more time than these lines.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result};

/// The command line was wrong; the usage is printed after it.
#[derive(Debug)]
pub(crate) struct Usage(String);

impl Usage {
    pub(crate) fn error(why: impl Into<String>) -> Error {
        Error::new(Self(why.into()))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What was typed and not yet taken.
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn from_env() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    /// Takes the first argument.
    pub(crate) fn positional(&mut self) -> Option<String> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    /// Takes `NAME VALUE` or `NAME=VALUE`, wherever it stands.
    pub(crate) fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let joined = format!("{name}=");
        let Some(at) = self.0.iter().position(|word| word == name || word.starts_with(&joined)) else {
            return Ok(None);
        };
        let word = self.0.remove(at);
        let text = match word.strip_prefix(&joined) {
            Some(text) => text.to_owned(),
            None if at < self.0.len() => self.0.remove(at),
            None => return Err(Usage::error(format!("{name} needs a value"))),
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Usage::error(format!("`{text}` is no value for {name}"))),
        }
    }

    /// Takes a flag without a value.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|word| word != name);
        self.0.len() < before
    }

    /// Everything that nobody took, for another program to judge.
    pub(crate) fn rest(self) -> Vec<String> {
        self.0
    }

    /// Refuses whatever nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(word) => Err(Usage::error(format!("`{word}` is not expected here"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        Arguments(words.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn values_are_found_in_both_forms_and_in_any_place() {
        let mut given = arguments(&["demo", "--json=a.json", "--nodes", "4"]);
        assert_eq!(given.positional().as_deref(), Some("demo"));
        assert_eq!(given.value::<u32>("--nodes").unwrap(), Some(4));
        assert_eq!(given.value::<String>("--json").unwrap().as_deref(), Some("a.json"));
        given.finish().unwrap();
    }

    #[test]
    fn what_is_wrong_is_a_usage_error() {
        assert!(arguments(&["--nodes"]).value::<u32>("--nodes").unwrap_err().is::<Usage>());
        assert!(arguments(&["--nodes", "four"]).value::<u32>("--nodes").unwrap_err().is::<Usage>());
        assert!(arguments(&["--node"]).finish().unwrap_err().is::<Usage>());
    }
}
