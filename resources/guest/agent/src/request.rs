//! What a connection is for; the first thing that the host says on it.

use std::ffi::OsString;

use crate::fields::{self, Malformed, Writer};
use crate::frame::Window;

const KIND: &str = "wirevm request 1";

/// What the host wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec(Command),
    /// Run the command of the configuration, which starts with this and whose end is the guest's. Only the first one gets it.
    /// Variables, directory and user are added to the configuration's; there are no arguments.
    Main(Command),
    /// Answer once the guest is up: the root mounted, the network tried.
    Ready,
    /// Power the guest off.
    PowerOff,
    /// Answer the agent's version.
    Version,
}

/// A command, and how it is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program, looked for in `PATH` where it has no slash, and its arguments.
    pub argv: Vec<OsString>,
    /// Variables, `KEY=VALUE`, on top of those of the configuration.
    pub env: Vec<OsString>,
    /// Where it begins; by default where the configuration says.
    pub cwd: Option<OsString>,
    /// As whom: `USER[:GROUP]`, names or numbers; by default whom the configuration says.
    pub user: Option<OsString>,
    /// It gets a terminal of this size. Standard error is the terminal, too, then.
    pub terminal: Option<Window>,
}

impl Command {
    pub(crate) fn write(&self, to: &mut Writer) {
        to.fields("arg", &self.argv)
            .fields("env", &self.env)
            .fields("cwd", &self.cwd)
            .fields("user", &self.user);
        let size = self.terminal.map(|Window { rows, columns }| format!("{rows}x{columns}"));
        to.fields("terminal", size);
    }

    /// Takes a field that is a command's; false where it is none.
    pub(crate) fn take(&mut self, field: &fields::Field<'_>) -> Result<bool, Malformed> {
        match field.name {
            "arg" => self.argv.push(field.text()),
            "env" => self.env.push(field.text()),
            "cwd" => self.cwd = Some(field.text()),
            "user" => self.user = Some(field.text()),
            "terminal" => {
                let size: String = field.parsed()?;
                let (rows, columns) = size.split_once('x').ok_or_else(|| field.bad_value())?;
                let number = |text: &str| text.parse().map_err(|_| field.bad_value());
                self.terminal = Some(Window { rows: number(rows)?, columns: number(columns)? });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Request {
    /// The document that the host sends.
    ///
    /// # Errors
    /// Something in it has a NUL, or it is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Malformed> {
        let mut writer = Writer::new(KIND);
        match self {
            Self::Exec(command) => command.write(writer.field("do", "exec")),
            Self::Main(command) => command.write(writer.field("do", "main")),
            Self::Ready => drop(writer.field("do", "ready")),
            Self::PowerOff => drop(writer.field("do", "poweroff")),
            Self::Version => drop(writer.field("do", "version")),
        }
        writer.finish()
    }

    /// What such a document wants.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = fields::read(bytes, KIND)?;
        let what = fields.next().ok_or(Malformed::Truncated)??;
        let mut command = Command::default();
        let mut request = match (what.name, what.parsed::<String>()?.as_str()) {
            ("do", "exec") => Self::Exec(Command::default()),
            ("do", "main") => Self::Main(Command::default()),
            ("do", "ready") => Self::Ready,
            ("do", "poweroff") => Self::PowerOff,
            ("do", "version") => Self::Version,
            _ => return Err(what.bad_value()),
        };
        for field in fields {
            let field = field?;
            let takes = matches!(request, Self::Exec(_) | Self::Main(_));
            if !takes || !command.take(&field)? {
                return Err(field.unknown());
            }
        }
        if let Self::Exec(to) | Self::Main(to) = &mut request {
            *to = command;
        }
        Ok(request)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    /// Any text without a NUL, also what is not UTF-8.
    pub(crate) fn text() -> impl Strategy<Value = OsString> {
        proptest::collection::vec(1..=255u8, 0..40).prop_map(OsString::from_vec)
    }

    pub(crate) fn command() -> impl Strategy<Value = Command> {
        let list = || proptest::collection::vec(text(), 0..4);
        let one = || proptest::option::of(text());
        let size = proptest::option::of(any::<(u16, u16)>());
        (list(), list(), one(), one(), size).prop_map(|(argv, env, cwd, user, size)| {
            let terminal = size.map(|(rows, columns)| Window { rows, columns });
            Command { argv, env, cwd, user, terminal }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(command in command(), what in 0..5u8) {
            let request = match what {
                0 => Request::Exec(command),
                1 => Request::Main(command),
                2 => Request::Ready,
                3 => Request::PowerOff,
                _ => Request::Version,
            };
            let bytes = request.to_bytes().unwrap();
            prop_assert_eq!(Request::parse(&bytes), Ok(request));
            // No part of it is one but the shorter lists of a command.
            for end in 0..bytes.len() {
                let cut = Request::parse(&bytes[..end]);
                prop_assert!(cut.is_err() || bytes[end - 1] == 0, "{:?}", cut);
            }
        }

        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), fields in "(do|arg|env|cwd|user|terminal|x|=|exec|main|1x2|\0){0,20}") {
            let _ = Request::parse(&bytes);
            let _ = Request::parse(&[KIND.as_bytes(), b"\0", fields.as_bytes()].concat());
            let _ = Request::parse(&[KIND.as_bytes(), b"\0do=exec\0", fields.as_bytes(), b"\0"].concat());
        }
    }

    #[test]
    fn what_is_no_request_is_said() {
        let refused = |text: &str| Request::parse(text.as_bytes()).unwrap_err();
        let kind = Malformed::Kind { wanted: KIND };
        assert_eq!(refused(""), kind);
        assert_eq!(refused("wirevm request 2\0do=version\0"), kind);
        assert_eq!(refused("wirevm request 1\0"), Malformed::Truncated);
        assert_eq!(refused("wirevm request 1\0do=version"), Malformed::Truncated);
        assert_eq!(refused("wirevm request 1\0do=dance\0"), Malformed::Value("do".into()));
        assert_eq!(refused("wirevm request 1\0do=ready\0arg=x\0"), Malformed::Field("arg".into()));
        assert_eq!(refused("wirevm request 1\0do=exec\0x=y\0"), Malformed::Field("x".into()));
        assert_eq!(refused("wirevm request 1\0do=exec\0arg\0"), Malformed::Field("arg".into()));
        assert_eq!(refused("wirevm request 1\0do=exec\0terminal=9\0"), Malformed::Value("terminal".into()));
        assert_eq!(refused(&"x".repeat(fields::DOCUMENT_MAX + 1)), Malformed::TooLong);
        let nul = Request::Exec(Command { argv: vec!["a\0b".into()], ..Command::default() });
        assert_eq!(nul.to_bytes(), Err(Malformed::Nul("arg")));
        let long = Request::Exec(Command {
            argv: vec!["x".repeat(fields::DOCUMENT_MAX).into()],
            ..Command::default()
        });
        assert_eq!(long.to_bytes(), Err(Malformed::TooLong));
    }
}
