//! A document: its first field names its kind and version, the others are `NAME=VALUE`; each ends with a NUL. A value is any bytes
//! but NUL, of which no argument, variable, path or name can have one either. A name that comes again makes a list.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// The longest document in bytes: the kernel takes arguments and variables of as many at once.
pub const DOCUMENT_MAX: usize = 2 << 20;

/// Why bytes are not a document, or what was to be written cannot be in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It is of another kind or version.
    Kind {
        /// What it has to begin with.
        wanted: &'static str,
    },
    /// It is longer than [`DOCUMENT_MAX`].
    TooLong,
    /// Its last field has no end.
    Truncated,
    /// There is no such field, or it makes no sense where it is.
    Field(String),
    /// The value of this field makes no sense.
    Value(String),
    /// The value of this field has a NUL in it.
    Nul(&'static str),
}

impl std::error::Error for Malformed {}

impl Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind { wanted } => {
                write!(f, "it does not begin with {wanted:?}: is it of another version of wirevm?")
            }
            Self::TooLong => write!(f, "it is longer than {DOCUMENT_MAX} bytes"),
            Self::Truncated => f.write_str("its last field has no end"),
            Self::Field(name) => write!(f, "the field {name:?} is unknown, or is not expected where it is"),
            Self::Value(name) => write!(f, "the value of {name:?} makes no sense"),
            Self::Nul(name) => write!(f, "the value of {name:?} has a NUL in it"),
        }
    }
}

/// Writes a document.
pub(crate) struct Writer {
    bytes: Vec<u8>,
    failed: Option<Malformed>,
}

impl Writer {
    pub(crate) fn new(kind: &'static str) -> Self {
        let mut bytes = kind.as_bytes().to_vec();
        bytes.push(0);
        Self { bytes, failed: None }
    }

    pub(crate) fn field(&mut self, name: &'static str, value: impl AsRef<OsStr>) -> &mut Self {
        let value = value.as_ref().as_bytes();
        if value.contains(&0) {
            self.failed.get_or_insert(Malformed::Nul(name));
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value);
        self.bytes.push(0);
        self
    }

    pub(crate) fn fields<V: AsRef<OsStr>>(
        &mut self,
        name: &'static str,
        values: impl IntoIterator<Item = V>,
    ) -> &mut Self {
        for value in values {
            self.field(name, value);
        }
        self
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>, Malformed> {
        match self.failed {
            Some(failed) => Err(failed),
            None if self.bytes.len() > DOCUMENT_MAX => Err(Malformed::TooLong),
            None => Ok(self.bytes),
        }
    }
}

/// A field that was read.
pub(crate) struct Field<'a> {
    pub(crate) name: &'a str,
    value: &'a [u8],
}

impl Field<'_> {
    pub(crate) fn text(&self) -> OsString {
        OsString::from_vec(self.value.to_vec())
    }

    pub(crate) fn parsed<T: FromStr>(&self) -> Result<T, Malformed> {
        let text = std::str::from_utf8(self.value).ok();
        text.and_then(|text| text.parse().ok()).ok_or_else(|| self.bad_value())
    }

    /// `on` or `off`.
    pub(crate) fn switch(&self) -> Result<bool, Malformed> {
        match self.value {
            b"on" => Ok(true),
            b"off" => Ok(false),
            _ => Err(self.bad_value()),
        }
    }

    pub(crate) fn bad_value(&self) -> Malformed {
        Malformed::Value(self.name.to_owned())
    }

    pub(crate) fn unknown(&self) -> Malformed {
        Malformed::Field(self.name.to_owned())
    }
}

/// `on` or `off`, as [`Field::switch`] reads it.
pub(crate) fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Reads the fields of a document of this `kind`.
pub(crate) fn read<'a>(
    bytes: &'a [u8],
    kind: &'static str,
) -> Result<impl Iterator<Item = Result<Field<'a>, Malformed>>, Malformed> {
    if bytes.len() > DOCUMENT_MAX {
        return Err(Malformed::TooLong);
    }
    let rest = bytes.strip_prefix(kind.as_bytes()).and_then(|rest| rest.strip_prefix(&[0]));
    let rest = rest.ok_or(Malformed::Kind { wanted: kind })?;
    let whole = match rest {
        [] => None,
        [whole @ .., 0] => Some(whole),
        _ => return Err(Malformed::Truncated),
    };
    Ok(whole.into_iter().flat_map(|whole| whole.split(|&byte| byte == 0)).map(|field| {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(32).collect::<String>();
        let at = field.iter().position(|&byte| byte == b'=').ok_or_else(|| Malformed::Field(lossy(field)))?;
        let name = std::str::from_utf8(&field[..at]).map_err(|_| Malformed::Field(lossy(&field[..at])))?;
        Ok(Field { name, value: &field[at + 1..] })
    }))
}
