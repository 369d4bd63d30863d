//! OCI image layouts, and what `docker save` and `podman save` write: which image of it is taken, and its layers. The last is one of
//! three: such a layout, a `manifest.json` that lists images, or (`--format docker-dir`, `skopeo copy ... dir:DIRECTORY`) a directory
//! with one image's manifest of that name and its parts beside it, called by their digests.
//!
//! OCI image-spec 1.1: `image-layout.md`, `image-index.md`, `manifest.md`, `config.md`. Docker Image Specification v1.2 for
//! `manifest.json`. Everything that has a digest is checked by it.

use std::collections::HashSet;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde_json::Value;

use super::config::ImageConfig;
use super::error::Error;
use super::fault::shown;
use super::sha256::Digest;
use super::span::Span;
use super::tree::{Content, Kind, Tree};

/// In bytes, of a document of an image: what registries take (4 MiB), and that twice.
const DOCUMENT_MAX: u64 = 8 << 20;
/// Of indexes in indexes.
const NESTED_MAX: usize = 4;
/// Of descriptors in indexes, in all: an image for every platform has some dozen.
const DESCRIPTORS_MAX: usize = 1000;
/// Of layers: more than any engine takes.
const LAYERS_MAX: usize = 1000;

/// Where the parts of an image lie.
#[derive(Debug)]
pub(super) enum Store {
    Directory(std::os::fd::OwnedFd),
    Archive(Tree),
}

impl Store {
    /// The file `path`, where there is one. No link leads out of the store.
    pub(super) fn open(&self, path: &str) -> std::io::Result<Option<Content>> {
        match self {
            Self::Archive(tree) => Ok(tree.find(path.as_bytes()).and_then(|id| match &tree.inode(id).kind {
                Kind::File(content) => Some(content.clone()),
                _ => None,
            })),
            Self::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                match rustix::fs::openat2(directory, Path::new(path), flags, Mode::empty(), resolve) {
                    Ok(fd) => {
                        let file = std::fs::File::from(fd);
                        let metadata = file.metadata()?;
                        let len = metadata.len();
                        Ok(metadata.is_file().then(|| Content::Whole(Span::whole(file, len))))
                    }
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

/// The image that is taken.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Of what names all its parts: the manifest, or the configuration where there is none.
    pub(super) digest: Digest,
    pub(super) config: ImageConfig,
    /// The lowest first.
    pub(super) layers: Vec<LayerFile>,
}

/// Where a layer is, and what says that it is right.
#[derive(Debug)]
pub(super) struct LayerFile {
    pub(super) path: String,
    /// Of the file as it is.
    pub(super) packed: Option<Digest>,
    /// Of the archive in it.
    pub(super) unpacked: Option<Digest>,
}

/// Reads the documents of an image.
pub(super) struct Documents<'a> {
    pub(super) store: &'a Store,
    /// As the user gave it.
    pub(super) image: &'a str,
}

impl Documents<'_> {
    /// The image of this store; `None` where the store is none, but a root's files.
    pub(super) fn choose(&self) -> Result<Option<Chosen>, Error> {
        // What newer engines write is both; the layout has digests for everything.
        if self.bytes("oci-layout")?.is_some()
            && let Some(index) = self.bytes("index.json")?
        {
            return self.layout(&index).map(Some);
        }
        let Some(bytes) = self.bytes("manifest.json")? else { return Ok(None) };
        // A root may have a file of this name.
        let images = match serde_json::from_slice(&bytes) {
            Ok(Value::Array(images)) => images,
            Ok(manifest @ Value::Object(_)) if self.is_flat()? => {
                return self.flat(&bytes, &manifest).map(Some);
            }
            _ => return Ok(None),
        };
        if images.is_empty() || images.iter().any(|image| image.get("Layers").is_none()) {
            return Ok(None);
        }
        self.saved(&images).map(Some)
    }

    /// The image whose parts lie beside `manifest`, which is `bytes`.
    fn flat(&self, bytes: &[u8], manifest: &Value) -> Result<Chosen, Error> {
        const PATH: &str = "manifest.json";
        if manifest.get("manifests").is_some() {
            return Err(
                self.malformed(PATH, "it lists images for several platforms, and one alone can be taken")
            );
        }
        let part = |digest: Digest| digest.to_string();
        let config = self.digest(PATH, manifest.get("config").unwrap_or(&Value::Null))?;
        let config = self.document(&part(config), Some(config))?;
        if config.get("architecture").is_some() && !is_ours(&platform_of(&config)) {
            return Err(Error::OtherPlatform { image: self.image.into(), found: vec![platform_of(&config)] });
        }
        self.manifest(PATH, Digest::of(bytes), manifest, part)
    }

    /// Whether the parts of one image lie side by side: what writes this says so in a file.
    fn is_flat(&self) -> Result<bool, Error> {
        Ok(self
            .bytes("version")?
            .is_some_and(|version| version.starts_with(b"Directory Transport Version: 1")))
    }

    fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let unreadable =
            |source| Error::ReadFile { image: self.image.into(), path: shown(path.as_bytes()), source };
        let Some(content) = self.store.open(path).map_err(unreadable)? else { return Ok(None) };
        // No archiver makes holes in a document.
        let Content::Whole(span) = content else { return Ok(None) };
        if span.len > DOCUMENT_MAX {
            return Err(self
                .malformed(path, format!("it has {} bytes, and {DOCUMENT_MAX} at most are read", span.len)));
        }
        let mut bytes = vec![0; span.len as usize];
        span.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
        Ok(Some(bytes))
    }

