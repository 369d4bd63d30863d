//! What `--share` asks for: `DIR[:TAG][,ro]`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use devices::virtio::fs::TAG_MAX;

/// A directory of the host in the guest (virtio-fs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// The directory.
    pub directory: PathBuf,
    /// What the guest mounts it by, 1 to [`TAG_MAX`] bytes.
    pub tag: String,
    /// Whether the guest can change nothing in it.
    pub read_only: bool,
}

net::serde_as_text!(ShareConfig);

impl FromStr for ShareConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let place = words.next().unwrap_or_default();
        let mut read_only = false;
        for word in words {
            match word {
                "ro" if !read_only => read_only = true,
                "ro" => return Err("ro is given twice".into()),
                _ => {
                    return Err(format!(
                        "no key {word:?}; there is ro (a directory with a comma in its name: by a symbolic link)"
                    ));
                }
            }
        }
        let (directory, tag) = match place.rsplit_once(':') {
            Some((directory, tag)) => (Path::new(directory), tag),
            None => {
                let name = Path::new(place).file_name().and_then(|name| name.to_str());
                (Path::new(place), name.unwrap_or_default())
            }
        };
        if directory.as_os_str().is_empty() {
            return Err("name a directory: DIR, or DIR:TAG".into());
        }
        match tag {
            "" => Err(format!("it has no name that could be its tag: write {place}:TAG")),
            _ if tag.len() > TAG_MAX => Err(format!(
                "a tag has {TAG_MAX} bytes at most, and {tag:?} has {}: write DIR:TAG",
                tag.len()
            )),
            _ if tag.contains(|c: char| c.is_control() || c == '/') => {
                Err(format!("{tag:?} is no tag, which is text without a slash: write DIR:TAG"))
            }
            _ => Ok(Self { directory: directory.into(), tag: tag.to_owned(), read_only }),
        }
    }
}

/// As `--share` takes it.
impl fmt::Display for ShareConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.directory.display(), self.tag, if self.read_only { ",ro" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_a_directory_and_a_tag() {
        for (text, directory, tag, read_only) in [
            ("/srv/data", "/srv/data", "data", false),
            ("/srv/data/", "/srv/data/", "data", false),
            ("src,ro", "src", "src", true),
            ("/:root,ro", "/", "root", true),
            (".:here", ".", "here", false),
            ("/a:b:c", "/a:b", "c", false),
        ] {
            let share: ShareConfig = text.parse().unwrap();
            let wanted = ShareConfig { directory: directory.into(), tag: tag.into(), read_only };
            assert_eq!(share, wanted, "{text}");
            assert_eq!(share.to_string().parse(), Ok(share), "{text}");
        }
        let long = format!("/srv/{}", "x".repeat(37));
        for (text, word) in [
            ("", "name a directory"),
            (":tag", "name a directory"),
            ("/", "/:TAG"),
            ("..", "..:TAG"),
            ("/srv:", "TAG"),
            ("/srv,rw", "\"rw\""),
            ("/srv,ro,ro", "twice"),
            ("/a:b/c", "\"b/c\""),
            ("/srv:a\nb", "no tag"),
            (&long, "36 bytes"),
        ] {
            let error = text.parse::<ShareConfig>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
