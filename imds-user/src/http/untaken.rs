//! How much of what was sent on a connection its guest has not acknowledged.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

/// `SK_MEMINFO_WMEM_QUEUED` and the number of such fields, linux/sock_diag.h.
const QUEUED: usize = 5;
const FIELDS: usize = 9;

/// The kernel's memory for it, in bytes: all of the packets in which it is kept, and the FIN if there is one. Since Linux 4.12.
///
/// # Errors
/// When it is no socket.
#[expect(unsafe_code, reason = "no crate in use wraps this option")]
pub(super) fn bytes_untaken(socket: impl AsFd) -> io::Result<usize> {
    let mut fields = [0_u32; FIELDS];
    let mut length =
        libc::socklen_t::try_from(mem::size_of_val(&fields)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the time of the call; the kernel writes at most `length` bytes to `fields`, any
    // of which make a number, and to `length` how many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            fields.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(fields[QUEUED]).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_nobody_reads_is_untaken_until_somebody_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(bytes_untaken(&server).unwrap(), 0);
        server.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = server.write(&[0; 65_536]) {
            sent += count;
        }
        assert!(bytes_untaken(&server).unwrap() > 0);
        client.read_exact(&mut vec![0; sent]).unwrap();
        while bytes_untaken(&server).unwrap() > 0 {
            std::thread::yield_now();
        }
    }
}
