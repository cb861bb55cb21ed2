//! What the numbers and names in error lines mean.

/// Status of a completion, as the EFA device and its provider give it (`prov_errno`).
pub(super) fn efa(code: &str) -> Option<&'static str> {
    Some(match code {
        "1" => "flushed: the queue pair was closed while this was under way",
        "2" => "the local queue pair failed inside the device",
        "3" => "the device does not know this operation",
        "4" => "the local address handle is invalid: the peer was removed while this was under way",
        "5" => "the local memory registration is gone, too small, or lacks the access",
        "6" => "the message is longer than the device sends",
        "7" => {
            "the target's memory registration is gone, too small, or lacks the access: wrong key or wrong address"
        }
        "8" => "the target reset the connection",
        "9" => "the target's queue pair is gone: its process ended or was restarted",
        "10" => "the target had no receive buffer posted",
        "11" => "the target's receive buffer was too small",
        "12" => "the target answered with a status that the sender does not know",
        "13" => "the target no longer answers, and did before",
        "14" => "the target does not have the sender in its address vector, which reads and writes need",
        "15" => "the target never answered: the network drops what is sent to it",
        "18" => "the target lacks a feature that the sender asked for: different drivers or libraries",
        "4097" | "4098" | "4099" | "4125" => {
            "a packet of another protocol version: the two hosts have different libfabrics"
        }
        "4105" => "the provider ran out of memory",
        "4108" | "4109" => "the provider ran out of operation entries",
        "4111" => "the target refused the address of a read or write: no registration covers it",
        "4113" => "the handshake of the provider could not be sent",
        "4122" | "4123" => "the shared memory between processes of one host failed",
        "4124" => "the target no longer answers, after a handshake had succeeded",
        "4126" => "the target's host is reachable, and its process never finished the handshake",
        "4127" => "the target closed its memory or endpoint during the transfer",
        _ => return None,
    })
}

/// Statuses of NIXL.
pub(super) fn nixl(status: &str) -> Option<&'static str> {
    Some(match status {
        "NIXL_ERR_BACKEND" => "the backend failed; the lines of UCX or libfabric before this one say how",
        "NIXL_ERR_NOT_FOUND" => {
            "no such agent, memory or plugin: metadata was never loaded, or was invalidated"
        }
        "NIXL_ERR_MISMATCH" => "descriptors of the two sides do not fit: lengths or counts differ",
        "NIXL_ERR_INVALID_PARAM" => {
            "an argument cannot be: an empty list, a wrong type, a backend created twice"
        }
        "NIXL_ERR_NOT_ALLOWED" => "the agent's configuration or its other backends forbid this",
        "NIXL_ERR_REPOST_ACTIVE" => "a transfer was posted again before it had ended",
        "NIXL_ERR_NOT_SUPPORTED" => "this backend cannot do this with this kind of memory",
        "NIXL_ERR_NOT_POSTED" => "the state of a transfer was asked that was never posted",
        "NIXL_ERR_CANCELED" => "the transfer was cancelled",
        _ => return None,
    })
}

/// Xid numbers of NVIDIA's driver.
pub(super) fn xid(code: &str) -> Option<&'static str> {
    Some(match code {
        "13" => "an exception of the graphics engine: nearly always a defect of the program that ran",
        "31" => "an access to an address that is not mapped: nearly always a defect of the program that ran",
        "43" => "the GPU stopped a program's work; the GPU itself is well",
        "45" => "work was cleaned up after another error: look at the one before it",
        "48" => "memory with two wrong bits: the GPU must be reset",
        "62" | "109" | "119" | "120" => "the GPU's own processor hangs: reset the GPU, or the host",
        "63" | "64" => "memory was remapped, or could not be: the GPU must be reset",
        "74" => "an error on NVLink: the link or its neighbour is broken",
        "79" => {
            "the GPU has fallen off the bus: power, heat or the slot; only the host's restart brings it back"
        }
        "92" => "many corrected memory errors",
        "94" => "a memory error that was contained: the programs that used it must be restarted",
        "95" => "a memory error that was not contained: the GPU must be reset",
        "121" | "137" | "145" | "149" => "errors on NVLink",
        _ => return None,
    })
}

/// Errors of the CUDA runtime and driver.
pub(super) fn cuda(name: &str) -> Option<&'static str> {
    let name = name.trim_start_matches("cudaError").trim_start_matches("CUDA_ERROR_");
    let folded: String =
        name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    Some(match folded.as_str() {
        "illegaladdress" | "anillegalmemoryaccesswasencountered" => {
            "a kernel touched memory that is not its: freed, or written by somebody else; what follows in the process is lost"
        }
        "insufficientdriver" | "systemdrivermismatch" | "compatnotsupportedondevice" => {
            "the driver is older than this CUDA runtime"
        }
        "nodevice" | "nocudacapabledeviceisdetected" => "the process sees no GPU",
        "devicesunavailable" | "allcudacapabledevicesarebusyorunavailable" => {
            "each GPU is held exclusively, or hangs"
        }
        "systemnotready" => "the fabric manager of the NVSwitches is not running",
        "invaliddevice" | "invaliddeviceordinal" => "a GPU was named that the process does not have",
        "devicenotlicensed" => "the virtual GPU has no licence",
        "eccuncorrectable" => "the GPU's memory has an error that cannot be corrected",
        "nvlinkuncorrectable" => "a link between GPUs has an error that cannot be corrected",
        "launchfailure" | "unspecifiedlaunchfailure" => "a kernel crashed",
        "unknown" | "unknownerror" => "the driver lost the GPU, or was updated below a running process",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_meanings_and_unknown_ones_none() {
        assert!(efa("7").unwrap().contains("wrong key"));
        assert!(nixl("NIXL_ERR_BACKEND").is_some() && xid("79").unwrap().contains("bus"));
        assert_eq!(cuda("cudaErrorIllegalAddress"), cuda("an illegal memory access was encountered"));
        assert_eq!((efa("99"), nixl("X"), xid("0"), cuda("x")), (None, None, None, None));
    }
}
