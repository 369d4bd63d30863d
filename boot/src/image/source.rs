//! From what the user names to the tree.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::config::ImageConfig;
use super::directory;
use super::error::Error;
use super::fault::shown;
use super::layer::{self, Layer};
use super::limits::{Budget, Limits};
use super::oci::{Chosen, Documents, LayerFile, Store};
use super::recognize;
use super::sha256::Digest;
use super::span::{Span, Spool, SpoolError};
use super::tar;
use super::tree::{Content, ROOT, Tree};
use super::write::{CopyError, copy_content};
use crate::unpack::Packing;

/// An image that was opened and recognised.
#[derive(Debug)]
pub(super) struct Source<'a> {
    image: String,
    limits: Limits,
    budget: Budget,
    spool: Spool<'a>,
    form: Form,
    /// The files that it is read from in place, as they were when they were opened.
    files: Vec<(Arc<File>, Stamp)>,
}

/// What an image is.
#[derive(Debug)]
enum Form {
    /// A directory with the root's files.
    Directory(OwnedFd),
    /// An OCI layout, or what engines save.
    Chosen(Store, Chosen),
    /// An archive of the root's files.
    Archive { digest: Digest, tree: Tree },
    /// An archive, of whatever kind, that is packed.
    Packed { digest: Digest, span: Span, packing: Packing },
}

/// An image's files, and what it says of the command to run.
#[derive(Debug)]
pub(super) struct Image {
    /// The files.
    pub(super) tree: Tree,
    /// Of a directory and a plain archive: empty.
    pub(super) config: ImageConfig,
    /// What it is read from in place.
    pub(super) watch: Watch,
}

/// What changes when a file is written to: its size and the times of writing.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(u64, i64, i64, i64, i64);

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self(m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
    }
}

impl<'a> Source<'a> {
    /// Opens `path`, or standard input for `-`, and finds out what it is. What comes through a pipe is read to its end here, into an
    /// unlinked file in the directory `spool`.
    ///
    /// # Errors
    /// There is no such image, or it is none, or not for this machine; what is wrong within its layers [`load`](Self::load) says.
    pub(super) fn open(path: &Path, spool: &'a Path, limits: Limits) -> Result<Self, Error> {
        let stdin = path.as_os_str() == "-";
        let image = if stdin { "on standard input".into() } else { path.display().to_string() };
        let mut source = Self {
            image,
            limits,
            budget: Budget::new(limits),
            // What is piped may have to be unpacked, too.
            spool: Spool::new(spool, limits.data.saturating_mul(2)),
            form: Form::Archive { digest: Digest([0; 32]), tree: Tree::new() },
            files: Vec::new(),
        };
        let failed = |source_: io::Error, image: &str| Error::Open { image: image.into(), source: source_ };
        let file = if stdin {
            let fd =
                io::stdin().as_fd().try_clone_to_owned().map_err(|error| failed(error, &source.image))?;
            File::from(fd)
        } else {
            // A named pipe is waited for until somebody writes to it.
            File::open(path).map_err(|error| failed(error, &source.image))?
        };
        let metadata = file.metadata().map_err(|error| failed(error, &source.image))?;
        let kind = metadata.file_type();
        source.form = if kind.is_dir() {
            source.directory(file.into())?
        } else if kind.is_block_device() {
            return Err(source.not_an_image("a disk", "give it as a disk: --disk DEVICE"));
        } else if kind.is_file() {
            let span = Span::whole(file, metadata.len());
            let span = source.settle("it", span)?;
            // Standard input may have been read from before; it is taken from its beginning.
            source.archive(span, Tell::Digest)?
        } else if kind.is_char_device() && rustix::termios::isatty(&file) {
            return Err(
                source.not_an_image("a terminal", "pipe it: `podman save NAME | wirevm run --image -`")
            );
        } else {
            let span = source.spool("it", |spool| spool.append(&file))?;
            source.archive(span, Tell::Digest)?
        };
        Ok(source)
    }

    /// By which the image is known, if it is to be cached: a directory is not.
    pub(super) fn digest(&self) -> Option<Digest> {
        match &self.form {
            Form::Directory(_) => None,
            Form::Chosen(_, chosen) => Some(chosen.digest),
            Form::Archive { digest, .. } | Form::Packed { digest, .. } => Some(*digest),
        }
    }

    /// The image, as it is named in messages.
    pub(super) fn name(&self) -> &str {
        &self.image
    }

