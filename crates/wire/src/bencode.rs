//! Bencode (BEP 3) as a tree of borrowed values, on the `bendy` tokenizer:
//! unsorted and repeated keys, leading zeros, too deep nesting and trailing
//! bytes are refused, so a value has exactly one encoding.

use bendy::decoding::{Decoder, Object};
use bendy::encoding::{Error as EmitError, SingleItemEncoder, ToBencode};

/// Deepest nesting accepted and written. Tracker answers and single-file
/// torrents need three levels; v2 file trees of one file need six.
pub const MAX_DEPTH: usize = 16;

/// Most values in one message or file. The smallest takes two bytes of input
/// but fifty of memory, so the size of the input alone does not bound ours.
pub const MAX_VALUES: u32 = 100_000;

/// Why bytes are not the bencode we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// The bytes are not well-formed, canonical bencode.
    #[error("not canonical bencode: {0}")]
    Malformed(String),
    /// An integer does not fit 64 bits.
    #[error("the integer {0} does not fit 64 bits")]
    IntegerRange(String),
    /// There are more than [`MAX_VALUES`].
    #[error("more than {MAX_VALUES} values")]
    TooMany,
    /// Something follows the first value.
    #[error("bytes follow the end of the value")]
    TrailingBytes,
    /// A value cannot be written: a key repeats or the nesting is too deep.
    #[error("the value cannot be encoded: {0}")]
    Unencodable(String),
}

/// A bencoded value. Byte strings borrow from the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// `i42e`
    Integer(i128),
    /// `4:spam`
    Bytes(&'a [u8]),
    /// `l...e`
    List(Vec<Value<'a>>),
    /// `d...e`
    Dictionary(Dictionary<'a>),
}

/// A dictionary with its keys in ascending order of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dictionary<'a> {
    pairs: Vec<(&'a [u8], Value<'a>)>,
    raw: Option<&'a [u8]>,
}

impl<'a> Dictionary<'a> {
    /// A dictionary of these pairs, in any order.
    pub fn new(mut pairs: Vec<(&'a [u8], Value<'a>)>) -> Dictionary<'a> {
        pairs.sort_by_key(|(key, _)| *key);
        Dictionary { pairs, raw: None }
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let at = self.pairs.binary_search_by(|(candidate, _)| (*candidate).cmp(key.as_bytes())).ok()?;
        Some(&self.pairs[at].1)
    }

    /// The exact bytes that this dictionary was decoded from; `None` for one
    /// that was built. An info-hash is a hash of these.
    pub fn raw(&self) -> Option<&'a [u8]> {
        self.raw
    }

    /// Keys and values in ascending order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &Value<'a>)> {
        self.pairs.iter().map(|(key, value)| (*key, value))
    }
}

