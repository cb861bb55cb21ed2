//! The owners, over libfabric's own `tcp` on the loopback: bytes move, failures are told, and everything closes in order.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use kvrail_sys::libfabric::abi::*;
use kvrail_sys::libfabric::{
    AddressVector, CompletionQueue, Domain, Endpoint, EventQueue, Fabric, FabricError, Info, Library,
    MemoryRegion, Registration, Wait, outcome,
};

/// Longest wait for a completion.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const BYTES: usize = 4096;

/// Errors that were logged: a close that failed is one.
static ERRORS: AtomicUsize = AtomicUsize::new(0);

struct Count;

impl log::Log for Count {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Error {
            ERRORS.fetch_add(1, Ordering::SeqCst);
            eprintln!("{}", record.args());
        }
    }

    fn flush(&self) {}
}

fn installed(test: &str) -> Option<Arc<Library>> {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        log::set_logger(&Count).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
    common::installed(test)
}

/// One side: an endpoint with all that it needs, and memory. Declared so that members are dropped in the wrong order: what an object
/// stands on goes first, which the owners have to make good.
struct Side {
    fabric: Fabric,
    domain: Domain,
    events: EventQueue,
    addresses: AddressVector,
    queue: CompletionQueue,
    endpoint: Endpoint,
    region: MemoryRegion,
    memory: Box<[u8; BYTES]>,
    is_virtual: bool,
}

