//! Prints which libfabric is loaded, and what it offers: `offers [PROVIDER]`.
//!
//! The path comes from `KVRAIL_LIBFABRIC`, or the search that kvrail itself does.

use std::io::Write;
use std::process::ExitCode;

use kvrail_sys::libfabric::abi::{
    FI_CONTEXT, FI_CONTEXT2, FI_EP_RDM, FI_MR_ALLOCATED, FI_MR_LOCAL, FI_MR_PROV_KEY, FI_MR_VIRT_ADDR,
    FI_MSG, FI_RMA, FI_RX_CQ_DATA,
};
use kvrail_sys::libfabric::{FabricError, Info, Library, Search};

fn main() -> ExitCode {
    let library = match Library::load(&Search::new(None)) {
        Ok(library) => library,
        Err(error) => {
            eprintln!("error: {error}");
            for hint in error.hints() {
                eprintln!("hint: {hint}");
            }
            return ExitCode::from(2);
        }
    };
    let provider = std::env::args().nth(1);
    match query(&library, provider.as_deref()) {
        Ok(info) => {
            print(&library, &info, std::io::stdout().lock()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("{library}\nerror: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(library: &Library, info: &Info, mut out: impl Write) -> std::io::Result<()> {
    writeln!(out, "{library}")?;
    for offer in info.entries() {
        write!(out, "{offer:?}: {} in flight, up to {} bytes", offer.tx_size(), offer.max_msg_bytes())?;
        if let Some(nic) = offer.nic() {
            let rate = nic.bits_per_second() / 1_000_000_000;
            let pci = nic.pci().map_or_else(|| "no PCI bus".into(), |pci| pci.to_string());
            write!(out, ", {} at {pci}, {rate} Gb/s", nic.device_name())?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn query(library: &std::sync::Arc<Library>, provider: Option<&str>) -> Result<Info, FabricError> {
    Info::hints(library)?
        .caps(FI_MSG | FI_RMA)
        .mode(FI_CONTEXT | FI_CONTEXT2 | FI_RX_CQ_DATA)
        .ep_type(FI_EP_RDM)
        .mr_mode(FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY)
        .provider(provider)?
        .query()
}
