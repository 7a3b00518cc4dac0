//! Text from and for strangers.

use std::fmt::Write as _;

/// Text from a stranger, for a log or a console: short and without control
/// characters.
pub(crate) fn readable(bytes: &[u8]) -> String {
    // Three bytes of lossy text stand for each that is no UTF-8: cut first.
    let bytes = &bytes[..bytes.len().min(4 * READABLE_CHARACTERS)];
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(READABLE_CHARACTERS).collect()
}

const READABLE_CHARACTERS: usize = 300;

/// RFC 3986: everything but the unreserved characters is escaped.
pub(crate) fn put_escaped(out: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// `None` when an escape is cut or not hexadecimal. `+` stays a plus: neither
/// announce queries nor magnet links are HTML forms, and a peer id may contain
/// one.
pub(crate) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else { return None };
        bytes.push(nibble(*high)? << 4 | nibble(*low)?);
        rest = tail;
    }
    Some(bytes)
}

/// The value of a hexadecimal digit.
pub(crate) fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