    /// Makes the tree. Files that it is read from in place are to be watched until all was read: [`Image::watch`].
    ///
    /// # Errors
    /// The image is not whole, not what its digests say, malformed, or beyond the limits.
    pub(super) fn load(mut self) -> Result<Image, Error> {
        let empty = Form::Archive { digest: Digest([0; 32]), tree: Tree::new() };
        let form = match std::mem::replace(&mut self.form, empty) {
            Form::Packed { span, packing, .. } => {
                let span = self.unpack("it", &span, packing)?;
                self.archive(span, Tell::Nothing)?
            }
            form => form,
        };
        let (tree, config) = match form {
            Form::Directory(root) => {
                (directory::read(root, &self.image, &mut self.budget)?, ImageConfig::default())
            }
            Form::Archive { tree, .. } => (tree, ImageConfig::default()),
            Form::Chosen(store, chosen) => {
                // What the outer archive had is not the root's.
                self.budget = Budget::new(self.limits);
                let mut tree = Tree::new();
                for (number, file) in (1..).zip(&chosen.layers) {
                    self.layer(&store, file, number, &mut tree)?;
                }
                (tree, chosen.config)
            }
            Form::Packed { .. } => return Err(self.not_an_image("an archive packed twice", "unpack it once")),
        };
        if tree.entries(ROOT).is_none_or(|entries| entries.is_empty()) {
            return Err(Error::NoFiles { image: self.image });
        }
        Ok(Image { tree, config, watch: Watch { image: self.image, files: self.files } })
    }

    /// Bytes of a file that others cannot change between two looks at them, of which one finds their digest and the other makes the tree
    /// that is kept under it: of a file that is this user's alone in place, and watched; of another's a copy.
    fn settle(&mut self, part: &str, span: Span) -> Result<Span, Error> {
        let image = self.image.clone();
        let unreadable = |source| Error::ReadFile { image: image.clone(), path: part.into(), source };
        if is_own(&span.file).map_err(unreadable)? {
            let stamp = Stamp::of(&span.file).map_err(unreadable)?;
            self.files.push((span.file.clone(), stamp));
            return Ok(span);
        }
        self.spool(part, |spool| spool.append(span.reader()))
    }

    fn not_an_image(&self, looks_like: &'static str, instead: &'static str) -> Error {
        Error::NotAnImage { image: self.image.clone(), looks_like, instead }
    }

    fn directory(&mut self, root: OwnedFd) -> Result<Form, Error> {
        let unreadable = |source| Error::Read { image: self.image.clone(), source };
        let store = Store::Directory(root.try_clone().map_err(unreadable)?);
        let chosen = Documents { store: &store, image: &self.image }.choose()?;
        Ok(match chosen {
            Some(chosen) => Form::Chosen(store, chosen),
            None => Form::Directory(root),
        })
    }

    /// What the file with these bytes is.
    fn archive(&mut self, span: Span, tell: Tell) -> Result<Form, Error> {
        let image = self.image.clone();
        let unreadable = |source| Error::Read { image: image.clone(), source };
        let mut head = [0; 512];
        let len = span.read_at(&mut head, 0).map_err(unreadable)?;
        let digest = || match tell {
            Tell::Digest => Digest::of_reader(span.reader()).map_err(unreadable),
            Tell::Nothing => Ok(Digest([0; 32])),
        };
        if len == 0 {
            return Err(Error::Empty { image });
        }
        if let Some(packing) = Packing::of(&head[..len]) {
            return Ok(Form::Packed { digest: digest()?, span, packing });
        }
        if !tar::recognize(&head[..len]) {
            let (looks_like, instead) = recognize::other(&span);
            return Err(self.not_an_image(looks_like, instead));
        }
        let mut tree = Tree::new();
        let layer = Layer { number: 1, whiteouts: false, vouched: false };
        layer::apply(&mut tree, &span, layer, &mut self.budget).map_err(|source| Error::Archive {
            image: image.clone(),
            part: "the archive".into(),
            source,
        })?;
        let store = Store::Archive(tree);
        let chosen = Documents { store: &store, image: &image }.choose()?;
        match (chosen, store) {
            (Some(chosen), store) => Ok(Form::Chosen(store, chosen)),
            (None, Store::Archive(tree)) => Ok(Form::Archive { digest: digest()?, tree }),
            (None, Store::Directory(_)) => Err(Error::NoFiles { image }),
        }
    }

