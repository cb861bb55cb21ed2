//! Writes the private root of one emulated node, folded to some number of NUMA nodes if one is given:
//! `cargo run -p softefa --example sysfs -- p5 /dev/shm/node0 1`, then `lstopo` with the environment that it prints.

use std::path::Path;
use std::time::Instant;

use softefa::shape::Shape;
use softefa::sysfs::{CounterNames, Root};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: sysfs SHAPE DIRECTORY [NUMA NODES]".into());
    };
    let mut shape = Shape::named(&name)?;
    if let Some(nodes) = arguments.next() {
        shape = shape.folded_to_numa_nodes(nodes.parse()?)?;
    }
    let names = CounterNames::EFA;
    let gid = |nic| [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, nic as u8];
    let start = Instant::now();
    let root = Root::create(Path::new(&path), &shape, 0, shape.nics.len(), gid, names)?;
    eprintln!("{name}: {} NICs in {:?}", shape.nics.len(), start.elapsed());
    for (variable, value) in root.environment() {
        println!("export {variable}='{}'", value.to_string_lossy());
    }
    Ok(())
}