impl<'a> Value<'a> {
    /// Decodes exactly one value. What is allocated is bounded by
    /// [`MAX_VALUES`], since byte strings are borrowed.
    ///
    /// # Errors
    /// Everything that is not the canonical encoding of one value.
    pub fn decode(bytes: &'a [u8]) -> Result<Value<'a>, BencodeError> {
        let mut decoder = Decoder::new(bytes).with_max_depth(MAX_DEPTH);
        let value = match decoder.next_object().map_err(malformed)? {
            Some(object) => from_object(object, &mut { MAX_VALUES })?,
            None => return Err(BencodeError::Malformed("no value at all".to_owned())),
        };
        match decoder.next_object() {
            Ok(None) => Ok(value),
            _ => Err(BencodeError::TrailingBytes),
        }
    }

    /// Decodes the dictionary that `bytes` begin with; [`Dictionary::raw`]
    /// tells where it ends. Memory is bounded as for [`Value::decode`].
    ///
    /// # Errors
    /// When they do not begin with the canonical encoding of a dictionary.
    pub fn decode_front(bytes: &'a [u8]) -> Result<Dictionary<'a>, BencodeError> {
        let mut decoder = Decoder::new(bytes).with_max_depth(MAX_DEPTH);
        match decoder.next_object().map_err(malformed)? {
            Some(object @ Object::Dict(_)) => match from_object(object, &mut { MAX_VALUES })? {
                Value::Dictionary(dictionary) => Ok(dictionary),
                _ => Err(BencodeError::Malformed("no dictionary".to_owned())),
            },
            _ => Err(BencodeError::Malformed("no dictionary".to_owned())),
        }
    }

    /// The canonical encoding.
    ///
    /// # Errors
    /// `Unencodable` when a dictionary repeats a key or values nest deeper
    /// than [`MAX_DEPTH`].
    pub fn encode(&self) -> Result<Vec<u8>, BencodeError> {
        self.to_bencode().map_err(|error| BencodeError::Unencodable(error.to_string()))
    }

    /// The bytes of a byte string.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a byte string that is UTF-8.
    pub fn as_text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The integer, if it fits `T`.
    pub fn as_integer<T: TryFrom<i128>>(&self) -> Option<T> {
        match self {
            Value::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn as_list(&self) -> Option<&[Value<'a>]> {
        match self {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The dictionary.
    pub fn as_dictionary(&self) -> Option<&Dictionary<'a>> {
        match self {
            Value::Dictionary(dictionary) => Some(dictionary),
            _ => None,
        }
    }
}

/// `room` is how many more values may come.
fn from_object<'a>(object: Object<'_, 'a>, room: &mut u32) -> Result<Value<'a>, BencodeError> {
    *room = room.checked_sub(1).ok_or(BencodeError::TooMany)?;
    Ok(match object {
        Object::Bytes(bytes) => Value::Bytes(bytes),
        Object::Integer(digits) => Value::Integer(integer(digits)?),
        Object::List(mut list) => {
            let mut items = Vec::new();
            while let Some(item) = list.next_object().map_err(malformed)? {
                items.push(from_object(item, room)?);
            }
            Value::List(items)
        }
        Object::Dict(mut dictionary) => {
            let mut pairs = Vec::new();
            while let Some((key, value)) = dictionary.next_pair().map_err(malformed)? {
                pairs.push((key, from_object(value, room)?));
            }
            let raw = dictionary.into_raw().map_err(malformed)?;
            Value::Dictionary(Dictionary { pairs, raw: Some(raw) })
        }
    })
}

/// BEP 3 sets no size; 64 bits of either sign is what clients agree on.
fn integer(digits: &str) -> Result<i128, BencodeError> {
    let range = || BencodeError::IntegerRange(digits.chars().take(40).collect());
    let number: i128 = digits.parse().map_err(|_| range())?;
    let fits = i128::from(i64::MIN) <= number && number <= i128::from(u64::MAX);
    if fits { Ok(number) } else { Err(range()) }
}

fn malformed(error: bendy::decoding::Error) -> BencodeError {
    BencodeError::Malformed(error.to_string())
}

impl ToBencode for Value<'_> {
    const MAX_DEPTH: usize = MAX_DEPTH;

    fn encode(&self, encoder: SingleItemEncoder<'_>) -> Result<(), EmitError> {
        match self {
            Value::Integer(number) => encoder.emit_int(*number),
            Value::Bytes(bytes) => encoder.emit_bytes(bytes),
            Value::List(items) => encoder.emit_list(|list| items.iter().try_for_each(|item| list.emit(item))),
            Value::Dictionary(dictionary) => encoder
                .emit_dict(|mut out| dictionary.pairs.iter().try_for_each(|(key, value)| out.emit_pair(key, value))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dictionary_keeps_its_exact_bytes() {
        let bytes = b"d4:infod1:ai1e1:bl2:xxee4:tail0:e";
        let value = Value::decode(bytes).unwrap();
        let info = value.as_dictionary().unwrap().get("info").unwrap().as_dictionary().unwrap();
        assert_eq!(info.raw().unwrap(), b"d1:ai1e1:bl2:xxee");
        assert_eq!(info.get("a").unwrap().as_integer::<u8>(), Some(1));
        assert_eq!(info.get("missing"), None);
        assert_eq!(value.encode().unwrap(), bytes);
    }

    #[test]
    fn everything_but_the_canonical_form_is_refused() {
        let table: &[&[u8]] = &[
            b"",
            b"i01e",
            b"i-0e",
            b"ie",
            b"i1",
            b"01:a",
            b"5:abc",
            b"99999999999999999999:a",
            b"d1:bi1e1:ai1ee",
            b"d1:ai1e1:ai2ee",
            b"d1:ae",
            b"di1ei2ee",
            b"d1:a",
            b"l",
            b"e",
            b"i1ei2e",
            b"i1e ",
            b"lee",
            b"i18446744073709551616e",
            b"i-9223372036854775809e",
        ];
        for bytes in table {
            assert!(Value::decode(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(Value::decode(b"i18446744073709551615e").unwrap().as_integer(), Some(u64::MAX));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| [vec![b'l'; depth], vec![b'e'; depth]].concat();
        assert!(Value::decode(&nested(MAX_DEPTH)).is_ok());
        assert!(Value::decode(&nested(MAX_DEPTH + 1)).is_err());
        assert!(Value::decode(&nested(100_000)).is_err());
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let list = |items: u32| [b"l".as_slice(), &b"0:".repeat(items as usize), b"e"].concat();
        assert!(Value::decode(&list(MAX_VALUES - 1)).is_ok());
        assert_eq!(Value::decode(&list(MAX_VALUES)), Err(BencodeError::TooMany));
        let lists = [b"d1:a".as_slice(), &list(MAX_VALUES), b"e"].concat();
        assert_eq!(Value::decode(&lists), Err(BencodeError::TooMany));
        assert_eq!(Value::decode_front(&lists), Err(BencodeError::TooMany));
    }

    #[test]
    fn the_front_of_a_message_is_read_alone() {
        let front = Value::decode_front(b"d1:ai1eexyz").unwrap();
        assert_eq!(front.raw().unwrap(), b"d1:ai1ee");
        for bad in [b"".as_slice(), b"i1e", b"le", b"d1:a", b"d1:ae"] {
            assert!(Value::decode_front(bad).is_err());
        }
    }

    #[test]
    fn a_repeated_key_cannot_be_written() {
        let twice = Dictionary::new(vec![(b"a", Value::Integer(1)), (b"a", Value::Integer(2))]);
        assert!(matches!(Value::Dictionary(twice).encode(), Err(BencodeError::Unencodable(_))));
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(bytes in "[0-9dlie:a-c-]{0,24}") {
            if let Ok(value) = Value::decode(bytes.as_bytes()) {
                prop_assert_eq!(value.encode().unwrap(), bytes.as_bytes());
            }
        }
    }
}
