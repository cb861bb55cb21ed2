//! Provisional: moves bytes over a socket of its own until the library's agent takes its place.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::case::{Memory, Op, Progress, Transport};
use crate::failure::Failure;
use crate::link::Pulse;
use crate::pattern::Bytes;

type Shared = Arc<Mutex<Vec<u8>>>;

pub(crate) struct Endpoint {
    listener: TcpListener,
    memory: Mutex<Vec<Shared>>,
    notified: Arc<Mutex<u64>>,
}
pub(crate) struct Backing(Shared);
pub(crate) struct Pool(Shared);
pub(crate) struct Remote(Mutex<Option<TcpStream>>);
pub(crate) struct Prepared {
    socket: TcpStream,
    memory: Shared,
    pairs: Vec<(u64, u64)>,
    block: u64,
}

fn bad(e: impl std::fmt::Display) -> Failure {
    Failure::peer(format!("provisional: {e}"))
}

pub(crate) fn allocate(_kind: Memory, len: u64) -> Result<Backing, Failure> {
    Ok(Backing(Arc::new(Mutex::new(vec![0; len as usize]))))
}

impl Endpoint {
    pub(crate) fn create(_: &str, _: Transport, ip: &str, _: Progress, _: Duration) -> Result<Self, Failure> {
        let listener = TcpListener::bind((ip, 0)).map_err(bad)?;
        let (memory, notified) = (Mutex::new(Vec::new()), Arc::new(Mutex::new(0)));
        Ok(Self { listener, memory, notified })
    }
    pub(crate) fn register(&self, backing: Backing) -> Result<Pool, Failure> {
        self.memory.lock().unwrap().push(backing.0.clone());
        Ok(Pool(backing.0))
    }
    pub(crate) fn register_parts(&self, backing: &Backing, count: u32) -> Result<Vec<Pool>, Failure> {
        Ok((0..count).map(|_| Pool(backing.0.clone())).collect())
    }
    pub(crate) fn metadata(&self) -> Result<Vec<u8>, Failure> {
        let listener = self.listener.try_clone().map_err(bad)?;
        let memory = self.memory.lock().unwrap().first().cloned().unwrap_or_default();
        let notified = self.notified.clone();
        std::thread::spawn(move || {
            let (mut s, _) = listener.accept().unwrap();
            s.set_nodelay(true).unwrap();
            let mut h = [0; 25];
            while s.read_exact(&mut h).is_ok() {
                let at = u64::from_le_bytes(h[1..9].try_into().unwrap()) as usize;
                let len = u64::from_le_bytes(h[9..17].try_into().unwrap()) as usize;
                let mut m = memory.lock().unwrap();
                match h[0] {
                    0 => s.read_exact(&mut m[at..at + len]).unwrap(),
                    1 => s.write_all(&m[at..at + len]).unwrap(),
                    _ => *notified.lock().unwrap() += 1,
                }
                if h[0] != 1 {
                    s.write_all(&[0]).unwrap();
                }
            }
        });
        Ok(self.listener.local_addr().map_err(bad)?.to_string().into_bytes())
    }
    pub(crate) fn connect(&self, bytes: &[u8], _: Duration) -> Result<Remote, Failure> {
        let s = TcpStream::connect(String::from_utf8_lossy(bytes).as_ref()).map_err(bad)?;
        s.set_nodelay(true).map_err(bad)?;
        Ok(Remote(Mutex::new(Some(s))))
    }
    pub(crate) fn prepare(
        &self,
        remote: &Remote,
        pool: &Pool,
        local: &[u64],
        remote_offsets: &[u64],
        block: u64,
    ) -> Result<(Prepared, Duration), Failure> {
        let start = std::time::Instant::now();
        let socket = remote.0.lock().unwrap().as_ref().unwrap().try_clone().map_err(bad)?;
        let pairs = local.iter().copied().zip(remote_offsets.iter().copied()).collect();
        Ok((Prepared { socket, memory: pool.0.clone(), pairs, block }, start.elapsed()))
    }
    pub(crate) fn drive(&self) {}
    pub(crate) fn import(&self, bytes: &[u8]) -> Result<Remote, Failure> {
        self.connect(bytes, Duration::ZERO)
    }
    pub(crate) fn notifications(&self, _awaited: u64, _: Duration) -> Result<u64, Failure> {
        Ok(std::mem::take(&mut *self.notified.lock().unwrap()))
    }
}

impl Remote {
    pub(crate) fn transport(&self) -> String {
        "tcp".into()
    }
}

impl Remote {
    pub(crate) fn passed_over(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Pool {
    pub(crate) fn pages(&self) -> String {
        "pages of 4 KiB".into()
    }
}

impl Prepared {
    pub(crate) fn post(&mut self, op: Op, notification: Option<&[u8]>, _: Duration) -> Result<(), Failure> {
        for &(l, r) in &self.pairs {
            let mut h = [0u8; 25];
            h[0] = u8::from(op == Op::Read);
            h[1..9].copy_from_slice(&r.to_le_bytes());
            h[9..17].copy_from_slice(&self.block.to_le_bytes());
            self.socket.write_all(&h).map_err(bad)?;
            let mut m = self.memory.lock().unwrap();
            let at = l as usize..(l + self.block) as usize;
            match op {
                Op::Write => {
                    self.socket.write_all(&m[at]).map_err(bad)?;
                    self.socket.read_exact(&mut [0]).map_err(bad)?;
                }
                Op::Read => self.socket.read_exact(&mut m[at]).map_err(bad)?,
            }
        }
        if notification.is_some() {
            let mut h = [0u8; 25];
            h[0] = 2;
            self.socket.write_all(&h).map_err(bad)?;
            self.socket.read_exact(&mut [0]).map_err(bad)?;
        }
        Ok(())
    }
    pub(crate) fn wait(&self, _: &Pulse) -> Result<(), Failure> {
        Ok(())
    }
}

impl Bytes for Pool {
    fn read(&self, offset: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..out.len()]);
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}
