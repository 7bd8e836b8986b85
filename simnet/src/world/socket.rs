//! quinn's socket over the simulated network.

use super::{HostId, Port, Reach, World};
use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A UDP port of a host, for as long as the host lives its life.
#[derive(Debug)]
pub(crate) struct SimSocket {
    world: World,
    host: HostId,
    life: u32,
    port: u16,
}

impl SimSocket {
    /// Opens `port` of a host, or a free one for 0.
    pub(crate) fn bind(world: &World, host: HostId, port: u16) -> io::Result<Arc<Self>> {
        let mut state = world.state();
        let found = state.host_mut(host);
        let port = if port == 0 {
            found.next_port += 1;
            found.next_port
        } else {
            port
        };
        if found.ports.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        found.ports.insert(port, Port { queue: VecDeque::new(), waker: None });
        let life = found.life;
        if !found.translated {
            state.outside(host, port);
        }
        drop(state);
        Ok(Arc::new(Self { world: world.clone(), host, life, port }))
    }
}

impl SimSocket {
    /// Sends a datagram as it is.
    pub(crate) fn send_to(&self, to: SocketAddr, bytes: &[u8]) {
        let mut state = self.world.state();
        if state.host(self.host).life == self.life && state.send(self.host, self.port, to, bytes) {
            drop(state);
            self.world.news.notify_one();
        }
    }

    /// The next datagram that comes, and from where. Cancel safe.
    pub(crate) async fn receive(&self) -> (SocketAddr, Bytes) {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&self, cx: &mut Context) -> Poll<(SocketAddr, Bytes)> {
        let mut state = self.world.state();
        let host = state.host_mut(self.host);
        // Nobody wakes what is of an earlier life: its tasks are being ended.
        let live = host.life == self.life;
        let frozen = host.state == Reach::Frozen;
        let Some(port) = host.ports.get_mut(&self.port).filter(|_| live) else { return Poll::Pending };
        if let Some(next) = port.queue.pop_front_if(|_| !frozen) {
            return Poll::Ready(next);
        }
        port.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut state = self.world.state();
        let host = state.host_mut(self.host);
        if host.life == self.life {
            host.ports.remove(&self.port);
            if let Some(address) = host.outside.remove(&self.port) {
                state.addresses.remove(&address);
            }
        }
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.send_to(transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            let Poll::Ready((from, bytes)) = self.poll_next(cx) else { break };
            let len = fill(buf, &bytes);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 { Poll::Ready(Ok(count)) } else { Poll::Pending }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((self.world.address(self.host), self.port).into())
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

fn fill(buf: &mut IoSliceMut<'_>, bytes: &Bytes) -> usize {
    let len = bytes.len().min(buf.len());
    buf[..len].copy_from_slice(&bytes[..len]);
    len
}