fn offer(library: &Arc<Library>) -> Info {
    let loopback = [2, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    Info::hints(library)
        .unwrap()
        .caps(FI_MSG | FI_RMA)
        .mode(FI_CONTEXT | FI_CONTEXT2)
        .addr_format(FI_SOCKADDR_IN)
        .source_address(&loopback)
        .unwrap()
        .ep_type(FI_EP_RDM)
        .mr_mode(FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY)
        .tx_op_flags(FI_DELIVERY_COMPLETE)
        .provider(Some("tcp"))
        .unwrap()
        .query()
        .unwrap()
        .first()
        .to_owned()
        .unwrap()
}

impl Side {
    fn open(library: &Arc<Library>) -> Result<Self, FabricError> {
        let info = offer(library);
        let fabric = Fabric::open(&info)?;
        // SAFETY: everything of this domain is used by this test's thread alone.
        let domain = unsafe { fabric.domain(&info) }?;
        let events = fabric.event_queue(0)?;
        let addresses = domain.address_vector(FI_AV_UNSPEC, 8)?;
        let queue = domain.completion_queue(0, Wait::None)?;
        let endpoint = domain.endpoint(&info)?;
        endpoint.bind_events(&events)?;
        endpoint.bind_addresses(&addresses)?;
        endpoint.bind_queue(&queue, FI_TRANSMIT | FI_RECV)?;
        endpoint.enable()?;
        let mut memory = Box::new([0; BYTES]);
        let what = Registration {
            address: memory.as_mut_ptr().cast(),
            len: BYTES,
            access: FI_SEND | FI_RECV | FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE,
            requested_key: 7,
            iface: FI_HMEM_SYSTEM,
            device: 0,
            dmabuf: None,
        };
        // SAFETY: the memory is boxed, and dropped with the region here.
        let region = unsafe { domain.register(&what) }?;
        let is_virtual = info.first().mr_mode() & FI_MR_VIRT_ADDR != 0;
        Ok(Self { fabric, domain, events, addresses, queue, endpoint, region, memory, is_virtual })
    }

    /// Where a peer finds the memory's beginning.
    fn base(&self) -> u64 {
        if self.is_virtual { self.memory.as_ptr() as u64 } else { 0 }
    }
}

/// Drives both queues until one of `side` has something.
fn wait(side: &Side, other: &Side) -> Result<fi_cq_data_entry, i32> {
    let deadline = Instant::now() + ANSWER_MAX;
    let mut entries = [fi_cq_data_entry::default(); 4];
    let mut one = [fi_cq_data_entry::default(); 1];
    while Instant::now() < deadline {
        match side.queue.read(&mut one) {
            1 => return Ok(one[0]),
            code if code == -(FI_EAVAIL as isize) => {
                let failure = side.queue.read_failure().unwrap().expect("a failure was announced");
                assert!(!failure.text.is_empty() && failure.entry.err_data.is_null());
                return Err(failure.entry.err);
            }
            code => assert_eq!(code, -(FI_EAGAIN as isize)),
        }
        let _ = other.queue.read(&mut entries);
        assert!(side.events.read().unwrap().is_none());
    }
    panic!("nothing came within {ANSWER_MAX:?}");
}

fn context() -> fi_context2 {
    fi_context2 { internal: [std::ptr::null_mut(); 8] }
}

/// Posts until it is taken.
fn post(side: &Side, other: &Side, mut call: impl FnMut() -> isize) {
    let deadline = Instant::now() + ANSWER_MAX;
    let mut entries = [fi_cq_data_entry::default(); 1];
    loop {
        match outcome(call()) {
            Ok(()) => return,
            Err(code) => assert_eq!(code, FI_EAGAIN),
        }
        assert!(Instant::now() < deadline, "it is not taken");
        // Manual progress: a connection comes up while queues are read. Nothing has completed yet.
        assert!(side.queue.read(&mut entries) < 1 && other.queue.read(&mut entries) < 1);
    }
}

#[test]
fn a_message_and_a_write_arrive_and_everything_closes() {
    let Some(library) = installed("objects of libfabric over tcp") else { return };
    let before = ERRORS.load(Ordering::SeqCst);
    let (mut a, mut b) = (Side::open(&library).unwrap(), Side::open(&library).unwrap());
    assert!(a.region.key() != FI_KEY_NOTAVAIL && Arc::ptr_eq(a.domain.library(), a.fabric.library()));
    let at_b = a.addresses.insert(&b.endpoint.name().unwrap()).unwrap();
    assert!(!a.addresses.words(&b.endpoint.name().unwrap()).is_empty());
    a.memory[..5].copy_from_slice(b"hello");

    let (mut sent, mut received, mut wrote) = (context(), context(), context());
    let into = b.memory[1024..].as_mut_ptr().cast();
    // SAFETY: the memory is registered, and nobody touches it before the completion below.
    let result = unsafe { b.endpoint.receive(into, 64, b.region.desc(), (&raw mut received).cast()) };
    assert_eq!(outcome(result), Ok(()));
    // SAFETY: the same.
    post(&a, &b, || unsafe {
        a.endpoint.send(a.memory.as_ptr().cast(), 5, a.region.desc(), at_b, (&raw mut sent).cast())
    });
    let entry = wait(&b, &a).unwrap();
    assert_eq!((entry.op_context.cast(), entry.len), (&raw mut received, 5));
    assert_eq!(wait(&a, &b).unwrap().op_context.cast(), &raw mut sent);
    assert_eq!(&b.memory[1024..1029], b"hello");

    let iov = libc::iovec { iov_base: a.memory.as_mut_ptr().cast(), iov_len: 5 };
    let remote = fi_rma_iov { addr: b.base() + 2048, len: 5, key: b.region.key() };
    let mut desc = a.region.desc();
    let message = fi_msg_rma {
        msg_iov: &iov,
        desc: &mut desc,
        iov_count: 1,
        addr: at_b,
        rma_iov: &remote,
        rma_iov_count: 1,
        context: (&raw mut wrote).cast(),
        data: 0,
    };
    // SAFETY: both sides' memory is registered, and nobody touches it before the completion below.
    post(&a, &b, || unsafe { a.endpoint.write_message(&message, FI_DELIVERY_COMPLETE) });
    assert_eq!(wait(&a, &b).unwrap().op_context.cast(), &raw mut wrote);
    assert_eq!(&b.memory[2048..2053], b"hello");
    a.addresses.remove(at_b).unwrap();
    let Side { endpoint, region, memory, .. } = b;
    endpoint.close().unwrap();
    region.close().unwrap();
    drop(memory);
    drop(a);
    assert_eq!(ERRORS.load(Ordering::SeqCst), before, "something did not close");
}

#[test]
fn a_receive_that_is_taken_back_ends_as_cancelled() {
    let Some(library) = installed("a cancelled receive") else { return };
    let (mut a, b) = (Side::open(&library).unwrap(), Side::open(&library).unwrap());
    let mut received = context();
    let (into, at) = (a.memory.as_mut_ptr().cast(), (&raw mut received).cast());
    // SAFETY: the memory is registered, and nobody touches it before the failure below.
    let result = unsafe { a.endpoint.receive(into, 64, a.region.desc(), at) };
    assert_eq!(outcome(result), Ok(()));
    // SAFETY: the context is that of the receive above.
    unsafe { a.endpoint.cancel(at) }.unwrap();
    assert_eq!(wait(&a, &b).unwrap_err(), FI_ECANCELED);
}

#[test]
fn bytes_that_are_no_address_are_refused() {
    let Some(library) = installed("a bad address") else { return };
    let side = Side::open(&library).unwrap();
    assert!(side.addresses.insert(&[0; 513]).unwrap_err().is(FI_EINVAL));
}

#[test]
fn an_option_of_another_provider_is_an_error() {
    let Some(library) = installed("an unknown option") else { return };
    let side = Side::open(&library).unwrap();
    let error = side.endpoint.flag(FI_OPT_EFA_EMULATED_WRITE).unwrap_err();
    assert!(error.is(FI_ENOPROTOOPT) || error.is(FI_ENOSYS), "{error}");
    assert!(error.to_string().starts_with("fi_getopt: "), "{error}");
}

#[test]
fn a_queue_with_a_descriptor_can_be_slept_on() {
    let Some(library) = installed("a queue with a file descriptor") else { return };
    let info = offer(&library);
    let fabric = Fabric::open(&info).unwrap();
    // SAFETY: everything of this domain is used by this test's thread alone.
    let domain = unsafe { fabric.domain(&info) }.unwrap();
    let queue = domain.completion_queue(16, Wait::Fd).unwrap();
    assert!(queue.wait_fd().unwrap() >= 0);
    assert!(fabric.try_wait(&[&queue]).unwrap());
    let polled = domain.completion_queue(16, Wait::None).unwrap();
    assert!(polled.wait_fd().is_err());
}

#[test]
fn objects_go_to_another_thread_and_end_there() {
    let Some(library) = installed("objects between threads") else { return };
    let before = ERRORS.load(Ordering::SeqCst);
    let side = Side::open(&library).unwrap();
    std::thread::spawn(move || drop(side)).join().unwrap();
    assert_eq!(ERRORS.load(Ordering::SeqCst), before);
}
