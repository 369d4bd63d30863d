//! What the agent does as the guest's init. wirevm writes it into the initramfs, at [`CONFIG_PATH`](crate::CONFIG_PATH).

use std::ffi::OsString;
use std::time::Duration;

use crate::PORT;
use crate::fields::{self, Field, Malformed, Writer, switch};
use crate::request::Command;

const KIND: &str = "wirevm config 1";

/// The agent's configuration. Where there is none, the default: it serves, in the initramfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Kernel modules to load, as paths in the initramfs (plain `.ko`), each after those that it needs.
    pub modules: Vec<OsString>,
    /// The guest's root.
    pub root: Root,
    /// Directories of the host, mounted by virtio-fs once the root is there.
    pub shares: Vec<Share>,
    /// The guest's hostname; without it that of a DHCP server, if it has one.
    pub hostname: Option<OsString>,
    /// The main command. Without arguments there is none, and the agent only serves. Variables, directory and user are the defaults of
    /// all commands.
    pub command: Command,
    /// Bring the virtio NICs up, by DHCP and router advertisements.
    pub network: bool,
    /// The host's wall clock when the guest was started, since 1970. The guest's clock is set where it is behind that.
    pub clock: Option<Duration>,
    /// The vsock port to listen at.
    pub port: u32,
    /// What process 1 is once the root is there.
    pub init: Init,
}

/// Where the guest's root is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Root {
    /// The initramfs itself.
    #[default]
    Initramfs,
    /// A file system on a virtio-blk device.
    Block {
        /// The device's serial, by which it is found.
        serial: OsString,
        /// `erofs`, `ext4`...
        fstype: OsString,
        /// Mount it read-only, and keep changes in memory.
        overlay: bool,
    },
    /// A directory of the host, by virtio-fs.
    VirtioFs {
        /// The device's tag.
        tag: OsString,
        /// Mount it read-only, and keep changes in memory.
        overlay: bool,
    },
}

/// A directory of the host in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The virtio-fs device's tag.
    pub tag: OsString,
    /// Where it is mounted, an absolute path; it is made where it is not there.
    pub directory: OsString,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// Process 1 of the guest once its root is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// The agent.
    #[default]
    Agent,
    /// The guest's own, at this path; the agent serves as a process beside it.
    Exec(OsString),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            modules: Vec::new(),
            root: Root::default(),
            shares: Vec::new(),
            hostname: None,
            command: Command::default(),
            network: true,
            clock: None,
            port: PORT,
            init: Init::default(),
        }
    }
}

impl Config {
    /// The file's bytes.
    ///
    /// # Errors
    /// Something in it has a NUL, or it is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Malformed> {
        let mut to = Writer::new(KIND);
        to.fields("module", &self.modules);
        match &self.root {
            Root::Initramfs => {}
            Root::Block { serial, fstype, overlay } => {
                to.field("root.block", serial)
                    .field("root.fstype", fstype)
                    .field("root.overlay", switch(*overlay));
            }
            Root::VirtioFs { tag, overlay } => {
                to.field("root.virtiofs", tag).field("root.overlay", switch(*overlay));
            }
        }
        for Share { tag, directory, read_only } in &self.shares {
            to.field("share", tag).field("share.directory", directory).field("share.ro", switch(*read_only));
        }
        to.fields("hostname", &self.hostname);
        self.command.write(&mut to);
        to.field("network", switch(self.network));
        to.fields("clock", self.clock.map(|clock| clock.as_nanos().to_string()));
        to.field("port", self.port.to_string());
        if let Init::Exec(path) = &self.init {
            to.field("init", path);
        }
        to.finish()
    }

    /// The configuration in such a file.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut config = Self::default();
        for field in fields::read(bytes, KIND)? {
            let field = field?;
            match field.name {
                "module" => config.modules.push(field.text()),
                "hostname" => config.hostname = Some(field.text()),
                "network" => config.network = field.switch()?,
                "clock" => config.clock = Some(time(&field)?),
                "port" => config.port = field.parsed()?,
                "init" => config.init = Init::Exec(field.text()),
                name if name.starts_with("root.") => config.root.take(&field)?,
                name if name.starts_with("share") => take_share(&mut config.shares, &field)?,
                _ if config.command.take(&field)? => {}
                _ => return Err(field.unknown()),
            }
        }
        Ok(config)
    }
}

