//! Which offers of libfabric the rails are opened with.

use kvrail_sys::libfabric::abi::{
    FI_CONTEXT, FI_CONTEXT2, FI_EP_RDM, FI_MR_ALLOCATED, FI_MR_LOCAL, FI_MR_PROV_KEY, FI_MR_VIRT_ADDR,
    FI_MSG, FI_PROGRESS_MANUAL, FI_RMA, FI_RX_CQ_DATA, FI_SOCKADDR_IN, FI_THREAD_DOMAIN,
};
use kvrail_sys::libfabric::{Entry, FabricError, Info, Library, Search};

use super::Options;
use crate::error::LimitError;

/// Bytes of an immediate on every provider that has any; efa has no more.
const IMMEDIATE_BYTES: usize = 4;

/// One offer per rail, best first. On efa each is another NIC; on providers without NICs of their own all are the same.
pub(super) fn choose(options: &Options) -> Result<Vec<Info>, LimitError> {
    let library = Library::load(&Search::new(options.library.as_deref()))
        .map_err(|error| LimitError::NoFabric { why: error.to_string() })?;
    let nothing = |error: FabricError| LimitError::NoFabric {
        why: format!("{library} offers no endpoint of {}: {error}", options.provider),
    };
    // efa-direct is a fabric of the provider efa.
    let (provider, fabric) = match options.provider.as_str() {
        named @ ("efa" | "efa-direct") => ("efa", Some(named)),
        named => (named, None),
    };
    let offers = Info::hints(&library)
        .and_then(|hints| hints.provider(Some(provider)))
        .and_then(|hints| hints.fabric_name(fabric))
        .and_then(|hints| {
            hints
                .caps(FI_MSG | FI_RMA)
                .mode(FI_CONTEXT | FI_CONTEXT2 | FI_RX_CQ_DATA)
                .mr_mode(FI_MR_LOCAL | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_VIRT_ADDR)
                .ep_type(FI_EP_RDM)
                .threading(FI_THREAD_DOMAIN)
                .data_progress(FI_PROGRESS_MANUAL)
                .cq_data_bytes(IMMEDIATE_BYTES)
                .query()
        })
        .map_err(nothing)?;
    let offers: Vec<Entry<'_>> = offers.entries().collect();
    let chosen =
        pick(&offers, options.rails, provider == "efa").map_err(|why| LimitError::NoFabric { why })?;
    chosen.into_iter().map(|offer| offer.to_owned().map_err(nothing)).collect()
}

/// `rails` of the offers.
fn pick<'a>(offers: &[Entry<'a>], rails: usize, by_nic: bool) -> Result<Vec<Entry<'a>>, String> {
    if !by_nic {
        // An interface has an offer for each of its addresses; the addresses of one kind are as good as each other.
        let first = offers.iter().find(|offer| offer.raw().addr_format == FI_SOCKADDR_IN).or(offers.first());
        return first.map(|&offer| vec![offer; rails]).ok_or_else(|| "nothing is offered".into());
    }
    let mut nics: Vec<Entry<'a>> = Vec::new();
    for offer in offers {
        if nics.iter().all(|nic| nic.domain_name() != offer.domain_name()) {
            nics.push(*offer);
        }
    }
    if nics.len() < rails {
        return Err(format!("{rails} rails need as many NICs; there are {}", nics.len()));
    }
    nics.truncate(rails);
    Ok(nics)
}
