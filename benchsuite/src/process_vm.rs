//! The limit of private memory on one core: `process_vm_readv`/`writev`, several blocks a call.

use crate::error::LimitError;
use crate::memory::Pool;
use crate::pair::BatchLoop;
use crate::workload::{Op, Slots};

/// Moves blocks between this process's pool and the other's. The slices are laid out once, before the timing.
pub(crate) struct ProcessVm<'a> {
    local: Vec<libc::iovec>,
    remote: Vec<libc::iovec>,
    op: Op,
    pid: libc::pid_t,
    slices_per_call: usize,
    block_bytes: usize,
    /// The local slices point into it.
    _pool: &'a Pool,
}

impl<'a> ProcessVm<'a> {
    /// `remote_base` is where the process `pid` has its pool, of the same shape as `pool`.
    pub(crate) fn new(
        op: Op,
        pool: &'a Pool,
        slots: &Slots,
        block_bytes: usize,
        (pid, remote_base): (libc::pid_t, usize),
        slices_per_call: usize,
    ) -> Self {
        let (own, others) = match op {
            Op::Read => (&slots.destination, &slots.source),
            Op::Write => (&slots.source, &slots.destination),
        };
        let slice = |base| libc::iovec { iov_base: base, iov_len: block_bytes };
        Self {
            local: own.iter().map(|&slot| slice(pool.slot(slot))).collect(),
            remote: others.iter().map(|&slot| slice((remote_base + slot * block_bytes) as *mut _)).collect(),
            op,
            pid,
            slices_per_call,
            block_bytes,
            _pool: pool,
        }
    }
}

impl BatchLoop for ProcessVm<'_> {
    fn batch(&mut self) -> Result<(), LimitError> {
        let calls = self.local.chunks(self.slices_per_call).zip(self.remote.chunks(self.slices_per_call));
        for (local, remote) in calls {
            let count = local.len() as libc::c_ulong;
            let moved = match self.op {
                // SAFETY: the local slices lie in the pool that `self` borrows; the remote ones are checked
                // by the kernel against the other process.
                Op::Read => unsafe {
                    libc::process_vm_readv(self.pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
                },
                // SAFETY: as above; the call only reads the local slices.
                Op::Write => unsafe {
                    libc::process_vm_writev(self.pid, local.as_ptr(), count, remote.as_ptr(), count, 0)
                },
            };
            let Ok(moved) = usize::try_from(moved) else {
                return Err(LimitError::last_os("copying to or from the other process"));
            };
            let asked = local.len() * self.block_bytes;
            if moved != asked {
                return Err(LimitError::Short { doing: "process_vm", moved, asked });
            }
        }
        Ok(())
    }
}
