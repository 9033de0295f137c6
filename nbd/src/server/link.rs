//! The two directions of a connection: a stream socket, in clear or behind TLS.

use super::tls::Secure;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use rustls::ServerConfig;
use socket2::SockRef;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Room for answers in the socket, as far as the system grants it: what is in it needs no thread of ours.
const SEND_ROOM: usize = 1 << 20;

/// A connection. One thread receives, one at a time sends.
pub(crate) struct Link {
    socket: OwnedFd,
    tls: OnceLock<Secure>,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Self {
        // Less room is slower, not wrong.
        let _ = SockRef::from(&socket).set_send_buffer_size(SEND_ROOM);
        Self {
            socket,
            tls: OnceLock::new(),
        }
    }

    /// A receive or send without progress fails after this.
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        // Zero would mean for ever.
        let patience = Some(patience.max(Duration::from_millis(1)));
        let socket = SockRef::from(&self.socket);
        socket.set_read_timeout(patience)?;
        socket.set_write_timeout(patience)
    }

    /// As [`Link::set_patience`], with what is left until `deadline`.
    pub(super) fn set_deadline(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.set_patience(left)
    }

    /// Does the handshake of TLS. Everything after it is protected.
    pub(super) fn start_tls(&self, config: &Arc<ServerConfig>, deadline: Instant) -> io::Result<()> {
        let secure = Secure::handshake(self, config, deadline)?;
        self.tls.set(secure).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// What TLS knows of the peer.
    pub(super) fn tls(&self) -> Option<&Secure> {
        self.tls.get()
    }

    /// Receives some bytes; 0 at the end. `WouldBlock` when nothing came for as long as the patience lasts.
    pub(super) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            None => self.recv_raw(buf),
            Some(secure) => secure.recv(self, buf),
        }
    }

    /// Sends some bytes, at least one. Without `wait` only what the socket takes now, else `WouldBlock`; with it, `WouldBlock`
    /// means that the patience is over.
    pub(super) fn send(&self, slices: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        match self.tls.get() {
            None => self.send_raw(slices, wait),
            // What is encrypted cannot be left for another to send: the writer does that.
            Some(_) if !wait => Err(io::ErrorKind::WouldBlock.into()),
            Some(secure) => secure.send(self, slices),
        }
    }

    pub(super) fn send_bytes(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(&[IoSlice::new(bytes)], true)?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Receives what is there, in clear; `WouldBlock` when nothing is.
    pub(super) fn recv_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            None => self.recv_with(buf, RecvFlags::DONTWAIT),
            // A record that has come in part cannot be left.
            Some(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(super) fn recv_raw(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.recv_with(buf, RecvFlags::empty())
    }

    fn recv_with(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.socket, &mut *buf, flags) {
                Ok((received, _)) => return Ok(received),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn send_raw(&self, slices: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        let flags = if wait {
            SendFlags::NOSIGNAL
        } else {
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT
        };
        loop {
            match rustix::net::sendmsg(&self.socket, slices, &mut SendAncillaryBuffer::default(), flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => return Ok(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Nothing that the client sends from now on is read; what is on its way here still is.
    pub(crate) fn stop_reading(&self) {
        // Fails only when the client is gone, which is as good.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }

    /// Ends the connection; whoever waits on it wakes up.
    pub(crate) fn cut(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}
