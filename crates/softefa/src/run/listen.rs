//! Whether a node listens on a TCP port, read from /proc: connecting would be a client that the command did not expect.

use std::collections::HashSet;
use std::fs;

use rustix::process::Pid;

/// State of a listening socket in /proc/net/tcp, hexadecimal.
const LISTEN: &str = "0A";

/// Who listens on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listener {
    /// One of the processes asked about.
    Ours,
    /// Another process.
    Foreign,
    /// Nobody.
    None,
}

/// Whether one of `processes` listens on `port`, in the network namespace of the first.
pub(super) fn on(port: u16, processes: &[Pid]) -> Listener {
    let Some(first) = processes.first() else { return Listener::None };
    let mut inodes = HashSet::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{first}/net/{table}")).unwrap_or_default();
        inodes.extend(listening(&text, port));
    }
    if inodes.is_empty() {
        return Listener::None;
    }
    if processes.iter().any(|pid| holds_socket(*pid, &inodes)) { Listener::Ours } else { Listener::Foreign }
}

/// Inodes of the sockets that listen on `port`, from the text of /proc/net/tcp.
fn listening(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().take(10).collect();
        let [_, local, _, LISTEN, _, _, _, _, _, inode] = fields[..] else { return None };
        let (_, hex) = local.rsplit_once(':')?;
        (u16::from_str_radix(hex, 16).ok()? == port).then(|| inode.parse().ok())?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds_socket(pid: Pid, inodes: &HashSet<u64>) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode: u64| inodes.contains(&inode))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_seen_with_its_process_and_a_closed_port_is_not() {
        let me = rustix::process::getpid();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert_eq!(on(port, &[me]), Listener::Ours, "{address}");
            let init = Pid::INIT;
            assert_ne!(on(port, &[init]), Listener::Ours);
            drop(listener);
            assert_eq!(on(port, &[me]), Listener::None);
        }
    }

    #[test]
    fn only_listening_sockets_of_that_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1BBC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x\n\
            \x20  1: 0100007F:1BBC 0100007F:9000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 x\n\
            \x20  2: bad\n";
        assert_eq!(listening(table, 7100), [4711]);
        assert!(listening(table, 7101).is_empty());
    }
}