    /// A document, which has `digest` where that is said.
    fn document(&self, path: &str, digest: Option<Digest>) -> Result<Value, Error> {
        let bytes = self
            .bytes(path)?
            .ok_or_else(|| Error::Missing { image: self.image.into(), part: shown(path.as_bytes()) })?;
        let found = Digest::of(&bytes);
        if digest.is_some_and(|digest| digest != found) {
            return Err(Error::WrongDigest { image: self.image.into(), part: shown(path.as_bytes()), found });
        }
        self.parse(path, &bytes)
    }

    fn parse(&self, path: &str, bytes: &[u8]) -> Result<Value, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.malformed(path, error.to_string()))
    }

    fn malformed(&self, part: &str, problem: impl Into<String>) -> Error {
        Error::Malformed { image: self.image.into(), part: shown(part.as_bytes()), problem: problem.into() }
    }

    fn layout(&self, index: &[u8]) -> Result<Chosen, Error> {
        let mut found = Found::default();
        self.index("index.json", &self.parse("index.json", index)?, NESTED_MAX, &mut found)?;
        let images = found.images;
        match &images[..] {
            [] if found.others.is_empty() => Err(self.malformed("index.json", "it lists no image")),
            [] => Err(Error::OtherPlatform { image: self.image.into(), found: found.others }),
            [(digest, _)] => {
                let path = blob(*digest);
                self.manifest(&path, *digest, &self.document(&path, Some(*digest))?, blob)
            }
            _ => {
                let found = images.into_iter().map(|(_, name)| name).collect();
                Err(Error::Several { image: self.image.into(), found })
            }
        }
    }

    fn index(&self, path: &str, index: &Value, nested: usize, found: &mut Found) -> Result<(), Error> {
        let manifests = index.get("manifests").and_then(Value::as_array);
        let manifests = manifests.ok_or_else(|| self.malformed(path, "it has no list of manifests"))?;
        for descriptor in manifests {
            found.looked += 1;
            if found.looked > DESCRIPTORS_MAX {
                let problem = format!("its indexes list more than {DESCRIPTORS_MAX} images");
                return Err(self.malformed(path, problem));
            }
            let annotation = |name: &str| descriptor.get("annotations")?.get(name)?.as_str();
            // What was signed or attested to an image is none.
            if annotation("vnd.docker.reference.type").is_some() || descriptor.get("artifactType").is_some() {
                continue;
            }
            let digest = self.digest(path, descriptor)?;
            // What is listed twice is one.
            if !found.seen.insert(digest.0) {
                continue;
            }
            let kind = descriptor.get("mediaType").and_then(Value::as_str).unwrap_or_default();
            let name = || {
                let name = annotation("io.containerd.image.name");
                let name = name.or_else(|| annotation("org.opencontainers.image.ref.name"));
                name.map_or_else(|| format!("sha256:{digest}"), |name| shown(name.as_bytes()))
            };
            if kind.contains("index") || kind.contains("manifest.list") {
                let path = blob(digest);
                if nested == 0 {
                    return Err(self.malformed(&path, "indexes lie in indexes too deep"));
                }
                self.index(&path, &self.document(&path, Some(digest))?, nested - 1, found)?;
                continue;
            }
            if kind.contains("image.manifest") || kind.contains("distribution.manifest") || kind.is_empty() {
                let platform = match descriptor.get("platform") {
                    Some(platform) => Some(platform_of(platform)),
                    None => self.platform_of_manifest(digest)?,
                };
                match platform {
                    Some(platform) if !is_ours(&platform) => {
                        if found.others.len() < 20 {
                            found.others.push(platform);
                        }
                    }
                    _ => found.images.push((digest, name())),
                }
            }
        }
        Ok(())
    }

    /// What the configuration says, where the index does not.
    fn platform_of_manifest(&self, digest: Digest) -> Result<Option<String>, Error> {
        let path = blob(digest);
        let manifest = self.document(&path, Some(digest))?;
        let Some(config) = manifest.get("config") else { return Ok(None) };
        let config = self.digest(&path, config)?;
        let config = self.document(&blob(config), Some(config))?;
        Ok(config.get("architecture").is_some().then(|| platform_of(&config)))
    }

    /// What a descriptor points to.
    fn digest(&self, path: &str, descriptor: &Value) -> Result<Digest, Error> {
        let text = descriptor.get("digest").and_then(Value::as_str).unwrap_or_default();
        let digest = text.strip_prefix("sha256:").and_then(Digest::from_hex);
        digest.ok_or_else(|| self.malformed(path, format!("{text:.80?} is no digest of sha256")))
    }

    /// The manifest at `path`, whose parts are where `part` says.
    fn manifest(
        &self,
        path: &str,
        digest: Digest,
        manifest: &Value,
        part: fn(Digest) -> String,
    ) -> Result<Chosen, Error> {
        let config = self.digest(path, manifest.get("config").unwrap_or(&Value::Null))?;
        let config = self.document(&part(config), Some(config))?;
        let layers = manifest.get("layers").and_then(Value::as_array);
        let layers = layers.ok_or_else(|| self.malformed(path, "it has no list of layers"))?;
        let layers = layers
            .iter()
            .map(|layer| {
                let kind = layer.get("mediaType").and_then(Value::as_str).unwrap_or_default();
                if !kind.is_empty() && !kind.contains("tar") {
                    return Err(
                        self.malformed(path, format!("a layer is of the type {kind:.100?}, no tar archive"))
                    );
                }
                let digest = self.digest(path, layer)?;
                Ok(LayerFile { path: part(digest), packed: Some(digest), unpacked: None })
            })
            .collect::<Result<_, _>>()?;
        self.chosen(digest, &config, layers)
    }

    /// Of `manifest.json`: the images by tags, each with its configuration and layers as files.
    fn saved(&self, images: &[Value]) -> Result<Chosen, Error> {
        const PATH: &str = "manifest.json";
        let [image] = images else {
            let name = |image: &Value| {
                let tag = image.get("RepoTags").and_then(|tags| tags.get(0)).or(image.get("Config"));
                tag.and_then(Value::as_str).map_or("one without a name".into(), |name| shown(name.as_bytes()))
            };
            return Err(Error::Several {
                image: self.image.into(),
                found: images.iter().map(name).collect(),
            });
        };
        let path = image.get("Config").and_then(Value::as_str);
        let path = path.ok_or_else(|| self.malformed(PATH, "it names no configuration"))?;
        let bytes = self
            .bytes(path)?
            .ok_or_else(|| Error::Missing { image: self.image.into(), part: shown(path.as_bytes()) })?;
        let digest = Digest::of(&bytes);
        // The file is called by its digest: DIGEST.json, or blobs/sha256/DIGEST.
        let name = path.rsplit('/').next().unwrap_or_default();
        if Digest::from_hex(name.strip_suffix(".json").unwrap_or(name)).is_some_and(|named| named != digest) {
            return Err(Error::WrongDigest {
                image: self.image.into(),
                part: shown(path.as_bytes()),
                found: digest,
            });
        }
        let config = self.parse(path, &bytes)?;
        if config.get("architecture").is_some() && !is_ours(&platform_of(&config)) {
            return Err(Error::OtherPlatform { image: self.image.into(), found: vec![platform_of(&config)] });
        }
        let ids = config.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")).and_then(Value::as_array);
        let layers = image.get("Layers").and_then(Value::as_array);
        let (Some(ids), Some(layers)) = (ids, layers) else {
            return Err(self.malformed(path, "it has no list of layers"));
        };
        if ids.len() != layers.len() {
            return Err(self.malformed(path, "it counts other layers than manifest.json"));
        }
        let layers = layers
            .iter()
            .zip(ids)
            .map(|(layer, id)| {
                let layer = layer.as_str().ok_or_else(|| self.malformed(PATH, "a layer has no name"))?;
                let id = id.as_str().and_then(|id| Digest::from_hex(id.strip_prefix("sha256:")?));
                let id = id.ok_or_else(|| self.malformed(path, "a layer has no digest of sha256"))?;
                Ok(LayerFile { path: layer.into(), packed: None, unpacked: Some(id) })
            })
            .collect::<Result<_, _>>()?;
        self.chosen(digest, &config, layers)
    }

    fn chosen(&self, digest: Digest, config: &Value, layers: Vec<LayerFile>) -> Result<Chosen, Error> {
        if layers.len() > LAYERS_MAX {
            return Err(self.malformed("the manifest", format!("it has more than {LAYERS_MAX} layers")));
        }
        let config = ImageConfig::of(config.get("config").unwrap_or(&Value::Null));
        Ok(Chosen { digest, config, layers })
    }
}

/// The images of an index.
#[derive(Default)]
struct Found {
    /// For this machine: the manifest's digest, and a name.
    images: Vec<(Digest, String)>,
    /// The other ones' platforms.
    others: Vec<String>,
    /// How many descriptors were looked at, and what they describe.
    looked: usize,
    seen: HashSet<[u8; 32]>,
}

fn blob(digest: Digest) -> String {
    format!("blobs/sha256/{digest}")
}

fn platform_of(value: &Value) -> String {
    let text = |name, default| value.get(name).and_then(Value::as_str).unwrap_or(default);
    let variant = text("variant", "");
    let slash = if variant.is_empty() { "" } else { "/" };
    shown(format!("{}/{}{slash}{variant}", text("os", "linux"), text("architecture", "unknown")).as_bytes())
}

/// Of whatever variant (amd64/v3 is one), which the processor has or the programs say that it has not.
fn is_ours(platform: &str) -> bool {
    platform.strip_prefix("linux/amd64").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
