//! A prefill worker writes the KV blocks of a request into a decode worker's memory, in another process.
//! Run it: `cargo run --release -p kvrail --example two_agents`

use std::time::Duration;

use kvrail::{Agent, Descriptors, Memory};

const BLOCK: u64 = 32 << 10;
const BLOCKS: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(10);

fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1) {
        Some(address) => prefill(&address),
        None => decode(),
    }
}

/// Offers memory, and waits to be told that a request's blocks are there.
fn decode() -> Result<(), Box<dyn std::error::Error>> {
    let agent = Agent::builder("decode-0").build()?;
    let cache = agent.register(Memory::shared((2 * BLOCKS * BLOCK) as usize)?)?;
    let server = agent.serve("127.0.0.1:0")?;
    let mut child =
        std::process::Command::new(std::env::current_exe()?).arg(server.local_addr().to_string()).spawn()?;

    let notification = agent.wait_notification(PATIENCE)?;
    println!("{} says: {}", notification.peer_name, String::from_utf8_lossy(&notification.message));
    let mut block = vec![0; BLOCK as usize];
    for index in 0..BLOCKS {
        cache.read((2 * index * BLOCK) as usize, &mut block)?;
        let whole = (0..BLOCK).all(|i| block[i as usize] == pattern(index * BLOCK + i));
        assert!(whole, "block {index} is not what was sent");
    }
    println!("{BLOCKS} blocks verified");
    agent.send(&server.accept(PATIENCE)?, "thanks")?;
    child.wait()?;
    Ok(())
}

/// Computes blocks, and writes them to every second slot of the other's cache.
fn prefill(address: &str) -> Result<(), Box<dyn std::error::Error>> {
    let agent = Agent::builder("prefill-0").build()?;
    let cache = agent.register(Memory::shared((BLOCKS * BLOCK) as usize)?)?;
    cache.write(0, &(0..BLOCKS * BLOCK).map(pattern).collect::<Vec<_>>())?;

    let peer = agent.connect_to(address, PATIENCE)?;
    let remote = peer.regions()[0];
    let from: Descriptors = (0..BLOCKS).map(|i| cache.slice(i * BLOCK, BLOCK)).collect::<Result<_, _>>()?;
    let to: Descriptors =
        (0..BLOCKS).map(|i| remote.slice(2 * i * BLOCK, BLOCK)).collect::<Result<_, _>>()?;
    let report = agent.prepare(&peer, &from, &to)?.write().notify("request 42 is there").post()?.wait()?;
    println!("wrote {} bytes over {} in {:?}", report.bytes, peer.transport_choice(), report.total());
    agent.wait_notification(PATIENCE)?;
    Ok(())
}
