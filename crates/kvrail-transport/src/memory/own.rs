//! Copies between this process's own memory and memory that an application registered, by the kernel: where an application has freed it
//! meanwhile, that is an error and not the end of the process.

use std::io;

/// Copies `len` bytes inside this process.
///
/// # Errors
/// `EFAULT` where either range is not mapped as it has to be.
///
/// # Safety
/// Where the ranges are mapped, `from` may be read and `to` written by whoever calls, and nothing in this program holds a reference to bytes of
/// `to`. They do not overlap.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let left = len - done;
        let source = libc::iovec { iov_base: from.wrapping_add(done).cast_mut().cast(), iov_len: left };
        let target = libc::iovec { iov_base: to.wrapping_add(done).cast(), iov_len: left };
        // SAFETY: it has no preconditions.
        let own = unsafe { libc::getpid() };
        // SAFETY: both vectors hold one element and live through the call; the caller vouches for what they name, and the kernel checks that it is mapped.
        let moved = unsafe { libc::process_vm_writev(own, &source, 1, &target, 1, 0) };
        match usize::try_from(moved) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Ok(moved) => done += moved,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                // A container may forbid the call. Then it is a plain copy, which memory that was freed does not survive.
                error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    // SAFETY: the caller's promise; where it is broken the process ends.
                    unsafe {
                        std::ptr::copy_nonoverlapping(from.wrapping_add(done), to.wrapping_add(done), left)
                    };
                    return Ok(());
                }
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_and_memory_that_is_not_mapped_is_an_error() {
        let from: Vec<u8> = (0..70_000u32).map(|i| i as u8).collect();
        let mut to = vec![0u8; from.len()];
        // SAFETY: both are vectors of that length, borrowed by nobody else.
        unsafe { copy(from.as_ptr(), to.as_mut_ptr(), from.len()) }.unwrap();
        assert!(from == to);
        let nowhere = std::ptr::without_provenance_mut::<u8>(4096);
        // SAFETY: nothing is mapped there, which is what the call is asked about.
        let errors =
            [unsafe { copy(nowhere, to.as_mut_ptr(), 9) }, unsafe { copy(from.as_ptr(), nowhere, 9) }];
        for error in errors {
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
    }
}
