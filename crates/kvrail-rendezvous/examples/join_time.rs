//! How long a group takes to come together and to gather 1 KiB of each member, over whatever service is given:
//! `join_time ENDPOINTS-OR-tcp://HOST:PORT [MEMBERS] [ROUNDS]`. Members are threads of this process.

use std::time::{Duration, Instant};

use kvrail_rendezvous::{Config, Group, RunId, Service};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let service = Service::parse(&args.next().ok_or("join_time SERVICE [MEMBERS] [ROUNDS]")?)?;
    let members: u32 = args.next().map_or(Ok(4), |text| text.parse())?;
    let rounds: u32 = args.next().map_or(Ok(10), |text| text.parse())?;
    let long = Duration::from_secs(30);
    println!(
        "{members} members over {service}: milliseconds to join, to gather 1 KiB of each, to pass a barrier, to leave"
    );
    let mut joins = Vec::new();
    for _ in 0..rounds {
        let run_id = RunId::generate();
        let times = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..members)
                .map(|rank| {
                    let mut config = Config::new(service.clone(), members);
                    (config.rank, config.run_id) = (Some(rank), Some(run_id.clone()));
                    scope.spawn(move || -> Result<[Duration; 4], String> {
                        let mut marks = vec![Instant::now()];
                        let group = Group::join(&config).map_err(|error| error.to_string())?;
                        marks.push(Instant::now());
                        let all =
                            group.gather("address", &[7; 1024], long).map_err(|error| error.to_string())?;
                        assert_eq!(all.len(), members as usize);
                        marks.push(Instant::now());
                        group.barrier("ready", long).map_err(|error| error.to_string())?;
                        marks.push(Instant::now());
                        group.leave(long).map_err(|error| error.to_string())?;
                        marks.push(Instant::now());
                        Ok(std::array::from_fn(|i| marks[i + 1] - marks[i]))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no member panics"))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let slowest: [Duration; 4] =
            std::array::from_fn(|i| times.iter().map(|times| times[i]).max().unwrap_or_default());
        println!("{:>8.1?} {:>8.1?} {:>8.1?} {:>8.1?}", slowest[0], slowest[1], slowest[2], slowest[3]);
        joins.push(slowest[0] + slowest[1]);
    }
    joins.sort_unstable();
    println!(
        "join and gather of the slowest member: median {:.1?}, worst {:.1?}",
        joins[joins.len() / 2],
        joins[joins.len() - 1]
    );
    Ok(())
}
