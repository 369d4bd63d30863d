//! Who a machine is, and what its guest's system manager is told.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

net::serde_as_text!(Credential, Uuid);

/// A UUID in its usual form (RFC 9562 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

/// Where the dashes are among the 36 characters.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl Uuid {
    /// Of these random bytes, a UUID of version 4 (§5.4).
    pub fn random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl FromStr for Uuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "it is like 2f1c0d3e-8a4b-4c5d-9e6f-708192a3b4c5".to_owned();
        let bytes = text.as_bytes();
        if bytes.len() != 36 || DASHES.iter().any(|at| bytes[*at] != b'-') {
            return Err(wrong());
        }
        let digits: Vec<_> = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16)).collect();
        let mut uuid = [0; 16];
        for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
            let [Some(high), Some(low)] = *pair else { return Err(wrong()) };
            *byte = (high << 4 | low) as u8;
        }
        match digits.len() {
            32 => Ok(Self(uuid)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if [4, 6, 8, 10].contains(&index) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// A credential for systemd in the guest (systemd.exec(5), "Credentials"), as `NAME=VALUE` or `NAME=@FILE`. It reaches the guest as an
/// OEM string of SMBIOS, without a disk or a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What the guest knows it by.
    name: String,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    File(PathBuf),
}

/// By which systemd is told the name of the host that it is (systemd(1), "System Credentials").
pub const HOSTNAME: &str = "system.hostname";

/// By which systemd is told where to say that the guest is up (systemd(1)).
pub const NOTIFY_SOCKET: &str = "vmm.notify_socket";

impl Credential {
    /// More than all SMBIOS tables have room for, in bytes.
    const LEN_MAX: u64 = 1 << 20;

    /// What the guest knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that its value is read from; none where it is text.
    pub fn file(&self) -> Option<&Path> {
        match &self.value {
            Value::Text(_) => None,
            Value::File(path) => Some(path),
        }
    }

    /// [`hostname_of`](Self::hostname_of), as a credential.
    pub fn hostname(machine: &str) -> Option<Self> {
        Self::hostname_of(machine).map(|name| Self { name: HOSTNAME.to_owned(), value: Value::Text(name) })
    }

    /// The host's name that a guest has whose machine has this name: of its characters those that a host's name may have (RFC 952; an
    /// underscore becomes a dash). None where that is nothing.
    pub fn hostname_of(machine: &str) -> Option<String> {
        let name: String = machine.chars().map(|c| if c == '_' { '-' } else { c }).take(64).collect();
        let name = name.trim_matches(['-', '.']);
        let is_label = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
        (!name.is_empty() && name.split('.').all(is_label)).then(|| name.to_owned())
    }

    /// Says that the guest is up on a port of the host's.
    pub fn notify_socket() -> Self {
        let port = format!("vsock-stream:2:{}", wirevm_agent::NOTIFY_PORT);
        Self { name: NOTIFY_SOCKET.to_owned(), value: Value::Text(port) }
    }

    /// The public keys in this file, by which root is let in over SSH.
    pub fn ssh_key(file: impl Into<PathBuf>) -> Self {
        Self { name: "ssh.authorized_keys.root".to_owned(), value: Value::File(file.into()) }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let path = match &self.value {
            Value::Text(text) => return Ok(text.clone().into_bytes()),
            Value::File(path) => path,
        };
        let mut bytes = Vec::new();
        File::open(path)?.take(Self::LEN_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > Self::LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than a mebibyte"));
        }
        Ok(bytes)
    }

    /// The name that it gives the guest's host, if it gives one: a line of ASCII, in a regular file, for what else is there can be read
    /// but once.
    pub fn as_hostname(&self) -> Option<String> {
        if self.name != HOSTNAME || matches!(&self.value, Value::File(path) if !path.is_file()) {
            return None;
        }
        let text = String::from_utf8(self.read().ok()?).ok()?;
        let name = text.trim();
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        (!name.is_empty() && name.len() <= 64 && name.chars().all(is_name)).then(|| name.to_owned())
    }

    /// The OEM string that carries it. What is no text is base64 in it.
    ///
    /// # Errors
    /// Its file cannot be read, or is longer than any guest can be told.
    pub fn oem_string(&self) -> io::Result<String> {
        let bytes = self.read()?;
        let name = &self.name;
        // A string there ends at a NUL, and tools that show it take it for a line.
        Ok(match String::from_utf8(bytes) {
            Ok(text) if !text.contains(char::is_control) => format!("io.systemd.credential:{name}={text}"),
            Ok(text) => format!("io.systemd.credential.binary:{name}={}", base64(text.as_bytes())),
            Err(binary) => format!("io.systemd.credential.binary:{name}={}", base64(binary.as_bytes())),
        })
    }
}

impl FromStr for Credential {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE, or NAME=@FILE")?;
        let is_name = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
        if name.is_empty() || name.len() > 255 || matches!(name, "." | "..") || !name.chars().all(is_name) {
            return Err(
                "its name is 1 to 255 letters, digits and signs of ASCII, but / and :, as a file's".into()
            );
        }
        let value = match value.strip_prefix('@') {
            Some("") => return Err("name a file after the @".into()),
            Some(path) => Value::File(path.into()),
            None => Value::Text(value.to_owned()),
        };
        Ok(Self { name: name.to_owned(), value })
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Text(text) => write!(f, "{}={text}", self.name),
            Value::File(path) => write!(f, "{}=@{}", self.name, path.display()),
        }
    }
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 0x3f;
            text.push(if digit <= chunk.len() { DIGITS[value as usize].into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_it_is_read() {
        let text = "2f1c0d3e-8a4b-4c5d-9e6f-708192a3b4c5";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!((uuid.0[0], uuid.0[4], uuid.0[15]), (0x2f, 0x8a, 0xc5));
        assert_eq!(uuid.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Uuid>().unwrap(), uuid);
        for wrong in [
            "",
            "2f1c0d3e8a4b4c5d9e6f708192a3b4c5",
            "2f1c0d3e-8a4b-4c5d-9e6f-708192a3b4c",
            "2f1c0d3e-8a4b-4c5d-9e6f-708192a3b4cg",
            "2f1c0d3e-8a4b-4c5d-9e6f-70819-a3b4c5",
            "2f1c0d3e-8a4b-4c5d-9e6f-7081\u{e9}2a3b4c5",
        ] {
            assert!(wrong.parse::<Uuid>().is_err(), "{wrong}");
        }
        assert_eq!(Uuid::random([0xff; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_credential_is_text_or_a_file() {
        let text: Credential = "system.hostname=web".parse().unwrap();
        assert_eq!(text.oem_string().unwrap(), "io.systemd.credential:system.hostname=web");
        assert_eq!(text.to_string(), "system.hostname=web");
        let empty: Credential = "a=".parse().unwrap();
        assert_eq!(empty.oem_string().unwrap(), "io.systemd.credential:a=");
        let equals: Credential = "a=b=c".parse().unwrap();
        assert_eq!(equals.oem_string().unwrap(), "io.systemd.credential:a=b=c");
        let lines: Credential = "a=b\nc".parse().unwrap();
        assert_eq!(lines.oem_string().unwrap(), "io.systemd.credential.binary:a=Ygpj");

        let directory = std::env::temp_dir().join(format!("wirevm-credential-{}", std::process::id()));
        std::fs::write(&directory, [0, 0xff, 7, 1]).unwrap();
        let spec = format!("key=@{}", directory.display());
        let file: Credential = spec.parse().unwrap();
        let read = file.oem_string();
        std::fs::remove_file(&directory).unwrap();
        assert_eq!(read.unwrap(), "io.systemd.credential.binary:key=AP8HAQ==");
        assert_eq!(file.to_string(), spec);
        assert_eq!(file.oem_string().unwrap_err().kind(), io::ErrorKind::NotFound);
        let endless: Credential = "key=@/dev/zero".parse().unwrap();
        assert_eq!(endless.oem_string().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for wrong in ["", "name", "=value", "a/b=c", "a:b=c", "..=x", "a b=c", "\u{e9}=x", "a=@"] {
            assert!(wrong.parse::<Credential>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_machine_s_name_makes_a_host_s() {
        let given = |text: &str| text.parse::<Credential>().unwrap().as_hostname();
        assert_eq!(given("system.hostname=db.lan"), Some("db.lan".to_owned()));
        for none in ["other=db", "system.hostname=a b", "system.hostname=", "system.hostname=@/dev/zero"] {
            assert_eq!(given(none), None, "{none}");
        }
        let named = |name: &str| Credential::hostname(name).map(|credential| credential.to_string());
        for (name, hostname) in
            [("web", "web"), ("web_1", "web-1"), ("-a.b-c_", "a.b-c"), ("A.example", "A.example")]
        {
            assert_eq!(named(name), Some(format!("system.hostname={hostname}")), "{name}");
        }
        assert_eq!(named(&"a".repeat(100)), Some(format!("system.hostname={}", "a".repeat(64))));
        for name in ["", "_", "..", "a..b", "a-.b", "a._b"] {
            assert_eq!(named(name), None, "{name}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xef, 0xff]), "++//");
    }
}
