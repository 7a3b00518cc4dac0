//! A power address: `scheme:place?key=value&key=value`.

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
    place: String,
    options: BTreeMap<String, String>,
    example: &'static str,
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Address> {
        let shown = without_password(text);
        let no_scheme = || Error::UnknownScheme { address: format!("{shown} (no scheme)"), known: crate::schemes() };
        let (scheme, rest) = text.split_once(':').ok_or_else(no_scheme)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut address = Address {
            shown,
            scheme: scheme.to_owned(),
            place: place.to_owned(),
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

    /// The word before the first colon.
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

    /// Refuses options that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        match self.options.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.wrong(format!("the option `{key}` is not known"))),
        }
    }
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
        fn any_text_is_answered(scheme in "manual|fake|qemu|ipmi|[a-z]*", rest in ".*") {
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
    fn only_the_password_is_hidden() {
        assert_eq!(without_password("ipmi://a:b@h"), "ipmi://a:***@h");
        assert_eq!(without_password("ipmi://a@h:1"), "ipmi://a@h:1");
        assert_eq!(without_password("manual:rack 3"), "manual:rack 3");
    }
}
