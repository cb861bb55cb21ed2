//! What an endpoint's operations really go through.

use std::ffi::c_char;
use std::ptr;

use super::abi::{UCP_EP_ATTR_FIELD_TRANSPORTS, ucp_ep_attr_t, ucp_transport_entry_t};
use super::endpoint::{Endpoint, Transport};
use super::error::UcpError;
use crate::dl;

/// Most lanes that are asked for; UCX has 64 at most.
const LANES_MAX: usize = 64;

impl Endpoint {
    /// The transports and devices that it uses, one per lane, in UCX's order, without repetitions.
    ///
    /// From 1.14 on UCX is asked (`ucp_ep_query`). What each lane is for, and in earlier releases everything, is taken from what UCX prints of
    /// the endpoint (`ucp_ep_print_info`).
    ///
    /// # Errors
    /// UCX's.
    pub fn transports(&self) -> Result<Vec<Transport>, UcpError> {
        self.is_open().map_err(|status| UcpError { call: "ucp_ep_query", status })?;
        let printed = parse(&self.printed());
        if !self.library().is_since(1, 14) {
            return Ok(printed);
        }
        let mut lanes = self.queried()?;
        for lane in &mut lanes {
            let same = |other: &&Transport| other.name == lane.name && other.device == lane.device;
            if let Some(seen) = printed.iter().find(same) {
                lane.uses.clone_from(&seen.uses);
            }
        }
        Ok(lanes)
    }

    fn queried(&self) -> Result<Vec<Transport>, UcpError> {
        let none = ucp_transport_entry_t { transport_name: ptr::null(), device_name: ptr::null() };
        let mut entries = [none; LANES_MAX];
        let mut attr = ucp_ep_attr_t { field_mask: UCP_EP_ATTR_FIELD_TRANSPORTS, ..ucp_ep_attr_t::default() };
        attr.transports.entries = entries.as_mut_ptr();
        attr.transports.num_entries = LANES_MAX as u32;
        attr.transports.entry_size = size_of::<ucp_transport_entry_t>();
        // SAFETY: the endpoint is open; there are as many entries as it says, of the size it says.
        let result = unsafe { (self.library().functions().ucp_ep_query)(self.as_ptr(), &mut attr) };
        UcpError::check("ucp_ep_query", result)?;
        let count = (attr.transports.num_entries as usize).min(LANES_MAX);
        let mut lanes: Vec<Transport> = Vec::new();
        for entry in &entries[..count] {
            let (name, device) = (word(entry.transport_name), word(entry.device_name));
            if !lanes.iter().any(|lane| lane.name == name && lane.device == device) {
                lanes.push(Transport { name, device, uses: String::new() });
            }
        }
        Ok(lanes)
    }

    /// What UCX prints of it.
    fn printed(&self) -> String {
        let (mut buffer, mut len): (*mut c_char, usize) = (ptr::null_mut(), 0);
        // SAFETY: address and length are written by the stream until it is closed below.
        let stream = unsafe { libc::open_memstream(&mut buffer, &mut len) };
        if stream.is_null() {
            return String::new();
        }
        // SAFETY: endpoint and stream are open.
        unsafe { (self.library().functions().ucp_ep_print_info)(self.as_ptr(), stream) };
        // SAFETY: opened above, closed once.
        unsafe { libc::fclose(stream) };
        // SAFETY: the closed stream left a C string, or null.
        let text = unsafe { dl::text(buffer) }.unwrap_or_default();
        // SAFETY: the stream's buffer, which is the caller's to free; null is allowed.
        unsafe { libc::free(buffer.cast()) };
        text
    }
}

fn word(at: *const c_char) -> String {
    // SAFETY: null, or a name that UCX keeps as long as the endpoint.
    unsafe { dl::text(at) }.unwrap_or_default()
}

/// Lanes in what UCX prints:
/// `#   lane[1]:  5:cma/memory.0 md[4]   -> md[4]/cma/sysdev[255] rma_bw#0`.
fn parse(text: &str) -> Vec<Transport> {
    let mut lanes: Vec<Transport> = Vec::new();
    for line in text.lines() {
        let Some((_, lane)) = line.split_once("lane[") else { continue };
        let Some((_, lane)) = lane.split_once(':') else { continue };
        let mut words = lane.split_whitespace();
        // `5:cma/memory.0`: the resource's number, transport, device, path.
        let Some((name, device)) = words.next().and_then(|word| word.split_once(':')?.1.split_once('/'))
        else {
            continue;
        };
        let device = device.rsplit_once('.').map_or(device, |(device, _path)| device);
        // Behind the arrow comes the peer's side, then the uses.
        let uses: Vec<&str> = words.skip_while(|word| *word != "->").skip(2).collect();
        let uses = uses.join(" ");
        match lanes.iter_mut().find(|lane| lane.name == name && lane.device == device) {
            Some(lane) if uses.is_empty() || lane.uses.contains(&uses) => {}
            Some(lane) => {
                lane.uses = format!("{} {uses}", lane.uses).trim().to_owned();
            }
            None => lanes.push(Transport { name: name.into(), device: device.into(), uses }),
        }
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &str, device: &str, uses: &str) -> Transport {
        Transport { name: name.into(), device: device.into(), uses: uses.into() }
    }

    #[test]
    fn lanes_are_read_from_what_ucx_prints() {
        // As release 1.13 prints it; devices with and without dots in their names.
        let text = "#\n# UCP endpoint self\n#\n#               peer: uuid_0x1\n\
            #                 lane[0]:  0:sysv/memory.0 md[0]           -> md[0]/sysv/sysdev[255] am am_bw#0\n\
            #                 lane[1]:  5:cma/memory.0 md[4]            -> md[4]/cma/sysdev[255] rma_bw#0\n\
            #                 lane[2]:  1:tcp/eth0.100.0 md[1]          -> md[1]/tcp/sysdev[255]\n\
            #                 lane[3]:  1:tcp/eth0.100.1 md[1]          -> md[1]/tcp/sysdev[255] rma_bw#1\n#\n";
        assert_eq!(
            parse(text),
            [
                lane("sysv", "memory", "am am_bw#0"),
                lane("cma", "memory", "rma_bw#0"),
                lane("tcp", "eth0.100", "rma_bw#1")
            ]
        );
    }

    #[test]
    fn words_that_are_no_lanes_are_passed_over() {
        for text in
            ["", "lane[", "lane[0]", "lane[0]:", "lane[0]: x", "lane[0]: 0:tcp", "# tag_send: 0..<egr>"]
        {
            assert_eq!(parse(text), [], "{text}");
        }
    }
}
