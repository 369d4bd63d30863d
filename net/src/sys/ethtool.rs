//! The features of a link (`SIOCETHTOOL`, netdevice(7), `linux/ethtool.h`), which are read by name: their numbers are the kernel's own.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use super::checked;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a name.
const NAME: usize = 32;
/// More features than there will be: 64 when this was written.
const MOST: u32 = 1024;

/// Whether the feature called `name` of the link is on; none where this kernel has no such feature.
///
/// # Errors
/// There is no such link, or its driver tells no features.
pub(crate) fn feature(link: &str, name: &str) -> io::Result<Option<bool>> {
    let socket = UnixDatagram::unbound()?;
    // Command, reserved, a mask of sets in two words, and the count of the one.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ask(&socket, link, &mut info)?;
    // The names are written whole, however many are asked for.
    let Some(count) = Some(info[4]).filter(|count| (1..=MOST).contains(count)) else { return Ok(None) };
    let count = count as usize;
    // Command, set, count, and the names.
    let mut strings = vec![0; 3 + count * NAME / 4];
    strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ask(&socket, link, &mut strings)?;
    let is_named = |words: &[u32]| {
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        bytes.take_while(|byte| *byte != 0).eq(name.bytes())
    };
    let Some(at) = strings[3..].chunks(NAME / 4).position(is_named) else { return Ok(None) };
    // Command, count of blocks, and for each 32 features which are available, requested, active and never changed.
    let blocks = count.div_ceil(32);
    let mut features = vec![0; 2 + blocks * 4];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ask(&socket, link, &mut features)?;
    let active = features[2 + at / 32 * 4 + 2];
    Ok(Some(active & 1 << (at % 32) != 0))
}

/// Gives the kernel a request in `words`, which begins with its command and says how long it is, and has the answer there.
fn ask(socket: &UnixDatagram, link: &str, words: &mut [u32]) -> io::Result<()> {
    // SAFETY: all zeroes is an empty name and no address.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if link.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the words outlive the call, which writes no more of them than what they ask for: the count of the one set, as many
    // names as the kernel itself has said that there are, and so many blocks.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } as isize)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_by_their_names() {
        // Both are as the kernel made it, for good.
        assert_eq!(feature("lo", "loopback").unwrap(), Some(true));
        assert_eq!(feature("lo", "rx-vlan-filter").unwrap(), Some(false));
        assert_eq!(feature("lo", "loopbac").unwrap(), None);
        assert_eq!(feature("lo", "no such").unwrap(), None);
        for link in ["absent", "a name that is much too long for a link"] {
            assert_eq!(feature(link, "loopback").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        }
    }
}
