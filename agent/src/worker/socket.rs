//! Message sockets between agent and worker: one send is one message, descriptors may ride along.
//!
//! SEQPACKET keeps the borders of messages. The ordinary request does not pass here: see `queue`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The most descriptors of one message.
const MAX_DESCRIPTORS: usize = 5;

/// Two connected ends, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Makes sends and receives of this end return `WouldBlock` instead of waiting. The other end is unaffected.
pub fn set_nonblocking(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(socket, true)?)
}

/// Sends one message.
pub fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    loop {
        let result = if descriptors.is_empty() {
            rustix::net::send(&socket, message, SendFlags::NOSIGNAL)
        } else {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("too many descriptors for one message"));
            }
            let slices = [IoSlice::new(message)];
            rustix::net::sendmsg(&socket, &slices, &mut control, SendFlags::NOSIGNAL)
        };
        match result {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// Receives one message into `buffer`; a length of 0 means that the other end is closed. A message that
/// does not fit, or brings more descriptors than [`MAX_DESCRIPTORS`], is an error.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(message) => break message,
        }
    };
    // Taken first, so that they are closed even if the message is refused.
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = part {
            descriptors.extend(more);
        }
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::other("a message is longer than agreed"));
    }
    Ok((message.bytes, descriptors))
}

/// Receives one descriptor with the number of the request that it belongs to.
pub fn receive_parcel(socket: impl AsFd) -> io::Result<(u64, OwnedFd)> {
    let mut number = [0; 8];
    let (length, descriptors) = receive(socket, &mut number)?;
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|_| io::Error::other("a parcel without its one descriptor"))?;
    if length != number.len() {
        return Err(io::Error::other("a parcel without its number"));
    }
    Ok((u64::from_le_bytes(number), descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_borders_and_bring_descriptors() {
        let (a, b) = pair().expect("pair");
        send(&a, b"one", &[]).expect("send");
        send(&a, b"two", &[a.as_fd(), b.as_fd()]).expect("send");
        let mut buffer = [0; 16];
        let (length, descriptors) = receive(&b, &mut buffer).expect("receive");
        assert_eq!((&buffer[..length], descriptors.len()), (&b"one"[..], 0));
        let (length, descriptors) = receive(&b, &mut buffer).expect("receive");
        assert_eq!((&buffer[..length], descriptors.len()), (&b"two"[..], 2));
        drop(descriptors);
        drop(a);
        assert_eq!(receive(&b, &mut buffer).expect("end").0, 0);
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_an_error() {
        let (a, b) = pair().expect("pair");
        send(&a, &[1; 100], &[]).expect("send");
        assert!(receive(&b, &mut [0; 50]).is_err());
    }
}
