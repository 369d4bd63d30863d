//! A guest whose root wirevm makes (`--image`, `--root`): which kernel it boots, which of its modules it gets, where its root comes
//! from, and what its agent is told. All of it becomes what a machine has anyway: a kernel, an initrd, a command line, a disk, a share.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the way |
//! | `drivers.rs` | the kernel, and which of its modules the guest gets |
//! | `root.rs` | the root: a directory as it is, or a file system that is made of an image |

mod drivers;
mod root;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::SystemTime;

use boot::layout::HOLE_START;
use rustix::fs::{MemfdFlags, memfd_create};
use vmm::MachineConfig;
use vmm::agent::{self, AgentError};
use vmm::config::{Credential, DEFAULT_CMDLINE, GuestConfig, VsockConfig, argument};
use wirevm_agent::config::Config;
use wirevm_agent::request::Command;

use self::drivers::Drivers;
use self::root::Root;

/// Why a guest cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Modules(#[from] boot::modules::Error),
    #[error(transparent)]
    Image(#[from] boot::image::Error),
    #[error("cannot read the agent {}", path.display())]
    ReadAgent { path: PathBuf, source: io::Error },
    #[error("the kernel {} has no module {missing}, without which the guest {what}", kernel.display())]
    NoModule { kernel: PathBuf, missing: String, what: &'static str },
    #[error("cannot share {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("{} is not a directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} is not in {}, the guest's root", path.display(), root.display())]
    Outside { path: PathBuf, root: PathBuf },
    #[error("a guest that wirevm makes is reached by a vsock of wirevm's own, and there is to be none")]
    NoVsock,
    #[error("the name {name}, which a {of} of the guest has, is that by which it finds its root")]
    Reserved { of: &'static str, name: String },
    #[error("unpacked, the image {} has {size} bytes, and the guest's memory has room for {room}", image.display())]
    ImageTooLarge { image: PathBuf, size: u64, room: u64 },
    #[error("cannot tell the guest's agent what to do")]
    Config(#[from] wirevm_agent::Malformed),
    #[error("cannot {what}")]
    Host { what: &'static str, source: io::Error },
}

impl Error {
    /// What the user can do about it.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Agent(error) => return error.remedy(),
            Self::Modules(error) => error.remedy().to_owned(),
            Self::Image(error) => error.remedy().to_owned(),
            Self::ReadAgent { .. } => "make build builds it".into(),
            Self::NoModule { .. } => {
                "say where its modules are, --modules DIR; or take a distribution's kernel, --kernel FILE"
                    .into()
            }
            Self::Directory { .. } | Self::NotADirectory { .. } => "name a directory that is there".into(),
            Self::Outside { .. } => "name directories that the guest's root has in it".into(),
            Self::NoVsock => "drop --vsock".into(),
            Self::Reserved { of: "disk", .. } => "give the disk another serial=".into(),
            Self::Reserved { .. } => "give the directory another tag: --share DIR:TAG".into(),
            Self::ImageTooLarge { size, .. } if *size <= HOLE_START => format!(
                "give the guest more memory (--memory {}), or a kernel with erofs, which has the image on a disk",
                argument((size * 2 + LEFT).next_multiple_of(64 << 20))
            ),
            Self::ImageTooLarge { .. } => {
                "give the guest a kernel with erofs, which has the image on a disk: --memory does not help"
                    .into()
            }
            Self::Config(_) => "give a shorter command, or fewer variables".into(),
            Self::Host { .. } => return None,
        })
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// In bytes, what a guest takes beside an image that its kernel unpacks from memory into memory.
const LEFT: u64 = 128 << 20;

/// The same machine, with all that its guest boots by; and what must stay open until it has it.
pub(super) struct Prepared {
    pub(super) config: MachineConfig,
    pub(super) held: Vec<File>,
}

/// Makes the guest that `config` asks for, if it asks for one. Nothing of the host is changed, and no file is left but an image's in
/// the cache.
///
/// # Errors
/// What it takes is not there, or the image is none.
pub(super) fn prepare(config: &MachineConfig) -> Result<Prepared, Error> {
    let mut prepared = Prepared { config: config.clone(), held: Vec::new() };
    let Some(guest) = &config.guest else { return Ok(prepared) };
    if config.vsock != VsockConfig::On {
        return Err(Error::NoVsock);
    }
    root::refuse_reserved(config)?;
    let agent = read_agent()?;
    let drivers = Drivers::find(config.kernel.as_deref(), guest.modules.as_deref())?;
    let root = Root::make(guest, &drivers)?;
    let modules = drivers.load(config, &root)?;
    let told = Config {
        modules: modules.paths(),
        root: root.for_agent(),
        shares: root.shares_for_agent(),
        hostname: Some(hostname(config).into()),
        command: root.command(guest),
        network: !config.net.is_empty(),
        clock: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok(),
        ..Config::default()
    };
    let archive = boot::modules::initrd(&agent, &told.to_bytes()?, &modules.archived(), root.is_apart());
    let initrd = root.initrd(&archive, config.memory.bytes)?;
    let made = &mut prepared.config;
    made.kernel = Some(drivers.kernel().to_owned());
    made.initrd = Some(by_descriptor(&initrd));
    prepared.held.push(initrd);
    if made.cmdline == DEFAULT_CMDLINE {
        // What is said on the console is for who looks for a fault.
        made.cmdline = format!("{DEFAULT_CMDLINE} quiet panic=-1");
    }
    root.give(made, &mut prepared.held);
    Ok(prepared)
}

/// A machine as it was asked for: without what its guest was given beside that, which is named by descriptors.
pub(super) fn as_asked(config: &MachineConfig) -> MachineConfig {
    let mut config = config.clone();
    if config.guest.is_some() {
        config.initrd = None;
        root::forget(&mut config);
    }
    config
}

/// The host's name that the guest has: what systemd would be told it is.
fn hostname(config: &MachineConfig) -> String {
    let of_machine = || config.name.as_deref().and_then(Credential::hostname_of);
    let given = config.credentials.iter().find_map(Credential::as_hostname);
    given.or_else(of_machine).unwrap_or_else(|| "wirevm".to_owned())
}

fn read_agent() -> Result<Vec<u8>, Error> {
    let path = agent::find()?;
    std::fs::read(&path).map_err(|source| Error::ReadAgent { path, source })
}

/// The path of what this process has open, for the one that is forked.
fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A file in memory.
fn memory_file(parts: &mut [&mut dyn io::Read]) -> Result<File, Error> {
    let made = host("make a file in memory for the initrd");
    let mut file =
        File::from(memfd_create("initrd", MemfdFlags::CLOEXEC).map_err(|error| made(error.into()))?);
    for part in parts {
        io::copy(part, &mut file).map_err(&made)?;
        // Each archive begins at a multiple of four bytes.
        let at = io::Seek::stream_position(&mut file).map_err(&made)?;
        file.write_all(&[0; 3][..(4 - at % 4) as usize % 4]).map_err(&made)?;
    }
    Ok(file)
}

/// The command that an image without a word of its own runs.
const SHELL: &str = "/bin/sh";

/// What is to run, of what the user says and what the image does.
fn command(guest: &GuestConfig, image: &boot::image::ImageConfig) -> Command {
    let argv = image.command(&guest.command);
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    Command {
        argv: if argv.is_empty() { vec![SHELL.into()] } else { argv.into_iter().map(Into::into).collect() },
        env: image.env.iter().chain(&guest.env).map(Into::into).collect(),
        cwd: guest.directory.as_deref().and_then(text).or_else(|| text(&image.working_dir)),
        user: text(&image.user),
        terminal: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_called_as_the_user_says_or_else_as_its_machine() {
        let mut config = MachineConfig::new("vmlinuz");
        assert_eq!(hostname(&config), "wirevm");
        config.name = Some("web_1".to_owned());
        assert_eq!(hostname(&config), "web-1");
        config.credentials = vec!["a=b".parse().unwrap(), "system.hostname=db".parse().unwrap()];
        assert_eq!(hostname(&config), "db");
    }
}