    fn layer(&mut self, store: &Store, file: &LayerFile, number: u32, tree: &mut Tree) -> Result<(), Error> {
        let part = format!("layer {number} ({})", shown(file.path.as_bytes()));
        let image = self.image.clone();
        let unreadable = |source| Error::ReadFile { image: image.clone(), path: part.clone(), source };
        let content = store.open(&file.path).map_err(unreadable)?;
        let missing = || Error::Missing { image: image.clone(), part: part.clone() };
        let span = match content.ok_or_else(missing)? {
            Content::Whole(span) if matches!(store, Store::Directory(_)) => self.settle(&part, span)?,
            Content::Whole(span) => span,
            content => self.materialize(&part, &content)?,
        };
        self.check(&part, &span, file.packed)?;
        let mut head = [0; 4];
        let len = span.read_at(&mut head, 0).map_err(unreadable)?;
        let span = match Packing::of(&head[..len]) {
            Some(packing) => self.unpack(&part, &span, packing)?,
            None => span,
        };
        self.check(&part, &span, file.unpacked)?;
        let layer = Layer { number, whiteouts: true, vouched: true };
        layer::apply(tree, &span, layer, &mut self.budget).map_err(|source| Error::Archive {
            image: image.clone(),
            part: part.clone(),
            source,
        })
    }

    fn check(&self, part: &str, span: &Span, digest: Option<Digest>) -> Result<(), Error> {
        let Some(digest) = digest else { return Ok(()) };
        let image = || self.image.clone();
        let found = Digest::of_reader(span.reader()).map_err(|source| Error::ReadFile {
            image: image(),
            path: part.into(),
            source,
        })?;
        if found == digest {
            Ok(())
        } else {
            Err(Error::WrongDigest { image: image(), part: part.into(), found })
        }
    }

    fn unpack(&mut self, part: &str, span: &Span, packing: Packing) -> Result<Span, Error> {
        self.spool(part, |spool| spool.append(packing.unpack(span.reader())))
    }

    /// A file with holes in one piece.
    fn materialize(&mut self, part: &str, content: &Content) -> Result<Span, Error> {
        let mut bytes = Vec::new();
        // An engine's layers have no holes; what has some in an archive of an archiver's making is small, or refused.
        if content.size() > 64 << 20 {
            return Err(Error::TooLarge { image: self.image.clone(), limit: 64 << 20 });
        }
        match copy_content(content, 0, content.size(), &mut bytes) {
            Ok(()) => self.spool(part, |spool| spool.append(&bytes[..])),
            Err(CopyError::Read(source) | CopyError::Write(source)) => {
                Err(Error::ReadFile { image: self.image.clone(), path: part.into(), source })
            }
            Err(CopyError::Changed) => Err(Error::Changed { image: self.image.clone() }),
        }
    }

    fn spool(
        &mut self,
        part: &str,
        append: impl FnOnce(&mut Spool<'a>) -> Result<Span, SpoolError>,
    ) -> Result<Span, Error> {
        let (image, limit) = (self.image.clone(), self.limits.data);
        append(&mut self.spool).map_err(|error| match error {
            SpoolError::Read(source) => Error::Unpack { image, part: part.into(), source },
            SpoolError::Write(source) => Error::Cache { path: self.spool.directory().into(), source },
            SpoolError::Full => Error::TooLarge { image, limit },
        })
    }
}

/// Whether nobody can write to this file but this user and root: by its owner and mode, which a file system of this host's kernel vouches
/// for.
fn is_own(file: &File) -> io::Result<bool> {
    // FUSE, NFS, 9p, SMB1 and SMB2: somebody else's program says what the file has, and who owns it (`linux/magic.h`).
    const ELSEWHERE: [u32; 5] = [0x6573_5546, 0x6969, 0x0102_1997, 0xff53_4d42, 0xfe53_4d42];
    let metadata = file.metadata()?;
    let file_system = rustix::fs::fstatfs(file)?.f_type as u32;
    let owners = [0, rustix::process::geteuid().as_raw()];
    Ok(owners.contains(&metadata.uid()) && metadata.mode() & 0o022 == 0 && !ELSEWHERE.contains(&file_system))
}

/// Whether the digest of an archive is wanted: of what is packed it is that of the packed bytes.
#[derive(Clone, Copy)]
enum Tell {
    Digest,
    Nothing,
}

/// The files that an image is read from, and how they were.
#[derive(Debug)]
pub(super) struct Watch {
    image: String,
    files: Vec<(Arc<File>, Stamp)>,
}

impl Watch {
    /// Whether they are still as they were: to be asked when all of them was read.
    ///
    /// # Errors
    /// One was written to.
    pub(super) fn check(&self) -> Result<(), Error> {
        let same = |(file, stamp): &(Arc<File>, Stamp)| Stamp::of(file).is_ok_and(|now| now == *stamp);
        if self.files.iter().all(same) { Ok(()) } else { Err(Error::Changed { image: self.image.clone() }) }
    }
}
