//! What a child does between fork and exec. The one place of this crate with `unsafe`.
//!
//! Job: the child dies with us, leads a process group of its own, and inherits nothing but its three pipes.
//! Must not: allocate, lock or log in the forked child. Another thread may have held the allocator's lock at the
//! moment of the fork, and nobody is left to release it.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, getpid};

/// The first descriptor that is not stdin, stdout or stderr.
const FIRST_FD: RawFd = 3;

/// Where `close_range` is missing (before Linux 5.9, macOS): descriptors that are closed one by one. Our own are all
/// close-on-exec already; this is about what a shell or supervisor left open in us, which is low numbers.
const FDS_BY_HAND_MAX: RawFd = 1_024;

/// Arranges all of it. The parent-death signal is tied to the thread that forks: that thread must live as long as the
/// child, see [`super::keeper`].
pub fn confine(command: &mut Command) {
    command.process_group(0);
    let parent = getpid();
    let in_child = move || {
        die_with(parent)?;
        mark_close_on_exec();
        Ok(())
    };
    #[expect(
        unsafe_code,
        reason = "std offers no safe way to run code between fork and exec. The closure makes system calls only: \
                  prctl, getppid, close_range, fcntl; all are async-signal-safe and none allocates."
    )]
    // SAFETY: see the reason above; the closure owns a plain number and returns errors made from error numbers.
    unsafe {
        command.pre_exec(in_child);
    }
}

/// SIGKILL for the child when its parent ends, however it ends.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn die_with(parent: Pid) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended between the fork and this line: then the signal never comes.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Elsewhere the guard alone sees to that.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn die_with(_parent: Pid) -> io::Result<()> {
    Ok(())
}

/// Marked, not closed: std's own pipe, which tells the parent that exec failed, must live until exec.
fn mark_close_on_exec() {
    if close_range_on_exec() {
        return;
    }
    for fd in FIRST_FD..FDS_BY_HAND_MAX {
        #[expect(
            unsafe_code,
            reason = "rustix would want a BorrowedFd, and whether this number is open is the question"
        )]
        // SAFETY: F_SETFD changes a flag of a descriptor; on a number that is not open it fails and does nothing.
        unsafe {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

#[cfg(target_os = "linux")]
fn close_range_on_exec() -> bool {
    #[expect(unsafe_code, reason = "rustix has no close_range")]
    // SAFETY: with CLOSE_RANGE_CLOEXEC it only sets a flag on descriptors that are open.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST_FD as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    done == 0
}

#[cfg(not(target_os = "linux"))]
fn close_range_on_exec() -> bool {
    false
}
