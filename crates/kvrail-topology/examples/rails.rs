//! Prints the rails of each GPU and NUMA node: `cargo run -p kvrail-topology --example rails -- /sys`.

use kvrail_topology::{Source, Topology, host_memory_ceiling};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = std::env::args().nth(1).map_or_else(Source::default, |path| match path.ends_with(".xml") {
        true => Source::Hwloc(path.into()),
        false => Source::Sysfs(path.into()),
    });
    let topology = Topology::read(&source)?;
    topology.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    let name = |nic| topology.nic(nic).map_or("?", |nic| nic.name.as_str());
    for (gpu, rails) in topology.gpus().iter().zip(&topology.assignment().gpus) {
        let names: Vec<String> =
            rails.rails.iter().map(|rail| format!("{} ({})", name(rail.nic), rail.distance)).collect();
        let ceiling = rails.all_active;
        println!(
            "{}: {}: {:.1} GB/s by {:?}",
            gpu.address,
            names.join(" "),
            ceiling.gbytes_per_second(),
            ceiling.bound
        );
    }
    for node in topology.numa_nodes() {
        let rails = topology.rails_of_numa(node.id);
        let ceiling = host_memory_ceiling(&topology, &rails);
        println!(
            "NUMA {}: {} rails: {:.1} GB/s by {:?}",
            node.id,
            rails.len(),
            ceiling.gbytes_per_second(),
            ceiling.bound
        );
    }
    Ok(())
}
