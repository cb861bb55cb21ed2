//! Who and where an agent is, as its address says it: enough to tell "another host" from "another container" from
//! "another user" before anything is tried, because each has its own remedy.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use kvrail_core::transport::PeerError;

/// An agent's name on its host: random, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Nonce(pub(super) [u8; 16]);

impl Nonce {
    pub(super) fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // SAFETY: the buffer is as long as is said.
        let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if n == 16 { Ok(Self(bytes)) } else { Err(io::Error::last_os_error()) }
    }

    /// The abstract socket name, without the leading zero.
    pub(super) fn socket_name(self) -> String {
        format!("kvrail-shm-{self}")
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What two agents must have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Host {
    /// Differs between hosts and between boots.
    pub(super) boot: [u8; 16],
    /// Process ids mean the same only within one.
    pub(super) pid_namespace: u64,
    /// Abstract socket names are known only within one.
    pub(super) net_namespace: u64,
    /// User ids mean the same only within one.
    pub(super) user_namespace: u64,
    pub(super) uid: u32,
}

/// Everything in an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Address {
    pub(super) host: Host,
    pub(super) pid: u32,
    pub(super) nonce: Nonce,
}

/// Version, host, process, nonce.
const ADDRESS_BYTES: usize = 1 + 16 + 3 * 8 + 4 + 4 + 16;
const ADDRESS_VERSION: u8 = 1;

impl Host {
    /// Where this process runs.
    pub(super) fn here() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let mut boot = [0; 16];
        let mut digits = text.chars().filter_map(|c| c.to_digit(16));
        for byte in &mut boot {
            let (Some(high), Some(low)) = (digits.next(), digits.next()) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "boot_id is no UUID"));
            };
            *byte = (high << 4 | low) as u8;
        }
        let namespace = |name: &str| fs::metadata(format!("/proc/self/ns/{name}")).map(|m| m.ino());
        Ok(Self {
            boot,
            pid_namespace: namespace("pid")?,
            net_namespace: namespace("net")?,
            user_namespace: namespace("user")?,
            uid: own_uid(),
        })
    }

    /// Why memory cannot be shared with an agent that runs there.
    pub(super) fn meets(&self, there: &Self) -> Result<(), PeerError> {
        let says = |text: &str| Err(PeerError::Unreachable(format!("shm cannot reach the peer: {text}")));
        if self.boot != there.boot {
            return says("it runs on another host (or before a reboot of this one); use tcp");
        }
        if self.net_namespace != there.net_namespace {
            return says(
                "it runs in another network namespace of this host; run both containers with the host's network, or use tcp",
            );
        }
        if self.pid_namespace != there.pid_namespace {
            return says(
                "it runs in another pid namespace of this host; share the pid namespace between the containers, or use tcp",
            );
        }
        if self.user_namespace != there.user_namespace {
            return says("it runs in another user namespace of this host; use tcp");
        }
        if self.uid != there.uid {
            return Err(PeerError::Unreachable(format!(
                "shm cannot reach the peer: it runs as user {}, this process as user {}; run both as one user, or use tcp",
                there.uid, self.uid
            )));
        }
        Ok(())
    }
}

impl Address {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(ADDRESS_VERSION);
        out.extend(self.host.boot);
        for word in [self.host.pid_namespace, self.host.net_namespace, self.host.user_namespace] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.host.uid.to_le_bytes());
        out.extend(self.pid.to_le_bytes());
        out.extend(self.nonce.0);
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, PeerError> {
        match bytes.first() {
            Some(&ADDRESS_VERSION) => {}
            Some(version) => {
                return Err(PeerError::Unreachable(format!(
                    "the peer's shm address has version {version}, this build knows {ADDRESS_VERSION}"
                )));
            }
            None => return Err(PeerError::Malformed("the shm address is empty".into())),
        }
        if bytes.len() != ADDRESS_BYTES {
            let text = format!("a shm address has {ADDRESS_BYTES} bytes, not {}", bytes.len());
            return Err(PeerError::Malformed(text));
        }
        let mut rest = &bytes[1..];
        Ok(Self {
            host: Host {
                boot: take(&mut rest),
                pid_namespace: u64::from_le_bytes(take(&mut rest)),
                net_namespace: u64::from_le_bytes(take(&mut rest)),
                user_namespace: u64::from_le_bytes(take(&mut rest)),
                uid: u32::from_le_bytes(take(&mut rest)),
            },
            pid: u32::from_le_bytes(take(&mut rest)),
            nonce: Nonce(take(&mut rest)),
        })
    }
}

/// The next `N` bytes; zeros past the end.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

pub(super) fn own_uid() -> u32 {
    // SAFETY: cannot fail and touches no memory.
    unsafe { libc::getuid() }
}

/// When a process started, in ticks since boot: with its id, its name for ever.
pub(super) fn start_time(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may hold anything; the start is field 22.
    let field = text.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19));
    field
        .and_then(|f| f.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> Address {
        Address { host: Host::here().unwrap(), pid: 77, nonce: Nonce::random().unwrap() }
    }

    #[test]
    fn an_address_comes_back_as_it_was() {
        let mut bytes = Vec::new();
        address().encode(&mut bytes);
        assert_eq!(bytes.len(), ADDRESS_BYTES);
        let mut again = Vec::new();
        Address::decode(&bytes).unwrap().encode(&mut again);
        assert_eq!(bytes, again);
    }

    #[test]
    fn each_kind_of_distance_has_its_own_text() {
        let here = Host::here().unwrap();
        assert_eq!(here.meets(&here), Ok(()));
        let mut texts = Vec::new();
        let other = |change: &dyn Fn(&mut Host)| {
            let mut there = here;
            change(&mut there);
            match here.meets(&there) {
                Err(PeerError::Unreachable(text)) => text,
                other => panic!("{other:?}"),
            }
        };
        texts.push(other(&|h| h.boot[3] ^= 1));
        texts.push(other(&|h| h.net_namespace ^= 1));
        texts.push(other(&|h| h.pid_namespace ^= 1));
        texts.push(other(&|h| h.user_namespace ^= 1));
        texts.push(other(&|h| h.uid ^= 1));
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 5);
    }

    #[test]
    fn a_start_time_is_found_for_this_process_and_not_for_none() {
        assert!(start_time(std::process::id()).unwrap() > 0);
        assert!(start_time(u32::MAX >> 1).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address_or_a_typed_error(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Address::decode(&bytes);
            let mut versioned = vec![ADDRESS_VERSION];
            versioned.extend(bytes);
            let _ = Address::decode(&versioned);
        }
    }
}
