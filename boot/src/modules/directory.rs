//! Where a kernel's modules are.

use std::path::{Path, PathBuf};

use super::error::Error;

/// Where a root has its modules.
const PLACES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// The directory with the modules of `version`, for the kernel in the file `kernel`: `given`, or below it; or `/lib/modules/VERSION`; or
/// what lies beside the kernel in a package that was unpacked, `DIRECTORY/lib/modules/VERSION` for `DIRECTORY/boot/vmlinuz-VERSION`.
/// `None` where there is none and none was given: the kernel may have all that it needs.
///
/// # Errors
/// `given` has no modules of this version.
pub fn directory(
    kernel: &Path,
    version: Option<&str>,
    given: Option<&Path>,
) -> Result<Option<PathBuf>, Error> {
    directory_in(Path::new("/"), kernel, version, given)
}

fn directory_in(
    root: &Path,
    kernel: &Path,
    version: Option<&str>,
    given: Option<&Path>,
) -> Result<Option<PathBuf>, Error> {
    if let Some(given) = given {
        let below = version.into_iter().flat_map(|version| {
            [given.join(version)].into_iter().chain(PLACES.map(|place| given.join(place).join(version)))
        });
        let mut candidates = below.chain([given.into()]);
        return match candidates.find(|path| has_modules(path)) {
            Some(path) => Ok(Some(path)),
            None => Err(Error::NoModules { path: given.into() }),
        };
    }
    let Some(version) = version else { return Ok(None) };
    // A kernel is where it is, not where a link to it is.
    let kernel = kernel.canonicalize().unwrap_or_else(|_| kernel.into());
    let beside =
        kernel.parent().into_iter().flat_map(|directory| [Some(directory), directory.parent()]).flatten();
    let beside = beside.flat_map(|directory| PLACES.map(|place| directory.join(place).join(version)));
    // /lib/modules/VERSION/vmlinuz lies among its modules.
    let among = kernel.parent().map(Path::to_path_buf).filter(|path| path.ends_with(version));
    let installed = PLACES.map(|place| root.join(place).join(version));
    Ok(among.into_iter().chain(beside).chain(installed).find(|path| has_modules(path)))
}

/// Whether depmod's index is there, or the modules.
fn has_modules(path: &Path) -> bool {
    path.join("modules.dep").is_file() || path.join("kernel").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Directory;

    #[test]
    fn they_are_beside_the_kernel_or_installed() {
        let root = Directory::new();
        let at = |path: &str| root.path().join(path);
        let find = |kernel: &str| directory_in(&at("host"), &at(kernel), Some("6.1"), None).unwrap();
        assert_eq!(find("package/boot/vmlinuz-6.1"), None);
        root.file("host/lib/modules/6.1/modules.dep", b"");
        assert_eq!(find("package/boot/vmlinuz-6.1"), Some(at("host/lib/modules/6.1")));
        root.file("package/boot/vmlinuz-6.1", b"");
        root.file("package/usr/lib/modules/6.1/kernel/fs/a.ko", b"");
        let beside = find("package/boot/vmlinuz-6.1").unwrap();
        assert!(beside.ends_with("package/usr/lib/modules/6.1"), "{beside:?}");
        root.file("package/usr/lib/modules/6.1/vmlinuz", b"");
        assert_eq!(find("package/usr/lib/modules/6.1/vmlinuz").unwrap(), beside);
        assert_eq!(directory_in(&at("host"), &at("x"), None, None).unwrap(), None);
    }

    #[test]
    fn one_that_is_given_must_have_some() {
        let root = Directory::new();
        root.file("a/6.1/modules.dep", b"");
        root.file("b/usr/lib/modules/6.1/kernel/x.ko", b"");
        root.file("c/boot/x", b"");
        let given = |name: &str, version| {
            directory_in(root.path(), Path::new("k"), version, Some(&root.path().join(name)))
        };
        for name in ["a", "a/6.1"] {
            assert_eq!(given(name, Some("6.1")).unwrap(), Some(root.path().join("a/6.1")));
        }
        assert_eq!(given("a/6.1", None).unwrap(), Some(root.path().join("a/6.1")));
        assert_eq!(given("b", Some("6.1")).unwrap(), Some(root.path().join("b/usr/lib/modules/6.1")));
        for (name, version) in [("a", Some("6.2")), ("c", Some("6.1")), ("a", None)] {
            let error = given(name, version).unwrap_err();
            assert!(error.to_string().ends_with(" has no kernel modules"), "{error}");
            assert!(error.remedy().contains("--modules"));
        }
    }
}