fn time(field: &Field<'_>) -> Result<Duration, Malformed> {
    let nanos: u128 = field.parsed()?;
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| field.bad_value())?;
    Ok(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
}

impl Root {
    fn take(&mut self, field: &Field<'_>) -> Result<(), Malformed> {
        match (field.name, &mut *self) {
            ("root.block", _) => {
                *self = Self::Block { serial: field.text(), fstype: "ext4".into(), overlay: false };
            }
            ("root.virtiofs", _) => *self = Self::VirtioFs { tag: field.text(), overlay: false },
            ("root.fstype", Self::Block { fstype, .. }) => *fstype = field.text(),
            ("root.overlay", Self::Block { overlay, .. } | Self::VirtioFs { overlay, .. }) => {
                *overlay = field.switch()?;
            }
            _ => return Err(field.unknown()),
        }
        Ok(())
    }
}

fn take_share(shares: &mut Vec<Share>, field: &Field<'_>) -> Result<(), Malformed> {
    match (field.name, shares.last_mut()) {
        ("share", _) => {
            shares.push(Share { tag: field.text(), directory: "/mnt".into(), read_only: true });
        }
        ("share.directory", Some(share)) => share.directory = field.text(),
        ("share.ro", Some(share)) => share.read_only = field.switch()?,
        _ => return Err(field.unknown()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::tests::{command, text};

    fn root() -> impl Strategy<Value = Root> {
        prop_oneof![
            Just(Root::Initramfs),
            (text(), text(), any::<bool>()).prop_map(|(serial, fstype, overlay)| Root::Block {
                serial,
                fstype,
                overlay
            }),
            (text(), any::<bool>()).prop_map(|(tag, overlay)| Root::VirtioFs { tag, overlay }),
        ]
    }

    fn share() -> impl Strategy<Value = Share> {
        (text(), text(), any::<bool>()).prop_map(|(tag, directory, read_only)| Share {
            tag,
            directory,
            read_only,
        })
    }

    prop_compose! {
        fn config()(
            modules in proptest::collection::vec(text(), 0..3),
            root in root(),
            shares in proptest::collection::vec(share(), 0..3),
            hostname in proptest::option::of(text()),
            command in command(),
            (network, port) in any::<(bool, u32)>(),
            clock in proptest::option::of((any::<u64>(), 0..1_000_000_000u32)),
            init in proptest::option::of(text()),
        ) -> Config {
            let clock = clock.map(|(seconds, nanos)| Duration::new(seconds, nanos));
            let init = init.map_or(Init::Agent, Init::Exec);
            Config { modules, root, shares, hostname, command, network, clock, port, init }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(config in config()) {
            prop_assert_eq!(Config::parse(&config.to_bytes().unwrap()), Ok(config));
        }

        #[test]
        fn any_bytes_are_a_configuration_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400), fields in "(module=|root\\.(block|virtiofs|fstype|overlay)=|share(\\.ro|\\.directory)?=|clock=|port=|network=|on|9|\0){0,20}") {
            let _ = Config::parse(&bytes);
            let _ = Config::parse(&[KIND.as_bytes(), b"\0", fields.as_bytes(), b"\0"].concat());
        }
    }

    #[test]
    fn what_is_no_configuration_is_said() {
        let refused = |text: &str| Config::parse(format!("{KIND}\0{text}").as_bytes()).unwrap_err();
        assert_eq!(Config::parse(b"wirevm config 2\0"), Err(Malformed::Kind { wanted: KIND }));
        assert_eq!(refused("port=1024"), Malformed::Truncated);
        assert_eq!(refused("port=x\0"), Malformed::Value("port".into()));
        assert_eq!(refused("network=perhaps\0"), Malformed::Value("network".into()));
        assert_eq!(refused("clock=99999999999999999999999999999\0"), Malformed::Value("clock".into()));
        assert_eq!(refused("root.overlay=on\0"), Malformed::Field("root.overlay".into()));
        assert_eq!(refused("root.virtiofs=x\0root.fstype=erofs\0"), Malformed::Field("root.fstype".into()));
        assert_eq!(refused("share.ro=on\0"), Malformed::Field("share.ro".into()));
        assert_eq!(refused("surprise=1\0"), Malformed::Field("surprise".into()));
        assert_eq!(Config::parse(format!("{KIND}\0").as_bytes()), Ok(Config::default()));
    }
}
