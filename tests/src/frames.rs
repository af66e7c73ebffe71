//! What arrives in a namespace, frame by frame, in front of anything that could drop it.

use std::io::Read;

use socket2::{Domain, Protocol, Socket, Type};

/// Collects every frame that interfaces of a namespace receive, and those that they send.
pub struct Frames(Socket);

impl Frames {
    /// Begins to collect in the namespace of the calling thread.
    pub(crate) fn new() -> Self {
        let protocol = u16::try_from(libc::ETH_P_ALL).expect("a protocol has two bytes");
        let socket = Socket::new(
            Domain::PACKET,
            Type::RAW,
            Some(Protocol::from(i32::from(protocol.to_be()))),
        );
        let socket = socket.expect("root may see frames");
        socket
            .set_nonblocking(true)
            .expect("a socket can be told not to wait");
        socket
            .set_recv_buffer_size(4 << 20)
            .expect("a socket takes a buffer size");
        Self(socket)
    }

    /// What has come since the last time.
    ///
    /// # Panics
    /// When the socket broke.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut frame = [0; 2048];
        loop {
            match (&self.0).read(&mut frame) {
                Ok(length) => frames.push(frame[..length].to_vec()),
                Err(error) if crate::http::is_timeout(&error) => return frames,
                // An interface that went down while the socket was looking.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => panic!("frames: {error}"),
            }
        }
    }
}
