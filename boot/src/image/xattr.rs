//! Which extended attributes of a file go with it into the guest.

use super::tree::Bytes;

/// In bytes, all of a file's: what Linux lets one value have (XATTR_SIZE_MAX), for all of them together.
const ALL_MAX: usize = 1 << 16;
const NAME_MAX: usize = 255;

/// Whether the attribute of this full name belongs to the file rather than to the host that it was on: a capability, an access list,
/// and the user's own. Labels of SELinux and marks of overlays (trusted.overlay.*) mean something on their host only.
pub(super) fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty()),
    }
}

/// Whether Linux can hold these.
pub(super) fn fit(xattrs: &[(Bytes, Bytes)]) -> bool {
    let all: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    all < ALL_MAX && xattrs.iter().all(|(name, _)| name.len() <= NAME_MAX && !name.contains(&0))
}
