//! Work that may hang in the kernel: on threads of its own, so that nobody has to wait for it, and a process that is killed ends.

use super::error::AttachError;
use super::sys;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

/// Does with `file` what may hang in the kernel, on a thread with no other file open; what comes out is sent. A thread that hangs
/// there keeps its files open even when the process is killed. Were the connection by which we serve the device among them, the
/// kernel would never learn that nobody is going to answer, and nothing could end.
pub(super) fn with_only<T: Send + 'static>(
    file: &File,
    doing: &str,
    work: impl FnOnce(File) -> io::Result<T> + Send + 'static,
) -> Result<Receiver<io::Result<T>>, AttachError> {
    let fd = file.as_raw_fd();
    let (isolated, is_isolated) = channel();
    let done = run_apart(doing, move || {
        let own = sys::isolate(fd);
        // The caller waits for it, so that `file` is open until then.
        let _ = isolated.send(());
        work(own?)
    })?;
    // Fails when the thread is gone; what it sent tells why.
    let _ = is_isolated.recv();
    Ok(done)
}

/// Does what reads a device that this process serves, such as mounting what is on it, and waits for it: on a thread with no file of
/// ours open, for the reason that `with_only` tells. So nothing in `work` may rely on one, logging among it.
///
/// # Errors
/// When there is no such thread.
pub fn apart<T: Send + 'static>(doing: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, AttachError> {
    let failed = || AttachError::system(doing);
    let none = File::open("/dev/null").map_err(failed())?;
    let done = with_only(&none, doing, |_| Ok(work()))?;
    let gone = |_| io::Error::other("its thread ended by a panic");
    done.recv().map_err(gone).flatten().map_err(failed())
}

/// Runs what may hang on a thread of its own, which is left behind when nobody waits for it any more.
pub(super) fn run_apart<T: Send + 'static>(
    doing: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Receiver<T>, AttachError> {
    let (send, receive) = channel();
    let run = move || {
        // Nobody may be there to hear it.
        let _ = send.send(work());
    };
    let spawned = thread::Builder::new().name("attach-wait".to_owned()).spawn(run);
    spawned.map_err(AttachError::system(format!("start a thread to {doing}")))?;
    Ok(receive)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Were it to hold the connection to the kernel by which we serve, a killed server would hang in a mount for ever.
    #[test]
    fn what_is_done_apart_holds_no_file_of_ours() {
        let ours = File::open("/dev/null").unwrap();
        let number = ours.as_raw_fd().to_string();
        let seen = apart("look", || {
            let list = |folder| {
                std::fs::read_dir(folder)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name())
            };
            list("/proc/thread-self/fd").collect::<Vec<_>>()
        });
        // `/dev/null` and the folder that is listed.
        let seen = seen.unwrap();
        assert!(
            seen.len() <= 2 && !seen.iter().any(|name| *name == *number),
            "{number} in {seen:?}"
        );
        drop(ours);
    }
}
