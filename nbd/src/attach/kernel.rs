//! Talking to the kernel's NBD client.

use super::error::AttachError;
use super::netlink::{self, Connect, Family, Link, Message};
use super::sys;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use socket2::SockRef;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The kernel answers before a send returns; what takes longer than this is lost.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Bytes of a datagram of the kernel: it cuts lists into pieces of at most 32 KiB (include/linux/netlink.h, NLMSG_GOODSIZE and
/// netlink_dump), and one that is cut off is refused.
const DATAGRAM: usize = 64 << 10;

/// A socket to the kernel's NBD client.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    family: Family,
    sequence: u32,
}

/// What the kernel said no with.
fn refused(doing: &str, error: i32) -> AttachError {
    AttachError::system(doing)(io::Error::from_raw_os_error(error))
}

impl Client {
    /// Finds the kernel's NBD client.
    ///
    /// # Errors
    /// The system's "not found" when the module is not loaded.
    pub(super) fn open() -> Result<Self, AttachError> {
        let failed = || AttachError::system::<io::Error>("open a generic netlink socket");
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(rustix::net::netlink::GENERIC),
        );
        let socket = socket.map_err(io::Error::from).map_err(failed())?;
        // Connected to the kernel, nobody else can send to it.
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::bind(&socket, &kernel)
            .map_err(io::Error::from)
            .map_err(failed())?;
        rustix::net::connect(&socket, &kernel)
            .map_err(io::Error::from)
            .map_err(failed())?;
        SockRef::from(&socket)
            .set_read_timeout(Some(ANSWER_WAIT))
            .map_err(failed())?;
        let mut client = Self {
            socket,
            family: Family { id: 0, group: None },
            sequence: 0,
        };
        let question = netlink::get_family(client.next());
        client.family = client
            .ask("find the kernel's NBD client", &question, netlink::parse_family)?
            .ok_or(AttachError::Message("no family in the answer"))?;
        Ok(client)
    }

    /// Makes a device and returns its number.
    pub(super) fn connect(&mut self, connect: &Connect<'_>) -> Result<u32, AttachError> {
        let request = netlink::connect(self.family, self.next(), connect);
        self.ask("connect an NBD device", &request, netlink::parse_index)?
            .ok_or(AttachError::Message("a device was made, and not named"))
    }

    /// Gives a device other connections in place of dead ones.
    pub(super) fn reconfigure(&mut self, index: u32, link: &Link<'_>) -> Result<(), AttachError> {
        let request = netlink::reconfigure(self.family, self.next(), index, link);
        self.ask(&format!("reconnect /dev/nbd{index}"), &request, |_| Ok(()))?;
        Ok(())
    }

    /// Gives a device another size, and leaves its connections as they are.
    pub(super) fn resize(&mut self, index: u32, size: u64, link: &Link<'_>) -> Result<(), AttachError> {
        let request = netlink::resize(self.family, self.next(), index, size, link);
        self.ask(&format!("resize /dev/nbd{index}"), &request, |_| Ok(()))?;
        Ok(())
    }

    /// Takes a device away, whoever uses it.
    pub(super) fn disconnect(&mut self, index: u32) -> Result<(), AttachError> {
        let request = netlink::disconnect(self.family, self.next(), index);
        self.ask(&format!("disconnect /dev/nbd{index}"), &request, |_| Ok(()))?;
        Ok(())
    }

    /// Devices, and whether each is connected.
    pub(super) fn status(&mut self) -> Result<Vec<(u32, bool)>, AttachError> {
        let request = netlink::status(self.family, self.next());
        let devices = self.ask("list the NBD devices", &request, netlink::parse_status)?;
        Ok(devices.unwrap_or_default())
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, request, SendFlags::empty())?;
        Ok(())
    }

    /// One datagram into `buffer`.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], AttachError> {
        let len = loop {
            match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, len)) => break len,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(AttachError::system("hear the kernel's answer")(error)),
            }
        };
        buffer
            .get(..len)
            .ok_or(AttachError::Message("it is longer than any of its kind"))
    }

    /// Sends `request` and waits for it to be done. What `parse` makes of the answer, if there was one.
    fn ask<T>(
        &mut self,
        doing: &str,
        request: &[u8],
        parse: impl Fn(&[u8]) -> Result<T, AttachError>,
    ) -> Result<Option<T>, AttachError> {
        self.send(request).map_err(AttachError::system(doing))?;
        let mut buffer = vec![0; DATAGRAM];
        let mut answer = None;
        loop {
            let mut rest = self.receive(&mut buffer)?;
            while let Some((message, next)) = netlink::next_message(rest)? {
                rest = next;
                match message {
                    Message::Done { sequence, error } if sequence == self.sequence => {
                        return error.map_or(Ok(answer), |error| Err(refused(doing, error)));
                    }
                    Message::Generic { sequence, body, .. } if sequence == self.sequence => answer = Some(parse(body)?),
                    // Late answers to what we gave up, and events.
                    _ => {}
                }
            }
        }
    }
}

/// Hears of dead links.
#[derive(Debug)]
pub(super) struct Listener {
    client: Client,
}

impl Listener {
    /// Hears from now on.
    pub(super) fn open() -> Result<Self, AttachError> {
        let client = Client::open()?;
        let group = client
            .family
            .group
            .ok_or(AttachError::Message("the family has no group for dead links"))?;
        let failed = || AttachError::system("listen for dead links");
        sys::join_group(&client.socket, group).map_err(failed())?;
        SockRef::from(&client.socket).set_read_timeout(None).map_err(failed())?;
        Ok(Self { client })
    }

    /// Ends [`Listener::run`], now or when it begins.
    pub(super) fn wake(&self) {
        // Fails only when the kernel has no memory for it; the listener then hears it with the next event.
        let _ = self.client.send(&netlink::noop(0));
    }

    /// Calls `dead` with the number of every device that lost a link, until it is woken up and `stop` says so.
    pub(super) fn run(&self, stop: impl Fn() -> bool, mut dead: impl FnMut(u32)) -> Result<(), AttachError> {
        let mut buffer = vec![0; DATAGRAM];
        while !stop() {
            let mut rest = self.client.receive(&mut buffer)?;
            while let Some((message, next)) = netlink::next_message(rest)? {
                rest = next;
                if let Some(index) = netlink::parse_link_dead(self.client.family, &message)? {
                    dead(index);
                }
            }
        }
        Ok(())
    }
}
